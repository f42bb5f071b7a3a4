"""What a mesh takes of the machine: processes, descriptors, memory, files; to be compared later."""

import os
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from support.mesh import Mesh

from meshrun.supervisor import processes

__all__ = ["Footprint", "grown"]

MIB = 1024 * 1024

# How much more a Python process may keep after the same work another time: that is its allocator's.
MOST_GROWTH_BYTES = {"supervisor": 24 * MIB, "launcher": 4 * MIB, "sidecar": 12 * MIB}
# Logs turn over at 10 MiB and one older is kept; events, ports and intentions are few.
MOST_FILE_BYTES = {".log": 11 * MIB, "state.db": 16 * MIB}


@dataclass(frozen=True)
class Footprint:
    """What a run has at a moment, by the names of its processes: `supervisor`, `sidecar web.1`.

    `sessions` counts the processes in the session of each app, `strays` those that the launcher
    has got without having started them.
    """

    sessions: Mapping[str, int]
    strays: int
    descriptors: Mapping[str, Mapping[str, int]]
    memory_bytes: Mapping[str, int]
    files: Mapping[str, int]
    cgroups: frozenset[str] = field(default_factory=frozenset)

    @classmethod
    def of(cls, mesh: Mesh) -> "Footprint":
        """Measure a mesh. Raises OSError where a process of it ends meanwhile."""
        run = mesh.recorded()
        started = {each.name: each.pid for each in run.processes}
        ours = {"supervisor": mesh.supervisor_pid, "launcher": mesh.launcher_pid}
        ours |= {name: pid for name, pid in started.items() if name.startswith("sidecar ")}
        # Opened at the first line, whenever that comes: those of who is no more are to be closed.
        logs = {f"{name}.log" for name in started}
        children = set(processes.children(mesh.launcher_pid))
        return cls(
            sessions={name: mesh.session_size(pid) for name, pid in started.items()},
            strays=len(children - set(started.values())),
            descriptors={name: _descriptors(pid, logs) for name, pid in ours.items()},
            memory_bytes={name: _memory_bytes(pid) for name, pid in ours.items()},
            files={str(path): path.stat().st_size for path in _files(mesh.state_path)},
            cgroups=_cgroups(run.cgroup),
        )


def grown(before: Footprint, after: Footprint) -> Iterator[str]:
    """Yield what there is more of than before, of what should be the same."""
    if after.sessions != before.sessions:
        yield f"processes: {_differences(before.sessions, after.sessions)}"
    if after.strays > before.strays:
        yield f"processes that the launcher has not started: {before.strays}, then {after.strays}"
    for name, now in after.descriptors.items():
        then = before.descriptors.get(name, {})
        if sum(now.values()) > sum(then.values()):
            yield f"descriptors of {name}: {_differences(then, now)}"
    for name, size in after.memory_bytes.items():
        first, most = before.memory_bytes.get(name, 0), MOST_GROWTH_BYTES[name.partition(" ")[0]]
        if size - first > most:
            yield f"memory of {name}: {first / MIB:.1f} MiB, then {size / MIB:.1f}"
    if extra := after.cgroups - before.cgroups:
        yield f"cgroups: {sorted(extra)}"
    yield from _grown_files(before.files, after.files)


def _grown_files(before: Mapping[str, int], after: Mapping[str, int]) -> Iterator[str]:
    # Those who were there for a while have a log.
    if extra := {name for name in set(after) - set(before) if "/logs/" not in name}:
        yield f"files: {sorted(extra)}"
    for name, size in after.items():
        for part, most in MOST_FILE_BYTES.items():
            if part in Path(name).name and size > most:
                yield f"{name} has {size / MIB:.1f} MiB"


def _differences(before: Mapping[str, int], after: Mapping[str, int]) -> str:
    more, less = Counter(after), Counter(before)
    return f"more {dict(more - less)}, less {dict(less - more)}"


def _descriptors(pid: int, spared: Collection[str]) -> Mapping[str, int]:
    """Return how many descriptors a process has of each kind: sockets, pipes, each file."""
    folder = Path("/proc", str(pid), "fd")
    targets = (os.readlink(each) for each in folder.iterdir())
    return Counter(
        target.partition(":[")[0] for target in targets if Path(target).name not in spared
    )


def _memory_bytes(pid: int) -> int:
    """Return what is a process's own and no file's, shared with its children or not."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        fields = dict(line.split(":", 1) for line in file)
    return int(fields["RssAnon"].split()[0]) * 1024


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        # What comes and goes with each write: SQLite's own, and what replaces run.json.
        if not path.name.endswith(("-wal", "-shm")) and not path.is_dir():
            yield path


def _cgroups(folder: str | None) -> frozenset[str]:
    if folder is None:
        return frozenset()
    return frozenset(path.name for path in Path(folder).iterdir() if path.is_dir())
