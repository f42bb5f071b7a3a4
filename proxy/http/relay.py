"""An exchange that passes on what comes, and keeps what comes before there is an upstream."""

import time
from time import monotonic
from typing import ClassVar

from meshrun.proxy import memory
from meshrun.proxy.http import answers, own_fields
from meshrun.proxy.http.exchange import Downstream, Failure, Upstream
from meshrun.proxy.http.heads import Fields, Request, Response
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.messages import Record, Reporter

__all__ = ["MOST_KEPT_BYTES", "Relay", "count_refused", "record"]

# How much of a body is kept until an answer begins: what nobody has heard can be sent again with
# it. Envoy keeps up to 1 MiB for that, HAProxy what its buffer of 16 KiB holds.
MOST_KEPT_BYTES = 64 * 1024


class Relay:
    """Joins `downstream`, which sent `request`, to the upstream that `connect` is told of.

    More of the request may come while `request_open`, more of the response while `response_open`:
    the exchange is over when neither is. The end of a response closes both, but for a connection
    that was upgraded, whose directions end each for itself.

    What is special to a side of the sidecar stands in its subclass: the one in front of the app
    `tells_failures` to the sidecar of the caller.
    """

    tells_failures: ClassVar[bool] = False

    __slots__ = (
        "_early",
        "_held",
        "_keeps",
        "_kept",
        "_moved",
        "_trailers",
        "_upstream",
        "began",
        "downstream",
        "grpc",
        "received_bytes",
        "request",
        "request_open",
        "response_open",
        "sent_bytes",
        "status",
    )

    def __init__(self, request: Request, downstream: Downstream, *, grpc: bool) -> None:
        self.request = request
        self.downstream = downstream
        self.grpc = grpc
        self.request_open = True
        self.response_open = True
        self.status = 0  # of the final head, once it was sent
        self.received_bytes = 0  # of the request's body
        self.sent_bytes = 0  # of the response's
        self._upstream: Upstream | None = None
        self._early = b""
        self._keeps = True  # no answer has begun, and it was not too much
        self._kept: bytearray | None = None  # of the body, what was sent
        self._held = False
        self._trailers: Fields = []  # of the request
        self.began = self._moved = monotonic()

    def idle_s(self) -> float:
        """Return how long nothing moved."""
        return monotonic() - self._moved

    def connect(self, upstream: Upstream) -> None:
        """Relay to `upstream`, which has had the head, from now on."""
        self._upstream = upstream
        if self._early:
            early, self._early = self._early, b""
            self._keep(early)
            upstream.send(early)
        if not self.request_open:
            upstream.end(self._trailers)
        if self._held:
            self._held = False
            self.downstream.resume()

    def answer(self, status: int, text: str, failure: Failure | None = None) -> None:
        """Answer instead of an upstream, or break off what cannot be answered any more.

        A sidecar that is told of `failure` may send the request elsewhere.
        """
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort(text)
        if self.status or not self.response_open:
            self._break_off(text)
            return
        head, body = answers.answer(status, text, grpc=self.grpc)
        if self.request.method == "HEAD":
            body = b""
        if self.tells_failures:
            own_fields.add_failure(head, failure)
        self.status = status
        self.sent_bytes = len(body)
        self._close("")
        downstream = self.downstream
        downstream.respond(head)
        if body:
            downstream.send(body)
        downstream.end([])
        downstream.flush()

    def cut(self, reason: str) -> None:
        """Break the exchange off on both sides."""
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort(reason)
        self._break_off(reason)

    def over(self, reason: str) -> None:
        """The exchange is over, for `reason` where it failed; called once."""

    @property
    def body_kept(self) -> bool:
        """Whether all of the body that has come can be sent again."""
        kept = 0 if self._kept is None else len(self._kept)
        return kept + len(self._early) == self.received_bytes

    def _keep(self, data: bytes | memoryview) -> None:
        if not self._keeps:
            return
        kept, size = self._kept, len(data)
        if kept is None:
            kept = self._kept = bytearray()
        if len(kept) + size <= MOST_KEPT_BYTES and memory.held.take(size):
            kept += data
        else:
            self._keeps = False
            self._let_go()

    def _let_go(self) -> None:
        if self._kept is not None:
            memory.held.give_back(len(self._kept))
            self._kept = None

    def _take_back(self) -> None:
        """Let the next upstream have all that the last one had: `body_kept` must be true."""
        self._upstream = None
        if self._kept is not None:
            self._early = bytes(self._kept) + self._early
            self._let_go()

    def _break_off(self, reason: str) -> None:
        if self.request_open or self.response_open:
            self._close(reason)
            self.downstream.abort(reason)

    def _close(self, reason: str) -> None:
        if self.request_open or self.response_open:
            self.request_open = self.response_open = False
            if self._kept is not None:
                self._let_go()
            self.over(reason)

    # From the downstream.

    def request_data(self, data: bytes | memoryview) -> None:
        """Pass a part of the body on."""
        self._moved = monotonic()
        self.received_bytes += len(data)
        if self._upstream is not None:
            self._keep(data)
            self._upstream.send(data)
        elif self.response_open:
            self._early += data
            if not self._held:
                self._held = True
                self.downstream.hold()

    def request_end(self, trailers: Fields) -> None:
        """The request is complete."""
        if trailers:
            trailers = self.permitted(trailers)
        upstream = self._upstream
        if self.response_open:
            self.request_open = False
            self._trailers = trailers
        else:  # that of an upgraded connection has ended before
            self._close("")
        if upstream is not None:
            upstream.end(trailers)

    def permitted(self, trailers: Fields) -> Fields:
        """Return those that are passed on."""
        return trailers

    def request_aborted(self, reason: str, status: int = 0) -> None:
        """Whoever asked is gone, or was told `status`."""
        self.status = self.status or status
        upstream, self._upstream = self._upstream, None
        if upstream is not None:
            upstream.abort(reason)
        self._close(reason)

    def hold_response(self) -> None:
        """The downstream takes no more for now."""
        if self._upstream is not None:
            self._upstream.hold()

    def resume_response(self) -> None:
        """It takes more again."""
        if self._upstream is not None:
            self._upstream.resume()

    def flush_request(self) -> None:
        """The downstream has delivered all that it has for now."""
        if self._upstream is not None:
            self._upstream.flush()

    # From the upstream.

    def response_head(self, head: Response) -> None:
        """Pass a head on."""
        self._keeps = False
        if self._kept is not None:
            self._let_go()
        status = head.status
        if status >= 200:
            self.status = status
        elif status == 101:
            self.status = status
            self.request_open = True  # again, as a direction of its own
        self.downstream.respond(head)

    def response_data(self, data: bytes | memoryview) -> None:
        """Pass a part of the body on."""
        self._moved = monotonic()
        self.sent_bytes += len(data)
        self.downstream.send(data)

    def response_end(self, trailers: Fields) -> None:
        """The response is complete."""
        if self.status == 101 and self.request_open:
            self.response_open = False
        else:
            self._upstream = None
            self._close("")
        self.downstream.end(trailers)

    def response_failed(self, failure: Failure, reason: str) -> None:
        """There will be no response, or no more of it."""
        self._upstream = None
        if self.status:
            self.cut(reason)
        else:
            status = 502 if failure is Failure.BROKEN else 503
            self.answer(status, "the app gave no answer", failure)

    def hold_request(self) -> None:
        """The upstream takes no more for now."""
        self._held = True
        self.downstream.hold()

    def resume_request(self) -> None:
        """It takes more again."""
        self._held = False
        self.downstream.resume()

    def flush_response(self) -> None:
        """The upstream has delivered all that it has for now."""
        self.downstream.flush()


