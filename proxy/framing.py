"""The frames of a tunnel: how streams follow each other on one TLS connection. Pure.

docs/tunnel.md is the specification. A frame is a header of four bytes, the type and the length of
the payload (big-endian), and the payload. What may follow what, in each direction, is in
`TRANSITIONS`.
"""

import struct
from collections.abc import Iterator, Mapping
from enum import Enum, IntEnum, auto

from meshrun.proxy.errors import FramingError

__all__ = [
    "ALPN",
    "HEADER_BYTES",
    "MOST_DATA_BYTES",
    "MOST_EARLY_BYTES",
    "TRANSITIONS",
    "Decoder",
    "Frame",
    "Hearing",
    "Refusal",
    "after",
    "encode",
    "encode_refusal",
    "pack_data_header",
    "read_refusal",
]

# What both sides name in the TLS handshake (RFC 7301). An incompatible change gets another number.
ALPN = "meshrun-tunnel/1"

HEADER_BYTES = 4
MOST_DATA_BYTES = 2**24 - 1
MOST_REFUSAL_BYTES = 256

# How much of a stream may be under way before it is accepted: the side that opened it keeps a copy.
MOST_EARLY_BYTES = 64 * 1024

# Payloads that are shorter are joined with their neighbours: to hand on each would cost more than
# the copy. Longer ones are bulk, and would pay for it.
SMALL_BYTES = 4096

_header = struct.Struct(">I")
_pack_into = _header.pack_into
_unpack_from = _header.unpack_from


class Frame(IntEnum):
    """What a frame says of the stream under way."""

    OPEN = 1  # a stream begins
    ACCEPTED = 2  # the app has been reached; what comes next comes from it
    REFUSED = 3  # the stream does not come about: a code and a text
    DATA = 4
    FINISH = 5  # nothing more comes in this direction
    RESET = 6  # the stream is broken off; nothing more comes in this direction


_DATA = int(Frame.DATA) << 24


class Refusal(IntEnum):
    """Why a stream was refused."""

    DENIED = 1  # an intention forbids it
    UNREACHABLE = 2  # the app did not take the connection in time
    BUSY = 3  # a limit is reached
    LEAVING = 4  # this tunnel takes no stream any more; another may


class Hearing(Enum):
    """Where one direction of a tunnel is, as its receiver knows."""

    UNOPENED = auto()  # the receiver waits for the other side to open a stream
    UNCALLED = auto()  # the receiver opens streams, and has none under way
    AWAITING = auto()  # the receiver has opened a stream that is not accepted yet
    CALLED = auto()  # the bytes of the receiver's own stream
    OPENED = auto()  # the bytes of a stream that the other side opened


# A pair that is missing is a breach of the protocol.
TRANSITIONS: Mapping[tuple[Hearing, Frame], Hearing] = {
    (Hearing.UNOPENED, Frame.OPEN): Hearing.OPENED,
    (Hearing.OPENED, Frame.DATA): Hearing.OPENED,
    (Hearing.OPENED, Frame.FINISH): Hearing.UNOPENED,
    (Hearing.OPENED, Frame.RESET): Hearing.UNOPENED,
    (Hearing.AWAITING, Frame.ACCEPTED): Hearing.CALLED,
    (Hearing.AWAITING, Frame.REFUSED): Hearing.UNCALLED,
    (Hearing.AWAITING, Frame.RESET): Hearing.UNCALLED,
    (Hearing.CALLED, Frame.DATA): Hearing.CALLED,
    (Hearing.CALLED, Frame.FINISH): Hearing.UNCALLED,
    (Hearing.CALLED, Frame.RESET): Hearing.UNCALLED,
}


def after(hearing: Hearing, frame: Frame) -> Hearing:
    """Return the state that follows; raise FramingError where the frame may not come."""
    try:
        return TRANSITIONS[hearing, frame]
    except KeyError:
        raise FramingError(
            f"cannot go on with the tunnel: {frame.name} came while {hearing.name.lower()}"
        ) from None


def encode(frame: Frame) -> bytes:
    """Return a frame that has no payload."""
    return _header.pack(frame << 24)


def encode_refusal(refusal: Refusal, text: str) -> bytes:
    """Return a REFUSED; what of `text` (UTF-8) is too long for it is cut off."""
    payload = bytes([refusal]) + text.encode()[: MOST_REFUSAL_BYTES - 1]
    return _header.pack(Frame.REFUSED << 24 | len(payload)) + payload


