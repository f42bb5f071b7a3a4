"""What is done to many survives one that fails."""

import asyncio

from meshrun.proxy.fanout import to_each


def test_one_that_fails_is_told_of_and_the_others_have_their_turn() -> None:
    told: list[object] = []

    async def run() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda _, context: told.append(context["exception"])
        )
        to_each([1, 0, 2], lambda number: done.append(1 // number))

    done: list[int] = []
    asyncio.run(run())
    assert done == [1, 0]
    assert [type(error) for error in told] == [ZeroDivisionError]


def test_a_step_may_change_what_is_gone_over() -> None:
    items = {1, 2, 3}
    to_each(items, items.discard)
    assert not items
