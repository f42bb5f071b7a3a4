"""The timeline of a run: starts, exits, denials, rotations, in one stream.

Kept in memory for whoever follows, and handed in batches to whoever stores it.
"""

import asyncio
import sqlite3
from collections.abc import Callable, Sequence

from meshrun.supervisor.happening import Happening

__all__ = ["Timeline"]

# Few enough that a crash loses little, long enough that a burst is one transaction.
STORE_DELAY_S = 0.2
UNSTORED_LIMIT = 1000


class Timeline:
    """Collects events, tells followers, and stores them a little later in one go."""

    def __init__(
        self,
        store: Callable[[Sequence[Happening]], None],
        clock: Callable[[], float],
    ) -> None:
        self._store = store
        self._clock = clock
        self._unstored: list[Happening] = []
        self._timer: asyncio.TimerHandle | None = None
        self._followers: set[Callable[[Happening], None]] = set()

    def add(
        self,
        kind: str,
        subject: str,
        message: str,
        *,
        source: str | None = None,
        destination: str | None = None,
        count: int = 1,
    ) -> Happening:
        """Record that something happened now."""
        happening = Happening(
            at=self._clock(),
            kind=kind,
            subject=subject,
            message=message,
            source=source,
            destination=destination,
            count=count,
        )
        self._put(happening)
        return happening

    def _put(self, happening: Happening) -> None:
        self._unstored.append(happening)
        for follower in tuple(self._followers):
            follower(happening)
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(STORE_DELAY_S, self.flush)

    def follow(self, follower: Callable[[Happening], None]) -> Callable[[], None]:
        """Call `follower` with each event from now on, until what is returned is called."""
        self._followers.add(follower)
        return lambda: self._followers.discard(follower)

    def flush(self) -> None:
        """Store what is not stored yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if not self._unstored:
            return
        try:
            self._store(self._unstored)
        except sqlite3.Error:
            # A full disk: they wait for room, the newest of them, and go with the next ones.
            self._unstored = self._unstored[-UNSTORED_LIMIT:]
        else:
            self._unstored = []
