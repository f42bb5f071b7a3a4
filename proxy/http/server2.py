"""HTTP/2 on a connection that requests come over: many at the same time (RFC 9113)."""

import asyncio
import time
from collections.abc import Sequence

from h2.errors import ErrorCodes
from h2.events import Event, PingAckReceived, RequestReceived

from meshrun.proxy.errors import Http2Error, HttpError
from meshrun.proxy.http import answers
from meshrun.proxy.http.connection2 import MOST_STREAMS, Connection
from meshrun.proxy.http.exchange import Exchange, Handler
from meshrun.proxy.http.fields2 import Field, read_request, write_response
from meshrun.proxy.http.frames2 import Frame
from meshrun.proxy.http.heads import COUNTED, NO_BODY, Fields, Response
from meshrun.proxy.http.link import Link
from meshrun.proxy.http.patience import Patience
from meshrun.proxy.http.stream2 import Stream

__all__ = ["Http2Server"]

# Requests that are given up before there is an answer, by the peer (CVE-2023-44487) or since it
# broke the protocol (CVE-2025-8671): they cost the app more than the peer. All that are under way
# may be given up at once, and some more: a caller has gone, whose sidecar carries others over the
# same connection. nghttp2 grants 1000 and 33 a second; an app's answer that is heard out pays for
# one as well.
MOST_GIVEN_UP = MOST_STREAMS + 500.0
GIVEN_UP_PER_S = 33.0

# What is no request is like so many: a head over the limit is decoded before that is known.
GIVEN_UP_PER_REFUSED = 3.0

# How long a peer has to answer that it has heard that it shall open no more streams; those which it
# opened before are taken (RFC 9113 6.8).
LAST_CALL_S = 1.0

ANY_STREAM = 2**31 - 1
LAST_CALL = b"lastcall"


class Http2Server(Connection["_ServerStream"]):
    """Serves `link` with `handler`. With `grpc` it answers what it refuses as gRPC does."""

    def __init__(self, link: Link, handler: Handler, *, grpc: bool) -> None:
        super().__init__(link, client=False)
        self._handler = handler
        self._grpc = grpc
        self._given_up = Patience(MOST_GIVEN_UP, GIVEN_UP_PER_S)
        self._retiring = False  # the peer was told, or said so itself
        self._refusing = False  # it has heard of it: what comes now is refused
        self._timer: asyncio.TimerHandle | None = None

    def retire(self) -> None:
        """Take no more requests: close once those under way are answered."""
        if self._over or self._retiring:
            return
        self._retiring = True
        self._say_goaway(ANY_STREAM, ErrorCodes.NO_ERROR)
        if self.closed:  # by what the write met
            return
        self._h2.ping(LAST_CALL)
        self._timer = asyncio.get_running_loop().call_later(LAST_CALL_S, self._last_call)
        self.flush()

    def _last_call(self) -> None:
        self._stop_timer()
        if not self._over and not self._refusing:
            self._refusing = True
            self._say_goaway(self._h2.highest_inbound_stream_id, ErrorCodes.NO_ERROR)
            self.flush()

    @property
    def _underscores(self) -> bool:
        return self._grpc

    def _obey_other(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            number = event.stream_id
            if self._refusing:
                self._reset_stream(number, ErrorCodes.REFUSED_STREAM)
            elif len(self._streams) >= MOST_STREAMS:
                self._reset_stream(number, ErrorCodes.REFUSED_STREAM)
                self._give_up()
            else:
                self._begin(number, event.headers or [], ended=event.stream_ended is not None)
        elif isinstance(event, PingAckReceived) and event.ping_data == LAST_CALL:
            self._last_call()

    def _begin(self, number: int, fields: Sequence[Field], *, ended: bool) -> None:
        stream = self._streams[number] = _ServerStream(self, number)
        stream.complete = ended
        try:
            request = read_request(fields, ended=ended, underscores=self._grpc)
        except HttpError as error:
            self._handler.refused(error.status, str(error), begun=False)
            self._refuse(stream, fields, error)
            self._give_up(GIVEN_UP_PER_REFUSED)
            return
        if request.framing is COUNTED:
            stream.expected = request.length
        stream.holding = self._full
        self._touch(stream)
        stream.exchange = exchange = self._handler.begin(request, stream)
        if stream.holding and not stream.over:
            exchange.hold_response()
        if ended and not self._over:
            exchange.request_end([])

    def _refuse(self, stream: "_ServerStream", fields: Sequence[Field], error: HttpError) -> None:
        stream.refused = True
        head, body = answers.answer(error.status, str(error), grpc=self._grpc)
        stream.respond(head)
        if (b":method", b"HEAD") not in fields:
            stream.send(body)
        stream.end([])

    def _take_goaway(self, frame: Frame) -> None:
        self._retiring = self._refusing = True  # it opens no more streams

    def _take_reset(self, stream: "_ServerStream", code: int) -> None:
        super()._take_reset(stream, code)
        self._give_up()

    def _unfit(self, stream: "_ServerStream", reason: str) -> None:
        super()._unfit(stream, reason)
        self._give_up()

    def _give_up(self, count: float = 1.0) -> None:
        if not self._given_up.spend(time.monotonic(), count):
            raise Http2Error(
                ErrorCodes.ENHANCE_YOUR_CALM, "cannot take so many requests that are given up"
            )

    def _all_sent(self, stream: Stream) -> None:
        if not stream.refused:
            self._given_up.earn(1)
        if not stream.complete:
            # The rest of the request is of no use to anybody (RFC 9113 8.1).
            self._reset_stream(stream.number, ErrorCodes.NO_ERROR)
            stream.complete = True
        super()._all_sent(stream)

    def _flushed(self) -> None:
        if self._refusing and not self._streams:
            self._close("the connection was retired")

    def _ended(self, reason: str) -> None:
        self._stop_timer()
        self._handler.closed()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _ServerStream(Stream):
    """A request that came, and the downstream of its exchange; without one, of a refusal."""

    __slots__ = ("exchange",)

    def __init__(self, server: Http2Server, number: int) -> None:
        super().__init__(server, number)
        self.exchange: Exchange | None = None

    # The exchange's side.

    def respond(self, head: Response) -> None:
        """Send a head; one without a body goes with the end that follows."""
        if self.ending:
            return
        self.heads.append(write_response(head))
        if head.interim or head.framing is not NO_BODY:
            self._carrier.wants(self, 0)

    def abort(self, reason: str) -> None:
        """Break the exchange off."""
        self._carrier.break_off(self, ErrorCodes.INTERNAL_ERROR)

    # The connection's side.

    def take_data(self, data: bytes) -> None:
        """Hand a part of the request's body on."""
        if self.exchange is not None:
            self.exchange.request_data(data)

    def take_end(self, trailers: Fields) -> None:
        """Hand the end of the request on."""
        if self.exchange is not None:
            self.exchange.request_end(trailers)

    def fail(self, reason: str, code: int | None = None) -> None:
        """Whoever asked is gone."""
        if self.exchange is not None:
            self.exchange.request_aborted(reason)

    def tell_hold(self) -> None:
        """Take no more of the response for now."""
        if self.exchange is not None:
            self.exchange.hold_response()

    def tell_resume(self) -> None:
        """Take more of it again."""
        if self.exchange is not None:
            self.exchange.resume_response()

    def tell_flush(self) -> None:
        """No more of the request for now."""
        if self.exchange is not None:
            self.exchange.flush_request()
