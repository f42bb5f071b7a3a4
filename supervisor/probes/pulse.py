"""What an app says by itself, a line or a notification, as the answer to a probe."""

import asyncio
from collections.abc import Callable

from meshrun.supervisor.configuration.model import Probe
from meshrun.supervisor.lifecycle_events import LivenessLost, ProbeFailed, ProbeSucceeded
from meshrun.supervisor.runner import Feed

__all__ = ["Awaiting", "Heartbeat", "Pulse"]


class Pulse:
    """Beats whenever one life of an app says what is waited for, called `what` in messages.

    It begins with the process, so nothing is missed that is said before anybody listens.
    """

    def __init__(self, what: str) -> None:
        self.what = what
        self.last: float | None = None
        self.trouble: str | None = None
        self._on_beat: Callable[[], None] | None = None

    def beat(self) -> None:
        """It has said it."""
        self.last = asyncio.get_running_loop().time()
        if self._on_beat is not None:
            self._on_beat()

    def fail(self, reason: str) -> None:
        """It has said that it is ill, or something that counts for nothing."""
        self.trouble = reason
        if self._on_beat is not None:
            self._on_beat()

    def listen(self, on_beat: Callable[[], None] | None) -> None:
        """Call `on_beat` at each beat and each trouble; None ends that."""
        self._on_beat = on_beat


class Awaiting:
    """Ready as soon as the pulse has beaten, and from then on."""

    tries = 0

    def __init__(self, pulse: Pulse, feed: Feed) -> None:
        self._pulse = pulse
        self._feed = feed
        pulse.listen(self._look)
        self._look()

    def stop(self) -> None:
        """Wait no more."""
        self._pulse.listen(None)

    def _look(self) -> None:
        if self._pulse.last is not None:
            self._feed(ProbeSucceeded())
        else:
            self._feed(ProbeFailed(self._pulse.trouble or f"no {self._pulse.what} yet"))


class Heartbeat:
    """Alive while the pulse beats: dead after `failures` intervals in a row without a beat.

    Before the first beat it has its deadline.
    """

    tries = 0

    def __init__(self, pulse: Pulse, probe: Probe, feed: Feed) -> None:
        self._pulse = pulse
        self._probe = probe
        self._feed = feed
        self._loop = asyncio.get_running_loop()
        self._begun = self._loop.time()
        self._timer: asyncio.TimerHandle | None = None
        self._beaten = False
        pulse.listen(self._look)
        self._look()

    def stop(self) -> None:
        """Listen no more."""
        self._pulse.listen(None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        if self._pulse.trouble is not None:
            self._lose(self._pulse.trouble, 0.0)
        elif self._timer is None or (self._pulse.last is not None and not self._beaten):
            # Later beats set no timer: the one that is set will see how long it has been silent.
            self._beaten = self._pulse.last is not None
            self._look_at_time()

    def _look_at_time(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        now, last = self._loop.time(), self._pulse.last
        if last is None:
            since, allowed_s = self._begun, self._probe.deadline_s
        else:
            since, allowed_s = last, self._probe.interval_s * self._probe.failures
        if now - since >= allowed_s:
            self._lose(f"no {self._pulse.what} within {allowed_s:g} s", now - since)
        else:
            self._timer = self._loop.call_at(since + allowed_s, self._look_at_time)

    def _lose(self, reason: str, ill_s: float) -> None:
        self.stop()
        self._feed(LivenessLost(reason, ill_s))
