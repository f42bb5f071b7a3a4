"""Apps that try to outlive their run, and the ways in which a run ends, for tests.

`Fugitive` knows every process that such an app has made (`tests/apps/fugitive.py`), also those to
which nothing in /proc leads from the run.
"""

import fcntl
import os
import pty
import subprocess
import termios
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from support.mesh import PATIENCE_S, Mesh, await_any_exit

from meshrun.supervisor import cgroup, processes
from meshrun.supervisor.processes import ProcessId

__all__ = ["GRACE_S", "HABITS", "Fugitive", "Terminal", "config", "within", "without_cgroup"]

GRACE_S = 0.3

# What runs `fugitive.py`, by the name of how it misbehaves.
_FUGITIVE = "${PYTHON} -S ${APPS}/fugitive.py --trail ${TRAIL} --habit"
HABITS: dict[str, str] = {
    habit: f'command = "{_FUGITIVE} {habit}"'
    for habit in (
        *("deaf", "deaf-child", "session", "daemon", "deaf-daemon", "wiped", "deaf-wiped"),
        *("chain", "chain-of-sessions", "stopped", "half-dead", "disguise", "threads"),
    )
}
HABITS["pipeline"] = f'''shell = true
command = "{_FUGITIVE} deaf-child | cat | cat"'''
HABITS["npm"] = f'''shell = true
command = "sh -c '{_FUGITIVE} session; true' | cat; true"'''


def config(habit: str) -> str:
    """Return the configuration of a mesh with one app that misbehaves and one that does not."""
    return f"""
[apps.fugitive]
{HABITS[habit]}
port = 0
restart = "never"
stop = {{ timeout = "{GRACE_S * 1000:g}ms" }}
[apps.good]
command = "${{PYTHON}} -S ${{APPS}}/idle.py"
port = 0
stop = {{ timeout = "{GRACE_S * 1000:g}ms" }}
"""


class Fugitive:
    """The processes that have left their trail in a file."""

    def __init__(self, trail: Path, folder: Path | None = None) -> None:
        self._trail = trail
        self._folder = folder

    def left(self) -> list[ProcessId]:
        """Return those that live, whoever is called with the same trail, and all in the cgroup."""
        inside = set() if self._folder is None else set(cgroup.members(self._folder))
        written = self._trail.read_text().split() if self._trail.exists() else []
        numbers = [int(number) for number in written]
        known = {ProcessId(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)}
        name = os.fsencode(str(self._trail))
        return [
            process
            for pid in processes.all_pids()
            if (process := processes.identify(pid)) is not None
            and (process in known or pid in inside or name in _arguments(pid))
        ]

    def end(self) -> None:
        """KILL what is left, so that no test leaves anything."""
        processes.end_all(self.left, 0.0, PATIENCE_S, time.monotonic)


def _arguments(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def await_none(find: Callable[[], Sequence[ProcessId]], within_s: float) -> None:
    """Wait until `find` finds nothing; fails if it does after `within_s`."""
    deadline = time.monotonic() + within_s
    while left := find():
        shown = ", ".join(f"{p.pid} {processes.command_line(p.pid)}" for p in left)
        assert time.monotonic() < deadline, f"left after {within_s:g} s: {shown}"
        await_any_exit(left, min(0.05, max(0.0, deadline - time.monotonic())))


@contextmanager
def without_cgroup() -> Iterator[Path | None]:
    """Yield a cgroup in which no other can be made, so that nothing depends on one.

    None where no cgroup can be made anyway.
    """
    probe = cgroup.create(uuid.uuid4().hex)
    if probe is None:
        yield None
        return
    folder = probe.with_name(f"meshrun-test-{uuid.uuid4().hex}")
    probe.rmdir()
    folder.mkdir()
    try:
        (folder / "cgroup.max.descendants").write_text("0")
        yield folder
    finally:
        deadline = time.monotonic() + PATIENCE_S
        while True:
            try:
                folder.rmdir()
                break
            except OSError:  # the last of it has ended, but is still being taken apart
                assert time.monotonic() < deadline, cgroup.members(folder)
                time.sleep(0.01)


def within(folder: Path | None) -> list[str]:
    """Return what runs a command in a cgroup."""
    if folder is None:
        return []
    return ["sh", "-c", f'echo $$ > {folder}/cgroup.procs; exec "$@"', "sh"]


class Terminal:
    """`meshrun up` in a terminal of its own, which can be resized and closed as a window is."""

    def __init__(
        self, mesh: Mesh, *, by_shell: bool = False, rows: int = 24, columns: int = 80
    ) -> None:
        self._master, slave = pty.openpty()
        self.resize(rows, columns)
        self._text = ""
        self._news = threading.Condition()
        command = [*mesh.command, "up"]
        if by_shell:
            command = ["sh", "-c", '"$@"; exit $?', "sh", *command]

        def own_terminal() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        self.process = subprocess.Popen(
            command,
            cwd=mesh.folder,
            env=mesh.environment,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=own_terminal,  # noqa: PLW1509 - a system call and nothing else
        )
        os.close(slave)
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._closing, self._close_write = os.pipe()
        self._reader.start()

    def _read(self) -> None:
        import select

        while True:
            ready, _, _ = select.select([self._master, self._closing], [], [])
            if self._closing in ready:
                return
            try:
                data = os.read(self._master, 65536)
            except OSError:  # EIO: the other side is gone
                data = b""
            if not data:
                return
            with self._news:
                self._text += data.decode(errors="replace")
                self._news.notify_all()

    def await_text(self, part: str) -> None:
        """Wait until something has been shown."""
        with self._news:
            shown = self._news.wait_for(lambda: part in self._text, PATIENCE_S)
        assert shown, f'no "{part}" in:\n{self._text}'

    def resize(self, rows: int, columns: int) -> None:
        """Give the window another size."""
        termios.tcsetwinsize(self._master, (rows, columns))

    def close(self) -> None:
        """Close the window: the kernel tells whoever leads its session."""
        os.write(self._close_write, b"x")
        self._reader.join(PATIENCE_S)
        for descriptor in (self._master, self._closing, self._close_write):
            os.close(descriptor)

    def wait(self) -> int:
        """Wait for the end of what ran in it."""
        return self.process.wait(PATIENCE_S)
