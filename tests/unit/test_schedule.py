"""When a schedule is due: after now, at its times, once however much was missed; DST included."""

import itertools
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.configuration.model import Interval, Schedule
from meshrun.supervisor.schedule import SET_BACK_S, Agenda, ScheduleError, cron, next_run

BERLIN = ZoneInfo("Europe/Berlin")
# Its summer time begins at midnight, its clocks go by half an hour, and it is far from UTC.
CAIRO, LORD_HOWE, APIA = (
    ZoneInfo(name) for name in ("Africa/Cairo", "Australia/Lord_Howe", "Pacific/Apia")
)
ZONES = [UTC, BERLIN, CAIRO, LORD_HOWE, APIA]
BEGIN, END = (datetime(year, 1, 1, tzinfo=UTC).timestamp() for year in (2024, 2030))

LIMITS = ((0, 59), (0, 23), (1, 31), (1, 12), (0, 7))


@st.composite
def fields(draw: st.DrawFn, lowest: int, highest: int) -> str:
    """One field: a star, a number, a range, a list, each maybe with a step."""
    numbers = st.integers(lowest, highest)
    kind = draw(st.sampled_from(["*", "*", "*/n", "number", "range", "range/n", "list"]))
    step = draw(st.integers(1, 20))
    # Two numbers: the library takes `5-5/2` for `5/2`, which goes on to the end.
    first, last = sorted(draw(st.lists(numbers, min_size=2, max_size=2, unique=True)))
    return {
        "*": "*",
        "*/n": f"*/{step}",
        "number": f"{first}",
        "range": f"{first}-{last}",
        "range/n": f"{first}-{last}/{step}",
        "list": f"{last},{first}",
    }[kind]


expressions = st.tuples(*(fields(*limits) for limits in LIMITS)).map(" ".join)
zones = st.sampled_from(ZONES)
times = st.floats(BEGIN, END)


def values(field: str, lowest: int, highest: int) -> set[int]:
    """The numbers of a field, read anew from crontab(5)."""
    found: set[int] = set()
    for part in field.split(","):
        span, _, step = part.partition("/")
        first, _, last = span.partition("-")
        begin = lowest if span == "*" else int(first)
        end = highest if span == "*" else int(last or first)
        found |= set(range(begin, end + 1, int(step or 1)))
    return found


def matches(expression: str, moment: datetime) -> bool:
    """Tell whether a minute is one of an expression, by the text of crontab(5)."""
    parts = expression.split()
    minute, hour, day, month, weekday = (
        values(part, *limits) for part, limits in zip(parts, LIMITS, strict=True)
    )
    by_day = moment.day in day
    by_weekday = bool({moment.isoweekday(), moment.isoweekday() % 7} & weekday)
    either = not (parts[2].startswith("*") or parts[4].startswith("*"))
    days = (by_day or by_weekday) if either else (by_day and by_weekday)
    in_time = moment.minute in minute and moment.hour in hour
    return days and in_time and moment.month in month


def possible(expression: str) -> bool:
    try:
        cron(expression)
    except ScheduleError:
        return False
    return True


def runs(expression: str, zone: tzinfo, *begin: int) -> Iterator[datetime]:
    """The times that follow a local time, each counted from the one before."""
    schedule = cron(expression)
    now = datetime(*begin, tzinfo=zone).timestamp()  # type: ignore[misc, arg-type]
    while True:
        now = next_run(schedule, now, zone)
        yield datetime.fromtimestamp(now, zone)


def first(number: int, expression: str, *begin: int) -> list[str]:
    """The first times in Berlin, with what they are apart from UTC."""
    return [f"{m:%d %H:%M %Z}" for m in itertools.islice(runs(expression, BERLIN, *begin), number)]


