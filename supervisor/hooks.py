"""The hooks of one instance: commands beside an app, run when it is ready and when it has ended.

When they run and how long they may take is the life's to decide (`meshrun.supervisor.lifecycle`).
Their output goes where the app's goes; what became of them is told, and changes nothing.
"""

import asyncio
import signal
from collections.abc import Callable
from functools import partial

from meshrun.proxy import tasks
from meshrun.supervisor import environment
from meshrun.supervisor.commands import Command
from meshrun.supervisor.configuration.model import HookName
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.launching import LauncherLostError
from meshrun.supervisor.lifecycle_events import EndHook, RunHook
from meshrun.supervisor.processes import ProcessId

__all__ = ["Hooks", "OnHook", "variables"]

# Called with the instance's name, the hook, and what went wrong, if anything did.
OnHook = Callable[[str, HookName, str], None]


def variables(hook: RunHook) -> dict[str, str]:
    """Return what a hook finds in its environment beside what its app does."""
    exit_ = hook.exit
    return environment.hook_variables(
        hook.hook,
        code=None if exit_ is None else exit_.code,
        signal_name=None if exit_ is None else exit_.signal_name,
        restarts=hook.again if exit_ is not None else None,
    )


class Hooks:
    """Runs them, of each kind one at a time; `report` is told how each went."""

    def __init__(self, report: Callable[[HookName, str], None]) -> None:
        self._report = report
        self._commands: dict[HookName, Command] = {}
        self._tasks: dict[HookName, asyncio.Task[str]] = {}
        self._reasons: dict[HookName, str] = {}
        self._paused = False

    def run(self, hook: HookName, command: Command, on_ended: Callable[[], None]) -> None:
        """Run a command as a hook; `on_ended` is called when it has ended, or was ended."""
        earlier = self._commands.get(hook)
        self._commands[hook] = command
        self._reasons.pop(hook, None)
        if self._paused:
            command.pause()
        task = tasks.start(_run(command, earlier), f"run {hook} of {command.name}")
        self._tasks[hook] = task
        task.add_done_callback(partial(self._ended, hook, on_ended))

    def _ended(self, hook: HookName, on_ended: Callable[[], None], task: asyncio.Task[str]) -> None:
        if self._tasks.get(hook) is task:
            del self._tasks[hook]
        reason = self._reasons.pop(hook, "")
        try:
            if task.cancelled():
                self._report(hook, reason)
            elif task.exception() is None:  # else the loop's exception handler has been told
                self._report(hook, task.result())
        finally:
            on_ended()

    def end(self, order: EndHook) -> None:
        """Send a signal to a hook, if it runs; KILL ends it, whatever it does."""
        task = self._tasks.get(order.hook)
        if task is None:
            return
        if order.signal == signal.SIGKILL:
            self._reasons[order.hook] = order.reason
            task.cancel()
        else:
            self._commands[order.hook].send_signal(order.signal)

    def members(self) -> list[ProcessId]:
        """Return the processes of all hooks that run."""
        return [process for command in self._commands.values() for process in command.members()]

    def pause(self) -> None:
        """Let the hooks wait with what they write."""
        self._paused = True
        for command in self._commands.values():
            command.pause()

    def resume(self) -> None:
        """Take their output again."""
        self._paused = False
        for command in self._commands.values():
            command.resume()


async def _run(command: Command, earlier: Command | None) -> str:
    """Run it once nothing is left of the one before; return what went wrong."""
    if earlier is not None:
        await earlier.gone()
    try:
        ended = await command.run(None)
    except LauncherLostError:
        return ""  # the run is over; nobody is left to tell
    except (MeshrunError, OSError, ValueError) as error:
        # ValueError: a NUL in a word, a text that cannot be encoded.
        return str(error)
    return "" if ended.exit is None or ended.exit.ok else str(ended.exit)
