"""Lets apps that have a schedule run when they are due.

The wall clock decides, and a timer of the loop stands still while the machine sleeps: so none is
set for longer than a few minutes, as for leaves (`meshrun.proxy.identity`).
"""

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from datetime import datetime, tzinfo

from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor import zone
from meshrun.supervisor.configuration.model import Schedule
from meshrun.supervisor.lifecycle import Phase, Status, Wanted
from meshrun.supervisor.runner import Runner
from meshrun.supervisor.schedule import Agenda

__all__ = ["LONGEST_TIMER_S", "Timetable"]

LONGEST_TIMER_S = 600.0


class Timetable:
    """Looks at every app that has a schedule whenever something has changed.

    `runners` are the apps by instance, as they are at any time; `schedule_of` is what an instance
    has. `now` is the wall clock, `local` the time zone; what becomes of them is seen within
    `longest_timer_s`.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        schedule_of: Callable[[str], Schedule | None],
        now: Callable[[], float] = time.time,
        local: Callable[[], tzinfo] = zone.local,
        longest_timer_s: float = LONGEST_TIMER_S,
    ) -> None:
        self._runners = runners
        self._schedule_of = schedule_of
        self._now = now
        self._local = local
        self._longest_timer_s = longest_timer_s
        self._loop = asyncio.get_running_loop()
        self._agendas: dict[str, Agenda] = {}
        self._timer: asyncio.TimerHandle | None = None

    def look(self) -> None:
        """Take up who is to run at times, and leave out who is not any more."""
        changed = False
        for name, runner in self._runners.items():
            wanted = runner.status.wanted is not Wanted.STOP
            schedule = self._schedule_of(name) if wanted else None
            agenda = self._agendas.get(name)
            if schedule is None and agenda is not None:
                del self._agendas[name]
                changed = True
            elif schedule is not None and (agenda is None or agenda.schedule != schedule):
                self._agendas[name] = Agenda(schedule, self._now(), self._local())
                changed = True
        if changed:
            self._set_timer()

    def changed(self, name: str, before: Status, after: Status) -> None:
        """Note that a run has begun."""
        agenda = self._agendas.get(name)
        if agenda is None or after.number == before.number:
            return
        if after.phase is Phase.SPAWNING:
            agenda.began(self._now())
            self._set_timer()

    def forget(self, name: str) -> None:
        """An instance is no more."""
        if self._agendas.pop(name, None) is not None:
            self._set_timer()

    def next_at(self, name: str) -> float | None:
        """Return when an instance is due next, in wall-clock seconds; None if it never is."""
        agenda = self._agendas.get(name)
        return None if agenda is None or math.isinf(agenda.next_at) else agenda.next_at

    def describe(self, name: str) -> str:
        """Say when an instance is due next, as `next run at 12:05:00`."""
        at = self.next_at(name)
        if at is None:
            return "no next run"
        local = self._local()
        moment = datetime.fromtimestamp(at, local)
        today = moment.date() == datetime.fromtimestamp(self._now(), local).date()
        return f"next run at {moment:%H:%M:%S}" if today else f"next run at {moment:%F %H:%M:%S}"

    def _set_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._agendas:
            first = min(agenda.next_at for agenda in self._agendas.values())
            delay_s = min(self._longest_timer_s, max(0.0, first - self._now()))
            self._timer = self._loop.call_later(delay_s, self._fire)

    def _fire(self) -> None:
        now, local = self._now(), self._local()
        due = [name for name, agenda in self._agendas.items() if agenda.is_due(now, local)]
        self._set_timer()
        for name in due:
            runner = self._runners.get(name)
            if runner is not None:
                runner.feed(events.Due())
