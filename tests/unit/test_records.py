"""Followers of logs and events: what waits for one is bounded, in lines and in bytes."""

import asyncio

import pytest

from meshrun.supervisor.api.records import BACKLOG_BYTES, BACKLOG_LINES, _Feed


def test_a_follower_gets_what_has_come() -> None:
    async def follow() -> None:
        feed = _Feed()
        feed.put(["a"], BACKLOG_BYTES)
        assert await feed.get() == ["a"]
        feed.put(["b"], BACKLOG_BYTES)
        feed.put(["c"])
        assert await feed.get() == ["b", "c"]

    asyncio.run(follow())


@pytest.mark.parametrize(
    ("count", "size"), [(1, BACKLOG_BYTES), (BACKLOG_LINES, 1)], ids=["bytes", "lines"]
)
def test_a_follower_who_does_not_read_is_cut_off(count: int, size: int) -> None:
    async def follow() -> None:
        feed = _Feed()
        feed.put(["kept"], 1)
        feed.put(["too much"] * count, size)
        feed.put(["after a gap"], 1)
        assert await feed.get() == ["kept"]
        assert await feed.get() is None

    asyncio.run(follow())
