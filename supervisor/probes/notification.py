"""The datagrams of sd_notify(3), read. Pure: whoever sends them may send anything."""

from dataclasses import dataclass

__all__ = ["LIMIT_BYTES", "Notification", "parse"]

# systemd's NOTIFY_BUFFER_MAX: nobody sends more who wants to be understood.
LIMIT_BYTES = 4096
LONGEST_STATUS = 200
# A day: what is longer is a mistake, and no time to add to a clock.
LONGEST_EXTENSION_S = 86400.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Notification:
    """What one datagram says.

    `keep_alive` is WATCHDOG=1, `ill` WATCHDOG=trigger, `extend_s` EXTEND_TIMEOUT_USEC in seconds.
    What is not here (MAINPID, FDSTORE, ERRNO, …) is for other managers: the main process is the
    one that meshrun started, whatever a datagram says.
    """

    ready: bool = False
    reloading: bool = False
    stopping: bool = False
    keep_alive: bool = False
    ill: bool = False
    status: str | None = None
    extend_s: float | None = None


def parse(datagram: bytes) -> Notification:
    """Read a datagram; what cannot be understood says nothing."""
    values: dict[bytes, bytes] = {}
    for line in datagram.split(b"\n"):
        name, equals, value = line.partition(b"=")
        if equals:
            values[name] = value
    status = values.get(b"STATUS")
    return Notification(
        ready=values.get(b"READY") == b"1",
        reloading=values.get(b"RELOADING") == b"1",
        stopping=values.get(b"STOPPING") == b"1",
        keep_alive=values.get(b"WATCHDOG") == b"1",
        ill=values.get(b"WATCHDOG") == b"trigger",
        status=None if status is None else _shown(status),
        extend_s=_extension_s(values.get(b"EXTEND_TIMEOUT_USEC", b"")),
    )


def _shown(status: bytes) -> str:
    """Return a status that a terminal only shows."""
    text = status.decode(errors="replace")[:LONGEST_STATUS].strip()
    return "".join(c if c.isprintable() else "?" for c in text)


def _extension_s(value: bytes) -> float | None:
    # Twenty digits hold every number of 64 bits.
    if not value.isdigit() or len(value) > 20:
        return None
    return min(int(value) / 1_000_000, LONGEST_EXTENSION_S)
