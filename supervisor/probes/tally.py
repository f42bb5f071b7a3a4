"""What the answers to a probe mean, one after the other. Pure: the time is an argument."""

import abc

from meshrun.supervisor.configuration.model import Probe
from meshrun.supervisor.lifecycle_events import Event, LivenessLost, ProbeFailed, ProbeSucceeded

__all__ = ["FIRST_INTERVAL_S", "Liveness", "Readiness", "Tally"]

# Until it is well for the first time; from then on the configured interval.
FIRST_INTERVAL_S = 0.1


class Tally(abc.ABC):
    """Counts answers: None for a success, the reason of a failure. Times in seconds, monotonic."""

    def __init__(self, probe: Probe, now: float) -> None:
        self.tries = 0
        self._probe = probe
        self._begun = now
        self._well_once = False
        self._successes = 0
        self._failures = 0
        self._ill_since = now

    def answer(self, reason: str | None, now: float) -> Event | None:
        """Count an answer, and return what follows from it for the process, None for nothing."""
        self.tries += 1
        if reason is None:
            self._successes += 1
            self._failures = 0
            return self._succeeded()
        if self._failures == 0:
            self._ill_since = now
        self._failures += 1
        self._successes = 0
        return self._failed(reason, now)

    def pause_s(self, now: float) -> float:
        """Return how long to wait before the next try."""
        # What nobody ends after its deadline, an external service, is asked less often then.
        starting = not self._well_once and now - self._begun < self._probe.deadline_s
        interval_s = self._probe.interval_s
        return min(FIRST_INTERVAL_S, interval_s) if starting else interval_s

    @abc.abstractmethod
    def _succeeded(self) -> Event | None:
        """Return what follows from a success."""

    @abc.abstractmethod
    def _failed(self, reason: str, now: float) -> Event | None:
        """Return what follows from a failure."""


class Readiness(Tally):
    """Ready after `successes` in a row, no longer after `failures` in a row."""

    def _succeeded(self) -> Event | None:
        if self._successes < self._probe.successes:
            return None
        self._well_once = True
        return ProbeSucceeded()

    def _failed(self, reason: str, _now: float) -> Event | None:
        # Before it was ever ready every reason is worth telling: somebody waits.
        if self._well_once and self._failures < self._probe.failures:
            return None
        return ProbeFailed(reason)


class Liveness(Tally):
    """Dead after `failures` in a row; or, before it was well at all, once its deadline is over."""

    def _succeeded(self) -> Event | None:
        self._well_once = True
        return None

    def _failed(self, reason: str, now: float) -> Event | None:
        if not self._well_once:
            late = now - self._begun >= self._probe.deadline_s
            within = f"not once within {self._probe.deadline_s:g} s"
            return LivenessLost(f"{within}: {reason}", now - self._begun) if late else None
        if self._failures < self._probe.failures:
            return None
        row = f" ({self._failures} times in a row)" if self._failures > 1 else ""
        return LivenessLost(f"{reason}{row}", now - self._ill_since)
