"""The library h2 as this proxy runs it: with its own settings and codecs, and without copies. Pure.

h2 makes a text of each frame that it takes, for a log that nobody keeps, and copies each byte five
times on its way in or out: with bodies that is most of the time. So the frames that carry most are
put before it ready-made, and what it sends is gathered, and joined once.
"""

from struct import Struct

from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event
from h2.frame_buffer import FrameBuffer
from h2.settings import SettingCodes, Settings
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import DataFrame, HeadersFrame
from hyperframe.frame import Frame as HyperFrame

from meshrun.proxy.http.frames2 import (
    DATA,
    END_HEADERS,
    END_STREAM,
    FRAME_LIMIT_BYTES,
    HEADER_BYTES,
    HEADERS,
    Frame,
)
from meshrun.proxy.http.hpack2 import Decoder, Encoder
from meshrun.proxy.http.semantics import HEAD_LIMIT_BYTES

__all__ = ["Machine"]

_header = Struct(">HBBBL")


class _Quiet(HyperFrame):
    def __repr__(self) -> str:
        return type(self).__name__


class _Data(_Quiet, DataFrame):
    """A frame of DATA that is not made a text."""


class _Headers(_Quiet, HeadersFrame):
    """A frame of HEADERS that is not made a text."""


class _Ready(FrameBuffer):
    """Where h2 takes frames from: one that is ready, else from bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.frame: HyperFrame | None = None

    def __next__(self) -> HyperFrame:
        frame, self.frame = self.frame, None
        return super().__next__() if frame is None else frame


class Machine(H2Connection):
    """The states, windows and tables of one connection; the other side's preface came already.

    It tells the peer of `window_bytes` for each stream, and of `most_streams`.
    """

    # How streams were closed is remembered for late frames; h2's 65,536 would be megabytes.
    MAX_CLOSED_STREAMS = 1024

    def __init__(self, *, client: bool, window_bytes: int, most_streams: int) -> None:
        super().__init__(
            H2Configuration(
                client_side=client,
                header_encoding=False,
                validate_inbound_headers=False,
                normalize_inbound_headers=False,
                validate_outbound_headers=False,
                normalize_outbound_headers=False,
            )
        )
        self.decoder = Decoder()
        self.encoder = Encoder()
        self.local_settings = Settings(
            client=client,
            initial_values={
                SettingCodes.ENABLE_PUSH: 0,
                SettingCodes.INITIAL_WINDOW_SIZE: window_bytes,
                SettingCodes.MAX_CONCURRENT_STREAMS: most_streams,
                SettingCodes.MAX_FRAME_SIZE: FRAME_LIMIT_BYTES,
                SettingCodes.MAX_HEADER_LIST_SIZE: HEAD_LIMIT_BYTES,
            },
        )
        self.max_inbound_frame_size = FRAME_LIMIT_BYTES
        self.incoming_buffer = self._ready = _Ready()
        self._frame_dispatch_table[_Data] = self._receive_data_frame
        self._frame_dispatch_table[_Headers] = self._receive_headers_frame
        self._out: list[bytes] = []

    def begin(self) -> None:
        """Say the preface and the settings."""
        self.initiate_connection()
        self._out.append(super().data_to_send())
        # Streams over the limit are refused one by one; h2 would close the connection.
        del self.local_settings[SettingCodes.MAX_CONCURRENT_STREAMS]

    def take(self, frame: Frame) -> list[Event]:
        """Return what a frame that `frames2` has looked at means. Raises h2's ProtocolError."""
        ready = _ready(frame)
        if ready is None:
            return self.receive_data(frame.whole)
        self._ready.frame = ready
        return self.receive_data(b"")

    def data_to_send(self, amount: int | None = None) -> bytes:
        """Return all that is to be sent, whatever `amount` says."""
        out, self._out = self._out, []
        return out[0] if len(out) == 1 else b"".join(out)

    def _prepare_for_sending(self, frames: list[HyperFrame]) -> None:
        out = self._out
        for frame in frames:
            if type(frame) is DataFrame:
                length = len(frame.data)
                flags = END_STREAM if "END_STREAM" in frame.flags else 0
                out.append(_header.pack(length >> 8, length & 0xFF, DATA, flags, frame.stream_id))
                out.append(frame.data)
            else:
                out.append(frame.serialize())


def _ready(frame: Frame) -> HyperFrame | None:
    """Return a frame as h2 has it, None where it shall read the bytes, and refuse them if so."""
    kind, flags, number, whole = frame
    if not number:
        return None
    ready: HyperFrame
    if kind == DATA:
        ready = _Data(number)
    elif kind == HEADERS and flags & END_HEADERS:
        ready = _Headers(number)
    else:
        return None
    ready.parse_flags(flags)
    try:
        ready.parse_body(memoryview(whole)[HEADER_BYTES:])
    except HyperframeError:
        return None
    return ready
