"""What is done to many connections at once, of which one may fail."""

import asyncio
from collections.abc import Callable, Iterable
from typing import TypeVar

__all__ = ["to_each"]

T = TypeVar("T")


def to_each(items: Iterable[T], step: Callable[[T], object]) -> None:
    """Take `step` with each of `items`, which it may change.

    One that fails is told to the loop's exception handler, and the others have their turn all the
    same: a bug of one connection is none of all.
    """
    for item in list(items):
        try:
            step(item)
        except Exception as error:  # noqa: BLE001  # see above
            asyncio.get_running_loop().call_exception_handler(
                {"message": "a step with one of many connections failed", "exception": error}
            )
