"""When apps that have a schedule are told: the timer, and clocks that do not go with it."""

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import cast

import pytest
from support.virtual import VirtualLoop

from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor.configuration.model import Interval, Schedule
from meshrun.supervisor.lifecycle import Policy, Status
from meshrun.supervisor.lifecycle_events import Event
from meshrun.supervisor.runner import Body, Runner
from meshrun.supervisor.schedule import cron
from meshrun.supervisor.timetable import LONGEST_TIMER_S, Timetable

NOON = datetime(2026, 6, 1, 12, tzinfo=UTC).timestamp()


class World:
    """Apps that have a schedule and never begin: they are told, and that is counted."""

    def __init__(self, loop: VirtualLoop, schedule: Schedule | None) -> None:
        self.loop = loop
        self.schedule = schedule
        self.wall = NOON - loop.time()
        self.told: list[float] = []
        self.turns = 0
        self.runners: dict[str, Runner] = {}
        self.timetable = Timetable(self.runners, lambda _: self.schedule, self.now, lambda: UTC)

    def now(self) -> float:
        self.turns += 1
        return self.wall + self.loop.time()

    def add(self, name: str) -> None:
        # It stays in its phase, since nobody meets its dependencies: no body is ever asked.
        body = cast("Body", None)
        self.runners[name] = Runner(
            name, Policy(scheduled=True), body, self._changed, lambda: 0.0, self.loop.time
        )
        self.runners[name].feed(events.Start())

    def _changed(self, runner: Runner, _before: Status, _after: Status, event: Event) -> None:
        if isinstance(event, events.Due):
            self.told.append(self.wall + self.loop.time() - NOON)
        self.timetable.look()

    def stop(self, name: str) -> None:
        self.runners[name].feed(events.Stop())

    def pass_(self, seconds: float) -> None:
        """Let time pass."""

        async def sleep() -> None:
            await asyncio.sleep(seconds)

        self.loop.run_until_complete(sleep())


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def running(loop: VirtualLoop, schedule: Schedule | None, *names: str) -> World:
    made: list[World] = []

    async def begin() -> None:
        made.append(World(loop, schedule))
        for name in names:
            made[0].add(name)

    loop.run_until_complete(begin())
    return made[0]


def test_it_is_told_at_each_time_and_says_when_the_next_one_is(loop: VirtualLoop) -> None:
    world = running(loop, cron("*/5 * * * *"), "backup.1")
    assert world.timetable.describe("backup.1") == "next run at 12:05:00"
    world.pass_(601.0)
    assert [round(at) for at in world.told] == [300, 600]


def test_the_day_is_said_where_it_is_another_one(loop: VirtualLoop) -> None:
    world = running(loop, cron("30 2 * * *"), "backup.1")
    assert world.timetable.describe("backup.1") == "next run at 2026-06-02 02:30:00"
    assert world.timetable.describe("web.1") == "no next run"


def test_who_is_stopped_or_has_no_schedule_any_more_is_told_nothing(loop: VirtualLoop) -> None:
    world = running(loop, Interval(60.0), "a.1", "b.1")
    world.stop("a.1")
    assert world.timetable.next_at("a.1") is None
    world.pass_(61.0)
    assert len(world.told) == 1
    world.schedule = None
    world.timetable.look()
    world.pass_(600.0)
    assert len(world.told) == 1
    turns = world.turns
    world.pass_(86400.0)
    assert world.turns == turns, "nobody looks at the clock for nobody"


def test_another_schedule_counts_from_now(loop: VirtualLoop) -> None:
    world = running(loop, Interval(3600.0), "a.1")
    world.pass_(1000.0)
    world.schedule = Interval(60.0)
    world.timetable.look()
    world.pass_(61.0)
    assert [round(at) for at in world.told] == [1060]


def test_after_a_sleep_of_the_machine_it_is_told_once_soon(loop: VirtualLoop) -> None:
    world = running(loop, cron("0 * * * *"), "a.1")
    world.pass_(10.0)
    world.wall += 5 * 3600.0 + 100.0
    world.pass_(LONGEST_TIMER_S)
    assert len(world.told) == 1
    assert world.timetable.describe("a.1") == "next run at 18:00:00"


def test_a_clock_that_was_far_ahead_is_noticed_when_it_is_set_back(loop: VirtualLoop) -> None:
    world = running(loop, cron("0 * * * *"), "a.1")
    world.wall -= 10 * 86400.0
    world.pass_(LONGEST_TIMER_S + 1.0)
    assert world.timetable.next_at("a.1") == NOON - 10 * 86400.0 + 3600.0


def test_nobody_looks_more_often_than_is_needed(loop: VirtualLoop) -> None:
    world = running(loop, cron("0 0 1 1 *"), "a.1")
    begun = world.turns
    world.pass_(86400.0)
    # A look asks for the time twice: what is due, and how long the next timer is.
    assert world.turns - begun <= 2 * (86400.0 / LONGEST_TIMER_S) + 2
