"""What an app may use of the machine: `limits` of `[apps.NAME]`."""

from meshrun.supervisor.configuration.model import Limits
from meshrun.supervisor.configuration.tables import Table
from meshrun.supervisor.configuration.users import Machine
from meshrun.supervisor.configuration.values import Fit, UnfitError, integer, size

__all__ = ["KEYS", "read_limits"]

KEYS = ("memory", "nofile", "processes", "core", "cpu_nice")

# With less no interpreter starts, and a shell hardly.
_LEAST_MEMORY = "1MiB"
_MOST = "1024TiB"
# The three of the standard streams, and what the C library needs to begin.
_FEWEST_FILES = 16
_MOST_FILES = 1 << 30
# PID_MAX_LIMIT of the kernel.
_MOST_PROCESSES = 1 << 22
_NICEST, _LEAST_NICE = 19, -20


def read_limits(table: Table, machine: Machine) -> Limits:
    """Read `limits`; what the machine would not grant is reported."""
    limits = table.table("limits", '{ memory = "512MiB", nofile = 4096 }')
    if limits is None:
        return Limits()
    limits.allow(KEYS)

    def granted(key: str, fit: Fit[int]) -> int | None:
        def within(value: object) -> int:
            wanted, highest = fit(value), machine.highest(key)
            if highest is not None and wanted > highest:
                raise UnfitError(
                    f"must be at most {highest}, the hard limit that meshrun itself has here: "
                    "raise that one, or run meshrun as root"
                )
            return wanted

        return limits.read(key, within, None)

    def nice(value: object) -> int:
        wanted, lowest = integer(_LEAST_NICE, _NICEST)(value), machine.lowest_nice()
        if wanted < lowest:
            raise UnfitError(
                f"must be at least {lowest}: to raise the priority of a process takes root "
                "(CAP_SYS_NICE, or a limit `nice` in limits.conf)"
            )
        return wanted

    return Limits(
        memory_bytes=granted("memory", size(_LEAST_MEMORY, _MOST)),
        nofile=granted("nofile", integer(_FEWEST_FILES, _MOST_FILES)),
        processes=granted("processes", integer(1, _MOST_PROCESSES)),
        core_bytes=granted("core", size("0B", _MOST)),
        cpu_nice=limits.read("cpu_nice", nice, None),
    )
