"""A command beside an app: run by the launcher as the app is, in bounded time, nothing left."""

import asyncio
import contextlib
import os
import signal
from dataclasses import dataclass

from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.execution import execute
from meshrun.supervisor.launching import Launcher, Process
from meshrun.supervisor.lifecycle_events import Exit
from meshrun.supervisor.output import Pipe
from meshrun.supervisor.sessions import Session
from meshrun.supervisor.spawning import AppSpec

__all__ = ["Command", "CommandBusyError", "Ended"]

LONGEST_SHOWN = 200


class CommandBusyError(MeshrunError):
    """The same command, run before, could not be ended yet."""


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended: `exit` is None where it took too long; `last_line` is what it said."""

    exit: Exit | None
    last_line: str


class Command:
    """One command, which may be run again and again, but never twice at the same time."""

    def __init__(self, launcher: Launcher, spec: AppSpec) -> None:
        self._launcher = launcher
        self._spec = spec
        self._session: Session | None = None

    async def run(self, timeout_s: float) -> Ended:
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
            pipe = Pipe(read_end, last.take)
            opened.callback(pipe.close)
            null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
            opened.callback(os.close, null)
            exit_: Exit | None = None
            try:
                async with asyncio.timeout(timeout_s):
                    process = await execute(
                        self._launcher, self._spec, [null, write_end, write_end]
                    )
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
        self._session = Session(process.pid)
        self._session.end(signal.SIGKILL, self._gone)

    def _gone(self) -> None:
        self._session = None


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
