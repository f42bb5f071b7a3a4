"""A loop whose time passes only when there is nothing else to do, and then at once."""

import asyncio
import selectors
from collections.abc import Mapping

__all__ = ["VirtualLoop"]


class _NoSelector(selectors.BaseSelector):
    """Nothing is ever readable here; who would wait lets time pass instead."""

    def __init__(self) -> None:
        self.loop: VirtualLoop | None = None

    def register(self, fileobj: object, events: int, data: object = None) -> selectors.SelectorKey:
        """Take a descriptor (the loop's own) and forget it."""
        return selectors.SelectorKey(fileobj, -1, events, data)  # type: ignore[arg-type]

    def unregister(self, fileobj: object) -> selectors.SelectorKey:
        """Forget it again."""
        return selectors.SelectorKey(fileobj, -1, 0, None)  # type: ignore[arg-type]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Let the time pass that a real selector would wait."""
        assert timeout is not None, "nothing will ever happen any more"
        assert self.loop is not None
        self.loop.now += max(0.0, timeout)
        return []

    def get_map(self) -> Mapping[object, selectors.SelectorKey]:  # type: ignore[override]
        """Return nothing."""
        return {}

    def get_key(self, fileobj: object) -> selectors.SelectorKey:
        """Know nothing, so that the loop registers."""
        raise KeyError(fileobj)


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop with a clock of its own, in seconds; it has no sockets and no threads.

    asyncio takes a nanosecond for what a clock can tell apart: that holds for some days here.
    """

    def __init__(self) -> None:
        selector = _NoSelector()
        super().__init__(selector)
        selector.loop = self
        self.now = 0.0
        self.reset()

    def reset(self) -> None:
        """Begin anew, where nothing waits."""
        self.now = 1000.0

    def time(self) -> float:
        """Return the time here."""
        return self.now
