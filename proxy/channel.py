"""The channel between the control plane and one sidecar: framing, and a driver for either end.

A message is a 4-byte big-endian length and that many bytes of MessagePack. The framing is pure and
bounded; the driver moves its bytes over a stream socket of the running loop.
"""

import asyncio
import socket
from collections.abc import Callable
from typing import Generic, TypeVar

import msgspec

from meshrun.proxy.errors import ChannelError
from meshrun.proxy.messages import FromSidecar, ToSidecar

__all__ = ["MAX_MESSAGE_BYTES", "Channel", "Decoder", "encode", "from_sidecar", "to_sidecar"]

M = TypeVar("M")

LENGTH_BYTES = 4

# A snapshot of a thousand services with ten thousand intentions takes about 2 MiB.
MAX_MESSAGE_BYTES = 16 * 1024 * 1024

READ_BYTES = 64 * 1024

_encoder = msgspec.msgpack.Encoder()


class Decoder(Generic[M]):
    """Cuts a stream of bytes into messages; holds at most one that is incomplete."""

    def __init__(self, decode: Callable[[bytes], M]) -> None:
        self._decode = decode
        self._buffer = bytearray()
        self._broken = False

    def feed(self, data: bytes) -> list[M]:
        """Return the messages that `data` completes; raise ChannelError for anything else.

        After an error the stream has no known boundary any more: every later call raises too.
        """
        if self._broken:
            raise ChannelError("cannot read the channel: an earlier message was unreadable")
        self._buffer += data
        messages: list[M] = []
        try:
            while (body := self._next()) is not None:
                messages.append(self._decode(body))
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self._broken = True
            raise ChannelError(f"cannot read a message: {error}") from error
        return messages

    def _next(self) -> bytes | None:
        buffer = self._buffer
        if len(buffer) < LENGTH_BYTES:
            return None
        length = int.from_bytes(buffer[:LENGTH_BYTES], "big")
        if length > MAX_MESSAGE_BYTES:
            self._broken = True
            raise ChannelError(
                f"cannot read a message of {length} bytes: the limit is {MAX_MESSAGE_BYTES}"
            )
        end = LENGTH_BYTES + length
        if len(buffer) < end:
            return None
        body = bytes(buffer[LENGTH_BYTES:end])
        del buffer[:end]
        return body


def to_sidecar() -> Decoder[ToSidecar]:
    """Return a decoder for the sidecar's end."""
    return Decoder(msgspec.msgpack.Decoder(ToSidecar).decode)


def from_sidecar() -> Decoder[FromSidecar]:
    """Return a decoder for the control plane's end."""
    return Decoder(msgspec.msgpack.Decoder(FromSidecar).decode)


def encode(message: ToSidecar | FromSidecar) -> bytes:
    """Return the frame of `message`; raise ChannelError if it is longer than a message may be."""
    body = _encoder.encode(message)
    if len(body) > MAX_MESSAGE_BYTES:
        raise ChannelError(
            f"cannot send a {type(message).__name__} of {len(body)} bytes: "
            f"the limit is {MAX_MESSAGE_BYTES}"
        )
    return len(body).to_bytes(LENGTH_BYTES, "big") + body


class Channel(Generic[M]):
    """One end of the channel, on the running loop.

    `on_message` gets each message in order. `on_closed` is called once, with None after the peer
    closed and with the error otherwise; not after `close`. What a stuck peer does not take stays in
    memory: who sends without being asked to watches `pending_bytes`.
    """

    def __init__(
        self,
        sock: socket.socket,
        decoder: Decoder[M],
        on_message: Callable[[M], None],
        on_closed: Callable[[Exception | None], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._decoder = decoder
        self._on_message = on_message
        self._on_closed = on_closed
        self._outgoing = bytearray()
        self._closed = False
        sock.setblocking(False)
        self._loop.add_reader(sock.fileno(), self._readable)

    @property
    def pending_bytes(self) -> int:
        """How much the peer has not taken yet."""
        return len(self._outgoing)

    @property
    def closed(self) -> bool:
        """Whether either side has closed."""
        return self._closed

    def send(self, message: ToSidecar | FromSidecar) -> None:
        """Send `message`, or nothing if the channel is closed."""
        if self._closed:
            return
        waiting = bool(self._outgoing)
        self._outgoing += encode(message)
        if not waiting:
            self._flush()

    def close(self) -> None:
        """Close this end at once; what is pending is lost."""
        if self._closed:
            return
        self._closed = True
        # Before the close: its number may be another socket's a moment later.
        self._loop.remove_reader(self._sock.fileno())
        self._loop.remove_writer(self._sock.fileno())
        self._sock.close()
        self._outgoing.clear()

    def _flush(self) -> None:
        try:
            while self._outgoing:
                del self._outgoing[: self._sock.send(self._outgoing)]
        except (BlockingIOError, InterruptedError):
            self._loop.add_writer(self._sock.fileno(), self._writable)
        except OSError as error:
            self._fail(error)

    def _writable(self) -> None:
        self._loop.remove_writer(self._sock.fileno())
        self._flush()

    def _readable(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
            messages = self._decoder.feed(data)
        except (BlockingIOError, InterruptedError):
            return
        except (OSError, ChannelError) as error:
            self._fail(error)
            return
        if not data:
            self._fail(None)
            return
        for message in messages:
            if self._closed:
                return
            self._on_message(message)

    def _fail(self, error: Exception | None) -> None:
        if not self._closed:
            self.close()
            self._on_closed(error)
