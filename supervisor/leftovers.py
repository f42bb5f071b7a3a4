"""Ends what is left of a run whose supervisor and launcher were killed.

What is the run's: the processes that run.json names, the members of their sessions, the carriers of
the run's marker, the members of its cgroup. What is not: whoever cleans up and what it was started
from, other users' processes (unless root cleans up), another run's supervisor.
"""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from meshrun.supervisor import cgroup, processes, runfile
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.processes import ProcessId
from meshrun.supervisor.runfile import RUN_MARKER, SUPERVISOR_NAME, RunFile
from meshrun.supervisor.statedir import CONTROL_SOCKET, StateDir

__all__ = ["end_leftovers"]

GRACE_S = 1.0
LIMIT_S = 5.0
# So many looks in a row must find nobody. One is not enough: who forks and ends all the time is
# gone when it is looked at, and its child was not there yet. All but the first are fast.
LOOKS = 30


def end_leftovers(state: StateDir) -> list[str]:
    """End what a run that was killed left behind; the caller holds the lock of the state folder.

    Returns the commands of what was ended. Raises MeshrunError naming what cannot be ended.
    """
    run = runfile.read(state)
    if run is None:
        return []
    if run.boot_id != processes.boot_id():
        state.remove(runfile.NAME)
        return []
    if run.launcher is not None:
        # Let it finish ending the run by itself, which it does within 2 s.
        processes.await_exit(run.launcher.process, LIMIT_S)
    search = _Search(run)
    living = processes.end_all(search.find, GRACE_S, LIMIT_S, time.monotonic, search.kill)
    if run.cgroup is not None:
        cgroup.remove(Path(run.cgroup))
    if living:
        names = ", ".join(f"{p.pid} ({processes.command_line(p.pid)})" for p in living)
        raise MeshrunError(f"cannot end what an earlier run left: {names}")
    state.remove(CONTROL_SOCKET)
    state.remove(runfile.NAME)
    return list(dict.fromkeys(search.commands.values()))


class _Search:
    """Looks for the processes of a run; `commands` are those of all that were found."""

    def __init__(self, run: RunFile) -> None:
        self.commands: dict[ProcessId, str] = {}
        self._run = run
        self._known = {recorded.process for recorded in run.started}
        self._spared = processes.ancestors(os.getpid())
        self._folder = None if run.cgroup is None else Path(run.cgroup)

    def find(self) -> list[ProcessId]:
        """Return every process of the run that lives; nothing only after looking many times."""
        strangers: set[int] = set()
        for _ in range(LOOKS):
            if found := list(self._look(strangers)):
                return found
        return []

    def kill(self) -> None:
        """KILL all at once: whole groups, the cgroup, and whoever is born, when it is seen."""
        strangers: set[int] = set()
        leaders = {recorded.pid for recorded in self._run.started}
        spared_groups = {processes.group_of(pid) for pid in self._spared}
        for _ in range(LOOKS):
            for process in self._look(strangers):
                group = processes.group_of(process.pid)
                if group in leaders and group not in spared_groups:
                    processes.kill_group(group, process)
                processes.send_signal(process, signal.SIGKILL)
        if self._folder is not None and not self._spared & set(cgroup.members(self._folder)):
            cgroup.kill(self._folder)

    def _look(self, strangers: set[int]) -> Iterator[ProcessId]:
        """Yield who is there now, without a second look at `strangers`; the latest come first."""
        inside = set() if self._folder is None else set(cgroup.members(self._folder))
        for pid in sorted(set(processes.all_pids()) - strangers, reverse=True):
            process = processes.identify(pid)
            if process is None or not self._is_ours(process, inside):
                strangers.add(pid)
                continue
            if process not in self.commands:
                self.commands[process] = processes.command_line(pid)
            yield process

    def _is_ours(self, process: ProcessId, inside: set[int]) -> bool:
        if process == self._run.supervisor.process or process.pid in self._spared:
            return False
        ours = (
            process in self._known
            or process.pid in inside
            or self._in_recorded_session(process)
            or self._carries_marker(process.pid)
        )
        return ours and _may_end(process.pid)

    def _in_recorded_session(self, process: ProcessId) -> bool:
        """Tell whether its session is one of the run's, and not another one with the same number.

        A number is not given again while its session has members. So the session is ours if the
        leader that we recorded lives; and where no leader lives, a process is ours if it came after
        that leader and was there when we last saw it alive.
        """
        session = processes.session_of(process.pid)
        recorded = [leader for leader in self._known if leader.pid == session]
        if session is None or not recorded:
            return False
        living = processes.identify(session)
        if living is not None:
            return living in self._known
        written_at = self._run.written_at
        return any(one.start_time <= process.start_time <= written_at for one in recorded)

    def _carries_marker(self, pid: int) -> bool:
        if processes.environment_value(pid, RUN_MARKER) != self._run.run_id:
            return False
        # A supervisor started from within an app of that run is a run of its own.
        return processes.name(pid) != SUPERVISOR_NAME


def _may_end(pid: int) -> bool:
    if os.geteuid() == 0:
        return True
    try:
        return os.stat(f"/proc/{pid}").st_uid == os.geteuid()
    except OSError:
        return False
