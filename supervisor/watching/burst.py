"""Changes that are one: a saved file is several events, and another branch is thousands. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from meshrun.supervisor import backoff

__all__ = ["Burst", "Changes"]

# Who never stops writing is not waited for: after so many times the pause it counts all the same.
LONGEST = 10
# An app that changes what it watches would be restarted for ever. After as many restarts as make a
# crash loop the next one waits so long.
REST_S = 10.0
# How many files a sentence names, and how many are told apart: more are counted as often as they
# change, whoever writes them.
SHOWN = 2
MOST_NAMES = 1000


@dataclass(frozen=True, slots=True)
class Changes:
    """What has changed: the names of the first few files, and how many there are more."""

    names: tuple[str, ...]
    more: int = 0

    def __str__(self) -> str:
        if self.more:
            return f"{', '.join(self.names)} and {self.more} more changed"
        return f"{' and '.join(self.names)} changed"

    def and_(self, later: "Changes") -> "Changes":
        """Return both as one; what the second has left out is not known to be new."""
        names = tuple(dict.fromkeys((*self.names, *later.names)))
        return Changes(names[:SHOWN], len(names[SHOWN:]) + self.more + later.more)


class Burst:
    """Collects changes until none has come for `debounce_s`; times are of a monotonic clock."""

    def __init__(self, debounce_s: float) -> None:
        self._debounce_s = debounce_s
        self._names: dict[str, None] = {}
        self._beyond = 0
        self._first_at = 0.0
        self._last_at = 0.0
        self._taken: tuple[float, ...] = ()

    def add(self, names: Iterable[str], now: float) -> None:
        """Note that files have changed."""
        if not self._names:
            self._first_at = now
        for name in names:
            if name in self._names or len(self._names) < MOST_NAMES:
                self._names[name] = None
            else:
                self._beyond += 1
        self._last_at = now

    @property
    def due_at(self) -> float | None:
        """When they count, None where there are none."""
        if not self._names:
            return None
        pause_s = self._debounce_s
        at = min(self._last_at + pause_s, self._first_at + LONGEST * pause_s)
        return max(at, self._taken[-1] + REST_S) if self.is_storm else at

    @property
    def is_storm(self) -> bool:
        """Whether they have counted so often of late that the next ones must wait."""
        return bool(self._taken) and backoff.is_crash_loop(self._taken, self._taken[-1])

    def take(self, now: float) -> Changes | None:
        """Return what counts now, once; None where nothing does."""
        if self.due_at is None or now < self.due_at:
            return None
        names, self._names = tuple(self._names), {}
        beyond, self._beyond = self._beyond, 0
        self._taken = (*self._taken, now)[-backoff.CRASH_LOOP_EXITS :]
        return Changes(names[:SHOWN], len(names[SHOWN:]) + beyond)
