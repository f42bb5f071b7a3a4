"""HTTP behind an upstream's port: an instance is chosen for each request of the app.

A request takes a connection to a ready instance that is idle, or for HTTP/2 one that has room, else
an idle tunnel, at once; else it waits, unread beyond what came with its head, until there is one.
"""

import asyncio
import socket
import time
from collections.abc import Callable, Collection, Coroutine
from random import Random

from meshrun.proxy import sockets, tasks
from meshrun.proxy.balance import Balancer
from meshrun.proxy.connector import Connection
from meshrun.proxy.direct import Direct
from meshrun.proxy.framing import Refusal
from meshrun.proxy.http import own_fields
from meshrun.proxy.http.client1 import Http1Client
from meshrun.proxy.http.client2 import Http2Client
from meshrun.proxy.http.deadlines import Deadlines
from meshrun.proxy.http.exchange import Downstream, Failure
from meshrun.proxy.http.heads import Fields, Request, Response
from meshrun.proxy.http.link import SocketLink, StreamLink
from meshrun.proxy.http.relay import Relay, count_refused, record
from meshrun.proxy.http.retries import Budget, back_off_s, may_retry
from meshrun.proxy.http.session import Session, Sessions
from meshrun.proxy.http.split import choose
from meshrun.proxy.identity import Identity
from meshrun.proxy.idleness import EXCHANGE_IDLE_S, IdleWatch
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.messages import ConnectionFailed, Endpoint, Share, Upstream
from meshrun.proxy.outbound_tunnels import Journey, OutboundTunnels
from meshrun.proxy.poller import Poller
from meshrun.proxy.pool import Pool
from meshrun.proxy.pump import Pump
from meshrun.proxy.reports import Report
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.tunnel import Leftover, OutboundTunnel

__all__ = ["HttpOutbound"]

# To one instance; as many as there may be requests at the same time, or a busy app would shake
# hands for ever.
MOST_IDLE_LINES = 1024


class HttpOutbound:
    """Brings the requests of the app to the instances of one upstream."""

    def __init__(
        self,
        poller: Poller,
        identity: Identity,
        ledger: Ledger,
        report: Callable[[Report], None],
        rng: Random,
        source: SpiffeId,
        upstream: Upstream,
    ) -> None:
        self.source = source
        self.rng = rng
        self.request_ids = own_fields.RequestIds(rng)
        self.ledger = ledger
        self.upstream = upstream
        self.budget = Budget()
        self.deadlines: Deadlines[_Exchange] = Deadlines(_Exchange.late)
        self.exchanges: set[_Exchange] = set()
        self.pending = 0  # requests that wait for a connection
        self.poller = poller
        self.identity = identity
        self._report = report
        self.sessions = Sessions(self.failed)
        self._routes: dict[str, _Route] = {}
        self._idle_exchanges = IdleWatch(lambda: self.exchanges, self.failed)
        self.apply(upstream)

    def apply(self, upstream: Upstream) -> None:
        """Use the endpoints and settings of `upstream` from now on."""
        self.upstream = upstream
        self.deadlines.set(upstream.requests.timeout_s)
        self._idle_exchanges.set(upstream.idle_timeout_s or EXCHANGE_IDLE_S)
        shares = upstream.split or (
            Share(
                service=upstream.service,
                identity=upstream.identity,
                weight=1,
                endpoints=upstream.endpoints,
            ),
        )
        gone = set(self._routes) - {share.service for share in shares}
        for service in gone:
            self._routes.pop(service).close()
        for share in shares:
            route = self._routes.get(share.service)
            if route is None:
                self._routes[share.service] = _Route(self, share)
            else:
                route.apply(share)
        self._shares = [(share.service, share.weight) for share in shares]

    def rotate(self) -> None:
        """Begin no more requests over connections under an old leaf; those under way go on."""
        for route in self._routes.values():
            route.rotate()

    def serve(self, sock: socket.socket) -> None:
        """Take over a connection of the app that was accepted."""
        most = self.upstream.max_connections
        if len(self.sessions) >= most:
            self.failed(f"{most} connections are open, and no more are allowed (max_connections)")
            sockets.reset(sock)
            return
        _Session(self).serve(SocketLink(self.poller, sock), self.upstream.protocol)

    def close(self) -> None:
        """Reset every connection."""
        self.deadlines.close()
        self._idle_exchanges.close()
        self.sessions.close()
        self.sessions.reset("the sidecar stops")
        for route in self._routes.values():
            route.close()

    @property
    def grpc(self) -> bool:
        """Whether the sidecar's own answers are those of gRPC."""
        return self.upstream.protocol == "grpc"

    @property
    def multiplexed(self) -> bool:
        """Whether one connection carries many requests at a time."""
        return self.upstream.protocol in ("http2", "grpc")

    def failed(self, reason: str) -> None:
        """Report that a request or connection found nobody, or was cut."""
        self._report(ConnectionFailed(upstream=self.upstream.name, reason=reason))

    def begin(self, exchange: "_Exchange") -> None:
        """Send a request to an instance, unless there are too many."""
        most = self.upstream.requests.most_in_flight
        if len(self.exchanges) >= most:
            self.failed(f"{most} requests are under way, and no more are allowed (max_requests)")
            exchange.answer(503, "too many requests are under way")
            return
        self.exchanges.add(exchange)
        self._idle_exchanges.connected()
        exchange.route = self._routes[choose(self._shares, self.rng)]
        exchange.route.send(exchange)


