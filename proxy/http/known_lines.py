"""What lines of heads were found to mean, for when they come again. Pure but for what it keeps.

Most lines of a head are those of the head before. Whoever keeps a meaning here has it from the line
alone: so whether a line is known changes how long it takes to read, and nothing else.
"""

from typing import Generic, TypeVar

__all__ = ["KNOWN_LIMIT", "LINE_LIMIT", "KnownLines"]

KNOWN_LIMIT = 1024
# In characters; so all that is known of one kind of lines is some 1 MB at most.
LINE_LIMIT = 256

T = TypeVar("T")


class KnownLines(Generic[T]):
    """Maps lines that came at least twice to their meanings; `get` returns None for others.

    Lines that come once, such as those with identifiers, leave no more than a hash. Who sends
    KNOWN_LIMIT other lines, each twice, has all forgotten: then they are read as if they were new.
    """

    __slots__ = ("_hashes", "_meanings", "get")

    def __init__(self) -> None:
        self._meanings: dict[str, T] = {}
        self._hashes = [0] * KNOWN_LIMIT  # of lines that came, each at its place
        self.get = self._meanings.get

    def came(self, line: str, meaning: T) -> None:
        """Keep what a line means that was not known, if it has come before."""
        hashed = hash(line)
        place = hashed % KNOWN_LIMIT
        if self._hashes[place] != hashed:
            self._hashes[place] = hashed
        elif len(line) <= LINE_LIMIT:
            if len(self._meanings) >= KNOWN_LIMIT:
                self._meanings.clear()
            self._meanings[line] = meaning

    def forget(self) -> None:
        """Know nothing any more."""
        self._meanings.clear()
        self._hashes[:] = [0] * KNOWN_LIMIT

    def __contains__(self, line: str) -> bool:
        return line in self._meanings

    def __len__(self) -> int:
        return len(self._meanings)
