"""The apps that every manager runs: each says that it runs, and then waits to be ended.

An app is `/bin/sh` with three lines and no other program, under 2 ms and little memory: Python
would take ten times as long and so hide what the manager costs. With a helper it starts `sleep`
first, which goes on after a crash of the app and keeps the app's output open: what npm, a shell in
between or a worker of a web server does. A FIFO carries what apps say: a
shell can write to one without a helper, and the benchmark can wait for it without asking again and
again. The moment is taken when the benchmark reads, since a shell has no clock; that adds the time
of one wake-up, for every manager alike.
"""

import os
import signal
import stat
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from benchmarks.managers.manager import Commands
from benchmarks.programs import BenchmarkError

__all__ = ["App", "Crew", "parse"]

# The benchmark holds the second pipe open and never writes: an app waits in the kernel, handles no
# signal, so that TERM ends it at once, and ends by itself if the benchmark is killed. It opens that
# pipe before it says anything: with the benchmark gone, opening would wait for ever.
SCRIPT = """\
exec 3<"${0%/*}/hold"
@helper@
echo "$1 $$" >"${0%/*}/running"
read -r _ <&3
"""
READ_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class App:
    """An app that runs; `since_s` is when it said so, by the monotonic clock."""

    name: str
    pid: int
    pidfd: int
    since_s: float

    def kill(self) -> None:
        """End it with SIGKILL, which nothing can prepare for."""
        signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


def parse(data: bytes) -> tuple[list[tuple[str, int]], bytes]:
    """Return what apps have said, names and process ids, and the beginning of what is to come."""
    *lines, rest = data.split(b"\n")
    said = [line.decode().rpartition(" ") for line in lines]
    return [(name, int(pid)) for name, _, pid in said], rest


class Crew:
    """So many apps, made in `folder`; `running` has those that run, by name, the latest of each.

    With `helper_s` each has a helper that lives so long.
    """

    def __init__(self, folder: Path, number: int, helper_s: float | None = None) -> None:
        self.names: Sequence[str] = [f"app-{k:03}" for k in range(1, number + 1)]
        self.running: dict[str, App] = {}
        self._script = folder / "app.sh"
        helper = "" if helper_s is None else f"sleep {helper_s:g} &"
        self._script.write_text(SCRIPT.replace("@helper@", helper))
        self._pipes = [_pipe(folder / "running"), _pipe(folder / "hold")]
        self._rest = b""
        self._changed: set[str] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for app in self.running.values():
            os.close(app.pidfd)
        for pipe in self._pipes:
            os.close(pipe)

    @property
    def commands(self) -> Commands:
        """What each app is to run."""
        return {
            name: [
                "/bin/sh",
                str(self._script),
                name,
                *(["changed"] if name in self._changed else ()),
            ]
            for name in self.names
        }

    def change(self, name: str) -> None:
        """Let an app have another command from now on, that does the same."""
        self._changed.add(name)

    def fileno(self) -> int:
        """Return the descriptor that is readable when an app has said something."""
        return self._pipes[0]

    def listen(self) -> list[App]:
        """Return the apps that have said since the last time that they run, without waiting."""
        now = time.monotonic()
        with suppress(BlockingIOError):
            self._rest += os.read(self._pipes[0], READ_BYTES)
        said, self._rest = parse(self._rest)
        return [self._take(name, pid, now) for name, pid in said]

    def _take(self, name: str, pid: int, now: float) -> App:
        try:
            app = App(name, pid, os.pidfd_open(pid), now)
        except ProcessLookupError:
            raise BenchmarkError(f"{name} ended as soon as it had started") from None
        before = self.running.get(name)
        if before is not None:
            os.close(before.pidfd)
        self.running[name] = app
        return app


def _pipe(path: Path) -> int:
    os.mkfifo(path, stat.S_IRUSR | stat.S_IWUSR)
    # For reading and writing: opening waits for nobody, and there is no end of file between apps.
    return os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
