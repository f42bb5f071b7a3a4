"""Sets the limits of an app: by its cgroup where there is one with the controller, else by rlimits.

The two are not the same. A cgroup counts all processes of the app together, and the kernel kills
what is over its memory; an rlimit counts the data (heap, stacks, private writable mappings) of each
process by itself and refuses it more, and the processes of a user together, root's excepted.
"""

import resource
import signal
from pathlib import Path

from meshrun.supervisor import cgroup
from meshrun.supervisor.configuration.model import Limits
from meshrun.supervisor.lifecycle_events import Exit

__all__ = ["Confinement"]


class Confinement:
    """The limits of one instance; `leaf` is the folder of its own cgroup, if it has one."""

    def __init__(self, limits: Limits, leaf: Path | None) -> None:
        self._limits = limits
        self._leaf = leaf
        self._killed_before = 0

    def confine(self) -> tuple[dict[int, tuple[int, int]], bool]:
        """Set what the cgroup can limit; returns the rlimits for the rest.

        The second value says whether the process must be in the cgroup.
        """
        limits = self._limits
        rlimits = {
            resource.RLIMIT_NOFILE: limits.nofile,
            resource.RLIMIT_CORE: limits.core_bytes,
        }
        by_cgroup = [self._share("memory.max", limits.memory_bytes)]
        if not by_cgroup[0]:
            rlimits[resource.RLIMIT_DATA] = limits.memory_bytes
        elif self._leaf is not None:
            # All of it or nothing: an app that has lost one of its processes may just hang.
            cgroup.limit(self._leaf, "memory.oom.group", 1)
            self._killed_before = cgroup.oom_kills(self._leaf)
        by_cgroup.append(self._share("pids.max", limits.processes))
        if not by_cgroup[1]:
            rlimits[resource.RLIMIT_NPROC] = limits.processes
        return {n: (v, v) for n, v in rlimits.items() if v is not None}, any(by_cgroup)

    def _share(self, file: str, value: int | None) -> bool:
        if self._leaf is None:
            return False
        set_ = cgroup.limit(self._leaf, file, "max" if value is None else value)
        return set_ and value is not None

    def explain(self, exit_: Exit) -> Exit:
        """Say of an exit that the kernel did it for want of memory, where that is known."""
        limit = self._limits.memory_bytes
        if exit_.signal != signal.SIGKILL or self._leaf is None or limit is None:
            return exit_
        if cgroup.oom_kills(self._leaf) <= self._killed_before:
            return exit_
        return Exit(exit_.code, exit_.signal, f"over its memory limit of {limit >> 20} MiB")
