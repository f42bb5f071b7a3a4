"""Asking how an app is, again and again."""

import asyncio
from collections.abc import Awaitable, Callable

from meshrun.proxy import tasks
from meshrun.supervisor.commands import Command
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.probes.tally import Tally
from meshrun.supervisor.runner import Feed

__all__ = ["Asking", "ask_command"]


class Asking:
    """Asks one probe until it is stopped, and feeds what the answers mean.

    `ask` returns None for a success, the reason of a failure, in a time that it limits itself.
    """

    def __init__(
        self, tally: Tally, ask: Callable[[], Awaitable[str | None]], feed: Feed, name: str
    ) -> None:
        self._tally = tally
        self._ask = ask
        self._feed = feed
        self._task = tasks.start(self._run(), name)

    @property
    def tries(self) -> int:
        """How often it has been asked."""
        return self._tally.tries

    def stop(self) -> None:
        """Ask no more; an answer that is under way is not heard."""
        self._task.cancel()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            reason = await self._ask()
            event = self._tally.answer(reason, loop.time())
            if event is not None:
                self._feed(event)
            await asyncio.sleep(self._tally.pause_s(loop.time()))


async def ask_command(command: Command, timeout_s: float) -> str | None:
    """Ask a command once: exit code 0 is a success, else the reason is the last line it wrote."""
    try:
        ended = await command.run(timeout_s)
    except (MeshrunError, OSError, ValueError) as error:
        return str(error)
    if ended.exit is not None and ended.exit.ok:
        return None
    how = f"not ended within {timeout_s:g} s" if ended.exit is None else str(ended.exit)
    return f"{how}: {ended.last_line}" if ended.last_line else how