class _Session(Session):
    """One connection of the app."""

    def __init__(self, outbound: HttpOutbound) -> None:
        super().__init__(outbound.sessions)
        self._outbound = outbound

    def begin(self, request: Request, downstream: Downstream) -> "_Exchange":
        """Take a request, and send it on."""
        exchange = _Exchange(self._outbound, request, downstream)
        exchange.begin()
        return exchange

    def refused(self, status: int, reason: str, *, begun: bool) -> None:
        """What the app sent is no request."""
        outbound = self._outbound
        outbound.failed(f"what the app sent is no request that is taken ({status}): {reason}")
        if begun:
            return
        count_refused(
            outbound.ledger,
            status,
            reason,
            source=outbound.source.service or "",
            identity=str(outbound.source),
            destination=outbound.upstream.service,
            multiplexed=outbound.multiplexed,
            reporter="source",
        )


class _Exchange(Relay):
    """A request of the app, on its way to an instance."""

    __slots__ = (
        "_began",
        "_failure",
        "_outbound",
        "_retries",
        "_retry",
        "_tried",
        "_waiting",
        "line",
        "route",
        "trouble",
    )

    def __init__(self, outbound: HttpOutbound, request: Request, downstream: Downstream) -> None:
        super().__init__(request, downstream, grpc=outbound.grpc)
        self._outbound = outbound
        self._began = time.monotonic()
        self._waiting: asyncio.Task[None] | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._retries = 0
        self._tried: tuple[Endpoint, ...] = ()
        self._failure = ""
        self.route: _Route | None = None
        self.line: _Line | None = None
        self.trouble = ""

    def begin(self) -> None:
        """Prepare the request, and send it on."""
        settings = self._outbound.upstream.requests
        request = self.request
        if settings.remove_headers or settings.set_headers:
            set_names = (name.lower() for name, _ in settings.set_headers)
            dropped = {*settings.remove_headers, *set_names}
            request.fields = [
                *(field for field in request.fields if field[0].lower() not in dropped),
                *settings.set_headers,
            ]
        own_fields.add_request_id(request.fields, self._outbound.request_ids)
        if not request.authority:  # only HTTP/1.0 may leave it out
            request.authority = self._outbound.upstream.name
        self._outbound.begin(self)

    def send_over(self, line: "_Line") -> None:
        """Send the request over `line`, which counts it."""
        self.line = line
        line.began()
        self.connect(line.client.request(self.request, self, []))

    def wait(self, reaching: Coroutine[object, object, None]) -> None:
        """Wait for a connection to an instance."""
        outbound = self._outbound
        most = outbound.upstream.requests.most_pending
        if outbound.pending >= most:
            reaching.close()
            outbound.failed(f"{most} requests wait for a connection already (max_pending)")
            self.fail(503, "too many requests wait for a connection")
            return
        outbound.pending += 1
        self._waiting = task = tasks.start(reaching, f"request to {outbound.upstream.name}")
        task.add_done_callback(self._waited)

    def fail(self, status: int, text: str) -> None:
        """Answer for an instance that cannot, or break off what it has begun to answer."""
        if not self.status:
            self._failure = text
        self.answer(status, text)

    def reset(self, reason: str) -> None:
        """Give up a request on which nothing moves."""
        self.fail(504, "nothing moved for too long")

    def late(self) -> None:
        """The time for an answer is over."""
        timeout_s = self._outbound.upstream.requests.timeout_s
        self._outbound.failed(f"no answer within {timeout_s:g} s (request_timeout)")
        if self.line is not None:
            self.line.failed()
        self.fail(504, "no answer in time")

    def _waited(self, _task: asyncio.Task[None]) -> None:
        self._waiting = None
        self._outbound.pending -= 1

    # As a relay.

    def request_end(self, trailers: Fields) -> None:
        """The request is complete: from now on an answer is late."""
        super().request_end(trailers)
        if not self.status:
            self._outbound.deadlines.begin(self)

    def request_aborted(self, reason: str, status: int = 0) -> None:
        """Whoever asked is gone, or was told `status` by this side."""
        if status:
            self._failure = reason
        super().request_aborted(reason, status)

    def response_head(self, head: Response) -> None:
        """Pass a head on, unless it is a sidecar's for an app that gave no answer."""
        # Such an answer has the status 200 in gRPC, as all have.
        failure = own_fields.take_failure(head) if head.status == 503 or self.grpc else None
        if failure is not None:
            if self.line is not None:
                self.line.failed()
            if self._send_again(failure):
                return
        if not head.interim:
            self._outbound.deadlines.end(self)
            if self.line is not None and failure is None:
                self.line.answered(head.status)
        super().response_head(head)

    def response_failed(self, failure: Failure, reason: str) -> None:
        """Ask another instance, or say that there is no answer."""
        line = self.line
        if line is not None:
            line.failed()
        self._upstream = None
        if self._send_again(failure):
            return
        self._leave_line()
        self._outbound.failed(reason)
        if not self.status:
            self._failure = reason
        super().response_failed(failure, reason)

    def over(self, reason: str) -> None:
        """Count what this side has answered, and forget the request."""
        outbound = self._outbound
        outbound.exchanges.discard(self)
        outbound.deadlines.end(self)
        if self._waiting is not None:
            self._waiting.cancel()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._retries:
            outbound.budget.give_back()
        never_sent = self.line is None
        self._leave_line()
        # What an instance has got is counted there, but for what was answered here.
        if self._failure or (never_sent and not self.status):
            self._tell(self._failure or reason)

    def _tell(self, failure: str) -> None:
        outbound = self._outbound
        source = outbound.source.service or ""
        destination = self.route.service if self.route is not None else outbound.upstream.service
        duration_s = time.monotonic() - self._began
        outbound.ledger.exchanged(
            source,
            destination,
            self.status,
            duration_s,
            self.received_bytes,
            self.sent_bytes,
            "source",
        )
        if outbound.ledger.recording:
            outbound.ledger.record(
                record(
                    self,
                    source=source,
                    identity=str(outbound.source),
                    destination=destination,
                    duration_s=duration_s,
                    multiplexed=outbound.multiplexed,
                    reporter="source",
                    failure=failure,
                )
            )

    def _leave_line(self) -> None:
        line, self.line = self.line, None
        if line is not None:
            line.left()

    def _send_again(self, failure: Failure) -> bool:
        settings = self._outbound.upstream.requests
        if (
            not self.response_open
            or self.status
            or self._retries >= settings.retries
            or not may_retry(self.request.method, failure, body_sent=bool(self.received_bytes))
            # The first retry takes it for all of them, until the request is over.
            or not (self._retries or self._outbound.budget.take(len(self._outbound.exchanges)))
        ):
            return False
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort("the request is sent to another instance")
        if self.line is not None:
            self._tried = (*self._tried, self.line.endpoint)
        self._leave_line()
        self._retries += 1
        wait_s = back_off_s(self._retries, self._outbound.rng.random())
        self._retry = asyncio.get_running_loop().call_later(wait_s, self._retry_now)
        return True

    def _retry_now(self) -> None:
        self._retry = None
        assert self.route is not None
        self.route.send(self, self._tried)
        self.flush_request()


