"""Cuts connections on which nothing has moved for too long.

The kernel knows when the last byte of each socket moved, so that a message costs nothing for it.
"""

import asyncio
from collections.abc import Callable, Iterable

from meshrun.proxy.splice import Splice

__all__ = ["IdleWatch"]

# A connection is found at most this part of its time too late.
PRECISION = 0.25


class IdleWatch:
    """Resets those of `splices()` that are idle for the time given; asleep while there are none."""

    def __init__(
        self, splices: Callable[[], Iterable[Splice]], on_cut: Callable[[str], None]
    ) -> None:
        self._splices = splices
        self._on_cut = on_cut
        self._timeout_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, timeout_s: float | None) -> None:
        """Cut what is idle for `timeout_s`, None for nothing."""
        self._timeout_s = timeout_s
        self.close()
        self.connected()

    def connected(self) -> None:
        """There is a connection to look at."""
        if self._timer is None and self._timeout_s is not None:
            wait_s = self._timeout_s * PRECISION
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._look)

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        timeout_s = self._timeout_s
        splices = list(self._splices())
        if timeout_s is None or not splices:
            return
        for splice in splices:
            if splice.idle_s() >= timeout_s:
                reason = f"nothing moved for {timeout_s:g} s, its idle_timeout"
                splice.reset(reason)
                self._on_cut(reason)
        self.connected()
