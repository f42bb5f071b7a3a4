"""A mesh of real processes for a test: written, started, watched, ended, and nothing left.

The configuration is text. Programs are started as `${PYTHON} ${APPS}/serve.py`: meshrun expands
both from the environment that a `Mesh` gives it, and so does a shell. Everything that a mesh
starts carries a marker in its environment, so that the end of the block can see whether anything
was left behind, and fails if so.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from meshrun.supervisor import cgroup, processes, runfile
from meshrun.supervisor.cli.client import Client
from meshrun.supervisor.cli.records import Event, InstanceRow
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.processes import ProcessId
from meshrun.supervisor.statedir import StateDir

__all__ = ["APPS", "LOOK_AGAIN_S", "PATIENCE_S", "Foreground", "Mesh"]

APPS = Path(__file__).parent.parent / "apps"
# How long anything may take before a test gives up: a loaded machine is slow, not wrong.
PATIENCE_S = 30.0
# How soon a state is looked at again when no event announces it.
LOOK_AGAIN_S = 0.2
MARKER = "MESHRUN_TEST_ID"

Rows = Mapping[str, InstanceRow]

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what runs in its background so, and everything here would inherit it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # nohup(1)


class Mesh:
    """A folder with a mesh.toml and what runs from it; ends it all at the end of the block."""

    def __init__(
        self,
        folder: Path,
        config: str | None = None,
        *,
        files: Mapping[str, str] | None = None,
        environment: Mapping[str, str] | None = None,
        state_dir: str = ".meshrun",
        wrapper: Sequence[str] = (),
    ) -> None:
        self.folder = folder
        # What runs every command, such as `env` or `nice`.
        self.command = [*wrapper, sys.executable, "-P", "-m", "meshrun"]
        self.state_path = folder / state_dir
        self.marker = uuid.uuid4().hex
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("MESHRUN_")},
            **(environment or {}),
            MARKER: self.marker,
            "PYTHON": sys.executable,
            "APPS": str(APPS),
            "NO_COLOR": "1",
        }
        folder.mkdir(parents=True, exist_ok=True)
        written = {} if config is None else {"mesh.toml": config}
        for name, content in {**written, **(files or {})}.items():
            (folder / name).write_text(content)
        self._begun_ticks = processes.now_ticks()
        self._state: StateDir | None = None
        self._since = 0.0
        self._happened: list[Event] = []
        self._news = threading.Condition()
        self._following: threading.Thread | None = None
        self._foregrounds: list[Foreground] = []
        self._supervisor: ProcessId | None = None
        self._sessions: set[int] = set()
        self._cgroups: set[Path] = set()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._end()
        finally:
            left = self.left()
            for process in left:
                processes.send_signal(process, signal.SIGKILL)
            for foreground in self._foregrounds:
                foreground.close()
            if self._following is not None:
                self._following.join(PATIENCE_S)
            if self._state is not None:
                self._state.close()
        if error is None:
            assert not left, f"left behind: {_commands(left)}"

    def _end(self) -> None:
        if self.state_path.exists() and self.is_running():
            self.remember()
            supervisor = processes.identify(self.client.down().pid)
            if supervisor is not None:
                processes.await_exit(supervisor, PATIENCE_S)
        elif self._supervisor is not None:
            # It ends by itself: its socket closes before its last process ends.
            processes.await_exit(self._supervisor, PATIENCE_S)
        for foreground in self._foregrounds:
            foreground.end()

    # Starting and ending.

    def up(
        self, *args: str, wait: bool = True, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Start the mesh in the background, with `wait` until all is ready."""
        how = ["--wait", f"--timeout={PATIENCE_S:g}s"] if wait else ["-d"]
        done = self.cli("up", *how, *args, check=check)
        if self.state_path.exists() and self.is_running():
            self.follow()
        return done

    def foreground(self, *args: str) -> "Foreground":
        """Start the mesh as one does in a terminal, and return once its control socket answers."""
        foreground = Foreground(self._popen("up", *args))
        self._foregrounds.append(foreground)
        foreground.await_line("calls without an intention")
        if self.state_path.exists():
            # One that ends by itself may be over by now, or end while it is asked.
            with contextlib.suppress(MeshrunError):
                self.follow()
        return foreground

    def starting(self, *args: str, by: Sequence[str] = ()) -> "Foreground":
        """Start the mesh as one does in a terminal, and return at once.

        `by` are the words of a command that executes the one that follows them.
        """
        foreground = Foreground(self._popen("up", *args, by=by))
        self._foregrounds.append(foreground)
        return foreground

    def await_answer(self) -> None:
        """Wait for a mesh that something else has started, and follow it."""
        deadline = time.monotonic() + PATIENCE_S
        while not (self.state_path.exists() and self.is_running()):
            assert time.monotonic() < deadline, "no mesh answers"
            time.sleep(LOOK_AGAIN_S)
        self.follow()

    def down(self) -> subprocess.CompletedProcess[str]:
        """End the mesh."""
        self.remember()
        return self.cli("down", check=True)

    def _popen(self, *args: str, by: Sequence[str] = ()) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [*by, *self.command, *args],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def cli(
        self, *args: str, check: bool = False, timeout_s: float = 2 * PATIENCE_S
    ) -> subprocess.CompletedProcess[str]:
        """Run a command; with `check` it must succeed."""
        done = subprocess.run(
            [*self.command, *args],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
        said = f"meshrun {' '.join(args)}: {done.returncode}\n{done.stdout}{done.stderr}"
        assert not check or done.returncode == 0, said
        return done

    def kill(self, pid: int | None, number: int = signal.SIGKILL) -> None:
        """Send a signal to a process of the mesh."""
        assert pid is not None, "there is no such process now"
        self.remember()
        os.kill(pid, number)

    # Looking at it.

    @property
    def state(self) -> StateDir:
        """The state folder."""
        if self._state is None:
            self._state = StateDir.open(self.state_path, create=False)
        return self._state

    @property
    def client(self) -> Client:
        """The API of the running mesh."""
        return Client(self.state)

    def is_running(self) -> bool:
        """Tell whether somebody answers on the control socket."""
        return self.client.is_running()

    def recorded(self) -> runfile.RunFile:
        """Return run.json."""
        run = runfile.read(self.state)
        assert run is not None, "there is no run.json"
        return run

    @property
    def supervisor_pid(self) -> int:
        """The process id of the supervisor."""
        return self.recorded().supervisor.pid

    @property
    def launcher_pid(self) -> int:
        """The process id of the launcher."""
        launcher = self.recorded().launcher
        assert launcher is not None
        return launcher.pid

    def ps(self) -> list[InstanceRow]:
        """Return the state of every instance."""
        return self.client.instances()

    def instance(self, name: str) -> InstanceRow:
        """Return the state of one instance."""
        return _by_name(self.ps())[name]

    def env(self, instance: str) -> dict[str, str]:
        """Return the environment of an instance."""
        return self.client.env(instance)

    def upstream(self, instance: str, name: str) -> tuple[str, int]:
        """Return the local address at which an instance reaches one of its upstreams."""
        host, _, port = self.env(instance)[f"UPSTREAM_{name.upper()}_ADDR"].rpartition(":")
        return host, int(port)

    def output(self, instance: str) -> list[str]:
        """Return the lines that an instance has written so far."""
        lines = self.client.logs([instance], None, follow=False)
        return [line.line for line in lines if line.stream != "marker"]

    # Waiting for something.

    def follow(self) -> None:
        """Begin to collect the events of the run that runs now."""
        self.remember()
        since = self._since = self.client.run().started_at
        self._happened = []
        events = self.client.events(None, follow=True)

        def collect() -> None:
            try:
                for event in events:
                    if event.at >= since:
                        with self._news:
                            self._happened.append(event)
                            self._news.notify_all()
            except MeshrunError:
                pass  # the run was killed, as runs in tests are

        self._following = threading.Thread(target=collect, daemon=True)
        self._following.start()

    def events(self, kind: str | None = None, subject: str | None = None) -> list[Event]:
        """Return what has happened so far, oldest first."""
        if self.is_running():
            happened = self.client.events(None, follow=False)
            return [e for e in happened if e.at >= self._since and _is(e, kind, subject)]
        with self._news:
            return [e for e in self._happened if _is(e, kind, subject)]

    @property
    def happened(self) -> list[Event]:
        """All that was seen to happen since `follow`, however much."""
        with self._news:
            return list(self._happened)

    def await_event(
        self,
        kind: str,
        subject: str | None = None,
        *,
        number: int = 1,
        deadline_s: float = PATIENCE_S,
    ) -> Event:
        """Wait until something has happened for the `number`-th time, and return that event."""
        with self._news:
            self._news.wait_for(
                lambda: sum(_is(e, kind, subject) for e in self._happened) >= number, deadline_s
            )
            found = [e for e in self._happened if _is(e, kind, subject)]
            seen = "\n".join(f"{e.at:.3f} {e.kind} {e.message}" for e in self._happened)
        assert len(found) >= number, f"no {kind} of {subject}, number {number}; but\n{seen}"
        return found[number - 1]

    def wait_for(self, reached: Callable[[Rows], bool], deadline_s: float = PATIENCE_S) -> Rows:
        """Wait until the instances, by name, are as wanted; looked at after each event."""
        deadline = time.monotonic() + deadline_s
        while True:
            with self._news:
                seen = len(self._happened)
            rows = _by_name(self.ps())
            if reached(rows):
                return rows
            assert time.monotonic() < deadline, f"not reached: {rows}"
            with self._news:
                self._news.wait_for(lambda: len(self._happened) > seen, LOOK_AGAIN_S)  # noqa: B023

    def session_size(self, leader: int) -> int:
        """Return how many processes live in the session of `leader`."""
        return len(processes.session_members(leader))

    # What must not be left.

    def remember(self) -> None:
        """Note the sessions and the cgroup of the run that runs now."""
        run = runfile.read(self.state) if self.state_path.exists() else None
        if run is not None:
            self._supervisor = run.supervisor.process
            self._sessions |= {recorded.pid for recorded in run.processes}
            if run.cgroup is not None:
                self._cgroups.add(Path(run.cgroup))

    def left(self) -> list[ProcessId]:
        """Return every living process that anything of this block has started."""
        inside = {pid for folder in self._cgroups for pid in cgroup.members(folder)}
        return [
            process
            for pid in processes.all_pids()
            if (
                pid in inside
                or processes.environment_value(pid, MARKER) == self.marker
                or processes.session_of(pid) in self._sessions
            )
            and (process := processes.identify(pid)) is not None
            # Whoever was there before has nothing to do with this block, whatever its numbers.
            and process.start_time >= self._begun_ticks
        ]

    def await_gone(self, within_s: float) -> None:
        """Wait until nothing of the run lives; fails if something does after `within_s`."""
        deadline = time.monotonic() + within_s
        while left := self.left():
            assert time.monotonic() < deadline, f"left after {within_s:g} s: {_commands(left)}"
            await_any_exit(left, max(0.0, deadline - time.monotonic()))


class Foreground:
    """A `meshrun up` as in a terminal; its output is collected by line."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.pid = process.pid
        self._lines: list[str] = []
        self._ended = False
        self._news = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._news:
                self._lines.append(line.decode(errors="replace").rstrip("\n"))
                self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()

    @property
    def lines(self) -> list[str]:
        """What it has printed so far."""
        with self._news:
            return list(self._lines)

    @property
    def text(self) -> str:
        """What it has printed so far, as one text."""
        return "\n".join(self.lines)

    def await_line(self, part: str, deadline_s: float = PATIENCE_S) -> str:
        """Wait for a line that contains `part`, and return it; fails if the output ends before."""
        with self._news:
            self._news.wait_for(
                lambda: self._ended or any(part in line for line in self._lines), deadline_s
            )
            found = [line for line in self._lines if part in line]
        assert found, f'no "{part}" in:\n{self.text}'
        return found[0]

    def signal(self, number: int) -> None:
        """Send a signal to the supervisor."""
        self.process.send_signal(number)

    def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end and return the exit code; its output is complete then."""
        code = self.process.wait(timeout_s)
        self._reader.join(timeout_s)
        return code

    def end(self) -> None:
        """End it if it still runs, in order."""
        if self.process.poll() is None:
            self.process.terminate()
            self.process.wait(PATIENCE_S)

    def close(self) -> None:
        """Give everything back."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(PATIENCE_S)
        self._reader.join(PATIENCE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


def await_any_exit(living: Sequence[ProcessId], timeout_s: float) -> None:
    """Wait until one of some processes has ended."""
    with ExitStack() as stack:
        poll = select.poll()
        for process in living:
            pidfd = processes.open_pidfd(process)
            if pidfd is None:
                return
            stack.callback(os.close, pidfd)
            poll.register(pidfd, select.POLLIN)
        poll.poll(timeout_s * 1000)


def _is(event: Event, kind: str | None, subject: str | None) -> bool:
    return kind in (None, event.kind) and subject in (None, event.subject)


def _by_name(rows: Sequence[InstanceRow]) -> dict[str, InstanceRow]:
    return {row.instance: row for row in rows}


def _commands(living: Sequence[ProcessId]) -> str:
    return ", ".join(f"{p.pid} {processes.command_line(p.pid)}" for p in living)
