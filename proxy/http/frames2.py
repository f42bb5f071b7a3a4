"""The frames of HTTP/2 as they come in, looked at before the library h2 sees them. Pure.

h2 answers for the states of streams, the windows and the compression. What it leaves open is closed
here: it keeps up to 16 MiB of a frame before it finds it too long, keeps each setting it has never
heard of, lets a peer make the table of its encoder as large as it likes, and takes any number of
frames that move nothing. And it takes a GOAWAY, which lets streams finish (RFC 9113 6.8), for the
end of the connection: so it is not shown one.
"""

from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

from h2.errors import ErrorCodes

from meshrun.proxy.errors import Http2Error
from meshrun.proxy.http.patience import Patience

__all__ = [
    "CONTINUATION",
    "DATA",
    "FRAME_LIMIT_BYTES",
    "GOAWAY",
    "HEADERS",
    "HEADER_TABLE_BYTES",
    "PING",
    "PREFACE",
    "PRIORITY",
    "PUSH_PROMISE",
    "RST_STREAM",
    "SETTINGS",
    "WINDOW_UPDATE",
    "Frame",
    "Frames",
]

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# RFC 9113 6.
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE = range(9)
CONTINUATION = 9

ACK = END_STREAM = 0x1
END_HEADERS = 0x4
PADDED = 0x8

# What peers are told that they may send, and are sent at the most if they take it, since each frame
# costs as much as many bytes. RFC 9113 4.2: 16 KiB everybody takes.
FRAME_LIMIT_BYTES = 64 * 1024

# RFC 9113 6.5.2: of the encoder here, and so of what a peer can make it search and keep.
HEADER_TABLE_BYTES = 4096

# A list of fields that is within the limit is shorter than that, however it is encoded; behind it
# comes a connection that is there to fill memory (CVE-2024-27316 and its like).
BLOCK_LIMIT_BYTES = 128 * 1024
BLOCK_LIMIT_FRAMES = 32

SETTINGS_LIMIT = 64

# Frames that move nothing: nghttp2 and Envoy send away whoever sends some thousand of them; here it
# is more than there may be streams, which may all be reset at once. A peer that does something has
# more to say: Envoy grants 10 window updates for a frame of data.
MOST_IDLE_FRAMES = 1500.0
IDLE_FRAMES_PER_S = 100.0
IDLE_FRAMES_PER_HEAD = 10.0
IDLE_FRAMES_PER_DATA_SENT = 10.0
DATA_SENT_BYTES = 16 * 1024  # so much of a frame is another one: Go says something every 4 KiB
IDLE_FRAMES_PER_DATA_RECEIVED = 1.0

# A frame of less data than that is no merit, but it may come as often as one likes: the messages of
# gRPC are as small.
SMALL_DATA_BYTES = 64

# SETTINGS may change the window of each stream, and nobody has a reason to send it often.
IDLE_FRAMES_PER_SETTINGS = 10.0

HEADER_BYTES = 9
_header = Struct(">HBBBL")
_setting = Struct(">HL")
_FLAGS_AT = 4

_HEADER_TABLE_SIZE = 1
# Those of RFC 9113 6.5.2. Extended CONNECT (RFC 8441) is not spoken here.
_KNOWN_SETTINGS = frozenset(range(1, 7))


class Frame(NamedTuple):
    """A frame: `whole` has its header too, and is valid as long as what it came in."""

    kind: int
    flags: int
    stream: int
    whole: bytes | memoryview

    @property
    def ends_stream(self) -> bool:
        """Whether it is the last one of its direction; of DATA and HEADERS."""
        return bool(self.flags & END_STREAM)

    @property
    def data_bytes(self) -> int:
        """How much a DATA frame carries beside its padding, less than none if that is wrong."""
        length = len(self.whole) - HEADER_BYTES
        if self.flags & PADDED and length:
            return length - 1 - self.whole[HEADER_BYTES]
        return length


# So much of a frame that is no DATA counts as another one, where there are too many for one turn.
BYTES_LIKE_A_FRAME = 64

# To a frame of less data what follows is copied: that takes less time than a frame of its own does.
# So many that are joined to one count as another one.
JOINED_BELOW_BYTES = FRAME_LIMIT_BYTES // 2
FRAMES_LIKE_ONE = 64
MOST_JOINED = 1024

