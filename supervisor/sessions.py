"""The session of a process that meshrun started: what the process leaves behind is in it.

Or was: what has gone into a session of its own (a daemon, a server that forks itself away) is known
by its cgroup where there is one, else by the marker in its environment among those who have lost
their parent to the launcher. What has wiped that too ends with the run.
"""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from meshrun.proxy import tasks
from meshrun.supervisor import cgroup, processes
from meshrun.supervisor.processes import ProcessId

__all__ = ["Marks", "Session"]

LOOK_AGAIN_S = 0.01


@dataclass(frozen=True, slots=True, kw_only=True)
class Marks:
    """By what the processes of one instance are known outside its session.

    `environment` are variables that all of them were started with; `orphans` are the processes to
    look among where `folder`, the cgroup of this instance alone, is None.
    """

    environment: tuple[tuple[str, str], ...]
    orphans: Callable[[], Iterable[int]]
    folder: Path | None = None

    def carried_by(self, pid: int) -> bool:
        """Tell whether a process was started with all the variables."""
        return all(processes.environment_value(pid, n) == value for n, value in self.environment)


class Session:
    """All processes of the session that `leader` leads, or has led, and those known by `marks`."""

    def __init__(self, leader: int, marks: Marks | None = None) -> None:
        self._number = leader
        self._leader = processes.identify(leader)
        self._marks = marks
        self._signal: int | None = None
        self._nudge = asyncio.Event()

    def members(self) -> list[ProcessId]:
        """Return all of them that live."""
        members = processes.session_members(self._number, self._leader)
        known = {member.pid for member in members}
        return members + [process for process in self._strays() if process.pid not in known]

    def _strays(self) -> list[ProcessId]:
        marks = self._marks
        if marks is None:
            return []
        if marks.folder is not None:
            found = [processes.identify(pid) for pid in cgroup.members(marks.folder)]
            return [process for process in found if process is not None]
        queue = [pid for pid in marks.orphans() if marks.carried_by(pid)]
        if self._leader is not None and processes.identify(self._number) == self._leader:
            queue += processes.children(self._number)
        strays: dict[int, ProcessId | None] = {}
        while queue:
            pid = queue.pop()
            if pid not in strays:
                strays[pid] = processes.identify(pid)
                queue += processes.children(pid)
        return [process for process in strays.values() if process is not None]

    def send_signal(self, number: int) -> None:
        """Send a signal to everybody but the leader, to whom a pidfd leads."""
        self._tell((m for m in self.members() if m.pid != self._number), number)

    def _tell(self, members: Iterable[ProcessId], number: int) -> None:
        for member in members:
            if number == signal.SIGKILL and processes.group_of(member.pid) == self._number:
                processes.kill_group(self._number, member)
            processes.send_signal(member, number)
            if number != signal.SIGKILL:
                # What is stopped (SIGSTOP, SIGTTIN) would never see the signal.
                processes.send_signal(member, signal.SIGCONT)
        if number == signal.SIGKILL and self._marks is not None and self._marks.folder is not None:
            cgroup.kill(self._marks.folder)

    def end(self, number: int, on_ended: Callable[[], None]) -> None:
        """Send a signal to what is left, and call `on_ended` once nothing is.

        That is at once where nothing is left, which is the usual case. The second time, while it
        is being ended, only another signal is sent.
        """
        running = self._signal is not None
        self._signal = number
        if running:
            self._nudge.set()
            return
        left = self.members()
        if left:
            tasks.start(self._outlive(left, on_ended), f"end session {self._number}")
        else:
            self._signal = None
            on_ended()

    async def _outlive(self, left: list[ProcessId], on_ended: Callable[[], None]) -> None:
        told: set[tuple[ProcessId, int]] = set()
        while left:
            number = self._signal or signal.SIGKILL
            # KILL again whatever was born meanwhile; other signals once.
            self._tell([p for p in left if (p, number) not in told], number)
            told |= {(process, number) for process in left}
            await self._any_exit(left)
            left = self.members()
        self._signal = None
        on_ended()

    async def _any_exit(self, members: list[ProcessId]) -> None:
        """Wait until one of them ends, or until another signal is wanted."""
        loop = asyncio.get_running_loop()
        self._nudge.clear()
        with contextlib.ExitStack() as stack:
            for member in members:
                pidfd = processes.open_pidfd(member)
                if pidfd is None:
                    # It is gone, or there are no descriptors left: never look again at once.
                    await asyncio.sleep(LOOK_AGAIN_S)
                    return
                stack.callback(os.close, pidfd)
                loop.add_reader(pidfd, self._nudge.set)
                stack.callback(loop.remove_reader, pidfd)
            await self._nudge.wait()
