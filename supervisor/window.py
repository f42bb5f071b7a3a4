"""The size of the window in which output is shown, and the terminals that have this size."""

import fcntl
import struct
import termios
from dataclasses import dataclass

__all__ = ["DEFAULT", "Size", "Window", "size_of"]

# struct winsize of ioctl_tty(2): rows, columns, and pixels, which nobody fills in.
_WINSIZE = struct.Struct("4H")


@dataclass(frozen=True, slots=True)
class Size:
    """How many lines of how many characters there are."""

    rows: int
    columns: int


DEFAULT = Size(24, 80)


def size_of(descriptor: int) -> Size:
    """Return the size of a terminal, the default where it is none or does not know its own."""
    try:
        raw = fcntl.ioctl(descriptor, termios.TIOCGWINSZ, bytes(_WINSIZE.size))
    except OSError:
        return DEFAULT
    rows, columns, _, _ = _WINSIZE.unpack(raw)
    return Size(rows, columns) if rows and columns else DEFAULT


class Window:
    """A size that changes, and the terminals that follow it."""

    def __init__(self) -> None:
        self._size = DEFAULT
        self._terminals: set[int] = set()

    def add(self, terminal: int) -> None:
        """Give a terminal this size, now and later, until it is removed."""
        _resize(terminal, self._size)
        self._terminals.add(terminal)

    def remove(self, terminal: int) -> None:
        """Leave a terminal as it is; it may be closed."""
        self._terminals.discard(terminal)

    def resize(self, size: Size) -> None:
        """Take another size; the kernel tells the foreground of each terminal (SIGWINCH)."""
        self._size = size
        for terminal in self._terminals:
            _resize(terminal, size)


def _resize(terminal: int, size: Size) -> None:
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, _WINSIZE.pack(size.rows, size.columns, 0, 0))
