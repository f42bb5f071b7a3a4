"""What tests of HTTP/2 are made of: links in memory and over asyncio, peers, and a relay."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event
from hyperframe.frame import Frame

from meshrun.proxy.http.client2 import Http2Client
from meshrun.proxy.http.exchange import Downstream, Exchange, Failure, Handler, Upstream
from meshrun.proxy.http.heads import Fields, Request, Response
from meshrun.proxy.http.link import LinkOwner
from meshrun.proxy.http.server2 import Http2Server

__all__ = [
    "AsyncLink",
    "ClientPeer",
    "MemoryLink",
    "Recorded",
    "Recorder",
    "RelayHandler",
    "ServerPeer",
    "frames_of",
]


class MemoryLink:
    """A link whose other end is the test: it reads `out`, and says what comes and whether it is
    taken."""

    def __init__(self) -> None:
        self.owner: LinkOwner | None = None
        self.out = bytearray()
        self.clogged = False
        self.listening = True
        self.state = "open"  # closed, reset
        self.later: list[Callable[[], None]] = []
        self.timers: list[MemoryTimer] = []

    def start(self, owner: LinkOwner) -> None:
        self.owner = owner

    def write(self, data: bytes | memoryview) -> None:
        if self.state == "open":
            self.out += data

    def end(self) -> None:
        raise AssertionError("HTTP/2 ends both directions at once")

    def listen(self, wanted: bool) -> None:
        self.listening = wanted

    def close(self, *, linger: bool = True) -> None:
        self.state = "closed"
        self.owner = None

    def mark(self) -> None:
        """Ask of nothing that is written."""

    @property
    def unheard(self) -> bool:
        """Say that what was written may have been heard."""
        return False

    @property
    def stale(self) -> bool:
        """Say that nothing has come unread."""
        return False

    def soon(self, callback: Callable[[], None]) -> None:
        self.later.append(callback)

    def after(self, wait_s: float, callback: Callable[[], None]) -> "MemoryTimer":
        timer = MemoryTimer(self, wait_s, callback)
        self.timers.append(timer)
        return timer

    def reset(self) -> None:
        self.state = "reset"
        self.owner = None

    def idle_s(self) -> float:
        return 0.0

    # The test's side.

    def take(self) -> bytes:
        """Return what was written, also in turns of the loop that come later."""
        self._take_turns()
        data = bytes(self.out)
        self.out.clear()
        return data

    def deliver(self, data: bytes) -> None:
        """Let `data` come, and all be understood that has."""
        if self.owner is not None:
            self.owner.received(memoryview(data))
        self._take_turns()

    def _take_turns(self) -> None:
        while self.later:
            self.later.pop(0)()

    def unclog(self) -> None:
        """Take what was written, and more."""
        self.clogged = False
        if self.owner is not None:
            self.owner.drained()


@dataclass
class MemoryTimer:
    """What a link shall call later: when the test says so."""

    link: MemoryLink
    wait_s: float
    callback: Callable[[], None]

    def cancel(self) -> None:
        self.link.timers.remove(self)

    def fire(self) -> None:
        self.link.timers.remove(self)
        self.callback()


@dataclass
class Recorded:
    """An exchange that notes what it is told, in words, and answers as the test says."""

    request: Request | None = None
    downstream: Downstream | None = None
    upstream: Upstream | None = None
    said: list[str] = field(default_factory=list)
    body: bytearray = field(default_factory=bytearray)
    heads: list[Response] = field(default_factory=list)
    trailers: Fields = field(default_factory=list)
    failure: Failure | None = None
    flushes: int = 0
    on_data: Callable[[], None] = lambda: None

    def request_data(self, data: bytes | memoryview) -> None:
        self.body += data
        self.said.append("data")
        self.on_data()

    def request_end(self, trailers: Fields) -> None:
        self.trailers = trailers
        self.said.append("end")

    def request_aborted(self, reason: str, status: int = 0) -> None:
        self.said.append(f"aborted: {reason}")

    def hold_response(self) -> None:
        self.said.append("hold")

    def resume_response(self) -> None:
        self.said.append("resume")

    def response_head(self, head: Response) -> None:
        self.heads.append(head)
        self.said.append(f"head {head.status}")

    def response_data(self, data: bytes | memoryview) -> None:
        self.request_data(data)

    def response_end(self, trailers: Fields) -> None:
        self.request_end(trailers)

    def response_failed(self, failure: Failure, reason: str) -> None:
        self.failure = failure
        self.said.append(f"failed: {reason}")

    def hold_request(self) -> None:
        self.said.append("hold")

    def resume_request(self) -> None:
        self.said.append("resume")

    def flush_request(self) -> None:
        self.flushes += 1

    def flush_response(self) -> None:
        self.flushes += 1


class Recorder:
    """A handler that keeps its exchanges, and lets the test answer within `begin`."""

    def __init__(self, on_begin: Callable[[Request, Downstream], None] = lambda *_: None) -> None:
        self.exchanges: list[Recorded] = []
        self.refusals: list[int] = []
        self.closings = 0
        self.on_begin = on_begin

    def begin(self, request: Request, downstream: Downstream) -> Exchange:
        exchange = Recorded(request=request, downstream=downstream)
        self.exchanges.append(exchange)
        self.on_begin(request, downstream)
        return exchange

    def refused(self, status: int, reason: str, *, begun: bool) -> None:
        assert reason
        self.refusals.append(status)

    def closed(self) -> None:
        self.closings += 1


def frames_of(data: bytes) -> list[Frame]:
    """Return the frames that `data` is made of."""
    frames = []
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        frames.append(frame)
        data = data[9 + length :]
    return frames


def _peer(*, client: bool) -> H2Connection:
    # A peer may send what it likes; only what it gets must be right.
    return H2Connection(
        H2Configuration(
            client_side=client,
            header_encoding=False,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
        )
    )


class _Peer:
    link: MemoryLink
    h2: H2Connection

    def __init__(self) -> None:
        self.events: list[Event] = []

    def exchange(self) -> list[Event]:
        """Let both sides hear each other until neither says more; return what the peer heard."""
        heard: list[Event] = []
        while True:
            data = self.h2.data_to_send()
            if data:
                self.link.deliver(data)
            answer = self.link.take()
            if answer:
                heard += self.h2.receive_data(answer)
            elif not data:
                self.events += heard
                return heard

    def of(self, kind: type[Event], stream: int | None = None) -> list[Event]:
        """Return what was heard of one kind."""
        return [
            event
            for event in self.events
            if isinstance(event, kind) and stream in (None, getattr(event, "stream_id", None))
        ]


class ClientPeer(_Peer):
    """A client of h2 before an `Http2Server`."""

    def __init__(self, handler: Handler, *, grpc: bool = False) -> None:
        super().__init__()
        self.link = MemoryLink()
        self.server = Http2Server(self.link, handler, grpc=grpc)
        self.h2 = _peer(client=True)
        self.h2.initiate_connection()
        self.server.start()
        self.exchange()

    def request(self, *extra: tuple[bytes, bytes], method: bytes = b"GET", end: bool = True) -> int:
        """Send a request; return its stream."""
        number = self.h2.get_next_available_stream_id()
        head = [
            (b":method", method),
            (b":scheme", b"http"),
            (b":path", b"/a"),
            (b":authority", b"app"),
        ]
        self.h2.send_headers(number, [*head, *extra], end_stream=end)
        return number


class ServerPeer(_Peer):
    """A server of h2 behind an `Http2Client`."""

    def __init__(self) -> None:
        super().__init__()
        self.link = MemoryLink()
        self.changes: list[int] = []
        self.client = Http2Client(self.link, lambda client: self.changes.append(client.capacity))
        self.h2 = _peer(client=False)
        self.h2.initiate_connection()
        self.client.start()
        self.exchange()


# A relay over both.


class _Relay:
    def __init__(self, downstream: Downstream) -> None:
        self.downstream = downstream
        self.upstream: Upstream | None = None

    def request_data(self, data: bytes | memoryview) -> None:
        if self.upstream is not None:
            self.upstream.send(data)

    def request_end(self, trailers: Fields) -> None:
        if self.upstream is not None:
            self.upstream.end(trailers)

    def request_aborted(self, reason: str, status: int = 0) -> None:
        if self.upstream is not None:
            self.upstream.abort(reason)
            self.upstream = None

    def hold_response(self) -> None:
        if self.upstream is not None:
            self.upstream.hold()

    def resume_response(self) -> None:
        if self.upstream is not None:
            self.upstream.resume()

    def flush_request(self) -> None:
        if self.upstream is not None:
            self.upstream.flush()

    def response_head(self, head: Response) -> None:
        self.downstream.respond(head)

    def response_data(self, data: bytes | memoryview) -> None:
        self.downstream.send(data)

    def response_end(self, trailers: Fields) -> None:
        self.upstream = None
        self.downstream.end(trailers)

    def response_failed(self, failure: Failure, reason: str) -> None:
        self.upstream = None
        self.downstream.abort(reason)

    def hold_request(self) -> None:
        self.downstream.hold()

    def resume_request(self) -> None:
        self.downstream.resume()

    def flush_response(self) -> None:
        self.downstream.flush()


class RelayHandler:
    """Passes every request on to `client`, as it comes."""

    def __init__(self, client: Http2Client) -> None:
        self._client = client

    def begin(self, request: Request, downstream: Downstream) -> Exchange:
        relay = _Relay(downstream)
        relay.upstream = self._client.request(request, relay)
        return relay

    def refused(self, status: int, reason: str, *, begun: bool) -> None:
        pass

    def closed(self) -> None:
        self._client.retire()


class AsyncLink(asyncio.BufferedProtocol):
    """A link over a transport of asyncio."""

    def __init__(self, make_owner: Callable[["AsyncLink"], None]) -> None:
        self._make_owner = make_owner
        self._owner: LinkOwner | None = None
        self._transport: asyncio.Transport | None = None
        self._room = bytearray(64 * 1024)
        self._moved = time.monotonic()
        self.clogged = False

    # The transport's side.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.set_write_buffer_limits(high=0)
        transport.pause_reading()  # until there is somebody to tell
        self._transport = transport
        self._make_owner(self)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._room

    def buffer_updated(self, nbytes: int) -> None:
        self._moved = time.monotonic()
        if self._owner is not None:
            self._owner.received(memoryview(self._room)[:nbytes])

    def eof_received(self) -> bool:
        if self._owner is not None:
            self._owner.ended()
        return False

    def pause_writing(self) -> None:
        self.clogged = True

    def resume_writing(self) -> None:
        self.clogged = False
        if self._owner is not None:
            self._owner.drained()

    def connection_lost(self, exc: Exception | None) -> None:
        owner, self._owner = self._owner, None
        if owner is not None:
            owner.broken(str(exc or "closed"))

    # The owner's.

    def start(self, owner: LinkOwner) -> None:
        self._owner = owner
        if self._transport is not None:
            self._transport.resume_reading()

    def write(self, data: bytes | memoryview) -> None:
        if self._transport is not None:
            self._moved = time.monotonic()
            self._transport.write(bytes(data))

    def end(self) -> None:
        raise AssertionError("HTTP/2 ends both directions at once")

    def listen(self, wanted: bool) -> None:
        if self._transport is not None:
            (self._transport.resume_reading if wanted else self._transport.pause_reading)()

    def close(self, *, linger: bool = True) -> None:
        self._owner = None
        if self._transport is not None:
            self._transport.close()

    def mark(self) -> None:
        """Ask of nothing that is written."""

    @property
    def unheard(self) -> bool:
        """Say that what was written may have been heard."""
        return False

    @property
    def stale(self) -> bool:
        """Say that nothing has come unread."""
        return False

    def soon(self, callback: Callable[[], None]) -> None:
        asyncio.get_running_loop().call_soon(callback)

    def after(self, wait_s: float, callback: Callable[[], None]) -> asyncio.TimerHandle:
        return asyncio.get_running_loop().call_later(wait_s, callback)

    def reset(self) -> None:
        self._owner = None
        if self._transport is not None:
            self._transport.abort()

    def idle_s(self) -> float:
        return time.monotonic() - self._moved
