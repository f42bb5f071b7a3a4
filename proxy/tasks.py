"""The one place that creates asyncio tasks: named, kept alive, and loud when they fail."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import TypeVar

__all__ = ["current", "start"]

T = TypeVar("T")

_running: set[asyncio.Task[object]] = set()


def start(
    coroutine: Coroutine[object, object, T],
    name: str,
    on_error: Callable[[str, BaseException], None] | None = None,
) -> asyncio.Task[T]:
    """Run `coroutine` as a task called `name` and keep a reference until it ends.

    The loop itself keeps only weak references: a task that nobody holds may be collected while it
    runs. A failure goes to `on_error` with the task's name, else to the loop's exception handler.
    """
    task = asyncio.get_running_loop().create_task(coroutine, name=name)
    _running.add(task)

    def done(ended: asyncio.Task[T]) -> None:
        _running.discard(ended)
        if ended.cancelled():
            return
        error = ended.exception()
        if error is None:
            return
        if on_error is not None:
            on_error(name, error)
        else:
            ended.get_loop().call_exception_handler(
                {"message": f"task {name} failed", "exception": error, "task": ended}
            )

    task.add_done_callback(done)
    return task


def current() -> asyncio.Task[None]:
    """Return the task that calls."""
    task = asyncio.current_task()
    assert task is not None, "no task calls"
    return task
