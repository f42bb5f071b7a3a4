"""Bytes of an output, cut into lines."""

from typing import Literal, get_args

__all__ = ["LINE_LIMIT_BYTES", "STREAMS", "LineSplitter", "Piece", "Stream"]

Stream = Literal["stdout", "stderr"]

STREAMS: tuple[Stream, ...] = get_args(Stream)

LINE_LIMIT_BYTES = 1024 * 1024


class Piece(bytes):
    """What a line over the limit begins with, or goes on with: what comes next belongs to it."""

    __slots__ = ()


class LineSplitter:
    """Cuts bytes into lines; a line over the limit is handed on in pieces, all but the last marked.

    So nothing without an end grows in memory, and whoever puts the pieces together has the line.
    """

    def __init__(self, limit_bytes: int = LINE_LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without their ends."""
        first, newline, others = data.partition(b"\n")
        self._rest += first
        lines: list[bytes] = []
        if newline:
            lines += self._pieces()
            lines.append(self._take())
            *whole, rest = others.split(b"\n")
            # Most output has no such ends: the whole of it is looked through faster than each line.
            lines += [line.removesuffix(b"\r") for line in whole] if b"\r" in others else whole
            self._rest += rest
        return lines + self._pieces()

    def finish(self) -> list[bytes]:
        """Return the last line if it had no end."""
        return [self._take()] if self._rest else []

    def _pieces(self) -> list[bytes]:
        pieces: list[bytes] = []
        while len(self._rest) > self._limit:
            pieces.append(Piece(self._rest[: self._limit]))
            del self._rest[: self._limit]
        return pieces

    def _take(self) -> bytes:
        line = bytes(self._rest).removesuffix(b"\r")
        self._rest.clear()
        return line