@given(expression=expressions.filter(possible), now=times)
def test_the_next_run_is_the_first_minute_after_now_that_matches(
    expression: str, now: float
) -> None:
    due = next_run(cron(expression), now, UTC)
    assert due > now
    moment = datetime.fromtimestamp(due, UTC)
    assert matches(expression, moment)
    assert moment.second == moment.microsecond == 0
    # No match in between, as far as one can look in a test.
    minute = datetime.fromtimestamp(now, UTC).replace(second=0, microsecond=0)
    for _ in range(1500):
        minute += timedelta(minutes=1)
        if minute >= moment:
            break
        assert not matches(expression, minute)


@given(expression=expressions.filter(possible), now=times, zone=zones)
def test_the_next_run_is_after_now_whatever_the_clocks_do(
    expression: str, now: float, zone: tzinfo
) -> None:
    due = next_run(cron(expression), now, zone)
    assert due > now
    # Whoever asks again on the way there hears the same.
    assert next_run(cron(expression), (now + due) / 2, zone) == due or (now + due) / 2 >= due


@given(
    hour=st.integers(0, 23),
    minute=st.integers(0, 59),
    zone=zones,
    year=st.integers(2024, 2029),
)
def test_a_job_at_a_time_of_day_runs_once_each_day_also_when_the_clocks_change(
    hour: int, minute: int, zone: tzinfo, year: int
) -> None:
    for month in (3, 4, 9, 10, 11):
        found = itertools.islice(runs(f"{minute} {hour} * * *", zone, year, month, 1), 27)
        days = [moment.date() for moment in found]
        assert [later - earlier for earlier, later in itertools.pairwise(days)] == [
            timedelta(days=1)
        ] * 26


def test_a_time_that_the_change_to_summer_time_leaves_out_is_due_right_after_the_gap() -> None:
    assert first(3, "30 2 * * *", 2026, 3, 28) == ["28 02:30 CET", "29 03:00 CEST", "30 02:30 CEST"]
    assert first(2, "0,30 2 * * *", 2026, 3, 28, 12) == ["29 03:00 CEST", "30 02:00 CEST"]


def test_a_time_that_comes_twice_is_due_the_first_time() -> None:
    assert first(3, "30 2 * * *", 2026, 10, 24) == [
        "24 02:30 CEST",
        "25 02:30 CEST",
        "26 02:30 CET",
    ]
    again = datetime(2026, 10, 25, 2, 10, tzinfo=BERLIN, fold=1).timestamp()
    due = datetime.fromtimestamp(next_run(cron("30 2 * * *"), again, BERLIN), BERLIN)
    assert (due.day, due.hour, due.minute) == (26, 2, 30)


def test_what_runs_every_so_often_goes_by_the_time_that_passes() -> None:
    assert first(4, "*/30 * * * *", 2026, 3, 29, 1) == [
        *("29 01:30 CET", "29 03:00 CEST", "29 03:30 CEST", "29 04:00 CEST"),
    ]
    assert first(5, "*/30 * * * *", 2026, 10, 25, 1, 30) == [
        *("25 02:00 CEST", "25 02:30 CEST", "25 02:00 CET", "25 02:30 CET", "25 03:00 CET"),
    ]


def test_names_and_both_sundays_are_understood_and_a_day_is_either_of_month_or_of_week() -> None:
    assert cron("@Daily") == cron("0 0 * * *")
    sundays = [f"{m:%d %a}" for m in itertools.islice(runs("0 0 * jul sun", UTC, 2026, 6, 1), 2)]
    assert sundays == ["05 Sun", "12 Sun"]
    assert next(runs("0 0 * * 0", UTC, 2026, 6, 1)) == next(runs("0 0 * * 7", UTC, 2026, 6, 1))
    either = [f"{m:%d %a}" for m in itertools.islice(runs("0 0 15 * fri", UTC, 2026, 6, 11), 3)]
    assert either == ["12 Fri", "15 Mon", "19 Fri"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("* * * *", "must have 5 fields (minute hour day month weekday), not 4"),
        ("0 0 * * * *", "must have 5 fields (minute hour day month weekday), not 6"),
        ("60 * * * *", "has a bad minute"),
        ("* * * * MOO", "has a bad day-of-week"),
        ("*/0 * * * *", "has a bad minute"),
        ("5-1 * * * *", "has a bad minute"),
        ("0 0 31 2 *", "has a bad day-of-month"),
        ("0 0 * * 1L" + " " * 300, "must have at most 256 characters"),
        ("@reboot", "must be one of @hourly"),
        ("² * * * *", "has a bad minute"),
    ],
)
def test_what_is_no_schedule_is_refused_with_the_reason(text: str, why: str) -> None:
    with pytest.raises(ScheduleError) as refusal:
        cron(text)
    assert str(refusal.value).startswith(why)


