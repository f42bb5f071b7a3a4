"""The run's cgroup: what is in it belongs to the run, whatever else it did to get away.

Only cgroup v2, and only where a folder can be made below meshrun's own cgroup (root, or a
delegated subtree). Where not, the other means of finding the run's processes stand alone. Below the
folder of the run each app has one of its own, with its limits.
"""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path

from meshrun.supervisor import processes

__all__ = [
    "app_leaf",
    "create",
    "is_of",
    "kill",
    "leave",
    "limit",
    "make_leaf",
    "members",
    "oom_kills",
    "remove",
]

_PREFIX = "meshrun-"
# Where this process itself goes: a cgroup that shares out a controller has no processes.
_SELF = "self"
_ENABLED = "cgroup.subtree_control"


def _mount() -> tuple[Path, str] | None:
    """Return where cgroup v2 is mounted, and which cgroup is seen there."""
    try:
        mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    except OSError:
        return None
    for line in mounts:
        before, _, after = line.partition(" - ")
        if after.startswith("cgroup2 "):
            root, mount = before.split()[3:5]
            return Path(mount), root
    return None


def _own() -> Path | None:
    """Return the folder of the cgroup that this process is in."""
    mounted = _mount()
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    path = next((line[3:] for line in own if line.startswith("0::")), None)
    if mounted is None or path is None:
        return None
    mount, root = mounted
    return mount / path.removeprefix(root.rstrip("/")).lstrip("/")


def create(run_id: str, controllers: Collection[str] = ()) -> Path | None:
    """Make the cgroup of a run; None where that is not possible.

    `controllers` (memory, pids) are had for the apps' folders where they can be. A cgroup that
    shares one out must hold no process itself (cgroups(7), "no internal processes"): where ours
    holds only this one and its children, they go into a folder of the run.
    """
    own = _own()
    if own is None:
        return None
    folder = own / f"{_PREFIX}{run_id}"
    try:
        folder.mkdir()
    except OSError:
        return None
    # A folder in which nothing can be put (a tmpfs that only looks the part) is of no use.
    if not os.access(folder / "cgroup.procs", os.W_OK):
        remove(folder)
        return None
    for controller in controllers:
        _share_out(own, folder, controller)
    return folder


def _share_out(own: Path, folder: Path, controller: str) -> None:
    if controller not in _words(own / "cgroup.controllers"):
        return
    if controller not in _words(own / _ENABLED) and not _write(own / _ENABLED, f"+{controller}"):
        aside = folder / _SELF
        mine = {os.getpid(), *processes.children(os.getpid())}
        if not set(members(own, deep=False)) <= mine:
            return
        with contextlib.suppress(OSError):
            aside.mkdir(exist_ok=True)
        if not all(_write(aside / "cgroup.procs", str(pid)) for pid in mine):
            return
        _write(own / _ENABLED, f"+{controller}")
    _write(folder / _ENABLED, f"+{controller}")


def _words(file: Path) -> list[str]:
    try:
        return file.read_text().split()
    except OSError:
        return []


def _write(file: Path, content: str) -> bool:
    try:
        file.write_text(content)
    except OSError:
        return False
    return True


def app_leaf(instance: str) -> str:
    """Return what the folder of an instance's app is called within that of the run."""
    return f"app-{instance}"


def make_leaf(folder: Path, name: str) -> Path | None:
    """Make the folder of one app within that of the run; None where that is not possible."""
    leaf = folder / name
    try:
        leaf.mkdir(exist_ok=True)
    except OSError:
        return None
    return leaf


def limit(leaf: Path, file: str, value: int | str) -> bool:
    """Set a limit such as `memory.max`; False where its controller is not to be had here."""
    return (leaf / file).exists() and _write(leaf / file, str(value))


def oom_kills(leaf: Path) -> int:
    """Return how often the kernel has killed for want of memory within the limit of a folder."""
    words = _words(leaf / "memory.events")
    counts = dict(zip(words[::2], words[1::2], strict=False))
    return int(counts.get("oom_kill", "0"))


def leave() -> None:
    """Leave the cgroup of another run, in one of whose apps this run was started to outlive it."""
    own = _own()
    while own is not None and own.parent != own:
        own, name = own.parent, own.name
        if name.startswith(_PREFIX):
            _write(own / "cgroup.procs", "0")
            return


def is_of(folder: Path, run_id: str) -> bool:
    """Tell whether a folder is one that `create` makes for this run, wherever it was started."""
    mounted = _mount()
    named = run_id.isalnum() and folder.name == f"{_PREFIX}{run_id}"
    inside = mounted is not None and folder.is_relative_to(mounted[0])
    return named and inside and ".." not in folder.parts


def members(folder: Path, *, deep: bool = True) -> list[int]:
    """Return the process ids in the cgroup and, if `deep`, in those below; none if it is gone."""
    found = [int(pid) for pid in _words(folder / "cgroup.procs")]
    for inner in _below(folder) if deep else ():
        found += members(inner)
    return found


def _below(folder: Path) -> list[Path]:
    try:
        return [Path(entry.path) for entry in os.scandir(folder) if entry.is_dir()]
    except OSError:
        return []


def kill(folder: Path) -> None:
    """KILL everything in it at once, forks in flight included (Linux 5.14; else does nothing)."""
    _write(folder / "cgroup.kill", "1")


def remove(folder: Path) -> None:
    """Remove it, with what is below, if it is empty but for this process."""
    own = folder.parent
    aside = folder / _SELF
    if aside.exists():
        for controller in _words(folder / _ENABLED):
            _write(folder / _ENABLED, f"-{controller}")
            _write(own / _ENABLED, f"-{controller}")
        for pid in members(aside):
            _write(own / "cgroup.procs", str(pid))
    for inner in _below(folder):
        remove(inner)
    with contextlib.suppress(OSError):
        folder.rmdir()
