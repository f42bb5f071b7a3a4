"""HTTP in front of the app: every request is judged for itself, and only then the app hears of it.

A connection of a peer is let in whoever of this mesh it is, since what is denied is answered with a
403. Each has connections of its own to the app, made when its first request is let in.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Coroutine
from random import Random

from meshrun.proxy import callee, dial, sockets, tasks
from meshrun.proxy.caller import Caller
from meshrun.proxy.gate import Call, Gate
from meshrun.proxy.http import own_fields
from meshrun.proxy.http.client1 import Http1Client
from meshrun.proxy.http.client2 import Http2Client
from meshrun.proxy.http.exchange import Downstream, Failure
from meshrun.proxy.http.heads import NO_BODY, Fields, Request, Response
from meshrun.proxy.http.link import Link, SocketLink
from meshrun.proxy.http.relay import Relay, count_refused, record
from meshrun.proxy.http.retries import may_retry
from meshrun.proxy.http.semantics import MULTIPLEXED
from meshrun.proxy.http.session import Session, Sessions
from meshrun.proxy.idleness import IdleWatch
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.messages import ConnectionFailed, Denied, Protocol
from meshrun.proxy.poller import Poller
from meshrun.proxy.reports import Report

__all__ = ["HttpInbound"]

# How long a connection to the app is kept for the next request of a caller. One costs the app a
# place, often a thread, and the next request little: a connection over the loopback.
APP_IDLE_S = 60.0

# After how long a kept connection is none for what may not be sent twice: the app may be about to
# close it, and would drop what comes. gunicorn waits 2 s, Node and uvicorn 5 s, most others longer;
# Apache's HttpClient distrusts a connection after 2 s.
TRUSTED_S = 1.0

# Where there is no place left, a connection gives its own up over which nothing was asked for so
# long. Only requests that may be made count: else callers that are denied could hold all places.
# An honest one soon has another.
SPARE_S = 1.0

DENIED = "this call is not allowed here"
EXPIRED = "the caller's certificate has expired"


class HttpInbound:
    """Serves the requests that come over connections of peers."""

    def __init__(
        self,
        poller: Poller,
        gate: Gate,
        ledger: Ledger,
        report: Callable[[Report], None],
        rng: Random,
    ) -> None:
        self.request_ids = own_fields.RequestIds(rng)
        self.poller = poller
        self.gate = gate
        self.ledger = ledger
        self.report = report
        self.sessions = Sessions(self.failed)
        self.to_app: set[Http1Client | Http2Client] = set()
        self._idle = IdleWatch(lambda: [_Spare(client) for client in self.to_app], lambda _: None)
        self._idle.set(APP_IDLE_S)

    @property
    def protocol(self) -> Protocol:
        """What the app speaks."""
        return self.gate.app.protocol

    def serve(self, link: Link, caller: Caller, call: Call) -> None:
        """Take over the connection of a peer, which counts as `call`; call `link`'s start."""
        session = _Session(self, caller, call)
        call.cut = session.reset
        session.serve(link, self.protocol)

    def make_room(self) -> bool:
        """Cut a connection that can be spared; return whether there was one."""
        if not self.sessions.cut_spare(SPARE_S):
            return False
        self.failed("a connection without requests had to make room for another (max_connections)")
        return True

    def rotate(self) -> None:
        """Take no more requests over connections under an old leaf; those under way go on."""
        self.sessions.retire()

    def close(self) -> None:
        """Watch nothing any more; the gate cuts the connections."""
        self.sessions.close()
        self._idle.close()

    def connected(self, client: Http1Client | Http2Client) -> None:
        """There is another connection to the app, whose end takes it out of `to_app`."""
        self.to_app.add(client)
        self._idle.connected()

    def failed(self, reason: str) -> None:
        """Report that the app could not be reached, or broke off."""
        self.report(ConnectionFailed(upstream=None, reason=reason))


class _Spare:
    """A connection to the app as its idle watch sees it: one that carries a request moves."""

    def __init__(self, client: Http1Client | Http2Client) -> None:
        self._client = client

    def idle_s(self) -> float:
        """Return for how long it was kept for the next request."""
        return self._client.idle_s() if self._client.idle else 0.0

    def reset(self, reason: str) -> None:
        """Close it in order: the next request finds it gone, and makes another."""
        self._client.retire()