class _Route:
    """The way to the instances of one service, and the connections to them that there are."""

    def __init__(self, outbound: HttpOutbound, share: Share) -> None:
        self.outbound = outbound
        self._balancer = Balancer()
        self.tunnels = OutboundTunnels(
            outbound.poller,
            outbound.identity,
            outbound.rng,
            self._balancer,
            share.service,
            SpiffeId.parse(share.identity),
            judges_answers=True,
        )
        self.service = share.service
        self._idle: Pool[_Line] = Pool(MOST_IDLE_LINES)
        self._lines: set[_Line] = set()
        self.apply(share)

    def apply(self, share: Share) -> None:
        """Use the endpoints of `share` from now on."""
        self._balancer.ejection = self.outbound.upstream.requests.ejection
        self.tunnels.apply(SpiffeId.parse(share.identity), share.endpoints)
        self._retire(lambda line: not self.tunnels.knows(line.endpoint))

    def rotate(self) -> None:
        """Begin no more requests under an old leaf."""
        self.tunnels.rotate()
        self._retire(lambda _: True)

    def close(self) -> None:
        """Cut everything."""
        self._idle.close()
        for line in list(self._lines):
            line.reset("the sidecar stops")
        self.tunnels.close()

    def send(self, exchange: "_Exchange", tried: Collection[Endpoint] = ()) -> None:
        """Send a request to an instance, at once if there is a connection to it or a tunnel."""
        endpoint = self.tunnels.pick(tried) or self.tunnels.pick()
        line = None if endpoint is None else self._ready(endpoint)
        if line is not None:
            self.tunnels.opened(line.endpoint)
            exchange.send_over(line)
            return
        tunnel = None if endpoint is None else self.tunnels.take(endpoint)
        if tunnel is None:
            exchange.wait(self._reach(exchange, endpoint))
        else:
            self.tunnels.opened(tunnel.endpoint)
            self._begin(exchange, tunnel)

    def put(self, line: "_Line") -> None:
        """Keep a connection for the next request, if it may carry one."""
        if self._lasts(line):
            self._idle.put(line)
        else:
            line.close()

    def forget(self, line: "_Line") -> None:
        """It is closed."""
        self._lines.discard(line)
        self._idle.forget(line)

    async def reach_again(self, line: "_Line", journey: Journey) -> None:
        """Find another way for a line whose stream was not accepted."""
        try:
            async with asyncio.timeout_at(journey.deadline):
                found = await self._found(journey)
        except TimeoutError:
            line.lost(self.tunnels.excuse(journey))
        else:
            # All requests of the line go with it, of which the journey has counted one.
            for _ in range(line.in_flight - 1):
                self.tunnels.opened(found.endpoint)
            self._ride(line, found)

    def _ready(self, endpoint: Endpoint) -> "_Line | None":
        if not self.outbound.multiplexed:
            line = self._idle.take(endpoint)
            while line is not None and not self._lasts(line):
                line.close()
                line = self._idle.take(endpoint)
            return line
        for line in self._lines:
            if line.endpoint == endpoint and line.has_room and self._lasts(line):
                self._idle.forget(line)  # its time must not be over while it is in use
                return line
        return None

    def _lasts(self, line: "_Line") -> bool:
        return self.tunnels.knows(line.endpoint) and self.tunnels.lasts(
            line.credentials, line.not_after
        )

    def _retire(self, which: "Callable[[_Line], bool]") -> None:
        for line in list(self._lines):
            if which(line):
                line.retire()

    async def _reach(self, exchange: "_Exchange", first: Endpoint | None) -> None:
        timeout_s = self.outbound.upstream.connect_timeout_s
        journey = Journey(asyncio.get_running_loop().time() + timeout_s, first)
        try:
            async with asyncio.timeout_at(journey.deadline):
                found = await self._found(journey)
        except TimeoutError:
            excuse = self.tunnels.excuse(journey)
            self.outbound.failed(f"{excuse} (waited {timeout_s:g} s)")
            exchange.fail(503, f"{self.service} is not available")
        else:
            self._begin(exchange, found)

    async def _found(self, journey: Journey) -> OutboundTunnel | Connection:
        while True:
            found = await self.tunnels.round(journey)
            if found is not None:
                return found
            await self.tunnels.park(journey)

    def _begin(self, exchange: "_Exchange", found: OutboundTunnel | Connection) -> None:
        """Send a request over a new line to what was found, which is counted already."""
        timeout_s = self.outbound.upstream.connect_timeout_s
        deadline = asyncio.get_running_loop().time() + timeout_s
        line = _Line(self, found, deadline)
        self._lines.add(line)
        # The head goes with the first bytes of the stream.
        exchange.send_over(line)
        exchange.flush_request()
        self._ride(line, found)

    def _ride(self, line: "_Line", found: OutboundTunnel | Connection) -> None:
        if isinstance(found, OutboundTunnel):
            line.ride(found)
        elif found.tunnel:
            tunnel = self.tunnels.adopt(found)
            tunnel.start()
            line.ride(tunnel)
        else:
            line.go_directly(found)


