"""One stream of an HTTP/2 connection: what waits to be sent on it, and to be delivered.

What comes with one read is handed on at its end, in one piece, and its window given back once it
was taken. While the other side holds it is kept here, at most a window of it, and the peer stops
(RFC 9113 5.2).
"""

from collections import deque
from time import monotonic
from typing import Protocol

from h2.errors import ErrorCodes

from meshrun.proxy.http.fields2 import Field, write_fields
from meshrun.proxy.http.heads import Fields

__all__ = ["Carrier", "Stream"]

# What was kept is handed on in pieces of this, and more than that is not taken to be sent: then the
# other side holds.
PIECE_BYTES = 128 * 1024


class Carrier(Protocol):
    """The connection of a stream."""

    def wants(self, stream: "Stream", size: int) -> None:
        """It has something to send: `size` bytes of a body more."""

    def lend(self, size: int) -> bool:
        """Let the peer send as much as is kept here on other streams; return whether it may."""

    def give_back(self, stream: "Stream", size: int, lent: int) -> None:
        """`size` bytes of what came on it have been taken; for `lent` of them `lend` was asked."""

    def resumed(self, stream: "Stream") -> None:
        """Something of what was kept has been delivered."""

    def completed(self, stream: "Stream") -> None:
        """All that came on it has been delivered, and its end."""

    def break_off(self, stream: "Stream", code: ErrorCodes) -> None:
        """Nothing more is wanted of it."""

    def flush(self) -> None:
        """Send what was given."""


