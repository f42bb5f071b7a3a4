"""HTTP behind an upstream's port: an instance is chosen for each request of the app.

A request takes a connection to a ready instance that is idle, or for HTTP/2 one that has room, else
an idle tunnel, at once; else it waits, unread beyond what came with its head, until there is one.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from random import Random

from meshrun.proxy import sockets
from meshrun.proxy.http import own_fields
from meshrun.proxy.http.circuit import Circuit
from meshrun.proxy.http.deadlines import Deadlines
from meshrun.proxy.http.exchange import Downstream, Failure
from meshrun.proxy.http.heads import Fields, Request, Response
from meshrun.proxy.http.line import Line
from meshrun.proxy.http.link import SocketLink
from meshrun.proxy.http.relay import Relay, count_refused, record
from meshrun.proxy.http.retries import back_off_s, may_retry
from meshrun.proxy.http.route import Route, Routes
from meshrun.proxy.http.semantics import MULTIPLEXED
from meshrun.proxy.http.session import Session, Sessions
from meshrun.proxy.identity import Identity
from meshrun.proxy.idleness import EXCHANGE_IDLE_S, IdleWatch
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.messages import ConnectionFailed, Endpoint, Upstream
from meshrun.proxy.poller import Poller
from meshrun.proxy.reports import Report
from meshrun.proxy.spiffe import SpiffeId

__all__ = ["HttpOutbound"]

# What the sidecar in front of an app says of a request.
_AT_APP = {
    Failure.UNSENT: "its app was not reached",
    Failure.SILENT: "its app gave no answer",
}


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
        self._request_ids = own_fields.RequestIds(rng)
        self.ledger = ledger
        self.upstream = upstream
        self.grpc = False  # whether the sidecar's own answers are those of gRPC
        self.multiplexed = False
        self.circuit = Circuit()
        self.deadlines: Deadlines[_Exchange] = Deadlines(_Exchange.late)
        self.exchanges: set[_Exchange] = set()
        self._poller = poller
        self._report = report
        self.sessions = Sessions(self.failed)
        self._idle_exchanges = IdleWatch(lambda: self.exchanges, self.failed)
        self.routes = Routes(poller, identity, rng, self.circuit, self.failed)
        self.apply(upstream)

    def apply(self, upstream: Upstream) -> None:
        """Use the endpoints and settings of `upstream` from now on."""
        self.upstream = upstream
        self.grpc = upstream.protocol == "grpc"
        self.multiplexed = upstream.protocol in MULTIPLEXED
        self.circuit.limits = upstream.requests
        self.deadlines.set(upstream.requests.timeout_s)
        self._idle_exchanges.set(upstream.idle_timeout_s or EXCHANGE_IDLE_S)
        self.routes.apply(upstream)

    def rotate(self) -> None:
        """Begin no more requests over connections under an old leaf; those under way go on."""
        self.routes.rotate()

    def serve(self, sock: socket.socket) -> None:
        """Take over a connection of the app that was accepted."""
        most = self.upstream.max_connections
        if len(self.sessions) >= most:
            self.failed(f"{most} connections are open, and no more are allowed (max_connections)")
            sockets.reset(sock)
            return
        _Session(self).serve(SocketLink(self._poller, sock), self.upstream.protocol)

    def close(self) -> None:
        """Reset every connection."""
        self.deadlines.close()
        self._idle_exchanges.close()
        self.sessions.close()
        self.sessions.reset("the sidecar stops")
        self.routes.close()

    def failed(self, reason: str) -> None:
        """Report that a request or connection found nobody, or was cut."""
        self._report(ConnectionFailed(upstream=self.upstream.name, reason=reason))

    def begin(self, exchange: "_Exchange") -> None:
        """Prepare a request, and send it to an instance, unless there are too many."""
        settings, request = self.upstream.requests, exchange.request
        if settings.remove_headers or settings.set_headers:
            set_names = (name.lower() for name, _ in settings.set_headers)
            dropped = {*settings.remove_headers, *set_names}
            request.fields = [
                *(field for field in request.fields if field[0].lower() not in dropped),
                *settings.set_headers,
            ]
        own_fields.add_request_id(request.fields, self._request_ids)
        if not request.authority:  # only HTTP/1.0 may leave it out
            request.authority = self.upstream.name
        if not self.circuit.take():
            most = settings.most_in_flight
            reason = f"{most} requests are under way, and no more are allowed (max_requests)"
            self.failed(reason)
            exchange.fail(503, "too many requests are under way", reason)
            return
        if not self.exchanges:  # else they are watched already
            self._idle_exchanges.connected()
        self.exchanges.add(exchange)
        self.routes.send(exchange)


class _Session(Session):
    """One connection of the app."""

    def __init__(self, outbound: HttpOutbound) -> None:
        super().__init__(outbound.sessions)
        self._outbound = outbound

    def begin(self, request: Request, downstream: Downstream) -> "_Exchange":
        """Take a request, and send it on."""
        exchange = _Exchange(self._outbound, request, downstream)
        self._outbound.begin(exchange)
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
        "_failure",
        "_outbound",
        "_retries",
        "_retry",
        "_timed",
        "_tried",
        "_turned_away",
        "line",
        "route",
    )

    def __init__(self, outbound: HttpOutbound, request: Request, downstream: Downstream) -> None:
        super().__init__(request, downstream, grpc=outbound.grpc)
        self._outbound = outbound
        self._retry: asyncio.TimerHandle | None = None
        self._retries = 0
        self._timed = False  # its answer has a deadline
        self._tried: tuple[Endpoint, ...] = ()
        self._turned_away = False  # once, and sent over another line
        self._failure = ""
        self.route: Route | None = None
        self.line: Line | None = None

    def send_over(self, line: Line) -> None:
        """Send the request over `line`, and count it there."""
        self.line = line
        line.in_flight.began()
        self.connect(line.client.request(self.request, self, []))

    def fail(self, status: int, text: str, reason: str) -> None:
        """Answer for an instance that cannot, or break off what it has begun to answer."""
        if not self.status:
            self._failure = reason
        self.answer(status, text)

    def reset(self, reason: str) -> None:
        """Give up a request on which nothing moves."""
        self.fail(504, "nothing moved for too long", reason)

    def late(self) -> None:
        """The time for an answer is over."""
        timeout_s = self._outbound.upstream.requests.timeout_s
        reason = f"no answer within {timeout_s:g} s (request_timeout)"
        self._outbound.failed(reason)
        if self.line is not None:
            self.line.failed()
        self.fail(504, "no answer in time", reason)

    # As a relay.

    def request_end(self, trailers: Fields) -> None:
        """The request is complete: from now on an answer is late."""
        super().request_end(trailers)
        if not self.status:
            self._timed = True
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
            line = self.line
            if line is not None:
                line.failed()
            why_not = self._send_again(failure)
            if not why_not:
                return
            if line is not None:
                self._outbound.failed(f"{line.endpoint.instance}: {_AT_APP[failure]}; {why_not}")
        if not head.interim:
            self._answer_came()
            if self.line is not None and failure is None:
                self.line.answered(head.status)
        super().response_head(head)

    def response_failed(self, failure: Failure, reason: str) -> None:
        """Ask another instance, or say that there is no answer."""
        self._upstream = None
        line = self.line
        if line is not None:
            reason = f"{line.endpoint.instance}: {reason}"
            if line.turned_away:
                if self._send_over_another():
                    return
            else:
                line.failed()
            if line.unsent or line.turned_away:
                failure = Failure.UNSENT
        why_not = self._send_again(failure)
        if not why_not:
            return
        if failure is not Failure.BROKEN:
            reason = f"{reason}; {why_not}"
        self._leave_line()
        self._outbound.failed(reason)
        if not self.status:
            self._failure = reason
        super().response_failed(failure, reason)

    def over(self, reason: str) -> None:
        """Count what this side has answered, and forget the request."""
        outbound, route = self._outbound, self.route
        if route is not None:  # else it was one too many
            outbound.exchanges.discard(self)
            outbound.circuit.give_back()
        if self._timed:
            self._answer_came()
        if self._retry is not None:
            self._retry.cancel()
            self._retry = None
        if self._retries:
            outbound.circuit.give_back_retry()
        line = self.line
        if line is not None:
            self.line = None
            line.left()
        elif route is not None:
            route.forget(self)
        # What an instance has got is counted there, but for what was answered here.
        if self._failure or (line is None and not self.status):
            self._tell(self._failure or reason)

    def _tell(self, failure: str) -> None:
        outbound = self._outbound
        source = outbound.source.service or ""
        destination = self.route.service if self.route is not None else outbound.upstream.service
        duration_s = time.monotonic() - self.began
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

    def _answer_came(self) -> None:
        self._timed = False
        self._outbound.deadlines.end(self)

    def _leave_line(self) -> None:
        line, self.line = self.line, None
        if line is not None:
            line.left()

    def _send_over_another(self) -> bool:
        """Send again, once, what met the end of a line that was kept: nobody has failed."""
        if self._turned_away or self.status or not self.response_open or not self.body_kept:
            return False
        self._turned_away = True
        self._take_back()
        self._leave_line()
        self._outbound.routes.send(self)
        self.flush_request()
        return True

    def _send_again(self, failure: Failure) -> str:
        """Send it to another instance in a moment, or return why not."""
        why_not = self._why_not_again(failure)
        if why_not:
            return why_not
        upstream = self._upstream
        if upstream is not None:
            upstream.abort("the request is sent to another instance")
        self._take_back()
        if self.line is not None:
            self._tried = (*self._tried, self.line.endpoint)
        self._leave_line()
        self._retries += 1
        wait_s = back_off_s(self._retries, self._outbound.rng.random())
        self._retry = asyncio.get_running_loop().call_later(wait_s, self._retry_now)
        return ""

    def _why_not_again(self, failure: Failure) -> str:
        """Return why it is not sent again; if it may be, take its share of the budget."""
        sent, kept = bool(self.received_bytes), self.body_kept
        if not self.response_open or self.status or failure is Failure.BROKEN:
            return "its answer has begun"
        if not may_retry(self.request.method, failure, body_sent=sent, body_kept=kept):
            unsent = failure is Failure.UNSENT
            return "its body is not kept any more" if unsent else "it may not be done twice"
        if self._retries >= self._outbound.upstream.requests.retries:
            return f"it was sent {1 + self._retries} times (retries)"
        # The first retry takes it for all of them, until the request is over.
        if not self._retries and not self._outbound.circuit.take_retry():
            return "too many retries are under way"
        return ""

    def _retry_now(self) -> None:
        self._retry = None
        self._outbound.routes.send(self, self._tried)
        self.flush_request()