# And so many of them are like SETTINGS, for which each stream is looked at.
SETTINGS_COST = 16


class Frames:
    """Cuts what comes from a peer into frames. `of_client` says that the preface comes first."""

    __slots__ = (
        "_begun",
        "_block_bytes",
        "_block_frames",
        "_block_of",
        "_idle",
        "_preface",
        "_rest",
        "_wanted",
        "more",
    )

    def __init__(self, *, of_client: bool) -> None:
        self._preface = PREFACE if of_client else b""
        self._rest = bytearray()
        self._wanted = 0  # so much of it is a whole frame, as far as is known
        self.more = False  # whole frames may be left, since there were too many for one turn
        self._begun = False  # the peer has sent its settings
        self._block_of = 0  # the stream of the header block that is not complete
        self._block_bytes = 0
        self._block_frames = 0
        self._idle = Patience(MOST_IDLE_FRAMES, IDLE_FRAMES_PER_S)

    def keep(self, data: memoryview) -> None:
        """Take what came while there is `more`."""
        self._rest += data

    def feed(
        self, data: memoryview | bytes, now: float, most: int | None = None
    ) -> Iterator[Frame]:
        """Yield the frames that are whole with `data`, which came at `now`: about `most` of them.

        Where those are not all there is `more`. Of what is no DATA some bytes count as one frame.
        Small frames of DATA that follow each other on a stream are joined to one: each would else
        cost as much as a large one.

        PRIORITY, which is deprecated (RFC 9113 5.3.2), and kinds that nobody knows are left out; of
        settings only the known ones are in.
        Raises Http2Error, for which the connection is to be closed.
        """
        if self._preface:
            data = self._past_preface(memoryview(data))
        self.more = False
        if self._rest:
            self._rest += data
            if len(self._rest) < self._wanted:  # or each byte would cost a copy of all before it
                return
            data, self._rest = memoryview(bytes(self._rest)), bytearray()
        at, size, cost = 0, len(data), 0
        self._wanted = 0
        while size - at >= HEADER_BYTES:
            if most is not None and cost >= most:
                self.more = True
                break
            high, low, kind, flags, stream = _header.unpack_from(data, at)
            length = high << 8 | low
            if length > FRAME_LIMIT_BYTES:
                raise Http2Error(
                    ErrorCodes.FRAME_SIZE_ERROR,
                    f"cannot take a frame of more than {FRAME_LIMIT_BYTES} bytes",
                )
            end = at + HEADER_BYTES + length
            if end > size:
                self._wanted = end - at
                break
            if kind == DATA and length < JOINED_BELOW_BYTES and flags <= END_STREAM:
                whole, end = _joined(data, at, size)
                length, flags = len(whole) - HEADER_BYTES, whole[_FLAGS_AT]
                cost += (end - at - len(whole)) // (HEADER_BYTES * FRAMES_LIKE_ONE)
            else:
                whole = data[at:end]
            # A byte of a header block can stand for a whole field, which takes microseconds.
            cost += 1 if kind == DATA else 1 + length // BYTES_LIKE_A_FRAME
            if kind == SETTINGS:
                cost += SETTINGS_COST
            frame = Frame(kind, flags, stream & 0x7FFFFFFF, whole)
            at = end
            self._check_order(frame, length)
            if kind == SETTINGS and not flags & ACK:
                frame = frame._replace(whole=_known_settings(frame.whole))
            if self._moves_nothing(frame):
                setting = kind == SETTINGS and not flags & ACK
                self._spend(now, IDLE_FRAMES_PER_SETTINGS if setting else 1.0)
                if kind == PRIORITY or kind > CONTINUATION:
                    continue
            yield frame
        self._rest += data[at:]

    def data_sent(self, size: int) -> None:
        """A frame with `size` bytes was sent: the peer may say something about windows."""
        self._idle.earn(IDLE_FRAMES_PER_DATA_SENT * (1 + size / DATA_SENT_BYTES))

    def _past_preface(self, data: memoryview) -> memoryview:
        count = min(len(self._preface), len(data))
        if data[:count] != self._preface[:count]:
            raise Http2Error(ErrorCodes.PROTOCOL_ERROR, "what came is not HTTP/2")
        self._preface = self._preface[count:]
        return data[count:]

    def _check_order(self, frame: Frame, length: int) -> None:
        kind = frame.kind
        if self._block_of:
            if kind != CONTINUATION or frame.stream != self._block_of:
                raise _unfit("a frame is within a header block")
            self._block_frames += 1
            self._block_bytes += length
            if self._block_bytes > BLOCK_LIMIT_BYTES or self._block_frames > BLOCK_LIMIT_FRAMES:
                raise Http2Error(
                    ErrorCodes.ENHANCE_YOUR_CALM, "cannot take so long a block of header fields"
                )
            if frame.flags & END_HEADERS:
                self._block_of = 0
        elif not self._begun:
            if kind != SETTINGS or frame.flags & ACK:
                raise _unfit("the first frame is not SETTINGS")
            self._begun = True
        elif kind == HEADERS:
            if not frame.flags & END_HEADERS:
                self._block_of = frame.stream
                self._block_frames = 1
                self._block_bytes = length
            self._idle.earn(IDLE_FRAMES_PER_HEAD)
        elif kind == DATA:
            if frame.data_bytes >= SMALL_DATA_BYTES:
                self._idle.earn(IDLE_FRAMES_PER_DATA_RECEIVED)
        elif kind in (CONTINUATION, PUSH_PROMISE):
            raise _unfit("CONTINUATION follows no header block, or PUSH_PROMISE was sent")

    def _moves_nothing(self, frame: Frame) -> bool:
        if frame.kind == DATA:
            return frame.data_bytes <= 0 and not frame.ends_stream
        return frame.kind not in (HEADERS, CONTINUATION)

    def _spend(self, now: float, amount: float) -> None:
        if not self._idle.spend(now, amount):
            raise Http2Error(
                ErrorCodes.ENHANCE_YOUR_CALM, "cannot take so many frames that move nothing"
            )


