"""The far ends of lines in memory: instances that take streams, answer, refuse and break."""

import asyncio
from collections.abc import Sequence
from random import Random
from typing import cast

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import RequestReceived, StreamReset

from meshrun.proxy import outbound_tunnels
from meshrun.proxy.balance import Balancer
from meshrun.proxy.framing import Decoder, Frame, Refusal, encode, encode_refusal
from meshrun.proxy.handshake import Secured
from meshrun.proxy.http import route
from meshrun.proxy.http.circuit import Circuit
from meshrun.proxy.http.exchange import Failure, Upstream
from meshrun.proxy.http.heads import Fields, Request, Response
from meshrun.proxy.http.line import Line
from meshrun.proxy.http.route import Route, Routes
from meshrun.proxy.identity import Credentials, Identity
from meshrun.proxy.messages import Endpoint, Protocol, Requests, Share
from meshrun.proxy.messages import Upstream as UpstreamSettings
from meshrun.proxy.poller import Poller
from meshrun.proxy.pump import Owner, Pump
from meshrun.proxy.spiffe import SpiffeId

__all__ = ["Asked", "Attempt", "Far", "Peer", "instances", "upstream_of"]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
HEAD_END = b"\r\n\r\n"


def instances(count: int, service: str = "server") -> tuple[Endpoint, ...]:
    """Return endpoints of a service."""
    return tuple(
        Endpoint(instance=f"{service}.{n}", host="127.0.0.1", port=n) for n in range(1, count + 1)
    )


class Asked:
    """A request on its way, and the exchange of it, which notes how it ended."""

    def __init__(self, method: str = "GET") -> None:
        self.request = Request(method=method, path="/", query="", authority="server")
        self.route: Route | None = None
        self.line: Line | None = None
        self.upstream: Upstream | None = None
        self.over = asyncio.Event()
        self.unsent = False
        self._how = ""
        self._status = 0

    def ended(self) -> str:
        """Return how it ended: with a status, or why it failed."""
        return self._how

    def send_over(self, line: Line) -> None:
        self.line = line
        line.in_flight.began()
        self.upstream = line.client.request(self.request, self, [])
        self.upstream.end([])

    def flush_request(self) -> None:
        if self.upstream is not None:
            self.upstream.flush()

    def fail(self, status: int, text: str, reason: str) -> None:
        self._end(str(status))

    def abort(self) -> None:
        """Let whoever asked go away."""
        upstream, self.upstream = self.upstream, None
        if upstream is not None:
            upstream.abort("whoever asked is gone")
        elif self.route is not None:
            self.route.forget(self)
        self._end("aborted")

    def response_head(self, head: Response) -> None:
        self._status = head.status

    def response_data(self, data: bytes | memoryview) -> None: ...

    def response_end(self, trailers: Fields) -> None:
        self._end(str(self._status))

    def response_failed(self, failure: Failure, reason: str) -> None:
        assert self.line is not None
        self.unsent = self.line.unsent
        self._end(reason)

    def flush_response(self) -> None: ...

    def hold_request(self) -> None: ...

    def resume_request(self) -> None: ...

    def request_data(self, data: bytes | memoryview) -> None: ...

    def request_end(self, trailers: Fields) -> None: ...

    def request_aborted(self, reason: str, status: int = 0) -> None: ...

    def hold_response(self) -> None: ...

    def resume_response(self) -> None: ...

    def _end(self, how: str) -> None:
        assert not self._how
        self._how = how
        self.over.set()
        self.upstream = None
        if self.line is not None:
            self.line.left()


