"""Whom the kernel shall choose first when memory runs out: an app, and last what ends the others.

Values of /proc/PID/oom_score_adj, from -1000 (never) to 1000. To be chosen later than before needs
CAP_SYS_RESOURCE; where that is not to be had, the apps are still chosen earlier.
"""

import contextlib
from pathlib import Path

__all__ = ["be_chosen_last", "of_app", "own", "set_own"]

_FILE = Path("/proc/self/oom_score_adj")
_LOWEST, _HIGHEST = -999, 1000
# As systemd's user manager does for its services.
_APP = 100
_GUARDIAN = -500


def own() -> int:
    """Return that of this process; 0, the usual one, where it cannot be read."""
    try:
        return int(_FILE.read_text())
    except (OSError, ValueError):
        return 0


def of_app(base: int) -> int:
    """Return that of an app, where `base` is what meshrun was started with."""
    return min(base + _APP, _HIGHEST)


def be_chosen_last() -> None:
    """Let others be chosen before this process, if that is permitted."""
    set_own(max(own() + _GUARDIAN, _LOWEST))


def set_own(value: int) -> None:
    """Set that of this process, if that is permitted."""
    with contextlib.suppress(OSError):
        _FILE.write_text(str(value))
