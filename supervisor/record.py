"""What run.json says of a running run: written anew whenever one of its processes comes or goes."""

import asyncio
import os
from collections.abc import Callable, Iterable

from meshrun.supervisor import processes, runfile
from meshrun.supervisor.journal import Journal
from meshrun.supervisor.preparation import Prepared

__all__ = ["Record"]


class Record:
    """Keeps run.json true.

    `running` gives the name and the process id of every process that was started for the run and
    is there, but for the launcher (`launcher_pid`).
    """

    def __init__(
        self,
        prepared: Prepared,
        launcher_pid: int,
        started_at: float,
        running: Callable[[], Iterable[tuple[str, int]]],
        journal: Journal,
    ) -> None:
        self._prepared = prepared
        self._launcher_pid = launcher_pid
        self._started_at = started_at
        self._running = running
        self._journal = journal
        self._known: dict[str, runfile.Recorded] = {}
        self._due: asyncio.Handle | None = None
        self._complaint = ""

    def changed(self, name: str) -> None:
        """See that the process of this name is another one, or none."""
        self._known.pop(name, None)
        if self._due is None:
            # Once per turn of the loop, however many processes came and went in it.
            self._due = asyncio.get_running_loop().call_soon(self.write)

    def write(self) -> None:
        """Write run.json now."""
        self._due = None
        try:
            runfile.write(self._prepared.state, self._content())
        except OSError as error:
            self._complain(f"cannot write run.json: {error.strerror}")
        else:
            self._complaint = ""

    def _complain(self, complaint: str) -> None:
        # Once, and not for every process that comes and goes while a disk is full.
        if complaint != self._complaint:
            self._complaint = complaint
            self._journal.error(complaint)

    def _content(self) -> runfile.RunFile:
        recorded = [self._recorded(name, pid) for name, pid in self._running()]
        supervisor = self._recorded("supervisor", os.getpid())
        assert supervisor is not None
        folder = self._prepared.cgroup
        return runfile.RunFile(
            run_id=self._prepared.run_id,
            boot_id=processes.boot_id(),
            supervisor=supervisor,
            launcher=self._recorded("launcher", self._launcher_pid),
            processes=tuple(entry for entry in recorded if entry is not None),
            cgroup=None if folder is None else str(folder),
            started_at=self._started_at,
        )

    def _recorded(self, name: str, pid: int) -> runfile.Recorded | None:
        # Looked up once for each process: the file is written again for every one that comes.
        known = self._known.get(name)
        if known is None or known.pid != pid:
            process = processes.identify(pid)
            if process is None:
                return None
            known = self._known[name] = runfile.Recorded(name, pid, process.start_time)
        return known
