"""Cuts connections on which nothing has moved for too long.

The kernel knows when the last byte of each socket moved, so that a message costs nothing for it.
"""

import asyncio
from collections.abc import Callable, Iterable
from typing import Protocol

from meshrun.proxy.fanout import to_each

__all__ = ["CONNECTION_IDLE_S", "EXCHANGE_IDLE_S", "Cuttable", "IdleWatch"]

# Where nothing else was said, of HTTP: Envoy's stream_idle_timeout, and its idle_timeout of
# connections.
EXCHANGE_IDLE_S = 300.0
CONNECTION_IDLE_S = 3600.0

# A connection is found at most this part of its time too late.
PRECISION = 0.25


class Cuttable(Protocol):
    """What can be idle, and be cut."""

    def idle_s(self) -> float:
        """Return how long nothing moved."""

    def reset(self, reason: str) -> None:
        """Cut it."""


class IdleWatch:
    """Resets those of `live()` that are idle for the time given; asleep while there are none."""

    def __init__(
        self, live: Callable[[], Iterable[Cuttable]], on_cut: Callable[[str], None]
    ) -> None:
        self._live = live
        self._on_cut = on_cut
        self._timeout_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, timeout_s: float | None) -> None:
        """Cut what is idle for `timeout_s`, None for nothing."""
        if timeout_s != self._timeout_s:  # else whoever says it again and again would be the timer
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
        live = list(self._live())
        if timeout_s is None or not live:
            return
        reason = f"nothing moved for {timeout_s:g} s, its idle_timeout"

        def look(connection: Cuttable) -> None:
            if connection.idle_s() >= timeout_s:
                connection.reset(reason)
                self._on_cut(reason)

        to_each(live, look)
        self.connected()
