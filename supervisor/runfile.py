"""run.json: what a run started, so that whoever comes after a killed one can end the rest.

Written whenever a process comes or goes, read by the next `up` and by `down`
(`meshrun.supervisor.leftovers`).
"""

from pathlib import Path

import msgspec

from meshrun.supervisor import cgroup, processes
from meshrun.supervisor.processes import ProcessId
from meshrun.supervisor.statedir import StateDir

__all__ = [
    "INSTANCE_MARKERS",
    "RUN_MARKER",
    "SUPERVISOR_NAME",
    "Recorded",
    "RunFile",
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

    @property
    def started(self) -> tuple[Recorded, ...]:
        """Every process that was started for the run, the launcher first."""
        return self.processes if self.launcher is None else (self.launcher, *self.processes)


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


def _plausible(run: RunFile) -> bool:
    """Tell whether it can be ours: from garbage no process may be ended that was never the run's.

    Session 0 is the kernel's and everybody's who never asked for one; a cgroup is taken by its
    name only where a run would have made it.
    """
    recorded = (run.supervisor, *run.started)
    if any(not 1 < one.pid <= MOST_PIDS or one.start_time <= 0 for one in recorded):
        return False
    return run.cgroup is None or cgroup.is_of(Path(run.cgroup), run.run_id)