def pack_data_header(buffer: memoryview, offset: int, length: int) -> None:
    """Write the header of a DATA frame with `length` bytes (at most MOST_DATA_BYTES)."""
    _pack_into(buffer, offset, _DATA | length)


def read_refusal(payload: bytes | memoryview) -> tuple[Refusal, str]:
    """Return the code and the text of a REFUSED, of which a stranger may have made anything."""
    code, text = payload[0], bytes(payload[1:]).decode(errors="replace")
    try:
        refusal = Refusal(code)
    except ValueError:
        raise FramingError(f"cannot understand a refusal with the code {code}") from None
    return refusal, text if text.isprintable() else ascii(text)[1:-1]


# Each type with the least and the most that its payload may be. An empty DATA says nothing, at the
# receiver's expense.
_KINDS: Mapping[int, tuple[Frame, int, int]] = {
    Frame.OPEN: (Frame.OPEN, 0, 0),
    Frame.ACCEPTED: (Frame.ACCEPTED, 0, 0),
    Frame.REFUSED: (Frame.REFUSED, 1, MOST_REFUSAL_BYTES),
    Frame.DATA: (Frame.DATA, 1, MOST_DATA_BYTES),
    Frame.FINISH: (Frame.FINISH, 0, 0),
    Frame.RESET: (Frame.RESET, 0, 0),
}


class Decoder:
    """Cuts what was received into frames, however it was fragmented.

    The payload of a DATA frame comes in as many parts as it was received in, small ones together
    with their neighbours; that of a REFUSED comes whole.
    """

    __slots__ = ("_data_left", "_kept", "more")

    def __init__(self) -> None:
        self._data_left = 0  # of a DATA frame under way
        self._kept = b""  # a part of a header, or of a REFUSED; all that is left if there is more
        self.more = False  # frames may be left, since there were too many for one turn

    @property
    def whole(self) -> bool:
        """Whether nothing is half received."""
        return not self._data_left and not self._kept

    def sole_payload(self, data: memoryview) -> memoryview | None:
        """Return the payload if `data` is one whole DATA frame, as most are; else `feed` it."""
        if self._data_left or self._kept or len(data) <= HEADER_BYTES:
            return None
        (header,) = _unpack_from(data)
        return data[HEADER_BYTES:] if header == _DATA | len(data) - HEADER_BYTES else None

    def keep(self, data: memoryview) -> None:
        """Take what came while there is `more`."""
        self._kept += data

    def feed(
        self, data: memoryview | bytes, most: int | None = None
    ) -> Iterator[tuple[Frame, memoryview]]:
        """Yield the frames in `data`, at most so many: where those are not all there is `more`.

        Raises FramingError for what is none. Payloads are valid as long as `data`.
        """
        view = memoryview(self._kept + bytes(data) if self._kept else data)
        self._kept = b""
        self.more = False
        small: list[memoryview] = []
        at, end, frames = 0, len(view), 0
        while at < end:
            if self._data_left:
                part = view[at : at + self._data_left]
                at += len(part)
                self._data_left -= len(part)
                if len(part) < SMALL_BYTES:
                    small.append(part)
                    continue
                if small:
                    yield Frame.DATA, _joined(small)
                yield Frame.DATA, part
                continue
            if frames == most:
                self.more = True
                break
            frames += 1
            if end - at < HEADER_BYTES:
                break
            (header,) = _unpack_from(view, at)
            kind, length = header >> 24, header & 0xFFFFFF
            if kind == Frame.DATA and length:
                self._data_left = length
                at += HEADER_BYTES
                continue
            if small:
                yield Frame.DATA, _joined(small)
            frame = _checked(kind, length)
            if end - at - HEADER_BYTES < length:
                break
            at += HEADER_BYTES
            yield frame, view[at : at + length]
            at += length
        if small:
            yield Frame.DATA, _joined(small)
        self._kept = bytes(view[at:])


def _joined(small: list[memoryview]) -> memoryview:
    """Return these parts as one, and leave none."""
    joined = small[0] if len(small) == 1 else memoryview(b"".join(small))
    small.clear()
    return joined


def _checked(kind: int, length: int) -> Frame:
    try:
        frame, least, most = _KINDS[kind]
    except KeyError:
        raise FramingError(f"cannot understand a frame of type {kind}") from None
    if not least <= length <= most:
        raise FramingError(f"cannot take a {frame.name} of {length} bytes")
    return frame
