"""The time zone of this machine, as the C library finds it (tzset(3)).

Asked anew each time: a laptop travels.
"""

import io
import os
import struct
from collections.abc import Mapping
from datetime import UTC, tzinfo
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

__all__ = ["local"]

LOCALTIME = "/etc/localtime"


def local(environ: Mapping[str, str] = os.environ) -> tzinfo:
    """Return the zone that TZ says, else that of the machine; UTC where there is none of the kind.

    TZ is the name of a zone, a path, or a rule (`CET-1CEST,M3.5.0,M10.5.0/3`).
    """
    wanted = environ.get("TZ")
    name = LOCALTIME if wanted is None else wanted.removeprefix(":")
    if name.startswith("/"):
        try:
            with open(name, "rb") as file:
                return ZoneInfo.from_file(file)
        except (OSError, ValueError):
            return UTC
    for read in (ZoneInfo, _by_rule):
        try:
            return read(name)
        except (ZoneInfoNotFoundError, OSError, ValueError):
            continue
    return UTC


def _by_rule(rule: str) -> ZoneInfo:
    """Have the library read a rule, which it takes only at the end of a file (RFC 8536, 3.3)."""
    header = b"TZif2" + bytes(15) + struct.pack(">6l", 0, 0, 0, 0, 1, 4)
    utc = struct.pack(">lBB", 0, 0, 0) + b"UTC\0"
    return ZoneInfo.from_file(io.BytesIO(2 * (header + utc) + f"\n{rule}\n".encode()))
