"""The kernel's news of what changes in folders: inotify(7)."""

import ctypes
import os
import struct
from typing import NamedTuple

__all__ = [
    "CREATED",
    "GONE",
    "IS_FOLDER",
    "LOST",
    "MOVED_AWAY",
    "MOVED_HERE",
    "OVERFLOWED",
    "SELF_MOVED",
    "Inotify",
    "News",
]

_CLOSED_AFTER_WRITING = 0x8
MOVED_AWAY = 0x40
MOVED_HERE = 0x80
CREATED = 0x100
GONE = 0x200
SELF_MOVED = 0x800
OVERFLOWED = 0x4000
LOST = 0x8000
IS_FOLDER = 0x4000_0000
_ONLY_FOLDERS = 0x0100_0000
_NO_LINKS = 0x0200_0000
_NOT_WHEN_REMOVED = 0x0400_0000
# What has been written is heard of when it is closed, not at every write: a reader that came before
# would find half a file, and a log that stays open is no change at all.
_MASK = (
    *(_CLOSED_AFTER_WRITING, MOVED_AWAY, MOVED_HERE, CREATED, GONE, SELF_MOVED),
    *(_ONLY_FOLDERS, _NO_LINKS, _NOT_WHEN_REMOVED),
)

_HEADER = struct.Struct("=iIII")
# Some 2,000 pieces of news: a few milliseconds' work, after which others have their turn.
_AT_ONCE_BYTES = 64 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class News(NamedTuple):
    """Something happened in the folder `watch`, to what is called `name` there, or to itself."""

    watch: int
    mask: int
    name: str


class Inotify:
    """One queue of news, never waited for: its descriptor is readable when there are some."""

    def __init__(self) -> None:
        """Open it. Raises OSError: EMFILE where this user has too many of them."""
        self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._descriptor

    def add(self, folder: str) -> int:
        """Watch a folder, not what is below it, and return its number; the same for the same one.

        Raises OSError: ENOSPC where this user watches too many, ENOTDIR for all but folders.
        """
        return _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(folder), sum(_MASK)))

    def remove(self, watch: int) -> None:
        """Watch a folder no more; one that has gone is not watched anyway."""
        _libc.inotify_rm_watch(self._descriptor, watch)

    def read(self) -> list[News]:
        """Return the oldest news, none where there are none."""
        try:
            read = os.read(self._descriptor, _AT_ONCE_BYTES)
        except BlockingIOError:
            return []
        found, at = [], 0
        while at < len(read):
            watch, mask, _, length = _HEADER.unpack_from(read, at)
            name = read[at + _HEADER.size : at + _HEADER.size + length].rstrip(b"\0")
            found.append(News(watch, mask, os.fsdecode(name)))
            at += _HEADER.size + length
        return found

    def close(self) -> None:
        """Give everything back."""
        os.close(self._descriptor)


def _checked(result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return result
