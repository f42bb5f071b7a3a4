"""Whose line it is: the aligned, coloured name before each line of the log."""

from collections.abc import Sequence

from meshrun.supervisor.lines import Piece
from meshrun.supervisor.logs import MESH

__all__ = ["Painter"]

# Colours that can be read on dark and light; red is left for what went wrong.
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_DIM = 2
_GOES_ON = "…".encode()


class Painter:
    """Puts the aligned name of its instance before each line."""

    def __init__(self, names: Sequence[str], *, colour: bool) -> None:
        self._colour = colour
        self._codes = {MESH: _DIM}
        self._prefixes: dict[str, bytes] = {}
        for name in names:
            self._add(name)
        self._align()

    def _add(self, name: str) -> None:
        self._codes[name] = _COLOURS[(len(self._codes) - 1) % len(_COLOURS)]

    def _align(self) -> None:
        width = max(map(len, self._codes))
        self._prefixes = {
            name: self._prefix(f"{name:<{width}} | ", code) for name, code in self._codes.items()
        }

    def _prefix(self, text: str, code: int) -> bytes:
        return (f"\x1b[{code}m{text}\x1b[0m" if self._colour else text).encode()

    def _prefix_of(self, instance: str) -> bytes:
        if instance not in self._prefixes:  # one that came later, and may have a longer name
            self._add(instance)
            self._align()
        return self._prefixes[instance]

    def paint(self, instance: str, contents: Sequence[bytes]) -> bytes:
        """Return whole lines to print; one that goes on with the next line ends in `…`."""
        prefix = self._prefix_of(instance)
        return b"".join(prefix + content + self._end(content) for content in contents)

    def _end(self, content: bytes) -> bytes:
        goes_on = _GOES_ON if isinstance(content, Piece) else b""
        return goes_on + (b"\x1b[0m\n" if self._colour and b"\x1b" in content else b"\n")

    def mark(self, instance: str, text: bytes) -> bytes:
        """Return a line that meshrun puts between those of an instance."""
        marker = b"--- " + text
        if self._colour:
            marker = b"\x1b[%dm%s\x1b[0m" % (_DIM, marker)
        return self._prefix_of(instance) + marker + b"\n"
