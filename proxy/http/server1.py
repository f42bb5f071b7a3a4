"""HTTP/1 on a connection that requests come over: one exchange after another (RFC 9112).

Pipelined requests wait, unread where they are many, until the one before them is answered, and each
is judged for itself.
"""

from enum import Enum, auto

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http import answers, head1
from meshrun.proxy.http.body1 import Chunked
from meshrun.proxy.http.exchange import Exchange, Handler
from meshrun.proxy.http.heads import NO_BODY, STREAMED, Fields, Request, Response
from meshrun.proxy.http.link import Link, Timer
from meshrun.proxy.http.writer1 import Writer

__all__ = ["Http1Server"]

# Against a peer that sends a head a byte at a time, and holds its place for ever; nginx's
# client_header_timeout is 60 s, Apache's 20 s.
HEAD_TIMEOUT_S = 10.0

# What may wait behind a request that is not answered yet: then the peer is not read any more.
MOST_PIPELINED_BYTES = 64 * 1024

# Of requests that came at once, how many have their turn before other connections do: those that
# are refused are answered at once.
BATCH = 16

# What is read of a body that nobody waits for any more, so that the connection goes on; as Go's
# net/http does. A client that has sent all of it already may have begun its next request.
MOST_UNWANTED_BYTES = 256 * 1024


class _Reading(Enum):
    """What comes next from the peer."""

    HEAD = auto()
    BODY = auto()
    REST = auto()  # of a request that is complete, nothing: what comes is the next one's
    RAW = auto()  # the connection was upgraded
    NOTHING = auto()  # it has ended, or is not understood


HEAD, BODY, REST, RAW, NOTHING = _Reading


