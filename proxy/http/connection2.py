"""HTTP/2 on one connection, as far as it is the same for servers and clients (RFC 9113).

The library h2, as `machine2` runs it, keeps the states of streams and the windows; `frames2` looks
at each frame before it does. It is fed a frame at a time, so that what comes before a fault is not
lost, and so that what h2 has only one answer to, the end of the connection, can be the end of a
stream.
"""

from collections import deque
from time import monotonic
from typing import Generic, TypeVar

from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RemoteSettingsChanged,
    StreamReset,
    TrailersReceived,
    WindowUpdated,
)
from h2.exceptions import NoSuchStreamError, ProtocolError
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame

from meshrun.proxy import memory
from meshrun.proxy.errors import Http2Error, HttpError
from meshrun.proxy.http import frames2
from meshrun.proxy.http.fields2 import read_trailers
from meshrun.proxy.http.frames2 import FRAME_LIMIT_BYTES, Frame, Frames
from meshrun.proxy.http.heads import Fields
from meshrun.proxy.http.link import Link, Timer
from meshrun.proxy.http.machine2 import Machine
from meshrun.proxy.http.stream2 import Stream

__all__ = ["MOST_STREAMS", "Connection", "code_name"]

# Envoy's max_concurrent_streams in its advice for the edge is 100, here 1024, as its circuit limit.
MOST_STREAMS = 1024

# What may be kept of one stream where whoever it is for does not take it: a window is enough for a
# gigabyte a second where a round trip takes a quarter of a millisecond. Of all streams of a
# connection as much as its window, and what `memory.held` lends beyond that, so that those which
# are held back do not stop the others.
STREAM_WINDOW_BYTES = 256 * 1024
CONNECTION_WINDOW_BYTES = 512 * 1024
MOST_LENT_BYTES = 8 * 1024 * 1024

# Envoy's per_connection_buffer_limit_bytes is 1 MiB: where more waits to be sent, nothing more is
# wanted for any stream.
MOST_WAITING_BYTES = 512 * 1024

# Envoy's stream_idle_timeout, which its stream_flush_timeout is by default: how long a peer may
# take nothing of what waits on a stream.
STALLED_S = 300.0

# RFC 9113 6.9.2: that of a connection before anything is said.
DEFAULT_WINDOW_BYTES = 65_535

# Of frames that came at once, how many have their turn before other connections do.
BATCH = 64

# What is gathered before it is written: with as much the link is asked whether it takes more.
BATCH_BYTES = 64 * 1024

# Of answers that are asked for and not read: acknowledgements, resets and the like. What is sent
# unasked, as the heads of requests, is none of them.
MOST_UNREAD_BYTES = 64 * 1024


StreamT = TypeVar("StreamT", bound=Stream)