class _Line:
    """A connection to an instance that requests go over: a client, over a stream of a tunnel."""

    def __init__(self, route: _Route, found: OutboundTunnel | Connection, deadline: float) -> None:
        self._route = route
        self._link = StreamLink(early=True)
        self._journey = Journey(deadline)
        self._leftover = Leftover()
        self._tunnel: OutboundTunnel | None = None
        self._reaching: asyncio.Task[None] | None = None
        self.endpoint = found.endpoint
        self.credentials = found.credentials
        self.not_after = found.not_after
        self.in_flight = 0
        self.client: Http1Client | Http2Client
        if route.outbound.multiplexed:
            self.client = Http2Client(self._link, self._changed)
        else:
            self.client = Http1Client(self._link, self._idle, self._closed)
        self.client.start()

    @property
    def has_room(self) -> bool:
        """Whether it takes one more request beside those under way."""
        return isinstance(self.client, Http2Client) and self.client.capacity > 0

    def ride(self, tunnel: OutboundTunnel) -> None:
        """Go over a stream of `tunnel`."""
        self._reaching = None
        self.endpoint = tunnel.endpoint
        self.credentials, self.not_after = tunnel.credentials, tunnel.not_after
        leftover, self._leftover = self._leftover, Leftover()
        if tunnel.closed:
            self._unaccepted(None, "it closed the connection", leftover)
            return
        self._tunnel = tunnel
        deadline = self._journey.deadline
        rider = self._link.rider()
        self._route.tunnels.ride(tunnel, rider, leftover, self._unaccepted, deadline)

    def go_directly(self, connection: Connection) -> None:
        """Go over a connection to a peer that knows no tunnels."""
        self._reaching = None
        self.endpoint = connection.endpoint
        self.credentials, self.not_after = connection.credentials, connection.not_after
        leftover, self._leftover = self._leftover, Leftover()
        rider = self._link.rider()
        Direct(Pump(self._route.outbound.poller, connection.secured), rider).start()
        if leftover.data or leftover.ended:
            rider.resend(leftover.data, last=leftover.ended)
        else:
            rider.look()

    def began(self) -> None:
        """A request goes over it, which is counted at its endpoint already."""
        self.in_flight += 1

    def left(self) -> None:
        """A request is over."""
        self.in_flight -= 1
        self._route.tunnels.closed(self.endpoint)
        if not self.in_flight and isinstance(self.client, Http2Client):
            self._route.put(self)

    def answered(self, status: int) -> None:
        """Judge the instance by a response."""
        if status >= 500:
            self.failed()
        else:
            self._route.tunnels.succeeded(self.endpoint)

    def failed(self) -> None:
        """Judge the instance by there being no response, or a bad one."""
        self._route.tunnels.failed(self.endpoint)

    def retire(self) -> None:
        """Take no more requests; those under way go on."""
        if isinstance(self.client, Http2Client):
            self.client.retire()
        elif self.client.idle:
            self.client.close()

    def close(self) -> None:
        """Close it while it is idle."""
        self.retire()

    def reset(self, reason: str) -> None:
        """Cut it, with what is under way."""
        if self._reaching is not None:
            self._reaching.cancel()
            self._reaching = None
        self.client.reset(reason)

    def lost(self, reason: str) -> None:
        """No instance took the stream in time."""
        self._reaching = None
        for _ in range(self.in_flight):  # they are counted nowhere any more
            self._route.tunnels.opened(self.endpoint)
        self._link.broken(reason)

    def _unaccepted(self, refusal: Refusal | None, reason: str, leftover: Leftover) -> None:
        tunnels = self._route.tunnels
        self._tunnel = None
        for _ in range(self.in_flight):
            tunnels.closed(self.endpoint)
        if self.client.closed:
            return
        if refusal is Refusal.DENIED:
            self.lost("the other side denies it")
            return
        self._link.detach()
        self._leftover = leftover
        tunnels.refused(self._journey, self.endpoint, refusal, reason)
        self._reaching = tasks.start(
            self._route.reach_again(self, self._journey), f"line to {self.endpoint.instance}"
        )

    # What the client tells.

    def _idle(self, _client: Http1Client) -> None:
        self._route.put(self)

    def _closed(self, _client: Http1Client) -> None:
        self._over()

    def _changed(self, client: Http2Client) -> None:
        if client.closed:
            self._over()

    def _over(self) -> None:
        if self._tunnel is not None:
            self._route.tunnels.gave_up(self._tunnel)
            self._tunnel = None
        if self._reaching is not None:
            self._reaching.cancel()
            self._reaching = None
        self._route.forget(self)
