"""HTTP/1 on a connection to whoever answers: one exchange after another (RFC 9112)."""

from collections.abc import Callable
from enum import Enum, auto

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http import head1
from meshrun.proxy.http.body1 import Chunked
from meshrun.proxy.http.exchange import Exchange, Failure
from meshrun.proxy.http.heads import COUNTED, NO_BODY, STREAMED, Fields, Request, Response
from meshrun.proxy.http.link import Link
from meshrun.proxy.http.writer1 import Writer

__all__ = ["Http1Client"]


# Each goes on to whoever asked: an app that sends nothing else would never be done.
MOST_INTERIM = 100


class _Reading(Enum):
    """What comes next from the peer."""

    NOTHING = auto()  # no request is under way, or the connection is closed
    HEAD = auto()
    COUNTING = auto()  # a body with a length
    CHUNKS = auto()
    ALL = auto()  # a body until the connection ends, or another protocol


NOTHING, HEAD, COUNTING, CHUNKS, ALL = _Reading


class Http1Client(Writer):
    """Asks over `link`; is the upstream of its exchange.

    Calls `on_idle` when it can take another request, `on_closed` when it never will again.
    """

    __slots__ = (
        "_chunked",
        "_counted",
        "_eof",
        "_exchange",
        "_going_on",
        "_held",
        "_interims",
        "_last",
        "_method",
        "_on_closed",
        "_on_idle",
        "_pending",
        "_reading",
        "_rest",
        "_reusable",
        "_searched",
        "_sent",
        "_upgradable",
        "_upgraded",
        "closed",
        "turned_away",
        "used",
    )

    def __init__(
        self,
        link: Link,
        on_idle: "Callable[[Http1Client], None]",
        on_closed: "Callable[[Http1Client], None]",
    ) -> None:
        super().__init__(link)
        self._on_idle = on_idle
        self._on_closed = on_closed
        self._reading = NOTHING
        self._exchange: Exchange | None = None
        self._method = ""
        self._pending = b""  # of a head
        self._searched = 0
        self._counted = 0
        self._chunked: Chunked | None = None
        self._rest = b""  # of chunks, that wait for their turn
        self._eof = False  # and nothing comes behind them
        self._going_on = False  # with them, in the next turn of the loop
        self._held = False  # by the exchange
        self._sent = True  # the request is complete
        self._last = False  # it was said to be the last
        self._reusable = True  # as far as the last response says
        self._upgradable = False
        self._interims = 0  # heads that came before the final one
        self._upgraded = False
        self.closed = False
        self.used = False  # it has carried an exchange before this one
        self.turned_away = False  # the other side ended it in order in place of an answer

    def start(self) -> None:
        """Begin to receive."""
        self._link.start(self)

    @property
    def idle(self) -> bool:
        """Whether it can take a request."""
        return self._exchange is None and not self.closed

    @property
    def stale(self) -> bool:
        """Whether the other side has ended the connection, or said something nobody asked for."""
        return self._link.stale

    def request(self, request: Request, exchange: Exchange, extra: Fields) -> "Http1Client":
        """Send a head with `extra` fields; return the upstream, which is this."""
        self._exchange = exchange
        self._method = request.method
        self._last = head1.has_odd_body(request)
        self._upgradable = bool(request.upgrade)
        self._interims = 0
        self._reading = HEAD
        self._chunking = request.framing is STREAMED
        self._sent = False
        if self.used:
            self._link.mark()
        self._out.append(head1.write_request(request, extra))
        return self

    def close(self) -> None:
        """Close, which must be idle."""
        self._shut()
        self._link.close(linger=False)

    def retire(self) -> None:
        """Take no more requests: close if none is under way."""
        if self.idle:
            self.close()

    def reset(self, reason: str) -> None:
        """Cut the connection, and with it the exchange under way."""
        if not self.closed:
            self._link.reset()
            self._fail(reason)

    def idle_s(self) -> float:
        """Return how long nothing moved."""
        return self._link.idle_s()

    # The exchange's upstream.

    def end(self, trailers: Fields) -> None:
        """The request is complete."""
        self._sent = True
        if self._upgraded:
            self._write_out()
            if self._reading is NOTHING:
                self._shut()
                self._link.close()
            else:
                self._link.end()
        elif self._chunking:
            self._end_chunks(trailers)

    def abort(self, reason: str) -> None:
        """Nobody waits for the response any more: the connection is of no use."""
        self._exchange = None
        self._link.reset()
        self._shut()

    def flush(self) -> None:
        """Send now what was given."""
        self._write_out()
        if self._exchange is not None and not self._sent and self._link.clogged:
            self._exchange.hold_request()

    def hold(self) -> None:
        """Deliver no more of the response."""
        self._held = True
        self._link.listen(False)

    def resume(self) -> None:
        """Deliver again."""
        self._held = False
        if self._rest:
            self._go_on_soon()
        else:
            self._link.listen(True)

    # The link's owner.

    def received(self, data: memoryview) -> None:
        """Understand what came."""
        exchange = self._exchange
        if exchange is None:
            # Bytes that nobody asked for: a late timeout of the app's, or the end of an answer that
            # is longer than it said. What it is cannot be told from an answer to the next request.
            self._link.reset()
            self._shut()
        elif self._rest:
            self._rest += data
        else:
            try:
                self._take(data, exchange)
            except HttpError as error:
                self._link.reset()
                self._fail(f"what came is no response: {error}", broken=True)
            else:
                exchange.flush_response()

    def ended(self) -> None:
        """The other side will send nothing more."""
        exchange = self._exchange
        if exchange is None:
            self.close()
        elif self._rest:
            self._eof = True
        elif self._reading is ALL:
            self._response_over(exchange, [])
            exchange.flush_response()
        else:
            begun = self._begun
            self.turned_away = not begun
            self._link.reset()
            what = "the response was complete" if begun else "a response began"
            self._fail(f"the connection was closed before {what}")

    def drained(self) -> None:
        """The other side takes more again."""
        if self._exchange is not None:
            self._exchange.resume_request()

    def broken(self, reason: str) -> None:
        """The connection is gone."""
        self._fail(reason)

    # One response.

    def _go_on_soon(self) -> None:
        # Tiny chunks must not have the loop for themselves; until they are taken no more come.
        if not self._going_on:
            self._going_on = True
            self._link.listen(False)
            self._link.soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        if self._exchange is None or self._held:
            return
        rest, self._rest = self._rest, b""
        self.received(memoryview(rest))
        if self._rest or self.closed:
            return
        self._link.listen(not self._held)
        if self._eof:
            self.ended()

    def _take(self, data: memoryview, exchange: Exchange) -> None:
        rest: bytes | memoryview = data
        if self._reading is HEAD:
            rest = self._take_heads(bytes(self._pending) + data if self._pending else bytes(data))
        if not rest or self._exchange is not exchange:
            return
        reading = self._reading
        if reading is COUNTING:
            piece = rest[: self._counted]
            self._counted -= len(piece)
            exchange.response_data(piece)
            if not self._counted and self._exchange is exchange:
                self._response_over(exchange, [], excess=len(rest) > len(piece))
        elif reading is CHUNKS:
            chunked = self._chunked
            assert chunked is not None
            body, taken = chunked.feed(rest)
            if body:
                exchange.response_data(body)
            if self._exchange is not exchange:
                return
            if chunked.over:
                self._response_over(exchange, chunked.trailers, excess=taken < len(rest))
            elif taken < len(rest):
                self._rest = bytes(rest[taken:])
                self._go_on_soon()
        elif reading is ALL:
            exchange.response_data(rest)

    def _take_heads(self, data: bytes) -> bytes:
        """Take interim heads and the final one; return what is behind it."""
        exchange = self._exchange
        while exchange is not None and self._reading is HEAD:
            end = head1.find_head(data, self._searched, of_response=True)
            if end < 0:
                self._searched = max(0, len(data) - 3)
                self._pending = data
                return b""
            self._searched = 0
            self._pending = b""
            response = head1.parse_response(data[:end] if end < len(data) else data, self._method)
            data = data[end:]
            final = response.status >= 200 or response.status == 101
            if final:
                self._expect(response)
            else:
                self._interims += 1
                if self._interims > MOST_INTERIM:
                    raise HttpError(502, f"more than {MOST_INTERIM} interim responses came")
            exchange.response_head(response)
            if self._exchange is not exchange:
                return b""
            if final and response.framing is NO_BODY and not self._upgraded:
                self._response_over(exchange, [], excess=bool(data))
                return b""
        return data

    def _expect(self, response: Response) -> None:
        self._reusable = response.keeps_alive and not response.until_close and not self._last
        if response.status == 101:
            if not self._upgradable:
                raise HttpError(502, "101 came, and no other protocol was asked for")
            self._reading = ALL
            self._upgraded = True
            self._sent = self._reusable = False
        elif response.framing is COUNTED:
            self._reading = COUNTING
            self._counted = response.length or 0
        elif response.until_close:
            self._reading = ALL
        elif response.framing is STREAMED:
            self._reading = CHUNKS
            self._chunked = Chunked(of_response=True)

    def _response_over(self, exchange: Exchange, trailers: Fields, *, excess: bool = False) -> None:
        self._reading = NOTHING
        self._chunked = None
        self.used = True
        if self._upgraded and not self._sent:
            exchange.response_end(trailers)  # the other direction may go on
            return
        self._exchange = None
        # Bytes behind a response belong to none; a request that is not complete leaves the other
        # side waiting for the rest of it.
        if self._reusable and self._sent and not excess and not self._eof:
            if self._held:  # whoever held it waits no more
                self._held = False
                self._link.listen(True)
            self._on_idle(self)
        else:
            self._shut()
            self._link.close()
        exchange.response_end(trailers)

    @property
    def _begun(self) -> bool:
        """Whether something of the response has come."""
        return self._reading is not HEAD or bool(self._interims or self._pending)

    def _fail(self, reason: str, *, broken: bool = False) -> None:
        exchange, self._exchange = self._exchange, None
        failure = Failure.SILENT
        if broken or self._begun:
            failure = Failure.BROKEN
        elif self.used and self._link.unheard:
            failure = Failure.UNSENT
        self._shut()
        if exchange is not None:
            exchange.response_failed(failure, reason)
            exchange.flush_response()

    def _shut(self) -> None:
        if not self.closed:
            self.closed = True
            self._reading = NOTHING
            self._pending = self._rest = b""
            self._out.clear()
            self._on_closed(self)
