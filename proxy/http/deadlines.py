"""Deadlines of many requests that all have the same time: one timer, however many there are."""

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["Deadlines"]

T = TypeVar("T")


class Deadlines(Generic[T]):
    """Calls `on_late` with each that was begun and not ended within the time."""

    def __init__(self, on_late: Callable[[T], None]) -> None:
        self._on_late = on_late
        self._loop = asyncio.get_running_loop()
        self._due: dict[T, float] = {}  # the earliest in front
        self._timeout_s: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def set(self, timeout_s: float | None) -> None:
        """Give `timeout_s` to those that begin from now on, None for no end."""
        if timeout_s != self._timeout_s:
            self._timeout_s = timeout_s
            # Those of before would stand in front with a later time: all get the new one. So does
            # the timer, which would look too late where it is shorter.
            begun = list(self._due)
            self.close()
            for one in begun:
                self.begin(one)

    def begin(self, one: T) -> None:
        """Expect the end of `one` within the time."""
        if self._timeout_s is None:
            return
        self._due[one] = self._loop.time() + self._timeout_s
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._look)

    def end(self, one: T) -> None:
        """It came, or is not waited for any more."""
        self._due.pop(one, None)

    def close(self) -> None:
        """Wait for nothing any more."""
        self._due.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        for one, due in list(self._due.items()):
            if due > now:
                break
            self._due.pop(one, None)
            self._on_late(one)
        if self._due and self._timer is None:
            self._timer = self._loop.call_at(next(iter(self._due.values())), self._look)
