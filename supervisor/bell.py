"""Waiting for something to become true, told by whoever may have made it so."""

import asyncio
from collections.abc import Callable

__all__ = ["Bell"]


class Bell:
    """Rung at every change; whoever waits looks again."""

    def __init__(self) -> None:
        self._waiters: set[asyncio.Future[None]] = set()

    def ring(self) -> None:
        """Say that something has changed."""
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)

    async def until(self, reached: Callable[[], bool], timeout_s: float | None) -> bool:
        """Wait until `reached` is true, `timeout_s` at most; return whether it is."""
        loop = asyncio.get_running_loop()
        deadline = None if timeout_s is None else loop.time() + timeout_s
        while not reached():
            waiter = loop.create_future()
            self._waiters.add(waiter)
            try:
                async with asyncio.timeout_at(deadline):
                    await waiter
            except TimeoutError:
                return reached()
            finally:
                self._waiters.discard(waiter)
        return True
