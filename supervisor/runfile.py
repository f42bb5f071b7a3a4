"""run.json: what a run started, so that whoever comes after a killed one can end the rest.

Written whenever a process comes or goes, read by the next `up` and by `down`.
"""

import os
import time
from collections.abc import Iterable
from pathlib import Path

import msgspec

from meshrun.supervisor import cgroup, processes
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.processes import ProcessId
from meshrun.supervisor.statedir import CONTROL_SOCKET, StateDir

__all__ = [
    "INSTANCE_MARKERS",
    "RUN_MARKER",
    "SUPERVISOR_NAME",
    "Recorded",
    "RunFile",
    "end_leftovers",
    "read",
    "write",
]

NAME = "run.json"
# In the environment of every app; whatever an app starts inherits it.
RUN_MARKER = "MESHRUN_RUN_ID"
# What together say of which instance, too.
INSTANCE_MARKERS = (RUN_MARKER, "MESHRUN_INSTANCE")

# What a supervisor calls itself (comm).
SUPERVISOR_NAME = "meshrun"

# What the kernel takes for a process id at all (pid_t).
MOST_PIDS = (1 << 31) - 1

GRACE_S = 1.0
LIMIT_S = 5.0


class Recorded(msgspec.Struct, frozen=True):
    """A process that the run started, each the leader of a session of its own."""

    name: str
    pid: int
    start_time: int

    @property
    def process(self) -> ProcessId:
        """Its identity."""
        return ProcessId(self.pid, self.start_time)


class RunFile(msgspec.Struct, frozen=True, kw_only=True):
    """A run: who supervises it since when, and every process that it started.

    `launcher` is None where it had ended before the run did.

    `started_at` is in wall-clock seconds, `written_at` in clock ticks since boot, as start times.
    """

    run_id: str
    boot_id: str
    supervisor: Recorded
    launcher: Recorded | None
    processes: tuple[Recorded, ...]
    cgroup: str | None = None
    started_at: float = 0.0
    written_at: int = 0


def write(state: StateDir, run: RunFile) -> None:
    """Replace run.json."""
    stamped = msgspec.structs.replace(run, written_at=processes.now_ticks())
    state.write(NAME, msgspec.json.format(msgspec.json.encode(stamped), indent=1))


def read(state: StateDir) -> RunFile | None:
    """Read run.json; None if there is none or it is not readable as one."""
    content = state.read(NAME)
    if content is None:
        return None
    try:
        run = msgspec.json.decode(content, type=RunFile)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return run if _plausible(run) else None


def _started(run: RunFile) -> tuple[Recorded, ...]:
    return run.processes if run.launcher is None else (run.launcher, *run.processes)


def _plausible(run: RunFile) -> bool:
    """Tell whether it can be ours: from garbage no process may be ended that was never the run's.

    Session 0 is the kernel's and everybody's who never asked for one; a cgroup is taken by its
    name only where a run would have made it.
    """
    recorded = (run.supervisor, *_started(run))
    if any(not 1 < one.pid <= MOST_PIDS or one.start_time <= 0 for one in recorded):
        return False
    return run.cgroup is None or cgroup.is_of(Path(run.cgroup), run.run_id)


def end_leftovers(state: StateDir) -> list[str]:
    """End what a run that was killed left behind; the caller holds the lock of the state folder.

    Returns the commands of what was ended. Raises MeshrunError naming what cannot be ended.
    """
    run = read(state)
    if run is None:
        return []
    if run.boot_id != processes.boot_id():
        state.remove(NAME)
        return []
    spared = processes.ancestors(os.getpid())
    _await_launcher(run)
    ended: dict[ProcessId, str] = {}

    def find() -> Iterable[ProcessId]:
        found = [p for p in _members(run) if p.pid not in spared and _mine(p.pid)]
        for process in found:
            ended.setdefault(process, processes.command_line(process.pid))
        return found

    def kill() -> None:
        _kill_at_once(run, find(), spared)

    living = processes.end_all(find, GRACE_S, LIMIT_S, time.monotonic, kill)
    if run.cgroup is not None:
        cgroup.remove(Path(run.cgroup))
    if living:
        names = ", ".join(f"{p.pid} ({processes.command_line(p.pid)})" for p in living)
        raise MeshrunError(f"cannot end what an earlier run left: {names}")
    state.remove(CONTROL_SOCKET)
    state.remove(NAME)
    return list(ended.values())


def _await_launcher(run: RunFile) -> None:
    """Let the launcher finish ending the run by itself, which it does within 2 s."""
    if run.launcher is not None:
        processes.await_exit(run.launcher.process, LIMIT_S)


def _kill_at_once(run: RunFile, found: Iterable[ProcessId], spared: set[int]) -> None:
    """KILL whole groups and the cgroup: who forks all the time is gone before it is looked at."""
    leaders = {recorded.pid for recorded in _started(run)}
    spared_groups = {processes.group_of(pid) for pid in spared}
    for process in found:
        group = processes.group_of(process.pid)
        if group in leaders and group not in spared_groups:
            processes.kill_group(group, process)
    if run.cgroup is not None and not spared & set(cgroup.members(Path(run.cgroup))):
        cgroup.kill(Path(run.cgroup))


def _members(run: RunFile) -> set[ProcessId]:
    """Find every process of the run: recorded sessions, carriers of its marker, its cgroup."""
    known = {recorded.process for recorded in _started(run)}
    inside = set(cgroup.members(Path(run.cgroup))) if run.cgroup is not None else set()
    found: set[ProcessId] = set()
    for pid in processes.all_pids():
        process = processes.identify(pid)
        if process is None or process == run.supervisor.process:
            continue
        if (
            process in known
            or pid in inside
            or _in_recorded_session(process, run, known)
            or _carries_marker(pid, run)
        ):
            found.add(process)
    return found


def _in_recorded_session(process: ProcessId, run: RunFile, known: set[ProcessId]) -> bool:
    """Tell whether its session is one of the run's, and not another one with the same number.

    A number is not given again while its session has members. So the session is ours if the leader
    that we recorded lives; and where no leader lives, a process is ours if it came after that
    leader and was there when we last saw it alive.
    """
    session = processes.session_of(process.pid)
    recorded = [leader for leader in known if leader.pid == session]
    if session is None or not recorded:
        return False
    living = processes.identify(session)
    if living is not None:
        return living in known
    return any(one.start_time <= process.start_time <= run.written_at for one in recorded)


def _carries_marker(pid: int, run: RunFile) -> bool:
    if processes.environment_value(pid, RUN_MARKER) != run.run_id:
        return False
    # A supervisor started from within an app of that run is a run of its own.
    return processes.name(pid) != SUPERVISOR_NAME


def _mine(pid: int) -> bool:
    if os.geteuid() == 0:
        return True
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False
