"""Processes of this machine as /proc shows them, and signals that cannot hit the wrong one.

A process is named by its id *and* its start time: an id alone may be anybody's by now.
"""

import contextlib
import os
import select
import signal
import time
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = [
    "ProcessId",
    "all_pids",
    "ancestors",
    "await_exit",
    "boot_id",
    "children",
    "command_line",
    "descendants",
    "end_all",
    "end_descendants",
    "environment_value",
    "group_of",
    "identify",
    "kill_group",
    "name",
    "now_ticks",
    "open_pidfd",
    "parents",
    "reap",
    "send_signal",
    "session_members",
    "session_of",
]


# How long a round of ending waits for an exit before it looks for what has been born meanwhile.
LOOK_AGAIN_S = 0.05
REST_S = 0.001


@dataclass(frozen=True, slots=True, order=True)
class ProcessId:
    """A process that can be found again; `start_time` in clock ticks since boot (proc(5), 22)."""

    pid: int
    start_time: int


@dataclass(frozen=True, slots=True)
class _Stat:
    state: str
    parent: int
    threads: int
    start_time: int

    @property
    def ended(self) -> bool:
        """Whether nothing of it runs any more.

        A process whose first thread has ended looks like a zombie while its other threads go on.
        """
        return self.state in "ZX" and self.threads <= 1


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
        threads=int(fields[17]),
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
    return None if stat is None or stat.ended else ProcessId(pid, stat.start_time)


def session_members(session: int, leader: ProcessId | None = None) -> list[ProcessId]:
    """Return the living processes of a session.

    With `leader`, who led it: none if somebody else has that number by now, and so leads another
    session. (A number is not given again while its session has members.)
    """
    found = (identify(pid) for pid in all_pids() if session_of(pid) == session)
    members = [process for process in found if process is not None]
    if leader is not None and any(p.pid == session and p != leader for p in members):
        return []
    return members


def session_of(pid: int) -> int | None:
    """Return the session of a process, None if it is gone."""
    try:
        # A system call, not a file: all processes are asked whenever one of the run ends.
        return os.getsid(pid)
    except (ProcessLookupError, PermissionError):
        return None


def group_of(pid: int) -> int | None:
    """Return the process group of a process, None if it is gone."""
    try:
        return os.getpgid(pid)
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


def children(parent: int) -> list[int]:
    """Return the ids of the children of a process, those included that have ended.

    What comes and goes meanwhile may be missing: whoever must know asks again.
    """
    try:
        threads = os.listdir(f"/proc/{parent}/task")
        listed = [Path(f"/proc/{parent}/task/{t}/children").read_text() for t in threads]
    except OSError:  # it is gone, or one of its threads; or a kernel without CONFIG_PROC_CHILDREN
        return [pid for pid in all_pids() if (s := _stat(pid)) is not None and s.parent == parent]
    return [int(pid) for line in listed for pid in line.split()]


def parents(pids: Iterable[int]) -> dict[int, int]:
    """Return the parent of each process that is there."""
    return {pid: stat.parent for pid in pids if (stat := _stat(pid)) is not None}


def descendants(ancestor: int) -> list[ProcessId]:
    """Return the living processes below `ancestor`, children before grandchildren."""
    stats = {pid: stat for pid in all_pids() if (stat := _stat(pid)) is not None}
    below: dict[int, list[int]] = {}
    for pid, stat in stats.items():
        below.setdefault(stat.parent, []).append(pid)
    found: list[ProcessId] = []
    queue = list(below.get(ancestor, ()))
    seen = {ancestor}
    while queue:
        pid = queue.pop(0)
        if pid in seen:
            continue
        seen.add(pid)
        if not stats[pid].ended:
            found.append(ProcessId(pid, stats[pid].start_time))
        queue.extend(below.get(pid, ()))
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
    prefix = name.encode() + b"="
    for entry in _environment(pid).split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode(errors="replace")
    return None


def _environment(pid: int) -> bytes:
    # A thread that has ended shows nothing any more, and the first one may be such.
    for thread in _threads(pid):
        try:
            return Path(f"/proc/{pid}/task/{thread}/environ").read_bytes()
        except OSError:
            continue
    return b""


def _threads(pid: int) -> list[str]:
    try:
        return os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []


def command_line(pid: int) -> str:
    """Return the command of a process for people to read, its id if it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return f"pid {pid}"
    return b" ".join(words).decode(errors="replace").strip() or f"pid {pid}"


def holders(descriptor: int) -> list[int]:
    """Return the other processes that have what a descriptor of this one is open, such as a pipe.

    Only those that can be looked into. Costs a look at every descriptor of the machine.
    """
    found = os.readlink(f"/proc/self/fd/{descriptor}")
    return [pid for pid in all_pids() if pid != os.getpid() and found in _open_files(pid)]


def _open_files(pid: int) -> set[str]:
    links: set[str] = set()
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                links.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    except OSError:
        pass  # it is gone, or somebody else's
    return links


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
    kill: Callable[[], None] = lambda: None,
) -> list[ProcessId]:
    """End what `find` finds: TERM, after `grace_s` KILL, again until nothing is found.

    What is born meanwhile is found in the next round. `kill` is called in each round after the
    grace, for whoever can do it faster than one by one. Returns what still lives after `limit_s`.
    """
    begun = clock()
    told: set[ProcessId] = set()
    while found := list(find()):
        elapsed = clock() - begun
        if elapsed >= limit_s:
            return found
        if elapsed < grace_s:
            for process in found:
                if process not in told:
                    told.add(process)
                    send_signal(process, signal.SIGTERM)
                    send_signal(process, signal.SIGCONT)  # what is stopped would never see it
        else:
            kill()
            for process in found:
                send_signal(process, signal.SIGKILL)
        boundary = grace_s if elapsed < grace_s else limit_s
        _wait_for_any_exit(found, min(boundary - elapsed, LOOK_AGAIN_S))
    return []


def kill_group(group: int, member: ProcessId) -> None:
    """KILL a process group at once, provided that `member` is in it at that very moment.

    Who forks and ends in a loop is a step ahead of whoever looks for it; not so of a signal to its
    group, which no fork under way escapes.
    """
    pidfd = open_pidfd(member)
    if pidfd is None:
        return
    try:
        if group_of(member.pid) == group and group not in (0, 1, os.getpgrp()):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(group, signal.SIGKILL)
    finally:
        os.close(pidfd)


def end_descendants(
    grace_s: float,
    limit_s: float,
    clock: Callable[[], float],
    spared: Collection[int] = (),
) -> list[ProcessId]:
    """End everything below this process, a subreaper, and reap it; returns what still lives.

    TERM, after `grace_s` KILL to its children until it has none. The children of those whom it
    kills become its own, and to have no child at all is something that the kernel says: so who
    forks faster than anybody can look has nowhere to go. Children in `spared` are left alone, with
    all below them.
    """
    begun = clock()
    told: set[ProcessId] = set()
    killed: set[int] = set()
    while mine := _own_children(spared):
        elapsed = clock() - begun
        if elapsed >= limit_s:
            break
        if elapsed < grace_s:
            living = _below(spared) | {p for p in map(identify, mine) if p is not None}
            for process in living - told:
                send_signal(process, signal.SIGTERM)
                send_signal(process, signal.SIGCONT)  # what is stopped would never see it
            told |= living
            _wait_for_any_exit(living, min(grace_s - elapsed, LOOK_AGAIN_S))
            time.sleep(REST_S)
            continue
        for pid in mine:
            # Nobody but this process reaps them, so the numbers are still theirs.
            with contextlib.suppress(PermissionError, ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if mine <= killed:
            time.sleep(REST_S)  # nobody new: let them die
        killed |= mine
    return sorted(_below(spared))


def _below(spared: Iterable[int]) -> set[ProcessId]:
    below = set(descendants(os.getpid()))
    for pid in spared:
        below -= {p for p in below if p.pid == pid}.union(descendants(pid))
    return below


def _own_children(spared: Collection[int]) -> set[int]:
    """Reap who has ended, and return whoever is a child of this process then."""
    while True:
        _, more = reap()
        if not more:
            return set()
        mine = set(children(os.getpid()))
        # None, and yet there are some: they came and went while they were listed.
        if mine:
            return mine.difference(spared)


def reap() -> tuple[list[tuple[int, int]], bool]:
    """Take the exits of all children that have ended: process ids and statuses of waitpid(2).

    The second value says whether there are other children.
    """
    ended: list[tuple[int, int]] = []
    try:
        while (exit_ := os.waitpid(-1, os.WNOHANG))[0] != 0:
            ended.append(exit_)
    except ChildProcessError:
        return ended, False
    return ended, True


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