class _Session(Session):
    """One connection of a peer, and its connections to the app."""

    def __init__(self, inbound: HttpInbound, caller: Caller, call: Call) -> None:
        super().__init__(inbound.sessions)
        self.inbound = inbound
        self.caller = caller
        self._call = call
        self.identity: Fields = own_fields.identity_of(
            caller.identity, caller.fingerprint, told_by=inbound.gate.snapshot.identity
        )
        self.grpc = inbound.protocol == "grpc"
        self.multiplexed = inbound.protocol in MULTIPLEXED
        self._idle: list[Http1Client] = []
        self._clients1: set[Http1Client] = set()
        self._clients2: set[Http2Client] = set()
        self._dialling: asyncio.Task[None] | None = None
        self._waiting: list[_Exchange] = []
        self._let_in = 0  # requests under way
        self._spare_since = time.monotonic()

    def spare_s(self) -> float:
        """Return for how long no request was under way that may be made, 0 where one is."""
        return 0.0 if self._let_in else time.monotonic() - self._spare_since

    def let_in(self) -> None:
        """A request may be made, and is under way."""
        self._let_in += 1

    def let_out(self, now: float) -> None:
        """It is over."""
        self._let_in -= 1
        self._spare_since = now

    # The server's handler.

    def begin(self, request: Request, downstream: Downstream) -> "_Exchange":
        """Judge a request, and send it on."""
        exchange = _Exchange(self, request, downstream)
        exchange.begin()
        return exchange

    def refused(self, status: int, reason: str, *, begun: bool) -> None:
        """What came is no request."""
        caller = self.caller
        self.inbound.report(Denied(kind="request", source=caller.service, reason=reason))
        if begun:
            return
        count_refused(
            self.inbound.ledger,
            status,
            reason,
            source=caller.service,
            identity=caller.identity,
            destination=self.inbound.gate.snapshot.service,
            multiplexed=self.multiplexed,
        )

    def closed(self) -> None:
        """The connection is over, and those to the app with it."""
        super().closed()
        self.inbound.gate.leave(self._call)
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        for client1 in list(self._clients1):
            client1.close() if client1.idle else client1.reset("the caller is gone")
        for client2 in list(self._clients2):
            client2.retire()

    # To the app.

    def forward(self, exchange: "_Exchange", *, fresh: bool = False) -> None:
        """Send a request to the app, over a connection that is there or a new one."""
        client = self._ready(exchange.request, fresh=fresh)
        if client is not None:
            exchange.send_over(client)
            return
        if self._dialling is not None:  # one connection carries all that wait
            self._waiting.append(exchange)
            return
        app = self.inbound.gate.app
        failed: OSError | None = None
        try:
            sock = dial.at_once(app.host, app.port)
        except OSError as error:
            sock, failed = None, error
        if sock is not None:
            exchange.send_over(self._adopt(sock))
        elif self.multiplexed:
            self._waiting.append(exchange)
            self._dialling = tasks.start(self._dial_for_all(failed), "connection to the app")
        else:
            exchange.wait(self._dial(exchange, failed))

    def _ready(self, request: Request, *, fresh: bool) -> Http1Client | Http2Client | None:
        if self.multiplexed:
            return next((client for client in self._clients2 if client.capacity), None)
        if fresh:
            return None
        with_body = request.framing is not NO_BODY
        while self._idle:
            client = self._idle.pop()
            # What may not be sent twice does not go where the app has just hung up, which shows at
            # once on the loopback, or may in this moment. Else to look would cost each request a
            # system call.
            if may_retry(request.method, Failure.SILENT, body_sent=with_body) or not (
                client.stale or client.idle_s() >= TRUSTED_S
            ):
                return client
            client.close()
        return None

    async def _dial(self, exchange: "_Exchange", failed: OSError | None) -> None:
        try:
            sock = await callee.reach(self.inbound.poller, self.inbound.gate.app, failed)
        except OSError as error:
            self._unreachable(error, [exchange])
            return
        if self.over or exchange.gone:
            sockets.reset(sock)
        else:
            exchange.send_over(self._adopt(sock))
            exchange.flush_request()

    async def _dial_for_all(self, failed: OSError | None) -> None:
        try:
            sock = await callee.reach(self.inbound.poller, self.inbound.gate.app, failed)
        except OSError as error:
            self._dialling = None
            waiting, self._waiting = self._waiting, []
            self._unreachable(error, waiting)
            return
        self._dialling = None
        waiting, self._waiting = self._waiting, []
        client = self._adopt(sock)
        for exchange in waiting:
            if not exchange.gone:
                self.forward(exchange)
                exchange.flush_request()
        if client.idle:
            client.retire()  # nobody waits any more

    def _unreachable(self, error: OSError, waiting: "list[_Exchange]") -> None:
        reason = error.strerror or str(error)
        self.inbound.failed(reason)
        for exchange in waiting:
            exchange.unreachable(reason)

    def _adopt(self, sock: socket.socket) -> Http1Client | Http2Client:
        sockets.guard(sock)
        link = SocketLink(self.inbound.poller, sock)
        if self.multiplexed:
            client2 = Http2Client(link, self._changed)
            self._clients2.add(client2)
            self.inbound.connected(client2)
            client2.start()
            return client2
        client1 = Http1Client(link, self._idle.append, self._lost)
        self._clients1.add(client1)
        self.inbound.connected(client1)
        client1.start()
        return client1

    def _lost(self, client: Http1Client) -> None:
        self._clients1.discard(client)
        self.inbound.to_app.discard(client)
        if client in self._idle:
            self._idle.remove(client)

    def _changed(self, client: Http2Client) -> None:
        if client.closed:
            self._clients2.discard(client)
            self.inbound.to_app.discard(client)


