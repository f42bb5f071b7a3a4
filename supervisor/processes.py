"""Processes of this machine as /proc shows them, and signals that cannot hit the wrong one.

A process is named by its id *and* its start time: an id alone may be anybody's by now.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ProcessId",
    "all_pids",
    "ancestors",
    "await_exit",
    "boot_id",
    "command_line",
    "descendants",
    "end_all",
    "environment_value",
    "identify",
    "name",
    "now_ticks",
    "open_pidfd",
    "send_signal",
    "session_members",
    "session_of",
]


@dataclass(frozen=True, slots=True, order=True)
class ProcessId:
    """A process that can be found again; `start_time` in clock ticks since boot (proc(5), 22)."""

    pid: int
    start_time: int


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    parent: int
    start_time: int


def _stat(pid: int) -> _Stat | None:
    """Read /proc/PID/stat; None when the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return None
    # The command in parentheses may hold spaces and parentheses: fields count from the last one.
    fields = text[text.rindex(b")") + 2 :].split()
    return _Stat(
        state=fields[0].decode(),
        parent=int(fields[1]),
        start_time=int(fields[19]),
    )


def boot_id() -> str:
    """Return the id of this boot: start times mean nothing in another one."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def now_ticks() -> int:
    """Return the time in clock ticks since boot, comparable with start times."""
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) * os.sysconf("SC_CLK_TCK"))


def all_pids() -> Iterator[int]:
    """Yield the ids of all processes that can be seen."""
    return (int(name) for name in os.listdir("/proc") if name.isdigit())


def identify(pid: int) -> ProcessId | None:
    """Return the identity of a process that lives now, None if it is gone or a zombie."""
    stat = _stat(pid)
    return None if stat is None or stat.state in "ZX" else ProcessId(pid, stat.start_time)


def session_members(session: int) -> list[ProcessId]:
    """Return the living processes of a session."""
    found = (identify(pid) for pid in all_pids() if session_of(pid) == session)
    return [process for process in found if process is not None]


def session_of(pid: int) -> int | None:
    """Return the session of a process, None if it is gone."""
    try:
        # A system call, not a file: all processes are asked whenever one of the run ends.
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def name(pid: int) -> str:
    """Return the name that the kernel has for a process, empty if it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def await_exit(process: ProcessId, timeout_s: float) -> None:
    """Wait until a process has ended, `timeout_s` at most."""
    _wait_for_any_exit([process], timeout_s)


def descendants(ancestor: int) -> list[ProcessId]:
    """Return the living processes below `ancestor`, children before grandchildren."""
    stats = {pid: stat for pid in all_pids() if (stat := _stat(pid)) is not None}
    children: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        children.setdefault(stat.parent, []).append(pid)
    found: list[ProcessId] = []
    queue = list(children.get(ancestor, ()))
    seen = {ancestor}
    while queue:
        pid = queue.pop(0)
        if pid in seen:
            continue
        seen.add(pid)
        if stats[pid].state not in "ZX":
            found.append(ProcessId(pid, stats[pid].start_time))
        queue.extend(children.get(pid, ()))
    return found


def ancestors(pid: int) -> set[int]:
    """Return `pid` and every process above it."""
    above: set[int] = set()
    while pid > 0 and pid not in above:
        above.add(pid)
        stat = _stat(pid)
        pid = stat.parent if stat is not None else 0
    return above


def environment_value(pid: int, name: str) -> str | None:
    """Return a variable that the process was started with, None if unset or not readable."""
    try:
        block = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return None
    prefix = name.encode() + b"="
    for entry in block.split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode(errors="replace")
    return None


def command_line(pid: int) -> str:
    """Return the command of a process for people to read, its id if it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"pid {pid}"
    return b" ".join(words).decode(errors="replace").strip() or f"pid {pid}"


def open_pidfd(process: ProcessId) -> int | None:
    """Open a pidfd that is certain to be of `process`; None if that one is gone."""
    try:
        pidfd = os.pidfd_open(process.pid)
    except OSError:
        return None
    # Checked after opening: from here on the descriptor cannot become another process.
    if identify(process.pid) == process:
        return pidfd
    os.close(pidfd)
    return None


def send_signal(process: ProcessId, number: int) -> bool:
    """Send a signal to exactly this process; False if it is gone or not ours to signal."""
    pidfd = open_pidfd(process)
    if pidfd is None:
        return False
    try:
        signal.pidfd_send_signal(pidfd, number)
    except (ProcessLookupError, PermissionError):
        return False
    finally:
        os.close(pidfd)
    return True


def end_all(
    find: Callable[[], Iterable[ProcessId]],
    grace_s: float,
    limit_s: float,
    clock: Callable[[], float],
) -> list[ProcessId]:
    """End what `find` finds: TERM, after `grace_s` KILL, again until nothing is found.

    What is born meanwhile is found in the next round. Returns what still lives after `limit_s`.
    """
    begun = clock()
    told: set[ProcessId] = set()
    while found := list(find()):
        elapsed = clock() - begun
        if elapsed >= limit_s:
            return found
        number = signal.SIGTERM if elapsed < grace_s else signal.SIGKILL
        for process in found:
            if number == signal.SIGKILL or process not in told:
                told.add(process)
                send_signal(process, number)
        boundary = grace_s if elapsed < grace_s else limit_s
        _wait_for_any_exit(found, min(boundary - elapsed, 0.05))
    return []


def _wait_for_any_exit(processes: Iterable[ProcessId], timeout_s: float) -> None:
    with contextlib.ExitStack() as stack:
        poll = select.poll()
        waiting = False
        for process in processes:
            pidfd = open_pidfd(process)
            if pidfd is not None:
                stack.callback(os.close, pidfd)
                poll.register(pidfd, select.POLLIN)
                waiting = True
        if waiting:
            poll.poll(max(0.0, timeout_s) * 1000)
