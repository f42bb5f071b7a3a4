"""Says when nothing goes to the app any more, while the control plane wants to know that.

Whoever calls has been told before that this instance takes no calls. What was sent until then may
still be on its way through the kernel when the question comes: hence the quiet.
"""

import asyncio
from collections.abc import Callable

__all__ = ["Drain"]

# Twice, so that the sockets are read once in between: a process that did not run for a while finds
# its timers due before it has looked at them.
QUIET_S = 0.02


class Drain:
    """Calls `drained` once after `begin`, as soon as the app has not been `busy` for a moment."""

    def __init__(self, busy: Callable[[], bool], drained: Callable[[], None]) -> None:
        self._busy = busy
        self._drained = drained
        self._timer: asyncio.TimerHandle | None = None
        self.on = False

    def set(self, *, on: bool) -> None:
        """Begin to look, or stop it; what is so already stays so."""
        if on != self.on:
            self.on = on
            self.look()

    def look(self) -> None:
        """Look again: a call has come or gone."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.on and not self._busy():
            self._wait(self._once_more)

    def _wait(self, then: Callable[[], None]) -> None:
        self._timer = asyncio.get_running_loop().call_later(QUIET_S, then)

    def _once_more(self) -> None:
        self._timer = None
        if not self._busy():
            self._wait(self._settle)

    def _settle(self) -> None:
        self._timer = None
        if not self._busy():
            self._drained()

    def close(self) -> None:
        """Look no more."""
        self.set(on=False)