class _Exchange(Relay):
    """A request of a peer, on its way to the app if it may be made."""

    tells_failures = True

    __slots__ = (
        "_again",
        "_client",
        "_denied",
        "_dialling",
        "_dry_run",
        "_failure",
        "_let_in",
        "_session",
        "caller",
    )

    def __init__(self, session: _Session, request: Request, downstream: Downstream) -> None:
        super().__init__(request, downstream, grpc=session.grpc)
        self._session = session
        self.caller = session.caller
        self._client: Http1Client | Http2Client | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._again = False
        self._denied = False
        self._dry_run = False
        self._let_in = False
        self._failure = ""

    @property
    def gone(self) -> bool:
        """Whether nobody waits for an answer any more."""
        return not self.response_open

    def begin(self) -> None:
        """Judge the request, and send it on or answer it."""
        session, caller = self._session, self.caller
        inbound = session.inbound
        if time.time() >= caller.not_after:
            inbound.report(Denied(kind="peer", source=caller.service, reason=EXPIRED))
            self._deny()
            session.retire()
            return
        request = self.request
        own_fields.add_request_id(request.fields, inbound.request_ids)
        decision = inbound.gate.judge(self)
        if decision.allowed:
            self._dry_run = decision.dry_run
            self._let_in = True
            session.let_in()
            session.forward(self)
        else:
            self._deny()

    def send_over(self, client: Http1Client | Http2Client) -> None:
        """Send the request over `client`."""
        self._client = client
        if isinstance(client, Http1Client) and not client.used:
            self._keeps = False  # the app has accepted it for this request, and will hear it
        self._dialling = None
        self.connect(client.request(self.request, self, self._session.identity))

    def wait(self, dialling: Coroutine[object, object, None]) -> None:
        """Wait for the app to listen."""
        self._dialling = tasks.start(dialling, "request")

    def unreachable(self, reason: str) -> None:
        """The app did not take a connection in time."""
        self._dialling = None
        self._failure = reason
        self.answer(503, "the app does not answer", Failure.UNSENT)

    def permitted(self, trailers: Fields) -> Fields:
        """Return those that no rule would have looked at in the head.

        uvicorn with httptools shows trailers as headers, aiohttp those of the next request.
        """
        return self._session.inbound.gate.undecided(self.caller, trailers)

    def response_head(self, head: Response) -> None:
        """Pass a head on."""
        if head.status == 503 or self.grpc:
            own_fields.take_failure(head)  # what only this sidecar may say
        super().response_head(head)

    def response_failed(self, failure: Failure, reason: str) -> None:
        """Ask again what a connection that the app was about to close has swallowed."""
        client = self._client
        stale = failure is Failure.UNSENT or (isinstance(client, Http1Client) and client.used)
        if (
            stale
            and not self._again
            and self.response_open
            and may_retry(
                self.request.method,
                failure,
                body_sent=bool(self.received_bytes),
                body_kept=self.body_kept,
            )
        ):
            self._again = True
            self._take_back()
            self._session.forward(self, fresh=True)
            self.flush_request()
            return
        if isinstance(client, Http1Client) and client.used and failure is Failure.SILENT:
            reason = f"{reason}, on one that was kept"
        self._failure = reason
        self._session.inbound.failed(reason)
        super().response_failed(failure, reason)

    def over(self, reason: str) -> None:
        """Count what is over, and tell of it if that is wanted."""
        if self._dialling is not None:
            self._dialling.cancel()
            self._dialling = None
        session, caller = self._session, self.caller
        inbound = session.inbound
        gate = inbound.gate
        gate.done(self)
        now = time.monotonic()
        if self._let_in:
            session.let_out(now)
        duration_s = now - self.began
        service = gate.snapshot.service
        ledger = inbound.ledger
        ledger.exchanged(
            caller.service,
            service,
            self.status,
            duration_s,
            self.received_bytes,
            self.sent_bytes,
        )
        if ledger.recording:
            ledger.record(
                record(
                    self,
                    source=caller.service,
                    identity=caller.identity,
                    destination=service,
                    duration_s=duration_s,
                    multiplexed=session.multiplexed,
                    denied=self._denied,
                    dry_run=self._dry_run,
                    failure=self._failure or reason,
                )
            )

    def reset(self, reason: str) -> None:
        """Give up a request on which nothing moves."""
        self._failure = reason
        self.answer(504, "nothing moved for too long")

    def forbid(self, reason: str) -> None:
        """Break off what an intention denies now."""
        self._denied = True
        self.cut(reason)

    def _deny(self) -> None:
        self._denied = True
        self.answer(403, DENIED)
