"""Threads that do something as long as a block lasts."""

import threading
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Self

from support.mesh import PATIENCE_S

__all__ = ["Threads"]


class Threads:
    """Runs `targets` until the block ends, when `over` is set; one that then hangs fails the test.

    A target ends soon after `over` is set, and waits for nothing longer than PATIENCE_S.
    """

    def __init__(self, targets: Sequence[Callable[[], None]]) -> None:
        self.over = threading.Event()
        self._threads = [threading.Thread(target=target, daemon=True) for target in targets]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.over.set()
        for thread in self._threads:
            thread.join(2 * PATIENCE_S)
            assert not thread.is_alive(), "a thread hangs"