def record(
    relay: Relay,
    *,
    source: str,
    identity: str,
    destination: str,
    duration_s: float,
    multiplexed: bool,
    reporter: Reporter = "destination",
    denied: bool = False,
    dry_run: bool = False,
    failure: str,
) -> Record:
    """Return what is told of an exchange that is over."""
    request = relay.request
    agents = [value for name, value in request.fields if name.lower() == "user-agent"]
    return Record(
        at=time.time() - duration_s,
        kind="request",
        source=source,
        identity=identity,
        destination=destination,
        duration_s=duration_s,
        reporter=reporter,
        method=request.method,
        path=request.path,
        protocol="HTTP/2" if multiplexed else f"HTTP/1.{request.minor_version}",
        status=relay.status,
        received_bytes=relay.received_bytes,
        sent_bytes=relay.sent_bytes,
        request_id=own_fields.request_id(request.fields) or "",
        authority=request.authority,
        user_agent=agents[0] if agents else "",
        denied=denied,
        dry_run=dry_run,
        failure=failure,
    )


def count_refused(
    ledger: Ledger,
    status: int,
    failure: str,
    *,
    source: str,
    identity: str,
    destination: str,
    multiplexed: bool,
    reporter: Reporter = "destination",
) -> None:
    """Count what was no request and was answered with `status`; tell of it if that is wanted."""
    ledger.exchanged(source, destination, status, 0.0, 0, 0, reporter)
    if ledger.recording:
        ledger.record(
            Record(
                at=time.time(),
                kind="request",
                source=source,
                identity=identity,
                destination=destination,
                duration_s=0.0,
                reporter=reporter,
                protocol="HTTP/2" if multiplexed else "HTTP/1",
                status=status,
                failure=failure,
            )
        )