class Peer:
    """The other end of a tunnel, in place of its pump: one stream after another."""

    def __init__(self, endpoint: Endpoint, *, multiplexed: bool) -> None:
        self.endpoint = endpoint
        self.closed = False
        self.gone = False  # its process has been killed, and nobody has noticed
        self.state = "idle"  # opened, accepted
        self._multiplexed = multiplexed
        self._owner: Owner | None = None
        self._decoder = Decoder()
        self._answers = bytearray()  # to what is heard, for the next turn
        self._h2: H2Connection | None = None
        self._heard = b""
        self._waiting: list[int] = []

    @property
    def requests(self) -> int:
        """How many requests have come in the stream under way, and wait for an answer."""
        if self._multiplexed:
            return len(self._waiting)
        return self._heard.count(HEAD_END)

    # The test's side.

    def accept(self) -> None:
        """Accept the stream that was opened."""
        assert self.state == "opened"
        self.state = "accepted"
        self._deliver(encode(Frame.ACCEPTED) + self._take_h2())

    def refuse(self, refusal: Refusal) -> None:
        """Refuse it."""
        assert self.state == "opened"
        self.state = "idle"
        self._deliver(encode_refusal(refusal, "no"))

    def answer(self) -> None:
        """Answer the oldest request."""
        assert self.state == "accepted"
        if self._h2 is not None:
            self._h2.send_headers(self._waiting.pop(0), [(":status", "200")], end_stream=True)
            self._deliver(self._take_h2())
        else:
            self._heard = self._heard.partition(HEAD_END)[2]
            self._deliver(self._data(OK))

    def break_off(self) -> None:
        """Break the connection."""
        if self._owner is not None:
            self._owner.broken(ConnectionResetError("reset by peer"))

    def settle(self) -> bool:
        """Say what is to be said; return whether there was something."""
        answers, self._answers = bytes(self._answers), bytearray()
        if answers and not self.closed:
            self._deliver(answers)
        return bool(answers)

    # The tunnel's side: as a pump.

    empty = True

    @property
    def hung_up(self) -> bool:
        return self.gone or self.closed

    def start(self, owner: Owner) -> None:
        self._owner = owner

    def listen(self, wanted: bool) -> None: ...

    def write(self, data: memoryview | bytes) -> bool:
        assert not self.closed
        if self.gone:
            return True
        for frame, payload in self._decoder.feed(memoryview(bytes(data))):
            if frame is Frame.OPEN:
                assert self.state == "idle"
                self.state = "opened"
                self._heard, self._waiting = b"", []
                self._h2 = _server() if self._multiplexed else None
            elif frame is Frame.DATA:
                self._hear(bytes(payload))
            else:
                # The end of the stream, in whatever way: said by both sides.
                if self.state != "idle":
                    self._answers += encode(Frame.RESET)
                self.state = "idle"
        return True

    def close(self) -> None:
        self.closed = True
        self._owner = None

    def close_in_order(self) -> None:
        self.close()

    def reset(self) -> None:
        self.close()

    def _hear(self, data: bytes) -> None:
        if self._h2 is None:
            self._heard += data
            return
        for event in self._h2.receive_data(data):
            if isinstance(event, RequestReceived):
                self._waiting.append(event.stream_id)
            elif isinstance(event, StreamReset) and event.stream_id in self._waiting:
                self._waiting.remove(event.stream_id)
        if self.state == "accepted":
            self._answers += self._take_h2()

    def _take_h2(self) -> bytes:
        data = self._h2.data_to_send() if self._h2 is not None else b""
        return self._data(data) if data else b""

    def _data(self, data: bytes) -> bytes:
        return (Frame.DATA << 24 | len(data)).to_bytes(4, "big") + data

    def _deliver(self, data: bytes) -> None:
        if self._owner is not None:
            self._owner.received(memoryview(data), ended=False)


def _server() -> H2Connection:
    made = H2Connection(H2Configuration(client_side=False))
    made.initiate_connection()
    return made


