"""Listening to what one life of an app says by itself: lines of its output, and notifications."""

import time
from collections.abc import Callable, Mapping

from meshrun.proxy.regex import search
from meshrun.supervisor.configuration.model import LogCheck, NotifyCheck, Probe
from meshrun.supervisor.environment import notify_variables
from meshrun.supervisor.lifecycle_events import Said, StoppingAnnounced, TimeoutExtended
from meshrun.supervisor.plan import Instance
from meshrun.supervisor.probes.notification import Notification
from meshrun.supervisor.probes.notify_socket import NotifySocket
from meshrun.supervisor.probes.pulse import Pulse
from meshrun.supervisor.runner import Feed, Which
from meshrun.supervisor.statedir import StateDir

__all__ = ["Listening"]

LONGEST_PATTERN_SHOWN = 60


class _Line:
    """A pulse that beats at lines in which a pattern is found."""

    def __init__(self, pattern: str, every_s: float | None) -> None:
        shown = pattern[:LONGEST_PATTERN_SHOWN]
        self.pulse = Pulse(f"line that matches {shown}")
        self._found: Callable[[bytes], bool] = search(pattern)
        self._every_s = every_s
        self._next = 0.0

    def hear(self, lines: list[bytes]) -> None:
        """Look at lines, but no oftener than it matters: an app may write for ever, and a lot."""
        if self.pulse.last is not None and (self._every_s is None or time.monotonic() < self._next):
            return
        if any(map(self._found, lines)):
            self._next = time.monotonic() + (self._every_s or 0.0) / 2
            self.pulse.beat()


class Listening:
    """The pulses of the probes that wait for what the app says, and all else that it says."""

    def __init__(self, instance: Instance, state: StateDir) -> None:
        self._instance = instance
        self._pulses: dict[Which, Pulse] = {}
        self._lines: list[_Line] = []
        self._socket: NotifySocket | None = None
        self.environment: Mapping[str, str] = {}
        self._add("ready", instance.ready, "READY=1", None)
        alive = instance.alive
        self._add("alive", alive, "WATCHDOG=1", alive.interval_s if alive else None)
        if any(probe and isinstance(probe.check, NotifyCheck) for probe in (instance.ready, alive)):
            self._socket = NotifySocket(state, instance.name)
            keeps_alive = alive is not None and isinstance(alive.check, NotifyCheck)
            self.environment = notify_variables(
                self._socket.address, alive.interval_s if alive and keeps_alive else None
            )

    def _add(self, which: Which, probe: Probe | None, what: str, every_s: float | None) -> None:
        check = None if probe is None else probe.check
        if isinstance(check, LogCheck):
            line = _Line(check.pattern, every_s)
            self._lines.append(line)
            self._pulses[which] = line.pulse
        elif isinstance(check, NotifyCheck):
            self._pulses[which] = Pulse(what)

    def pulse(self, which: Which) -> Pulse | None:
        """Return what a probe waits for, None where the app is asked instead."""
        return self._pulses.get(which)

    def hear(self, lines: list[bytes]) -> None:
        """Take lines that it wrote."""
        for line in self._lines:
            line.hear(lines)

    def start(self, pid: int, feed: Feed) -> None:
        """Begin to hear the notifications of the process `pid`."""
        if self._socket is None:
            return

        def notified(said: Notification) -> None:
            self._notified(said, feed)

        self._socket.listen(pid, notified, self._stranger)

    def _notified(self, said: Notification, feed: Feed) -> None:
        if said.status is not None or said.reloading or said.ready:
            feed(Said(said.status or ("reloading" if said.reloading else "")))
        if said.extend_s is not None:
            feed(TimeoutExtended(said.extend_s))
        if said.ready:
            self._beat("ready")
        if said.keep_alive:
            self._beat("alive")
        if said.ill and self._is_notify(self._instance.alive):
            self._pulses["alive"].fail("it says so (WATCHDOG=trigger)")
        if said.stopping:
            feed(StoppingAnnounced())

    def _is_notify(self, probe: Probe | None) -> bool:
        return probe is not None and isinstance(probe.check, NotifyCheck)

    def _beat(self, which: Which) -> None:
        probe = self._instance.ready if which == "ready" else self._instance.alive
        if self._is_notify(probe):
            self._pulses[which].beat()

    def _stranger(self, pid: int) -> None:
        ready = self._instance.ready
        if self._is_notify(ready) and self._pulses["ready"].last is None:
            who = f"pid {pid}, which does not descend from it" if pid else "nobody knows whom"
            self._pulses["ready"].fail(f"no READY=1 yet but one of {who}, which counts for nothing")

    def close(self) -> None:
        """Hear no more."""
        if self._socket is not None:
            self._socket.close()
