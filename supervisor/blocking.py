"""What keeps a run from ending, in one line: who, what it was told, how long it still has.

Pure: what the processes are and what the time is are arguments.
"""

import signal
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

__all__ = ["Blocker", "Shown", "describe"]

_LONGEST_COMMAND = 80
_MOST_PROCESSES = 8


@dataclass(frozen=True, slots=True)
class Shown:
    """A process that has not ended."""

    pid: int
    parent: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocker:
    """An instance that has not ended, with what is left of it.

    `told` is the last signal that was sent to it, at `told_at`; `kill_at` is when KILL follows.
    Times are seconds of one clock.
    """

    name: str
    told: int | None
    told_at: float
    kill_at: float | None
    processes: Sequence[Shown]


def describe(blocker: Blocker, now: float) -> str:
    """Return the line, such as `waiting for web.1: TERM sent 2.1 s ago, KILL in 2.9 s: 4711 sh`."""
    parts = [f"waiting for {blocker.name}"]
    if blocker.told is not None:
        sent = f"{_name(blocker.told)} sent {max(0.0, now - blocker.told_at):.1f} s ago"
        if blocker.kill_at is not None and blocker.told != signal.SIGKILL:
            sent += f", KILL in {max(0.0, blocker.kill_at - now):.1f} s"
        parts.append(sent)
    if blocker.processes:
        parts.append(_tree(blocker.processes))
    return ": ".join(parts)


def _name(number: int) -> str:
    try:
        return signal.Signals(number).name.removeprefix("SIG")
    except ValueError:
        return f"signal {number}"


def _tree(processes: Iterable[Shown]) -> str:
    """Return them on one line, each below its parent: as many `└` as it has ancestors here."""
    by_pid = {process.pid: process for process in processes}
    below: dict[int, list[Shown]] = {}
    for process in by_pid.values():
        known = process.parent in by_pid and process.parent != process.pid
        below.setdefault(process.parent if known else 0, []).append(process)
    words: list[str] = []
    for depth, process in _walk(below):
        if len(words) == _MOST_PROCESSES:
            break
        branch = f"{'└' * depth} " if depth else ""
        words.append(f"{branch}{process.pid} {_short(process.command)}")
    left = len(by_pid) - len(words)
    return " ".join(words) + (f" and {left} more" if left else "")


def _walk(below: Mapping[int, list[Shown]]) -> Iterable[tuple[int, Shown]]:
    stack = [(0, process) for process in reversed(below.get(0, []))]
    while stack:
        depth, process = stack.pop()
        yield depth, process
        stack += [(depth + 1, child) for child in reversed(below.get(process.pid, []))]


def _short(command: str) -> str:
    # Arguments are whatever the program was given: no escape sequence may reach the terminal.
    shown = "".join(c if c.isprintable() else " " for c in command)
    program, blank, arguments = shown.partition(" ")
    shown = f"{program.rpartition('/')[2]}{blank}{arguments}"
    return shown if len(shown) <= _LONGEST_COMMAND else f"{shown[: _LONGEST_COMMAND - 1]}…"
