"""Deadlines of many that have the same time."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from meshrun.proxy.http.deadlines import Deadlines

PATIENCE_S = 10.0
NEVER_S = 3600.0


@asynccontextmanager
async def deadlines() -> AsyncIterator[tuple[Deadlines[str], "asyncio.Queue[str]"]]:
    """Deadlines, and who was late, in order."""
    late: asyncio.Queue[str] = asyncio.Queue()
    made = Deadlines(late.put_nowait)
    try:
        yield made, late
    finally:
        made.close()


async def first(late: "asyncio.Queue[str]") -> str:
    """Return who is late first."""
    return await asyncio.wait_for(late.get(), PATIENCE_S)


@pytest.mark.parametrize("times", [(NEVER_S, 0.01), (None, 0.01), (NEVER_S, None, 0.01)])
def test_a_shorter_time_is_that_of_those_that_began_before(times: tuple[float | None, ...]) -> None:
    async def run() -> None:
        async with deadlines() as (made, late):
            made.set(times[0])
            made.begin("before")
            for timeout_s in times[1:]:
                made.set(timeout_s)
            made.begin("after")
            expected = ["after"] if None in times else ["before", "after"]
            assert [await first(late) for _ in expected] == expected

    asyncio.run(run())


def test_a_longer_time_is_that_of_those_that_began_before() -> None:
    async def run() -> None:
        async with deadlines() as (made, late):
            made.set(0.01)
            made.begin("before")
            made.set(NEVER_S)
            await asyncio.sleep(0.05)
            assert late.empty()

    asyncio.run(run())


@pytest.mark.parametrize("finish", [lambda made: made.end("one"), lambda made: made.close()])
def test_what_was_ended_is_never_late(finish: Callable[[Deadlines[str]], None]) -> None:
    async def run() -> None:
        async with deadlines() as (made, late):
            made.set(0.01)
            made.begin("one")
            finish(made)
            made.begin("other")
            assert await first(late) == "other"
            assert late.empty()

    asyncio.run(run())


def test_whoever_is_late_may_begin_again() -> None:
    async def run() -> None:
        again: list[str] = []

        def on_late(one: str) -> None:
            again.append(one)
            if len(again) < 3:
                made.begin(one)
            else:
                done.set()

        made, done = Deadlines(on_late), asyncio.Event()
        made.set(0.01)
        made.begin("one")
        await asyncio.wait_for(done.wait(), PATIENCE_S)
        assert again == ["one"] * 3
        made.close()

    asyncio.run(run())
