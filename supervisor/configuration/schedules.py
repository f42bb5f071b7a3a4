"""When an app runs: `every` of `[apps.NAME]`, a duration or a schedule of cron."""

from meshrun.supervisor.configuration.model import Interval, Schedule
from meshrun.supervisor.configuration.tables import Table
from meshrun.supervisor.configuration.values import UnfitError, duration, text
from meshrun.supervisor.schedule import ScheduleError, cron

__all__ = ["read_every"]

_SHORTEST = "1s"


def read_every(table: Table) -> Schedule | None:
    """Read `every`; None where the app is kept running."""
    return table.read("every", _schedule, None)


def _schedule(value: object) -> Schedule:
    # Two words are a duration that somebody has written out: `5 minutes`.
    if isinstance(value, str) and (value.startswith("@") or len(value.split()) > 2):
        try:
            return cron(text(value))
        except ScheduleError as error:
            raise UnfitError(str(error)) from error
    try:
        return Interval(duration(_SHORTEST)(value))
    except UnfitError as error:
        if isinstance(value, str) and value[:1].isdigit():
            raise
        raise UnfitError(f'{error}; or a schedule of cron such as "*/5 * * * *"') from error