@given(text=st.text(st.sampled_from("0123456789*/-,#LWl @monjan²"), max_size=40))
def test_whatever_is_written_is_a_schedule_or_refused(text: str) -> None:
    try:
        schedule = cron(text)
    except ScheduleError:
        return
    assert next_run(schedule, BEGIN, UTC) > BEGIN


# An agenda, which somebody looks at now and then.

schedules = st.sampled_from(
    [Interval(1.0), Interval(300.0), Interval(86400.0), cron("*/5 * * * *"), cron("30 2 * * *")]
)


@given(
    schedule=schedules,
    zone=zones,
    begin=times,
    steps=st.lists(st.floats(0.0, 200_000.0), max_size=40),
)
def test_it_is_due_once_for_all_that_was_missed_and_never_before_its_time(
    schedule: Schedule, zone: tzinfo, begin: float, steps: list[float]
) -> None:
    agenda, now = Agenda(schedule, begin, zone), begin
    for step in steps:
        due_at = agenda.next_at
        now += step
        assert agenda.is_due(now, zone) == (now >= due_at)
        assert agenda.next_at > now
        assert not agenda.is_due(now, zone)


@given(schedule=schedules, zone=zones, begin=times, back_s=st.floats(0.0, 10 * 86400.0))
def test_a_clock_that_is_set_back_makes_nobody_wait_longer_than_from_now(
    schedule: Schedule, zone: tzinfo, begin: float, back_s: float
) -> None:
    agenda = Agenda(schedule, begin, zone)
    now = begin - back_s
    assert not agenda.is_due(now, zone)
    assert agenda.next_at <= next_run(schedule, now, zone)


@given(schedule=schedules, zone=zones, begin=times, back_s=st.floats(0.01, SET_BACK_S - 0.01))
def test_a_clock_that_is_put_right_makes_nothing_due_twice(
    schedule: Schedule, zone: tzinfo, begin: float, back_s: float
) -> None:
    agenda = Agenda(schedule, begin, zone)
    due_at = agenda.next_at
    assert agenda.is_due(due_at, zone)
    assert not agenda.is_due(due_at - back_s, zone)
    assert agenda.next_at > due_at


def test_intervals_are_counted_from_the_start_of_a_run_and_times_of_day_are_not() -> None:
    agenda = Agenda(Interval(300.0), 1000.0, UTC)
    agenda.began(1100.0)
    assert agenda.next_at == 1400.0
    agenda = Agenda(cron("0 * * * *"), 1000.0, UTC)
    agenda.began(1100.0)
    assert agenda.next_at == 3600.0


def test_another_zone_is_noticed_at_the_next_look() -> None:
    noon = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()
    agenda = Agenda(cron("0 18 * * *"), noon, UTC)
    assert not agenda.is_due(noon + 60.0, BERLIN)
    assert agenda.next_at == noon + 4 * 3600.0
    assert not agenda.is_due(noon + 120.0, UTC)
    assert agenda.next_at == noon + 6 * 3600.0


def test_a_time_that_comes_no_more_is_never_due() -> None:
    assert next_run(cron("0 0 29 2 *"), END, UTC) < math.inf
