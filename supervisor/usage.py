"""What processes use of the machine, asked only when somebody wants to know."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil

from meshrun.supervisor import processes

__all__ = ["Meter", "Usage", "proportional_bytes"]


@dataclass(frozen=True, slots=True)
class Usage:
    """CPU in percent of one core since the last look, resident memory in bytes."""

    cpu_percent: float
    memory_bytes: int


class Meter:
    """Remembers CPU times between looks; the first look at a process averages over its life."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._seen: dict[processes.ProcessId, tuple[float, float]] = {}

    def session(self, leader: int) -> Usage:
        """Return the sum over a session: an app with all that it started."""
        members = processes.session_members(leader)
        cpu, memory = 0.0, 0
        for member in members:
            usage = self._one(member)
            cpu += usage.cpu_percent
            memory += usage.memory_bytes
        return Usage(round(cpu, 1), memory)

    def process(self, pid: int) -> Usage:
        """Return what one process uses; nothing if it is gone."""
        process = processes.identify(pid)
        return Usage(0.0, 0) if process is None else self._one(process)

    def _one(self, process: processes.ProcessId) -> Usage:
        try:
            handle = psutil.Process(process.pid)
            times = handle.cpu_times()
            memory = handle.memory_info().rss
            created = handle.create_time()
        except psutil.Error:
            return Usage(0.0, 0)
        now, used = self._clock(), times.user + times.system
        earlier, before = self._seen.get(process, (created, 0.0))
        self._seen[process] = (now, used)
        elapsed = max(now - earlier, 0.01)
        return Usage(100.0 * max(0.0, used - before) / elapsed, memory)

    def forget_all_but(self, living: set[int]) -> None:
        """Let go of processes that have ended."""
        self._seen = {p: seen for p, seen in self._seen.items() if p.pid in living}


def proportional_bytes(pid: int) -> int | None:
    """Return the PSS: what a process has for itself, and its share of what it shares.

    Sidecars are forks of one interpreter; their resident size counts that one again for each.
    """
    try:
        text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return None