class Http1Server(Writer):
    """Serves `link` with `handler`; is the downstream of its exchange."""

    __slots__ = (
        "_advancing",
        "_answered",
        "_chunked",
        "_counted",
        "_deaf",
        "_eof",
        "_exchange",
        "_going_on",
        "_handler",
        "_held",
        "_pending",
        "_reading",
        "_request",
        "_responding",
        "_retiring",
        "_searched",
        "_timer",
        "_unwanted",
        "_upgraded",
    )

    def __init__(self, link: Link, handler: Handler) -> None:
        super().__init__(link)
        self._handler: Handler | None = handler
        self._reading = HEAD
        self._pending: bytes | memoryview = b""  # received, and not understood yet
        self._eof = False  # and nothing comes behind it
        self._searched = 0  # how much of it has no end of a head
        self._request: Request | None = None
        self._exchange: Exchange | None = None
        self._counted = 0  # what is left of a body with a length
        self._chunked: Chunked | None = None
        self._answered = True  # nothing is left to be said to the last request
        self._responding = False  # a final head was sent to this one
        self._unwanted = 0  # how much was read of its body since it was answered
        self._held = False  # by the exchange
        self._deaf = False  # what comes is left to the kernel
        self._upgraded = False
        self._retiring = False
        self._advancing = False
        self._going_on = False  # in the next turn of the loop
        self._timer: Timer | None = None

    def start(self) -> None:
        """Begin to receive."""
        self._link.start(self)

    def retire(self) -> None:
        """Say with the next response that there will be no more.

        To close while nothing is under way would meet a request that is (RFC 9112 9.5), and not
        every request may be sent again.
        """
        self._retiring = True

    def reset(self, reason: str) -> None:
        """Cut the connection."""
        self._link.reset()
        self._over(reason)

    def idle_s(self) -> float:
        """Return how long nothing moved."""
        return self._link.idle_s()

    # The link's owner.

    def received(self, data: memoryview) -> None:
        """Understand what came."""
        if self._reading is RAW:
            exchange = self._exchange
            if exchange is not None:
                exchange.request_data(data)
                exchange.flush_request()
            return
        self._pending = bytes(self._pending) + data if self._pending else data
        if self._going_on:  # its turn comes
            self._pending = bytes(self._pending)
            self._listen()
        else:
            self._advance()

    def ended(self) -> None:
        """The peer will send nothing more, but may still read."""
        self._eof = True
        if self._reading is RAW:
            self._end_of_raw()
        else:
            self._advance()

    def _end_of_raw(self) -> None:
        self._reading = NOTHING
        exchange = self._exchange
        if exchange is not None:
            exchange.request_end([])
            exchange.flush_request()
        if self._answered:
            self._close()

    def drained(self) -> None:
        """The peer takes more again."""
        if self._exchange is not None and not self._answered:
            self._exchange.resume_response()
        elif not self._advancing:
            self._advance()

    def broken(self, reason: str) -> None:
        """The connection is gone."""
        self._over(reason)

    # The exchange's downstream.

    def respond(self, head: Response) -> None:
        """Send a head."""
        request = self._request
        assert request is not None
        if head.status < 200 and head.status != 101:
            if request.minor_version:
                self._out.append(head1.write_response(head, chunked=False, close=False))
            return
        if head.framing is STREAMED and request.method != "HEAD":
            self._chunking = bool(request.minor_version)
            if not self._chunking:
                request.keeps_alive = False
        self._responding = True
        close = not request.keeps_alive or self._retiring
        if self._reading is BODY and (head.status >= 300 or request.expects_continue):
            close = True  # whoever asked may stop here, and what came next would be in doubt
        if close:
            request.keeps_alive = False
        elif not request.minor_version:
            head.fields.append(("Connection", "keep-alive"))  # else 1.0 expects the end
        upgraded = head.status == 101
        self._out.append(
            head1.write_response(head, chunked=self._chunking, close=close and not upgraded)
        )
        if upgraded:
            self._upgrade()

    def end(self, trailers: Fields) -> None:
        """The response is complete."""
        self._answered = True
        if self._upgraded:
            self._end_raw()
            return
        if self._chunking:
            self._end_chunks(trailers)
        if self._advancing:
            return
        # Most have come alone: nothing waits for its turn, and nobody has to listen again.
        if (
            self._reading is REST
            and not self._pending
            and not self._held
            and not self._link.clogged
        ):
            self._next()
            if self._eof:
                self._advance()
        else:
            self._advance()

    def abort(self, reason: str) -> None:
        """Break the exchange off."""
        self._exchange = None
        self.reset(reason)

    def flush(self) -> None:
        """Send now what was given."""
        self._write_out()
        if self._exchange is not None and not self._answered and self._link.clogged:
            self._exchange.hold_response()

    def hold(self) -> None:
        """Deliver no more of the request."""
        self._held = self._deaf = True
        self._link.listen(False)

    def resume(self) -> None:
        """Deliver again."""
        self._held = False
        if not self._advancing and self._reading is not RAW:
            self._advance()
        else:
            self._listen()

    # One request after another.

    def _advance(self) -> None:
        """Understand what is pending, as far as it is the turn of it."""
        self._advancing = True
        try:
            for _ in range(BATCH):
                if not self._step():
                    break
            else:
                self._go_on_soon()
        except HttpError as error:
            self._refuse(error)
        finally:
            self._advancing = False
        if self._exchange is not None:
            self._exchange.flush_request()  # a head goes with what of its body came with it
        if isinstance(self._pending, memoryview):
            self._pending = bytes(self._pending)  # it is valid during the call only
        if self._pending or self._deaf:
            self._listen()

    def _go_on_soon(self) -> None:
        # What is refused at once, or comes in tiny chunks, must not have the loop for itself; and
        # once is enough.
        if not self._going_on:
            self._going_on = True
            self._link.soon(self._go_on)

    def _go_on(self) -> None:
        self._going_on = False
        if self._handler is not None and self._reading is not RAW:
            self._advance()

    def _step(self) -> bool:
        """Take one part; return whether there may be another."""
        reading = self._reading
        if reading is HEAD:
            if self._pending:
                return self._take_head()
            if self._eof:
                self._close()
            return False
        if reading is BODY:
            return self._take_body()
        # Whoever asks without reading the answers waits.
        return reading is REST and self._answered and not self._link.clogged and self._next()

    def _take_head(self) -> bool:
        data = self._pending = bytes(self._pending)
        end = head1.find_head(data, self._searched)
        if end < 0:
            self._searched = max(0, len(data) - 3)
            if self._eof:
                self._close()
            elif self._timer is None:
                self._timer = self._link.after(HEAD_TIMEOUT_S, self._late)
            return False
        self._stop_timer()
        self._searched = 0
        handler = self._handler
        assert handler is not None
        if end == len(data):
            head, self._pending = data, b""
        else:
            head, self._pending = data[:end], data[end:]
        request = self._request = head1.parse_request(head)
        self._answered = self._responding = False
        self._unwanted = self._counted = 0
        if request.framing is NO_BODY:
            self._reading = REST
        else:
            self._reading = BODY
            self._counted = request.length
            self._chunked = Chunked() if request.framing is STREAMED else None
            # A protocol that is switched to within a body: nobody needs it, and where the body ends
            # would be another thing to differ about.
            request.upgrade = ""
        exchange = handler.begin(request, self)
        if self._handler is None:  # reset meanwhile
            return False
        self._exchange = exchange
        if self._reading is REST:
            exchange.request_end([])
        # Most come alone, and are not answered at once.
        return self._answered or self._eof or bool(self._pending)

    def _take_body(self) -> bool:
        if self._answered and not self._waits_for_rest():
            self._close()
            return False
        if self._held:
            return False
        if not self._pending:
            if self._eof and self._answered:
                self._close()
            elif self._eof:
                self.reset("the connection ended within the request")
            return False
        data = memoryview(self._pending)
        if self._chunked is None:
            taken = min(len(data), self._counted)
            self._counted -= taken
            self._pending = data[taken:]
            self._hand_on(data[:taken], taken)
            complete, trailers = not self._counted, []
        else:
            body, taken = self._chunked.feed(data)
            self._pending = data[taken:]
            self._hand_on(body, taken)
            complete, trailers = self._chunked.over, self._chunked.trailers
            if not complete and self._pending:
                self._go_on_soon()
                return False
        if complete and self._reading is BODY:
            self._chunked = None
            self._reading = REST
            self._stop_timer()
            if not self._answered and self._exchange is not None:
                self._exchange.request_end(trailers)
        return True

    def _hand_on(self, body: bytes | memoryview, taken: int) -> None:
        if self._answered:
            self._unwanted += taken
        elif body and self._exchange is not None:
            self._exchange.request_data(body)

    def _waits_for_rest(self) -> bool:
        """Whether the next request is waited for behind what nobody wants of a body."""
        # The client was told that the connection goes on. Where it has sent all of the body by now,
        # it has no sign but the end itself that this is not so, and its next request may meet it.
        request = self._request
        if (
            request is None
            or not request.keeps_alive
            or self._unwanted + self._counted > MOST_UNWANTED_BYTES
        ):
            return False
        self._held = False  # by an exchange that is over
        if self._timer is None:
            self._timer = self._link.after(HEAD_TIMEOUT_S, self._late)
        return True

    def _next(self) -> bool:
        """The exchange is over: the next may begin, or the connection ends."""
        request, self._request = self._request, None
        self._exchange = None
        if request is None or not request.keeps_alive:
            self._close()
            return False
        self._reading = HEAD
        if self._held:  # by an exchange that is over
            self._held = False
            self._listen()
        return True

    def _upgrade(self) -> None:
        self._reading = RAW
        self._upgraded = True
        exchange, rest = self._exchange, self._pending
        self._pending = b""
        if rest and exchange is not None:
            # What the peer sent without waiting for the 101 belongs to the new protocol.
            exchange.request_data(rest)
            exchange.flush_request()
        if self._eof:
            self._end_of_raw()
        else:
            self._listen()

    def _end_raw(self) -> None:
        self._write_out()
        if self._reading is RAW:
            self._link.end()
        else:
            self._close()

    def _refuse(self, error: HttpError) -> None:
        """Answer what is no request, and close: where the next one begins is not known."""
        if self._handler is None:
            return
        self._reading = NOTHING
        self._pending = b""
        exchange, self._exchange = self._exchange, None
        self._handler.refused(error.status, str(error), begun=exchange is not None)
        if exchange is not None and self._answered:  # within a body that nobody wanted any more
            self._close()
            return
        if exchange is not None:  # within a body
            exchange.request_aborted(str(error), 0 if self._responding else error.status)
            if self._responding:
                self.reset(str(error))
                return
        head, body = answers.answer(error.status, str(error))
        self._out += (head1.write_response(head, chunked=False, close=True), body)
        self._close()

    def _late(self) -> None:
        self._timer = None
        if self._reading is BODY:  # that nobody waits for
            self._close()
            return
        self._refuse(HttpError(408, f"no whole head of a request within {HEAD_TIMEOUT_S:.0f} s"))

    def _listen(self) -> None:
        waiting = len(self._pending) >= MOST_PIPELINED_BYTES and (
            self._exchange is not None or self._going_on
        )
        self._deaf = self._held or waiting
        self._link.listen(not self._deaf)

    def _close(self) -> None:
        self.flush()
        self._link.close()
        self._over("the connection is closed")

    def _over(self, reason: str) -> None:
        handler, self._handler = self._handler, None
        self._stop_timer()
        if handler is None:
            return
        # An upgraded connection goes on behind the end of what answers.
        waiting = not self._answered or self._reading is RAW
        self._reading = NOTHING
        self._pending = b""
        self._out.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None and waiting:
            exchange.request_aborted(reason)
        self._answered = True
        handler.closed()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
