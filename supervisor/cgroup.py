"""The run's cgroup: what is in it belongs to the run, whatever else it did to get away.

Only cgroup v2, and only where a folder can be made below meshrun's own cgroup (root, or a
delegated subtree). Where not, the other means of finding the run's processes stand alone.
"""

import contextlib
import os
from pathlib import Path

__all__ = ["create", "is_of", "kill", "members", "remove"]


def _own() -> Path | None:
    """Return the folder of the cgroup that this process is in."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
        own = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in own if line.startswith("0::")), None)
    for line in mounts:
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 ") and path is not None:
            root, mount = before.split()[3:5]
            inside = path.removeprefix(root.rstrip("/")).lstrip("/")
            return Path(mount) / inside
    return None


def create(run_id: str) -> Path | None:
    """Make the cgroup of a run; None where that is not possible."""
    own = _own()
    if own is None:
        return None
    folder = own / f"meshrun-{run_id}"
    try:
        folder.mkdir()
    except OSError:
        return None
    # A folder in which nothing can be put (a tmpfs that only looks the part) is of no use.
    if os.access(folder / "cgroup.procs", os.W_OK):
        return folder
    remove(folder)
    return None


def is_of(folder: Path, run_id: str) -> bool:
    """Tell whether a folder is one that `create` makes for this run."""
    own = _own()
    return own is not None and folder == own / f"meshrun-{run_id}" and run_id.isalnum()


def members(folder: Path) -> list[int]:
    """Return the process ids in the cgroup, none if it is gone."""
    try:
        return [int(line) for line in (folder / "cgroup.procs").read_text().split()]
    except OSError:
        return []


def kill(folder: Path) -> None:
    """KILL everything in it at once, forks in flight included (Linux 5.14; else does nothing)."""
    with contextlib.suppress(OSError):
        (folder / "cgroup.kill").write_text("1")


def remove(folder: Path) -> None:
    """Remove it if it is empty."""
    with contextlib.suppress(OSError):
        folder.rmdir()