def _joined(data: memoryview | bytes, at: int, size: int) -> tuple[bytes | memoryview, int]:
    """Return a frame with the data of those from `at`, and where they end; the first is whole."""
    high, low, _, flags, stream = _header.unpack_from(data, at)
    end = at + HEADER_BYTES + (high << 8 | low)
    pieces, length = [data[at + HEADER_BYTES : end]], high << 8 | low
    while not flags and length and size - end >= HEADER_BYTES and len(pieces) < MOST_JOINED:
        high, low, kind, next_flags, next_stream = _header.unpack_from(data, end)
        more = high << 8 | low
        next_end = end + HEADER_BYTES + more
        if (
            kind != DATA
            or next_stream != stream
            or next_flags > END_STREAM
            or not (more or next_flags)  # which moves nothing, and is charged for
            or length + more > FRAME_LIMIT_BYTES
            or next_end > size
        ):
            break
        pieces.append(data[end + HEADER_BYTES : next_end])
        length, flags, end = length + more, next_flags, next_end
    if len(pieces) == 1:
        return data[at:end], end
    head = _header.pack(length >> 8, length & 0xFF, DATA, flags, stream)
    return head + b"".join(pieces), end


def _known_settings(whole: bytes | memoryview) -> bytes:
    """Return a SETTINGS frame with what is known of `whole`, and a table that is not too large."""
    length = len(whole) - HEADER_BYTES
    if length % _setting.size:
        raise Http2Error(ErrorCodes.FRAME_SIZE_ERROR, "SETTINGS ends within a setting")
    if length > SETTINGS_LIMIT * _setting.size:
        raise Http2Error(ErrorCodes.ENHANCE_YOUR_CALM, "cannot take so many settings at once")
    known = {
        code: min(value, HEADER_TABLE_BYTES) if code == _HEADER_TABLE_SIZE else value
        for code, value in _setting.iter_unpack(whole[HEADER_BYTES:])
        if code in _KNOWN_SETTINGS
    }
    body = b"".join(_setting.pack(code, value) for code, value in known.items())
    return _header.pack(0, len(body), SETTINGS, 0, _header.unpack_from(whole)[4]) + body


def _unfit(why: str) -> Http2Error:
    return Http2Error(ErrorCodes.PROTOCOL_ERROR, f"cannot go on: {why}")
