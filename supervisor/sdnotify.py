"""What a service manager is told, and what it says in the environment: sd_notify(3).

Pure: messages are built here, `meshrun.supervisor.service_manager` sends them.
"""

from collections.abc import Mapping
from dataclasses import dataclass

__all__ = [
    "VARIABLES",
    "Contact",
    "contact",
    "ready",
    "reloading",
    "status",
    "stopping",
    "watchdog",
]

# What is meant for this process alone (sd_notify(3), sd_watchdog_enabled(3), sd_listen_fds(3)).
VARIABLES = (
    "NOTIFY_SOCKET",
    "WATCHDOG_USEC",
    "WATCHDOG_PID",
    "LISTEN_FDS",
    "LISTEN_FDNAMES",
    "LISTEN_PID",
    "LISTEN_PIDFDID",
)
# systemd takes 4096 bytes a message (PIPE_BUF); nobody reads a status that is longer than this.
LONGEST_STATUS = 500
# sockaddr_un, with the NUL that ends a path; an abstract address has one in place of the `@`.
LONGEST_ADDRESS_BYTES = 107
USEC = 1_000_000
LONGEST_WATCHDOG_S = 366 * 86400.0


@dataclass(frozen=True, slots=True)
class Contact:
    """Where the manager listens, `@` first for an abstract address.

    `watchdog_s` is how long it waits for a sign of life, None where it wants none.
    """

    address: str
    watchdog_s: float | None = None


def contact(environ: Mapping[str, str], pid: int) -> Contact | None:
    """Read the environment of process `pid`; None where no manager listens, or not on a socket."""
    address = environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@") or len(address) < 2:
        return None
    if len(address.encode(errors="surrogateescape")) > LONGEST_ADDRESS_BYTES:
        return None
    return Contact(address, _watchdog_s(environ, pid))


def _watchdog_s(environ: Mapping[str, str], pid: int) -> float | None:
    wanted, whose = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
    if whose not in (None, str(pid)) or not (wanted.isascii() and wanted.isdecimal()):
        return None
    seconds = int(wanted) / USEC if len(wanted) < 20 else LONGEST_WATCHDOG_S
    return min(seconds, LONGEST_WATCHDOG_S) if seconds > 0 else None


def _message(*assignments: str) -> bytes:
    return "\n".join(assignments).encode(errors="replace")


def _status(text: str) -> str:
    shown = " ".join(text.split())
    return f"STATUS={shown[:LONGEST_STATUS]}"


def ready(text: str) -> bytes:
    """Say that the start, or a reload, is over."""
    return _message("READY=1", _status(text))


def status(text: str) -> bytes:
    """Say in a line for people how it is."""
    return _message(_status(text))


def reloading(text: str, monotonic_s: float) -> bytes:
    """Say that a reload has begun; `ready` ends it. `monotonic_s` is of CLOCK_MONOTONIC."""
    return _message("RELOADING=1", f"MONOTONIC_USEC={int(monotonic_s * USEC)}", _status(text))


def stopping(text: str, within_s: float) -> bytes:
    """Say that the end has begun, and may take `within_s`."""
    return _message("STOPPING=1", f"EXTEND_TIMEOUT_USEC={int(within_s * USEC)}", _status(text))


def watchdog() -> bytes:
    """Say that this process lives."""
    return _message("WATCHDOG=1")
