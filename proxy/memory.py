"""Bounds what a sidecar keeps for those who do not take it, and gives memory back to the system.

malloc keeps what was freed between pieces that live on: after a thousand connections some 30 MB, in
each sidecar, for good (malloc_trim(3)).
"""

import asyncio
import ctypes
import gc
from collections.abc import Callable

__all__ = ["Allowance", "Trimmer", "held"]

# What is held back, of all connections of a sidecar together.
MOST_HELD_BYTES = 64 * 1024 * 1024

# So much counts as one of the descriptors that are watched.
UNIT_BYTES = 64 * 1024

# Descriptors, of which a connection has two; fewer are not worth it.
MANY = 128

PERIOD_S = 10.0


class Allowance:
    """So many bytes that may be kept, whoever they are for. Calls `on_much` where they are many."""

    def __init__(self) -> None:
        self.bytes = 0
        self.on_much: Callable[[], None] = lambda: None

    @property
    def units(self) -> int:
        """How many descriptors it counts for."""
        return self.bytes // UNIT_BYTES

    def take(self, size: int) -> bool:
        """Keep `size` bytes more, if they are allowed; return whether they are."""
        if self.bytes + size > MOST_HELD_BYTES:
            return False
        self.bytes += size
        if self.bytes >= MANY * UNIT_BYTES:
            self.on_much()
        return True

    def give_back(self, size: int) -> None:
        """Keep `size` bytes less."""
        self.bytes -= size


# That of the process, which is one sidecar.
held = Allowance()


class Trimmer:
    """Trims when fewer than half of the descriptors are left that were `watched` at the most."""

    def __init__(self, watched: Callable[[], int]) -> None:
        self._watched = watched
        self._peak = 0
        self._timer: asyncio.TimerHandle | None = None

    def grown(self) -> None:
        """There is a connection more, or more is held back."""
        self._peak = max(self._peak, self._watched())
        if self._timer is None and self._peak >= MANY:
            self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._look)

    def close(self) -> None:
        """Trim no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._watched()
        if now * 2 < self._peak:
            trim()
            self._peak = now
        if self._peak >= MANY:
            self._timer = asyncio.get_running_loop().call_later(PERIOD_S, self._look)


def trim() -> None:
    """Give back now what is free."""
    gc.collect()
    if _malloc_trim is not None:
        _malloc_trim(0)


# glibc's; musl has none, and needs none.
_malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
