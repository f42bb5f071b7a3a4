"""One stream of an HTTP/2 connection: what waits to be sent on it, and to be delivered.

What comes is handed on at once, and its window given back when it was, unless the other side holds:
then it is kept here, at most a window of it, and the peer stops (RFC 9113 5.2).
"""

from collections import deque
from typing import Protocol

from h2.errors import ErrorCodes

from meshrun.proxy.http.fields2 import Field, write_fields
from meshrun.proxy.http.heads import Fields

__all__ = ["Carrier", "Stream"]


class Carrier(Protocol):
    """The connection of a stream."""

    def wants(self, stream: "Stream") -> None:
        """It has something to send."""

    def acknowledge(self, stream: "Stream", size: int) -> None:
        """`size` bytes of what came on it have been delivered."""

    def completed(self, stream: "Stream") -> None:
        """All that came on it has been delivered, and its end."""

    def break_off(self, stream: "Stream", code: ErrorCodes) -> None:
        """Nothing more is wanted of it."""

    def flush(self) -> None:
        """Send what was given."""


class Stream:
    """What the streams of servers and clients have in common; who it is between they say."""

    __slots__ = (
        "_carrier",
        "_held",
        "_kept",
        "_kept_end",
        "_unacknowledged",
        "chunks",
        "complete",
        "counted",
        "ending",
        "expected",
        "given",
        "heads",
        "holding",
        "number",
        "over",
        "refused",
        "sent",
        "touched",
        "trailers",
        "turning",
    )

    def __init__(self, carrier: Carrier, number: int) -> None:
        self._carrier = carrier
        self.number = number
        self.over = False  # nothing more is said of it, in either direction
        self.refused = False  # what came on it is no message

        # To be sent.
        self.heads: list[list[Field]] = []
        self.chunks: deque[bytes | memoryview] = deque()
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
        self.touched = False  # something was delivered that is to be flushed
        self._held = False
        self._kept: deque[tuple[bytes, int]] = deque()  # data, and what it takes of the window
        self._kept_end: Fields | None = None
        self._unacknowledged = 0

    # The exchange's side.

    def send(self, data: bytes | memoryview) -> None:
        """Send a part of the body."""
        if data and not self.ending:
            self.chunks.append(bytes(data))
            self._carrier.wants(self)

    def end(self, trailers: Fields) -> None:
        """All has been given."""
        if not self.ending:
            self.ending = True
            self.trailers = write_fields(trailers)
            self._carrier.wants(self)

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
        while self._kept and not self._held:
            data, size = self._kept.popleft()
            self._unacknowledged += size
            if data:
                self.take_data(data)
        self._settle()
        if self._kept_end is not None and not self._held and not self.over:
            trailers, self._kept_end = self._kept_end, None
            self._take_end(trailers)
        self.tell_flush()
        self._carrier.flush()

    # The connection's side.

    def next_piece(self, most: int) -> bytes | memoryview:
        """Take what is to be sent next, at most so many bytes."""
        chunks = self.chunks
        chunk = chunks.popleft()
        if len(chunk) > most:
            view = memoryview(chunk)
            chunks.appendleft(view[most:])
            return view[:most]
        if not chunks or len(chunk) + len(chunks[0]) > most:
            return chunk
        pieces, size = [chunk], len(chunk)
        while chunks and size + len(chunks[0]) <= most:
            size += len(chunks[0])
            pieces.append(chunks.popleft())
        return b"".join(pieces)

    def fits(self, size: int, *, last: bool) -> bool:
        """Count `size` bytes that came; return whether so many were to come (RFC 9113 8.1.1)."""
        self.counted += size
        if self.expected is None:
            return True
        return self.counted == self.expected or (self.counted < self.expected and not last)

    def deliver(self, data: bytes, size: int) -> None:
        """Hand on what came, or keep it; it takes `size` of the window."""
        if self._held:
            self._kept.append((data, size))
            return
        self._unacknowledged += size
        if data:
            self.take_data(data)
        self._settle()

    def deliver_end(self, trailers: Fields) -> None:
        """Hand the end on behind whatever is kept."""
        self.complete = True
        if self._held:
            self._kept_end = trailers
        else:
            self._take_end(trailers)

    def drop(self) -> int:
        """Say nothing more; return how much of the window was not given back."""
        self.over = self.ending = True
        self.chunks.clear()
        self.heads.clear()
        size = self._unacknowledged + sum([size for _, size in self._kept])
        self._unacknowledged = 0
        self._kept.clear()
        self._kept_end = None
        return size

    def _take_end(self, trailers: Fields) -> None:
        self._carrier.completed(self)
        self.take_end(trailers)

    def _settle(self) -> None:
        size = self._unacknowledged
        if size and not self._held and not self.over:
            self._unacknowledged = 0
            self._carrier.acknowledge(self, size)

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