class Attempt:
    """An attempt to connect, of which the test says what comes."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.outcome: asyncio.Future[_Connection] = asyncio.get_running_loop().create_future()


class _Connection:
    tunnel = True
    not_after = float("inf")

    def __init__(self, endpoint: Endpoint, credentials: Credentials, peer: Peer) -> None:
        self.endpoint = endpoint
        self.credentials = credentials
        self.secured = cast(Secured, peer)


class _Identity:
    expired = False
    current = cast(Credentials, object())

    async def credentials(self) -> Credentials:
        return self.current

    def serves(self, credentials: Credentials, not_after: float) -> bool:
        return credentials is self.current


class Far:
    """The routes to services whose instances are the test: it says what comes of each attempt.

    Only on a loop. At the end everything must have been given back.
    """

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        protocol: Protocol,
        *,
        requests: Requests | None = None,
        connect_timeout_s: float = 60.0,
        seed: int = 1,
    ) -> None:
        self.protocol = protocol
        self.attempts: list[Attempt] = []
        self.peers: list[Peer] = []
        self.failures: list[str] = []
        self.balancers: list[Balancer] = []
        self.circuit = Circuit()
        self._attempted = asyncio.Event()
        self._requests = requests or Requests()
        self._connect_timeout_s = connect_timeout_s
        monkeypatch.setattr(route, "Balancer", self._balancer)
        # One round follows another at once: the test says how each attempt ends.
        monkeypatch.setattr(outbound_tunnels, "FIRST_ROUND_S", 0.0)
        monkeypatch.setattr(outbound_tunnels, "LONGEST_ROUND_S", 0.0)
        monkeypatch.setattr(outbound_tunnels, "Connector", self._connector)
        monkeypatch.setattr(outbound_tunnels, "Pump", lambda _, peer: cast(Pump, peer))
        self.identity = cast(Identity, _Identity())
        self.routes = Routes(
            cast(Poller, None),
            self.identity,
            Random(seed),
            self.circuit,
            self.failures.append,
        )

    def lead_to(self, *shares: tuple[str, Sequence[Endpoint]]) -> None:
        """Apply a snapshot in which these services share the requests."""
        self.routes.apply(
            upstream_of(
                *shares,
                protocol=self.protocol,
                requests=self._requests,
                connect_timeout_s=self._connect_timeout_s,
            )
        )

    def ask(self, method: str = "GET") -> Asked:
        """Send a request."""
        asked = Asked(method)
        self.routes.send(asked)
        asked.flush_request()
        return asked

    def connect(self, attempt: Attempt | None = None) -> Peer:
        """Let an attempt, the oldest if none is named, reach an instance."""
        attempt = attempt or self.attempts[0]
        self.attempts.remove(attempt)
        peer = Peer(attempt.endpoint, multiplexed=self.protocol != "http")
        self.peers.append(peer)
        attempt.outcome.set_result(_Connection(attempt.endpoint, _Identity.current, peer))
        return peer

    def begin(self, attempt: Attempt) -> None:
        """Note an attempt."""
        self.attempts.append(attempt)
        self._attempted.set()

    def refuse(self, attempt: Attempt) -> None:
        """Let an attempt fail."""
        self.attempts.remove(attempt)
        attempt.outcome.set_exception(ConnectionRefusedError("refused"))

    async def attempted(self, endpoint: Endpoint) -> None:
        """Return once there is an attempt to reach `endpoint`."""
        while endpoint not in [attempt.endpoint for attempt in self.attempts]:
            self._attempted.clear()
            await self._attempted.wait()

    async def serve(self) -> None:
        """Let every attempt succeed and every request be answered, until there are no more."""
        await self.settle()
        busy = True
        while busy:
            busy = bool(self.attempts)
            for attempt in list(self.attempts):
                self.connect(attempt)
            await self.settle()
            for peer in self.peers:
                if peer.state == "opened":
                    busy = True
                    peer.accept()
                    await self.settle()
                while peer.state == "accepted" and peer.requests:
                    busy = True
                    peer.answer()
            await self.settle()

    async def settle(self) -> None:
        """Let everything happen that needs no more than its turn."""
        quiet = 0
        while quiet < 10:
            await asyncio.sleep(0)
            said = [peer.settle() for peer in self.peers]
            quiet = 0 if any(said) else quiet + 1

    def in_flight(self, endpoint: Endpoint) -> int:
        """Return how many requests and attempts are counted at an endpoint, by all routes."""
        counts = [balancer.standing(endpoint).in_flight for balancer in self.balancers]
        assert all(count >= 0 for count in counts)
        return sum(counts)

    def _balancer(self) -> Balancer:
        self.balancers.append(Balancer())
        return self.balancers[-1]

    def _connector(self, _poller: Poller, identity: SpiffeId) -> "_Connector":
        return _Connector(self, identity)


class _Connector:
    def __init__(self, far: Far, identity: SpiffeId) -> None:
        self._far = far
        self.identity = identity

    async def connect(self, endpoint: Endpoint, credentials: Credentials) -> _Connection:
        attempt = Attempt(endpoint)
        self._far.begin(attempt)
        try:
            return await attempt.outcome
        finally:
            if attempt in self._far.attempts:
                self._far.attempts.remove(attempt)


def upstream_of(
    *shares: tuple[str, Sequence[Endpoint]],
    protocol: Protocol,
    requests: Requests,
    connect_timeout_s: float,
) -> UpstreamSettings:
    """Return an upstream whose requests these services share."""
    return UpstreamSettings(
        name="server",
        service=shares[0][0],
        identity=_identity(shares[0][0]),
        connect_timeout_s=connect_timeout_s,
        protocol=protocol,
        requests=requests,
        endpoints=(),
        split=tuple(
            Share(
                service=service,
                identity=_identity(service),
                weight=1,
                endpoints=tuple(endpoints),
            )
            for service, endpoints in shares
        ),
    )


def _identity(service: str) -> str:
    return str(SpiffeId.for_service("test.mesh", service))
