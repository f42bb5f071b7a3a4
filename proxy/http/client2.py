"""HTTP/2 on a connection to whoever answers: many requests at the same time (RFC 9113)."""

from collections.abc import Callable, Sequence
from struct import Struct

from h2.errors import ErrorCodes
from h2.events import Event, InformationalResponseReceived, RemoteSettingsChanged, ResponseReceived

from meshrun.proxy.errors import Http2Error, HttpError
from meshrun.proxy.http.connection2 import MOST_STREAMS, Connection, code_name
from meshrun.proxy.http.exchange import Exchange, Failure, Upstream
from meshrun.proxy.http.fields2 import read_response, write_request
from meshrun.proxy.http.frames2 import HEADER_BYTES, Frame
from meshrun.proxy.http.heads import COUNTED, NO_BODY, Fields, Request
from meshrun.proxy.http.link import Link
from meshrun.proxy.http.stream2 import Stream

__all__ = ["Http2Client"]

# RFC 9113 6.5.2: what a peer should take at the least, and so before it has said what it takes.
STREAMS_UNASKED = 100

HIGHEST_STREAM = 2**31 - 1

# Interim heads are relayed as they come; nobody needs so many before an answer.
MOST_INTERIM = 100

_goaway = Struct(">LL")


class Http2Client(Connection["_ClientStream"]):
    """Asks over `link`.

    Calls `on_change` when `capacity` has become 0 or is 0 no more, and when it is closed.
    """

    def __init__(self, link: Link, on_change: Callable[["Http2Client"], None]) -> None:
        super().__init__(link, client=True)
        self._on_change = on_change
        self._heard_settings = False
        self._leaving = False  # no more streams are opened
        self._had_capacity = True

    @property
    def capacity(self) -> int:
        """How many more streams may be opened now."""
        if self._over or self._leaving:
            return 0
        most = MOST_STREAMS
        if not self._heard_settings:
            most = STREAMS_UNASKED
        else:
            most = min(most, self._h2.remote_settings.max_concurrent_streams)
        numbers = (HIGHEST_STREAM - self._h2.highest_outbound_stream_id) // 2
        return max(0, min(most - len(self._streams), numbers))

    def request(
        self, request: Request, exchange: Exchange, extra: Sequence[tuple[str, str]] = ()
    ) -> Upstream:
        """Send a head with `extra` fields; return what takes the rest. Needs `capacity`."""
        assert self.capacity
        h2 = self._h2
        number = h2.get_next_available_stream_id()
        stream = self._streams[number] = _ClientStream(self, number, exchange, request.method)
        bare = request.framing is NO_BODY
        # At once, in whatever state the link is: numbers must rise, and a link that is not open yet
        # opens with what was written.
        h2.send_headers(number, write_request(request, extra), end_stream=bare)
        if bare:
            stream.ending = stream.sent = True
        return stream

    @property
    def idle(self) -> bool:
        """Whether no request is under way."""
        return not self._streams and not self._over

    def retire(self) -> None:
        """Open no more streams: close once those under way are answered."""
        self._leaving = True
        self.flush()

    @property
    def _underscores(self) -> bool:
        return True

    def _obey_other(self, event: Event) -> None:
        if isinstance(event, RemoteSettingsChanged):
            self._heard_settings = True
        elif isinstance(event, ResponseReceived | InformationalResponseReceived):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                ended = isinstance(event, ResponseReceived) and event.stream_ended is not None
                self._take_head(stream, event, ended=ended)

    def _take_head(
        self,
        stream: "_ClientStream",
        event: ResponseReceived | InformationalResponseReceived,
        *,
        ended: bool,
    ) -> None:
        try:
            head = read_response(event.headers or [], ended=ended, method=stream.method)
        except HttpError as error:
            self._unfit(stream, str(error))
            return
        self._touch(stream)
        if head.interim:
            stream.interims += 1
            if stream.interims > MOST_INTERIM:
                self._unfit(stream, f"more than {MOST_INTERIM} interim responses came")
                return
        else:
            stream.begun = True
            if head.framing is NO_BODY:
                stream.expected = 0
            elif head.framing is COUNTED:
                stream.expected = head.length
        stream.exchange.response_head(head)
        if stream.over:
            return
        if not ended and head.status == 304 and head.length:
            # What follows can only be an end, which h2 would take for a body that is too short.
            self._reset_stream(stream.number, ErrorCodes.NO_ERROR)
            stream.sent = ended = True
        if ended:
            self._take_end(stream, [])

    def _take_end(self, stream: "_ClientStream", trailers: Fields) -> None:
        if not stream.sent:
            # It was answered without the rest of the request, which nobody waits for.
            self._reset_stream(stream.number, ErrorCodes.CANCEL)
            stream.sent = stream.ending = True
            stream.chunks.clear()
        super()._take_end(stream, trailers)

    def _take_goaway(self, frame: Frame) -> None:
        if len(frame.whole) < HEADER_BYTES + _goaway.size:
            raise Http2Error(ErrorCodes.FRAME_SIZE_ERROR, "GOAWAY is too short")
        last, code = _goaway.unpack_from(frame.whole, HEADER_BYTES)
        last &= HIGHEST_STREAM
        self._leaving = True
        for stream in list(self._streams.values()):
            if stream.number > last:
                stream.unseen = True
                self._touch(stream)
                self._forget(stream)
                stream.fail(f"the other side takes no more requests: {code_name(code)}")

    def _flushed(self) -> None:
        numbers_left = self._h2.highest_outbound_stream_id < HIGHEST_STREAM - 1
        if (self._leaving or not numbers_left) and not self._streams:
            self._say_goaway(0, ErrorCodes.NO_ERROR)
            self._close("the connection was retired")
        elif bool(self.capacity) is not self._had_capacity:
            self._had_capacity = not self._had_capacity
            self._on_change(self)

    def _ended(self, reason: str) -> None:
        self._had_capacity = False
        self._on_change(self)


class _ClientStream(Stream):
    """A request that was sent, and the upstream of its exchange."""

    __slots__ = ("begun", "exchange", "interims", "method", "unseen")

    def __init__(self, client: Http2Client, number: int, exchange: Exchange, method: str) -> None:
        super().__init__(client, number)
        self.exchange = exchange
        self.method = method
        self.begun = False  # the final head has come
        self.unseen = False  # nothing of the request was looked at
        self.interims = 0

    # The exchange's side.

    def abort(self, reason: str) -> None:
        """Nobody waits for the response any more."""
        self._carrier.break_off(self, ErrorCodes.CANCEL)

    # The connection's side.

    def take_data(self, data: bytes) -> None:
        """Hand a part of the response's body on."""
        self.exchange.response_data(data)

    def take_end(self, trailers: Fields) -> None:
        """Hand the end of the response on."""
        self.exchange.response_end(trailers)

    def fail(self, reason: str, code: int | None = None) -> None:
        """There will be no response, or no more of it."""
        if self.begun:
            failure = Failure.BROKEN
        elif self.unseen or code == ErrorCodes.REFUSED_STREAM:
            failure = Failure.UNSENT
        else:
            failure = Failure.SILENT
        self.exchange.response_failed(failure, reason)

    def tell_hold(self) -> None:
        """Take no more of the request for now."""
        self.exchange.hold_request()

    def tell_resume(self) -> None:
        """Take more of it again."""
        self.exchange.resume_request()

    def tell_flush(self) -> None:
        """No more of the response for now."""
        self.exchange.flush_response()
