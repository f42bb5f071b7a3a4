"""What the two ends of a sidecar say to each other of one request and its response.

    peer -> `Server` (a connection that requests come over) -> `Exchange` -> `Client` -> peer

A server makes a `Downstream` of each request and asks its handler for an `Exchange`; that finds a
client, which makes an `Upstream` of it. What comes from either side goes through the exchange,
which decides, counts and relays. HTTP/1 and HTTP/2 implement the same protocols, so an exchange
does not know which it joins.

Rules. All happens on one loop; none of these methods raises for what the other side does. Data that
is handed over is valid during the call only. What was given is sent at the latest with `flush`,
which whoever received an event calls once at its end. After `end` or `abort` of a side nothing more
is called on it, and after its last event nothing more comes from it. Back-pressure: a side that
cannot take more calls `hold` through the exchange, on the other; what comes all the same is kept,
and `resume` follows when it has been taken.
"""

from enum import Enum, auto
from typing import Protocol

from meshrun.proxy.http.heads import Fields, Request, Response

__all__ = ["Downstream", "Exchange", "Failure", "Handler", "Server", "Upstream"]


class Failure(Enum):
    """How an upstream failed: what may be said again elsewhere."""

    UNSENT = (
        auto()
    )  # nothing of the request can have reached the app (RFC 9113 8.7: REFUSED_STREAM)
    SILENT = auto()  # the request was sent, and not a byte of a response came
    BROKEN = auto()  # within the response


class Downstream(Protocol):
    """The side that asked: takes the response."""

    def respond(self, head: Response) -> None:
        """Send a head: any number of interim ones, then the final one."""

    def send(self, data: bytes | memoryview) -> None:
        """Send a part of the body."""

    def end(self, trailers: Fields) -> None:
        """The response is complete; also directly behind a head whose framing is NONE."""

    def abort(self, reason: str) -> None:
        """Break the exchange off: the peer sees that it is not whole."""

    def flush(self) -> None:
        """Send now what was given."""

    def hold(self) -> None:
        """Deliver no more of the request, but for what has been received already."""

    def resume(self) -> None:
        """Deliver again."""


class Upstream(Protocol):
    """The side that answers: takes the rest of the request, whose head it has had."""

    def send(self, data: bytes | memoryview) -> None:
        """Send a part of the body."""

    def end(self, trailers: Fields) -> None:
        """The request is complete; also where its framing is NONE."""

    def abort(self, reason: str) -> None:
        """Nobody waits for the response any more."""

    def flush(self) -> None:
        """Send now what was given."""

    def hold(self) -> None:
        """Deliver no more of the response, but for what has been received already."""

    def resume(self) -> None:
        """Deliver again."""


class Exchange(Protocol):
    """Joins a downstream and an upstream; both report to it."""

    # From the downstream.

    def request_data(self, data: bytes | memoryview) -> None:
        """A part of the request's body came."""

    def request_end(self, trailers: Fields) -> None:
        """The request is complete; comes for every request that is not aborted."""

    def request_aborted(self, reason: str, status: int = 0) -> None:
        """Whoever asked is gone, or broke it off: the last event of a downstream.

        Where its body was none, `status` is what it was told.
        """

    def hold_response(self) -> None:
        """The downstream takes no more for now."""

    def resume_response(self) -> None:
        """It takes more again."""

    # From the upstream.

    def response_head(self, head: Response) -> None:
        """A head came, interim or final."""

    def response_data(self, data: bytes | memoryview) -> None:
        """A part of the response's body came."""

    def response_end(self, trailers: Fields) -> None:
        """The response is complete: the last event of an upstream that did not fail."""

    def response_failed(self, failure: Failure, reason: str) -> None:
        """There will be no response, or no more of it: the last event of an upstream."""

    def hold_request(self) -> None:
        """The upstream takes no more for now."""

    def resume_request(self) -> None:
        """It takes more again."""

    # From both, once at the end of whatever they received.

    def flush_request(self) -> None:
        """The downstream has delivered all that it has for now."""

    def flush_response(self) -> None:
        """The upstream has."""


class Handler(Protocol):
    """Whoever answers the requests that come over one connection."""

    def begin(self, request: Request, downstream: Downstream) -> Exchange:
        """Take a request. It may answer at once, but not abort; its events come to what is
        returned."""

    def refused(self, status: int, reason: str, *, begun: bool) -> None:
        """The connection sent what is no request, and was told so with `status`.

        `begun` says that it was the body of one, whose exchange hears of it, too.
        """

    def closed(self) -> None:
        """The connection is over, and every exchange on it."""


class Server(Protocol):
    """A connection that requests come over."""

    def retire(self) -> None:
        """Take no more requests, as far as the peer can be told, and close when all is answered."""

    def reset(self, reason: str) -> None:
        """Cut it, with all that is under way: each exchange hears `request_aborted`."""

    def idle_s(self) -> float:
        """Return how long nothing moved."""
