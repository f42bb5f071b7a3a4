"""What is idle and goes to the endpoints of one service: taken by the next that goes there."""

import asyncio
from collections.abc import Collection
from typing import Generic, Protocol, TypeVar

from meshrun.proxy.messages import Endpoint

__all__ = ["Pool"]

# How long one waits for its next use; a tunnel has some 60 KiB on each side. ztunnel: 5 minutes.
IDLE_S = 60.0

# After a burst of connections; the busiest endpoint has as many as the app had at the same time.
MOST_IDLE = 64


class Pooled(Protocol):
    """A way to `endpoint`."""

    @property
    def endpoint(self) -> Endpoint:
        """Where it goes."""

    def close(self) -> None:
        """Close it, while it is idle; it is forgotten then."""


T = TypeVar("T", bound=Pooled)


class Pool(Generic[T]):
    """Keeps what is idle, the newest in front, and of one endpoint no more than `most_idle`."""

    def __init__(self, most_idle: int = MOST_IDLE) -> None:
        self._most_idle = most_idle
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Endpoint, dict[T, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def count(self, endpoint: Endpoint) -> int:
        """Return how many ways to `endpoint` are idle."""
        return len(self._idle.get(endpoint, ()))

    def take(self, endpoint: Endpoint) -> T | None:
        """Return the way to `endpoint` that was used last, and forget it."""
        ways = self._idle.get(endpoint)
        return ways.popitem()[0] if ways else None

    def put(self, way: T) -> None:
        """Keep `way`, which is idle, for a while."""
        ways = self._idle.get(way.endpoint)
        if ways is None:
            ways = self._idle[way.endpoint] = {}
        ways[way] = self._loop.time()
        if len(ways) > self._most_idle:
            next(iter(ways)).close()
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_S, self._sweep)

    def forget(self, way: T) -> None:
        """Keep `way` no longer; it is closed."""
        self._idle.get(way.endpoint, {}).pop(way, None)

    def close(self) -> None:
        """Close all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for way in self._all():
            way.close()

    def keep_to(self, endpoints: Collection[Endpoint]) -> None:
        """Close the ways to all others."""
        for way in self._all():
            if way.endpoint not in endpoints:
                way.close()
        self._idle = {e: ways for e, ways in self._idle.items() if ways}

    def _all(self) -> list[T]:
        return [way for ways in self._idle.values() for way in ways]

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        oldest = now
        for ways in list(self._idle.values()):
            for way, since in list(ways.items()):
                if now - since >= IDLE_S:
                    way.close()
                else:
                    oldest = min(oldest, since)
        if self._all():
            self._timer = self._loop.call_later(oldest + IDLE_S - now, self._sweep)
