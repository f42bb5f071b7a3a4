"""A command beside an app: run by the launcher as the app is, in bounded time, nothing left."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass

from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.execution import execute
from meshrun.supervisor.launching import Launcher, Process
from meshrun.supervisor.lifecycle_events import Exit
from meshrun.supervisor.output import Pipe
from meshrun.supervisor.processes import ProcessId
from meshrun.supervisor.sessions import Session
from meshrun.supervisor.spawning import AppSpec

__all__ = ["Command", "CommandBusyError", "Ended"]

LONGEST_SHOWN = 200


class CommandBusyError(MeshrunError):
    """The same command, run before, could not be ended yet."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: `exit` is None where it took too long.

    `last_line` is what it said, where nobody is given its lines.
    """

    exit: Exit | None
    last_line: str


class Command:
    """One command, which may be run again and again, but never twice at the same time.

    `on_lines` is given all that it writes, stdout and stderr together.
    """

    def __init__(
        self,
        launcher: Launcher,
        spec: AppSpec,
        on_lines: Callable[[list[bytes]], None] | None = None,
    ) -> None:
        self._launcher = launcher
        self._spec = spec
        self._on_lines = on_lines
        self._process: Process | None = None
        self._pipe: Pipe | None = None
        self._paused = False
        self._session: Session | None = None
        self._ended = asyncio.Event()
        self._ended.set()

    @property
    def name(self) -> str:
        """What it is called where processes are named."""
        return self._spec.name

    async def run(self, timeout_s: float | None) -> Ended:
        """Run it; after `timeout_s`, or when the caller is cancelled, its whole session is killed.

        Raises NotExecutableError, CommandBusyError, MeshrunError if it cannot be started, OSError
        if there are no descriptors left.
        """
        if self._session is not None:
            raise CommandBusyError(
                f"cannot run {_program(self._spec)}: the last one, which was killed, has not ended"
            )
        last = _LastLine()
        with contextlib.ExitStack() as opened:
            read_end, write_end = os.pipe()
            opened.callback(os.close, write_end)
            self._pipe = pipe = Pipe(read_end, self._on_lines or last.take)
            opened.callback(pipe.close)
            if self._paused:
                pipe.pause()
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, null)
            exit_: Exit | None = None
            try:
                async with asyncio.timeout(timeout_s):
                    process = await execute(
                        self._launcher, self._spec, [null, write_end, write_end]
                    )
                    self._process = process
                    try:
                        # Shielded: to wait no more for an exit must not undo the exit.
                        exit_ = await asyncio.shield(process.exited)
                    finally:
                        self._end(process)
            except TimeoutError:
                pass
            pipe.exhaust()
        return Ended(exit_, last.text)

    def _end(self, process: Process) -> None:
        """Kill what is left of it, itself included."""
        process.abandon()
        self._process = None
        self._ended.clear()
        self._session = Session(process.pid)
        self._session.end(signal.SIGKILL, self._gone)

    def _gone(self) -> None:
        self._session = None
        self._ended.set()

    async def gone(self) -> None:
        """Wait until nothing is left of a run that has been ended."""
        await self._ended.wait()

    def send_signal(self, number: int) -> None:
        """Send a signal to its whole session, if it runs."""
        if self._process is not None:
            self._process.send_signal(number)
            Session(self._process.pid).send_signal(number)

    def members(self) -> list[ProcessId]:
        """Return its processes that live."""
        if self._process is not None:
            return Session(self._process.pid).members()
        return [] if self._session is None else self._session.members()

    def pause(self) -> None:
        """Take none of its output for now."""
        self._paused = True
        if self._pipe is not None:
            self._pipe.pause()

    def resume(self) -> None:
        """Take its output again."""
        self._paused = False
        if self._pipe is not None:
            self._pipe.resume()


class _LastLine:
    """The last line that says something, in few characters that a terminal only shows."""

    def __init__(self) -> None:
        self.text = ""

    def take(self, lines: list[bytes]) -> None:
        for line in reversed(lines):
            text = line[: 4 * LONGEST_SHOWN].decode(errors="replace").strip()
            if text:
                shown = text if len(text) <= LONGEST_SHOWN else text[: LONGEST_SHOWN - 1] + "…"
                self.text = "".join(c if c.isprintable() else "?" for c in shown)
                return


def _program(spec: AppSpec) -> str:
    return os.fsdecode(spec.argv[0])