class Connection(Generic[StreamT]):
    """Owns `link`, cuts what comes over it into streams, and shares it among what they send."""

    def __init__(self, link: Link, *, client: bool) -> None:
        self._link = link
        self._h2 = Machine(
            client=client, window_bytes=STREAM_WINDOW_BYTES, most_streams=MOST_STREAMS
        )
        self._frames = Frames(of_client=not client)
        self._streams: dict[int, StreamT] = {}
        self._turns: deque[Stream] = deque()  # those that have something to send
        self._starved: deque[Stream] = deque()  # those that wait for the connection's window
        self._given: list[Stream] = []  # those that were given something since the last flush
        self._emptied: deque[Stream] = deque()  # those that can take more again
        self._touched: list[Stream] = []  # those with something to be handed on and flushed
        self._waiting_bytes = 0  # to be sent
        self._full = False  # so much waits that each stream was told to hold
        self._lent_bytes = 0
        self._stall_timer: Timer | None = None
        self._unread_bytes = 0
        self._over = False
        self._flushing = self._flush_again = False
        self._going_on = False  # in the next turn of the loop
        self._listening = True

    def start(self) -> None:
        """Say the preface, and begin to receive."""
        h2 = self._h2
        h2.begin()
        h2.increment_flow_control_window(CONNECTION_WINDOW_BYTES - DEFAULT_WINDOW_BYTES)
        self._link.start(self)
        self.flush()

    @property
    def in_flight(self) -> int:
        """How many streams are under way."""
        return len(self._streams)

    def idle_s(self) -> float:
        """Return how long nothing moved."""
        return self._link.idle_s()

    def reset(self, reason: str) -> None:
        """Cut it, with all that is under way."""
        if not self._over:
            self._link.reset()
            self._end(reason)

    # The link's owner.

    def received(self, data: memoryview) -> None:
        """Obey the frames in `data`, some of them in a later turn of the loop if they are many."""
        if self._going_on:
            self._frames.keep(data)
        else:
            self._obey_frames(data, BATCH)

    def _go_on(self) -> None:
        self._going_on = False
        if not self._over:
            self._obey_frames(b"", BATCH)

    def _obey_frames(self, data: memoryview | bytes, most: int | None) -> None:
        try:
            for frame in self._frames.feed(data, monotonic(), most):
                self._take(frame)
                if self._over:
                    return
            self._flush_touched()
            self.flush()
            if self._unread_bytes > MOST_UNREAD_BYTES:
                raise Http2Error(
                    ErrorCodes.ENHANCE_YOUR_CALM, "the peer does not read the answers it asks for"
                )
        except Http2Error as error:
            self._say_goaway(self._h2.highest_inbound_stream_id, error.code, str(error))
            self._close(str(error))
        except ProtocolError as error:  # h2 has put a GOAWAY behind what is to be sent
            self._close(f"the peer broke the protocol: {error}")
        if self._over:
            return
        if self._frames.more is self._listening:
            self._listening = not self._frames.more
            self._link.listen(self._listening)
        if self._frames.more and not self._going_on:
            self._going_on = True
            self._link.soon(self._go_on)

    def ended(self) -> None:
        """The peer will send nothing more, not even a window: it takes nothing more either."""
        if self._going_on and not self._over:
            self._obey_frames(b"", None)
        self._close("the peer closed the connection")

    def drained(self) -> None:
        """The peer takes more again."""
        self._unread_bytes = 0
        self.flush()

    def broken(self, reason: str) -> None:
        """The connection is gone."""
        self._end(reason)

    # The streams' carrier.

    def wants(self, stream: Stream, size: int) -> None:
        """A stream has something to send, `size` bytes of a body among it."""
        self._waiting_bytes += size
        if not stream.turning:
            stream.turning = True
            self._turns.append(stream)
        if not stream.given:
            stream.given = True
            self._given.append(stream)

    def lend(self, size: int) -> bool:
        """Let the peer send `size` bytes more on other streams, if so much may be kept."""
        if (
            self._over
            or self._h2.inbound_flow_control_window >= CONNECTION_WINDOW_BYTES // 2  # no need yet
            or self._lent_bytes + size > MOST_LENT_BYTES
            or not memory.held.take(size)
        ):
            return False
        self._lent_bytes += size
        self._write_unasked()
        self._h2.increment_flow_control_window(size)
        self._write_answers()
        return True

    def give_back(self, stream: Stream, size: int, lent: int) -> None:
        """Let the peer send `size` bytes more on a stream; on others it may for `lent` of them."""
        self._return(lent)
        if self._over:
            return
        self._write_unasked()
        if size > lent:
            self._h2.acknowledge_received_data(size - lent, stream.number)
        if lent and not stream.complete:
            self._h2.increment_flow_control_window(lent, stream.number)
        self._write_answers()

    def resumed(self, stream: Stream) -> None:
        """See in a later turn of the loop whether what was delivered has been taken."""
        if not stream.over:
            self._touch(stream)
            if not self._going_on:
                self._going_on = True
                self._link.soon(self._go_on)

    def completed(self, stream: Stream) -> None:
        """All that came on a stream has been delivered."""
        if stream.sent:
            self._forget(stream)

    def break_off(self, stream: Stream, code: ErrorCodes) -> None:
        """Reset a stream, now: whoever waits at the other end has waited long enough."""
        if not stream.over and not self._over:
            self._reset_stream(stream.number, code)
            self._forget(stream)
            self.flush()

    @property
    def closed(self) -> bool:
        """Whether it is of no use any more."""
        return self._over

    def flush(self) -> None:
        """Send what was given, stream by stream in turn, as far as windows and link take it."""
        if self._flushing:
            self._flush_again = True
            return
        self._flushing = True
        try:
            self._flush_again = True
            while self._flush_again and not self._over:
                self._flush_again = False
                self._flush_once()
        finally:
            self._flushing = False

    def _flush_once(self) -> None:
        if self._turns or self._starved:
            self._take_turns()
        self._write()
        while self._given:
            stream = self._given.pop()
            stream.given = False
            if stream.chunks:
                self._hold(stream)
                if self._stall_timer is None and not self._over:
                    self._stall_timer = self._link.after(STALLED_S, self._look_for_stalled)
        full = self._waiting_bytes > MOST_WAITING_BYTES
        if full is not self._full:
            self._full = full
            for stream in self._streams.values():
                if full:
                    self._hold(stream)
                elif stream.holding and not stream.chunks:
                    self._emptied.append(stream)
        while self._emptied and self._waiting_bytes <= MOST_WAITING_BYTES:
            stream = self._emptied.popleft()
            if stream.holding and not stream.chunks and not stream.over:
                stream.holding = False
                stream.tell_resume()
        self._flushed()

    def _hold(self, stream: Stream) -> None:
        # Also where all has been given: so the other side learns what of it has been sent.
        if not stream.holding and not stream.sent:
            stream.holding = True
            stream.tell_hold()

    def _look_for_stalled(self) -> None:
        self._stall_timer = None
        now = monotonic()
        waiting = [stream for stream in self._streams.values() if stream.chunks]
        for stream in waiting:
            if not stream.over and now - stream.moved_at >= STALLED_S:
                reason = f"the peer took nothing of what waits for it for {STALLED_S:g} s"
                self._break(stream, ErrorCodes.CANCEL, reason)
        waiting = [stream for stream in waiting if not stream.over]
        if waiting and not self._over:
            first_s = min(stream.moved_at for stream in waiting) + STALLED_S - now
            self._stall_timer = self._link.after(first_s, self._look_for_stalled)
        self._flush_touched()
        self.flush()

    # Sending.

    def _take_turns(self) -> None:
        turns, starved, link, h2 = self._turns, self._starved, self._link, self._h2
        batch = 0
        while not self._over:
            if batch >= BATCH_BYTES:
                self._write()
                batch = 0
            if link.clogged:
                break
            # Those that have waited longest first, and no more of them than there is window for: a
            # peer that gives a byte at a time would else have each of a thousand looked at for it.
            if starved and h2.outbound_flow_control_window > 0:
                stream = starved.popleft()
            elif turns:
                stream = turns.popleft()
            else:
                break
            stream.turning = False
            batch += self._take_turn(stream)

    def _take_turn(self, stream: Stream) -> int:
        """Send one piece of a stream; return how long it is."""
        number, h2, size = stream.number, self._h2, 0
        if stream.heads:
            heads, stream.heads = stream.heads, []
            for head in heads[:-1]:
                h2.send_headers(number, head)
            last = stream.ending and not stream.chunks and not stream.trailers
            h2.send_headers(number, heads[-1], end_stream=last)
            if last:
                self._all_sent(stream)
                return 0
        if stream.chunks:
            window = h2.local_flow_control_window(number)
            if window <= 0:
                if h2.outbound_flow_control_window <= 0:
                    stream.turning = True
                    self._starved.append(stream)
                return 0  # else its own window brings it back
            piece = stream.next_piece(min(window, h2.max_outbound_frame_size, FRAME_LIMIT_BYTES))
            size = len(piece)
            self._waiting_bytes -= size
            last = stream.ending and not stream.chunks and not stream.trailers
            h2.send_data(number, piece, end_stream=last)
            self._frames.data_sent(size)
            if last:
                self._all_sent(stream)
                return size
        if stream.chunks:
            stream.turning = True
            self._turns.append(stream)
        elif stream.ending:
            if stream.trailers:
                h2.send_headers(number, stream.trailers, end_stream=True)
            else:
                h2.end_stream(number)
            self._all_sent(stream)
        elif stream.holding:
            self._emptied.append(stream)
        return size

    def _all_sent(self, stream: Stream) -> None:
        stream.sent = True
        if stream.holding:
            self._emptied.append(stream)
        if stream.complete:
            self._forget(stream)

    def _write(self, *, asked: bool = False) -> None:
        data = self._h2.data_to_send()
        if data:
            if asked and self._link.clogged:
                self._unread_bytes += len(data)
            self._link.write(data)

    # Around whatever makes an answer, so that only that is counted.

    def _write_unasked(self) -> None:
        if self._link.clogged:
            self._write()

    def _write_answers(self) -> None:
        if self._link.clogged:
            self._write(asked=True)

    def _say_goaway(self, last: int, code: int, why: str = "") -> None:
        # Not by h2, for which it would be the end of all streams.
        self._write()
        frame = GoAwayFrame(0, last, code, additional_data=why.encode())
        self._link.write(frame.serialize())

    def _reset_stream(self, number: int, code: ErrorCodes) -> None:
        self._write_unasked()
        try:
            self._h2.reset_stream(number, code)
        except NoSuchStreamError:
            pass  # closed by both sides already
        self._write_answers()

    # Receiving.

    def _take(self, frame: Frame) -> None:
        if frame.kind == frames2.DATA:
            stream = self._streams.get(frame.stream)
            if stream is not None and not stream.fits(frame.data_bytes, last=frame.ends_stream):
                # h2 would close the connection, and gives the window back of a stream that is over.
                self._unfit(stream, "the body is not as long as Content-Length says")
        elif frame.kind == frames2.GOAWAY:
            self._take_goaway(frame)
            return
        self._write_unasked()
        events = self._h2.take(frame)
        self._write_answers()
        for event in events:
            self._obey(event)
            if self._over:
                return

    def _obey(self, event: Event) -> None:
        if isinstance(event, DataReceived):
            stream = self._streams.get(event.stream_id)
            if stream is None:
                self._h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                return
            self._touch(stream)
            stream.arrive(event.data, event.flow_controlled_length)
            if event.stream_ended is not None and not stream.over:
                self._take_end(stream, [])
        elif isinstance(event, TrailersReceived):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                self._take_trailers(stream, event)
        elif isinstance(event, WindowUpdated):
            self._take_window(event.stream_id)
        elif isinstance(event, StreamReset):
            stream = self._streams.get(event.stream_id)
            if stream is not None:
                self._take_reset(stream, int(event.error_code or 0))
        elif isinstance(event, RemoteSettingsChanged):
            if SettingCodes.INITIAL_WINDOW_SIZE in event.changed_settings:
                for number in self._streams:
                    self._take_window(number)
            self._obey_other(event)
        else:
            self._obey_other(event)

    def _take_window(self, number: int) -> None:
        stream = self._streams.get(number)
        if stream is not None and stream.chunks and not stream.turning:
            stream.turning = True
            self._turns.append(stream)

    def _take_trailers(self, stream: StreamT, event: TrailersReceived) -> None:
        try:
            trailers = read_trailers(event.headers or [], underscores=self._underscores)
        except HttpError as error:
            self._unfit(stream, str(error))
            return
        if not stream.fits(0, last=True):
            self._unfit(stream, "the body is not as long as Content-Length says")
            return
        self._touch(stream)
        self._take_end(stream, trailers)

    def _take_end(self, stream: StreamT, trailers: Fields) -> None:
        stream.deliver_end(trailers)

    def _take_reset(self, stream: StreamT, code: int) -> None:
        self._touch(stream)
        stream.deliver()
        self._forget(stream)
        stream.fail(f"the stream was reset: {code_name(code)}", code)

    def _unfit(self, stream: StreamT, reason: str) -> None:
        """What came on a stream is no message (RFC 9113 8.1.1)."""
        self._break(stream, ErrorCodes.PROTOCOL_ERROR, reason)

    def _break(self, stream: StreamT, code: ErrorCodes, reason: str) -> None:
        self._touch(stream)
        stream.deliver()
        if not stream.over:
            self._reset_stream(stream.number, code)
            self._forget(stream)
            stream.fail(reason, code)

    def _touch(self, stream: Stream) -> None:
        if not stream.touched:
            stream.touched = True
            self._touched.append(stream)

    def _flush_touched(self) -> None:
        touched, self._touched = self._touched, []
        for stream in touched:
            stream.touched = False
            stream.deliver()
        for stream in touched:
            stream.tell_flush()
        for stream in touched:
            stream.settle()

    def _return(self, lent: int) -> None:
        self._lent_bytes -= lent
        memory.held.give_back(lent)

    def _discard(self, stream: Stream) -> None:
        self._waiting_bytes -= stream.discard()

    def _forget(self, stream: Stream) -> None:
        """A stream is over; what it kept is thrown away, and the window given back."""
        self._discard(stream)
        size, lent = stream.drop()
        self._return(lent)
        size -= lent
        if stream.turning:
            stream.turning = False
            if stream in self._turns:
                self._turns.remove(stream)
            else:
                self._starved.remove(stream)
        if self._streams.pop(stream.number, None) is not None and size and not self._over:
            self._h2.acknowledge_received_data(size, stream.number)

    # The end.

    def _close(self, reason: str) -> None:
        """Close in order behind what was written, with all that is under way."""
        if not self._over:
            self._write()
            self._link.close()
            self._end(reason)

    def _end(self, reason: str) -> None:
        if self._over:
            return
        self._over = True
        if self._stall_timer is not None:
            self._stall_timer.cancel()
            self._stall_timer = None
        self._turns.clear()
        self._starved.clear()
        streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.deliver()
            self._discard(stream)
            _, lent = stream.drop()
            self._return(lent)
            self._touch(stream)
            stream.fail(reason)
        self._flush_touched()
        self._ended(reason)

    # What is different for servers and clients.

    @property
    def _underscores(self) -> bool:
        """Whether names of fields that come may have them."""
        raise NotImplementedError

    def _obey_other(self, event: Event) -> None:
        """Take what only a server or only a client gets."""
        raise NotImplementedError

    def _take_goaway(self, frame: Frame) -> None:
        """The peer takes no more streams, or opens no more."""
        raise NotImplementedError

    def _flushed(self) -> None:
        """All is said for now: see what that has changed."""
        raise NotImplementedError

    def _ended(self, reason: str) -> None:
        """The connection is over, and every stream has heard of it."""
        raise NotImplementedError


def code_name(code: int | None) -> str:
    """Return the name of an error code (RFC 9113 7)."""
    try:
        return ErrorCodes(code or 0).name
    except ValueError:
        return f"{code:#x}"
