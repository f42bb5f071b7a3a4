"""Bytes of an output, cut into lines."""

from typing import Literal

__all__ = ["LINE_LIMIT_BYTES", "LineSplitter", "Stream"]

Stream = Literal["stdout", "stderr"]

LINE_LIMIT_BYTES = 1024 * 1024


class LineSplitter:
    """Cuts bytes into lines; a line over the limit is handed on in pieces."""

    def __init__(self, limit_bytes: int = LINE_LIMIT_BYTES) -> None:
        self._limit = limit_bytes
        self._rest = bytearray()

    def feed(self, data: bytes) -> list[bytes]:
        """Return the lines that `data` completes, without their ends."""
        first, newline, others = data.partition(b"\n")
        self._rest += first
        lines: list[bytes] = []
        if newline:
            lines.append(self._take())
            *whole, rest = others.split(b"\n")
            lines.extend(line.removesuffix(b"\r") for line in whole)
            self._rest += rest
        while len(self._rest) > self._limit:
            lines.append(bytes(self._rest[: self._limit]))
            del self._rest[: self._limit]
        return lines

    def finish(self) -> list[bytes]:
        """Return the last line if it had no end."""
        return [self._take()] if self._rest else []

    def _take(self) -> bytes:
        line = bytes(self._rest).removesuffix(b"\r")
        self._rest.clear()
        return line
