"""When an app that has a schedule is due. Pure: the clock and the time zone are arguments.

An interval goes from the start of one run to the start of the next. What a line of cron means is
left to a library, which follows Debian's cron: at the change to summer time a job at an hour that
is left out is due right after the gap, at the change back one at an hour that comes twice is due
once; one whose minute or hour begins with `*` goes by the time that passes.

Times are wall-clock seconds since the epoch, since a schedule goes on while a machine sleeps.
"""

import math
from datetime import UTC, datetime, tzinfo

from cronsim import CronSim, CronSimError

from meshrun.proxy.errors import MeshrunError
from meshrun.supervisor.configuration.model import Cron, Interval, Schedule

__all__ = ["ALIASES", "Agenda", "ScheduleError", "cron", "next_run"]

ALIASES = {
    "@hourly": "0 * * * *",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@weekly": "0 0 * * 0",
    "@monthly": "0 0 1 * *",
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
}
"""The nicknames of crontab(5), all but `@reboot`."""

FIELDS = 5
# Longer than any line that somebody has written by hand.
LONGEST_EXPRESSION = 256
# A clock that is set back by less only has been put right: nothing is due twice for it.
SET_BACK_S = 60.0


class ScheduleError(MeshrunError):
    """A text is no schedule of cron, or its time never comes; the message begins with a verb."""


def cron(text: str) -> Cron:
    """Read the five fields of crontab(5), or one of its nicknames. Raises ScheduleError."""
    expression = ALIASES.get(text.lower(), text)
    if expression.startswith("@"):
        raise ScheduleError(f"must be one of {', '.join(ALIASES)}")
    if len(expression) > LONGEST_EXPRESSION:
        raise ScheduleError(f"must have at most {LONGEST_EXPRESSION} characters")
    found = len(expression.split())
    if found != FIELDS:
        raise ScheduleError(
            f"must have {FIELDS} fields (minute hour day month weekday), not {found}"
        )
    try:
        first = next(CronSim(expression, datetime(2000, 1, 1, tzinfo=UTC)), None)
    except CronSimError as error:
        # "Bad minute": the library names the field.
        raise ScheduleError(f"has a {str(error).lower()}") from error
    if first is None:
        raise ScheduleError("is a time that never comes")
    return Cron(expression)


def next_run(schedule: Schedule, now: float, zone: tzinfo) -> float:
    """Return the first time after `now` that is due; infinity where none ever is."""
    if isinstance(schedule, Interval):
        return now + schedule.length_s
    for moment in CronSim(schedule.expression, datetime.fromtimestamp(now, zone)):
        # In an hour that comes a second time the library begins again with the first time.
        if moment.timestamp() > now:
            return moment.timestamp()
    return math.inf


class Agenda:
    """The next time of one instance, as long as it has the same schedule."""

    def __init__(self, schedule: Schedule, now: float, zone: tzinfo) -> None:
        self.schedule = schedule
        self.next_at = next_run(schedule, now, zone)
        self._last = -math.inf

    def is_due(self, now: float, zone: tzinfo) -> bool:
        """Tell whether it is due; then it is not before the next time.

        However many times have passed since somebody looked, it is due once. To be asked now and
        then also finds out that the clock was set back, or the zone is another one.
        """
        if now >= self.next_at:
            self._last = self.next_at
            self.next_at = next_run(self.schedule, now, zone)
            return True
        put_right = self._last - SET_BACK_S < now < self._last
        again = next_run(self.schedule, self._last if put_right else now, zone)
        self.next_at = again if isinstance(self.schedule, Cron) else min(self.next_at, again)
        return False

    def began(self, now: float) -> None:
        """A run has begun, by its time or by hand: intervals are counted from its start."""
        if isinstance(self.schedule, Interval):
            self.next_at = now + self.schedule.length_s
