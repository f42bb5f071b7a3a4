"""A process manager that runs: awaited, read, stopped, and in any case ended with the block."""

import os
import secrets
import select
import shlex
import signal
import subprocess
import sysconfig
import time
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.managers.crew import Crew
from benchmarks.managers.manager import Manager
from benchmarks.programs import BenchmarkError
from meshrun.supervisor import processes

__all__ = ["Own", "Running", "start", "voluntary_switches"]

# In the environment of everything that a manager starts, so that it is found whoever is its parent.
MARKER = "BENCHMARK_RUN"
# Of the output of a manager that failed, as much as a reader wants.
SHOWN_CHARACTERS = 2000
# Variables that would make a manager other than it is delivered.
SETTINGS = ("MESHRUN_", "PYTHON")
KILL_AFTER_S = 5.0
GIVE_UP_AFTER_S = 10.0
COMMAND_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Own:
    """The processes of a manager itself, apps left out; `sidecars` are those that serve one app."""

    core: Sequence[int]
    sidecars: Sequence[int]

    @property
    def everything(self) -> Sequence[int]:
        """All of them."""
        return [*self.core, *self.sidecars]


class Running:
    """A manager, started, with its apps; times are by the monotonic clock, in seconds."""

    def __init__(self, manager: Manager, crew: Crew, folder: Path, run: str) -> None:
        self.manager = manager
        self.crew = crew
        self._folder = folder
        self._log = folder / "output.log"
        self._run = run
        self._configure()
        self.begun_s = time.monotonic()
        self._process = self._launch(manager.command(), self._log)
        self._pidfd = os.pidfd_open(self._process.pid)

    def _configure(self) -> None:
        file, text = self.manager.configuration(self.crew.commands)
        (self._folder / file).write_text(text)

    def _launch(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        program, *arguments = command
        path = Path(sysconfig.get_path("scripts")) / program
        with log.open("wb") as output:
            try:
                return subprocess.Popen(
                    [path, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=self._folder,
                    env=_environment(self._run),
                    # Ctrl-C is for the benchmark, which ends its managers in order.
                    start_new_session=True,
                )
            except OSError as error:
                raise BenchmarkError(f"cannot start {self.manager.name}: {error}") from error

    def close(self) -> None:
        """Give the descriptor back and reap the manager, which must have ended."""
        os.close(self._pidfd)
        self._process.wait()

    def await_apps(self, names: Iterable[str], timeout_s: float) -> float:
        """Return when the last of these apps said that it runs; what was heard before is over.

        Raises BenchmarkError if the manager ends or one of them says nothing in time.
        """
        missing = set(names)
        latest_s = 0.0
        deadline_s = time.monotonic() + timeout_s
        while missing:
            if self.crew.fileno() not in self._wait([self.crew.fileno()], deadline_s):
                some = ", ".join(sorted(missing)[:3])
                raise self._failed(f"{len(missing)} apps do not run after {timeout_s:g} s: {some}")
            for app in self.crew.listen():
                if app.name in missing:
                    missing.remove(app.name)
                    latest_s = app.since_s
        return latest_s

    def await_end(self, names: Collection[str], timeout_s: float) -> float:
        """Return when the first of these apps had ended. Raises BenchmarkError if none does."""
        pidfds = [self.crew.running[name].pidfd for name in names]
        # The manager may be gone by then, too: whether it is does not matter here.
        if not _readable(pidfds, time.monotonic() + timeout_s):
            raise self._failed(f"none of {len(names)} apps has ended after {timeout_s:g} s")
        return time.monotonic()

    @contextmanager
    def command(self, words: Sequence[str]) -> Iterator[None]:
        """Run a command of the manager meanwhile, and wait for its end with the block.

        Raises BenchmarkError if it fails or does not end in time.
        """
        log = self._folder / "command.log"
        process = self._launch(words, log)
        try:
            yield
            code = process.wait(COMMAND_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            process.kill()
            process.wait()
        if code != 0:
            how = (
                f"did not end in {COMMAND_TIMEOUT_S:g} s" if code is None else f"ended with {code}"
            )
            raise BenchmarkError(
                f"cannot use {shlex.join(words)}: it {how}; it said: {_end_of(log)}"
            )

    def change(self, name: str) -> None:
        """Write the manager's file anew, with another command for one app."""
        self.crew.change(name)
        self._configure()

    def decide(self, *, allowed: bool) -> None:
        """Have the manager allow or deny all calls; returns when that holds."""
        self.manager.decide(self._folder, allowed=allowed)

    def await_sidecars(self, timeout_s: float) -> float:
        """Return when everything beside the apps was ready too."""
        self.manager.await_sidecars(self._folder, timeout_s)
        return time.monotonic()

    def rest(self, duration_s: float) -> None:
        """Let time pass; raises BenchmarkError if the manager does not live through it."""
        self._wait([], time.monotonic() + duration_s)

    def stop(self, timeout_s: float) -> float:
        """Send SIGTERM; return how long it took until every app and the manager were gone."""
        begun_s = time.monotonic()
        self._process.send_signal(signal.SIGTERM)
        waiting = {self._pidfd, *(app.pidfd for app in self.crew.running.values())}
        while waiting:
            ended = _readable(waiting, begun_s + timeout_s)
            if not ended:
                raise self._failed(f"{len(waiting)} processes are not gone after {timeout_s:g} s")
            waiting -= ended
        return time.monotonic() - begun_s

    def own(self) -> Own:
        """Return the manager's processes. Raises BenchmarkError unless each app has its sidecar."""
        apps = {app.pid for app in self.crew.running.values()}
        below = [child.pid for child in processes.descendants(self._process.pid)]
        pids = [self._process.pid, *(pid for pid in below if pid not in apps)]
        beginning = self.manager.sidecar_name
        if beginning is None:
            return Own(core=pids, sidecars=[])
        sidecars = [pid for pid in pids if processes.name(pid).startswith(beginning)]
        if len(sidecars) != len(self.crew.names):
            raise self._failed(f"{len(sidecars)} sidecars run for {len(self.crew.names)} apps")
        return Own(core=[pid for pid in pids if pid not in sidecars], sidecars=sidecars)

    def _wait(self, descriptors: Collection[int], deadline_s: float) -> set[int]:
        readable = _readable([self._pidfd, *descriptors], deadline_s)
        if self._pidfd in readable:
            raise self._failed(f"it ended with {self._process.wait()}")
        return readable

    def _failed(self, reason: str) -> BenchmarkError:
        said = _end_of(self._log)
        return BenchmarkError(f"cannot run {self.manager.name}: {reason}; it said: {said}")


def _end_of(log: Path) -> str:
    return log.read_text(errors="replace")[-SHOWN_CHARACTERS:].strip()


@contextmanager
def start(
    manager: Manager, number: int, folder: Path, helper_s: float | None = None
) -> Iterator[Running]:
    """Start a manager with so many apps, its files in `folder`; end all of them with the block.

    With `helper_s` each app has a helper that lives so long.
    """
    run = secrets.token_hex(8)
    with Crew(folder, number, helper_s) as crew:
        running = Running(manager, crew, folder, run)
        try:
            yield running
        finally:
            _end(run)
            running.close()


def _end(run: str) -> None:
    # Not the manager alone: one that fails may leave its apps behind.
    left = processes.end_all(lambda: _carriers(run), KILL_AFTER_S, GIVE_UP_AFTER_S, time.monotonic)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise BenchmarkError(f"cannot end what a benchmark started: {pids}; see: ps -p {pids}")


def voluntary_switches(pids: Iterable[int]) -> int:
    """Return how often all threads of these processes have gone to sleep so far.

    Each of an idle process's wake-ups ends with one; proc(5), voluntary_ctxt_switches.
    """
    return sum(_switches(task) for pid in pids for task in Path(f"/proc/{pid}/task").iterdir())


def _switches(task: Path) -> int:
    for line in (task / "status").read_text().splitlines():
        name, _, value = line.partition(":")
        if name == "voluntary_ctxt_switches":
            return int(value)
    raise BenchmarkError(f"cannot count wake-ups: {task}/status has no voluntary_ctxt_switches")


def _environment(run: str) -> dict[str, str]:
    # All three are Python: with PYTHONDONTWRITEBYTECODE an editable install is compiled at each
    # start, and what pip installed is not.
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(SETTINGS)}
    return {**inherited, MARKER: run}


def _carriers(run: str) -> list[processes.ProcessId]:
    found = [
        processes.identify(pid)
        for pid in processes.all_pids()
        if processes.environment_value(pid, MARKER) == run
    ]
    return [process for process in found if process is not None]


def _readable(descriptors: Collection[int], deadline_s: float) -> set[int]:
    """Return those that are readable, once one is or the time is up."""
    poll = select.poll()
    for descriptor in descriptors:
        poll.register(descriptor, select.POLLIN)
    left_s = max(0.0, deadline_s - time.monotonic())
    return {descriptor for descriptor, _ in poll.poll(left_s * 1000)}
