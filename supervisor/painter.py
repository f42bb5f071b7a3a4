"""Whose line it is: the aligned, coloured name before each line of the log."""

from collections.abc import Sequence
from itertools import cycle

from meshrun.supervisor.logs import MESH

__all__ = ["Painter"]

# Colours that can be read on dark and light; red is left for what went wrong.
_COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
_DIM = 2


class Painter:
    """Puts the aligned name of its instance before each line."""

    def __init__(self, names: Sequence[str], *, colour: bool) -> None:
        self._width = max((len(name) for name in (*names, MESH)), default=0)
        colours = cycle(_COLOURS)
        self._prefixes = {name: self._prefix(name, next(colours), colour) for name in names}
        self._prefixes[MESH] = self._prefix(MESH, _DIM, colour)
        self._colour = colour

    def _prefix(self, name: str, code: int, colour: bool) -> bytes:
        text = f"{name:<{self._width}} | "
        return (f"\x1b[{code}m{text}\x1b[0m" if colour else text).encode()

    def paint(self, instance: str, content: bytes) -> bytes:
        """Return a whole line to print."""
        prefix = self._prefixes.get(instance)
        if prefix is None:  # an instance that came later
            code = _COLOURS[len(self._prefixes) % len(_COLOURS)]
            prefix = self._prefixes[instance] = self._prefix(instance, code, self._colour)
        return prefix + content + (b"\x1b[0m\n" if self._colour and b"\x1b" in content else b"\n")