class Stream:
    """What the streams of servers and clients have in common; who it is between they say."""

    __slots__ = (
        "_arrived",
        "_carrier",
        "_held",
        "_kept",
        "_kept_end",
        "_lent",
        "_unsettled",
        "chunks",
        "complete",
        "counted",
        "ending",
        "expected",
        "given",
        "heads",
        "holding",
        "moved_at",
        "number",
        "over",
        "refused",
        "sent",
        "touched",
        "trailers",
        "turning",
        "waiting_bytes",
    )

    def __init__(self, carrier: Carrier, number: int) -> None:
        self._carrier = carrier
        self.number = number
        self.over = False  # nothing more is said of it, in either direction
        self.refused = False  # what came on it is no message

        # To be sent.
        self.heads: list[list[Field]] = []
        self.chunks: deque[bytes | memoryview] = deque()
        self.waiting_bytes = 0  # in them
        self.moved_at = 0.0  # when the first of them came, or something of them was sent
        self.trailers: list[Field] = []
        self.ending = False  # nothing is given any more
        self.sent = False  # all has been sent, and the end
        self.turning = False  # it waits for its turn
        self.given = False  # something, since the connection looked at what is left
        self.holding = False  # the other side was told to hold

        # Received.
        self.expected: int | None = None  # so many bytes, if it was said
        self.counted = 0
        self.complete = False  # all has come, and the end
        self.touched = False  # something came that is to be handed on and flushed
        self._arrived: list[bytes] = []  # since something was handed on
        self._held = False
        self._kept = bytearray()  # since then
        self._kept_end: Fields | None = None
        self._unsettled = 0  # of the window: for what was handed on, and maybe not taken
        self._lent = 0  # of the window of the connection, for what is held back of the stream's

    # The exchange's side.

    def send(self, data: bytes | memoryview) -> None:
        """Send a part of the body."""
        if data and not self.ending:
            if not self.chunks:
                self.moved_at = monotonic()
            self.chunks.append(bytes(data))
            self.waiting_bytes += len(data)
            self._carrier.wants(self, len(data))
            if self.waiting_bytes > PIECE_BYTES and not self.holding:
                self.holding = True
                self.tell_hold()

    def end(self, trailers: Fields) -> None:
        """All has been given."""
        if not self.ending:
            self.ending = True
            self.trailers = write_fields(trailers)
            self._carrier.wants(self, 0)

    def flush(self) -> None:
        """Send now what was given."""
        self._carrier.flush()

    def hold(self) -> None:
        """Deliver no more for now."""
        self._held = True

    def resume(self) -> None:
        """Deliver again, first what was kept."""
        if not self._held or self.over:
            return
        self._held = False
        self._settle()
        while self._kept and not self._held:
            piece = bytes(self._kept[:PIECE_BYTES])
            del self._kept[:PIECE_BYTES]
            self._hand_on(piece)
        if self._kept_end is not None and not self._held and not self.over:
            trailers, self._kept_end = self._kept_end, None
            self._take_end(trailers)
        self.tell_flush()
        self._carrier.resumed(self)
        self._carrier.flush()

    # The connection's side.

    def next_piece(self, most: int) -> bytes | memoryview:
        """Take what is to be sent next, at most so many bytes."""
        self.moved_at = monotonic()
        chunks = self.chunks
        piece = chunks.popleft()
        if len(piece) > most:
            view = memoryview(piece)
            chunks.appendleft(view[most:])
            piece = view[:most]
        elif chunks and len(piece) + len(chunks[0]) <= most:
            pieces, size = [piece], len(piece)
            while chunks and size + len(chunks[0]) <= most:
                size += len(chunks[0])
                pieces.append(chunks.popleft())
            piece = b"".join(pieces)
        self.waiting_bytes -= len(piece)
        return piece

    def discard(self) -> int:
        """Send nothing of what waits; return how much that is."""
        size, self.waiting_bytes = self.waiting_bytes, 0
        self.chunks.clear()
        return size

    def fits(self, size: int, *, last: bool) -> bool:
        """Count `size` bytes that came; return whether so many were to come (RFC 9113 8.1.1)."""
        self.counted += size
        if self.expected is None:
            return True
        return self.counted == self.expected or (self.counted < self.expected and not last)

    def arrive(self, data: bytes, size: int) -> None:
        """Take what came, to be handed on with what else comes; it takes `size` of the window."""
        if data:
            self._arrived.append(data)
        self._unsettled += size - len(data)  # padding

    def deliver(self) -> None:
        """Hand on what came, or keep it."""
        if not self._arrived:
            return
        data = self._arrived[0] if len(self._arrived) == 1 else b"".join(self._arrived)
        self._arrived.clear()
        if self._held:
            self._kept += data
        else:
            self._hand_on(data)

    def deliver_end(self, trailers: Fields) -> None:
        """Hand the end on behind whatever is kept."""
        self.deliver()
        self.complete = True
        if self._held:
            self._kept_end = trailers
        elif not self.over:
            self._take_end(trailers)

    def settle(self) -> None:
        """Give the window back of what has been taken, now that this side has flushed it.

        What is held back costs other streams nothing of the connection's window, as far as it goes.
        """
        if self.over:
            return
        if not self._held:
            self._settle()
            return
        size = self._unsettled + len(self._kept) - self._lent
        if size and self._carrier.lend(size):
            self._lent += size

    def drop(self) -> tuple[int, int]:
        """Say nothing more; return how much of the window was not given back, and was lent."""
        self.over = self.ending = True
        self.heads.clear()
        size = self._unsettled + len(self._kept) + sum(map(len, self._arrived))
        lent = self._lent
        self._unsettled = self._lent = 0
        self._arrived.clear()
        self._kept = bytearray()
        self._kept_end = None
        return size, lent

    def _hand_on(self, data: bytes) -> None:
        self._unsettled += len(data)
        self.take_data(data)

    def _take_end(self, trailers: Fields) -> None:
        self._carrier.completed(self)
        self.take_end(trailers)

    def _settle(self) -> None:
        size = self._unsettled
        if size and not self.over:
            lent = min(size, self._lent)
            self._unsettled = 0
            self._lent -= lent
            self._carrier.give_back(self, size, lent)

    # What a server's stream tells its exchange in other words than a client's.

    def take_data(self, data: bytes) -> None:
        """Hand a part of the body on."""
        raise NotImplementedError

    def take_end(self, trailers: Fields) -> None:
        """Hand the end on."""
        raise NotImplementedError

    def fail(self, reason: str, code: int | None = None) -> None:
        """It is over before its end: reset by the peer with `code`, or with the connection."""
        raise NotImplementedError

    def tell_hold(self) -> None:
        """Say that no more is taken for now."""
        raise NotImplementedError

    def tell_resume(self) -> None:
        """Say that more is taken again."""
        raise NotImplementedError

    def tell_flush(self) -> None:
        """Say that nothing more is delivered for now."""
        raise NotImplementedError
