"""Measures pairs of sidecars under a workload, in turns, everything started anew each time."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import backend
from benchmarks.collection import FAILURES, Collection, rotated
from benchmarks.contenders import Contender
from benchmarks.programs import free_ports
from benchmarks.results import Figure, Settings
from benchmarks.workloads import Workload

__all__ = ["measure"]


def measure(
    workload: Workload, contenders: Sequence[Contender], settings: Settings, into: Collection
) -> None:
    """Measure every round of every contender; a workload that lacks its tool is left out."""
    lacking = workload.lacking()
    if lacking is not None:
        into.leave_out(workload.name, f"{lacking} is not installed; `make peers` installs it")
        return
    for number in range(settings.rounds):
        for contender in rotated(contenders, number):
            try:
                figures = _fresh(workload, contender, settings.seconds)
            except FAILURES as error:
                into.fail(workload.name, contender.name, number, error)
            else:
                into.add(workload.name, contender.name, number, figures)


def _fresh(workload: Workload, contender: Contender, seconds: float) -> list[Figure]:
    """Measure once: nothing is left of what was measured before."""
    with tempfile.TemporaryDirectory(prefix="meshrun-bench-") as name:
        folders = {part: Path(name) / part for part in ("backend", "sidecars", "load")}
        for folder in folders.values():
            folder.mkdir()
        (port,) = free_ports(1)
        with (
            backend.start(workload.protocol, port, folders["backend"]),
            contender.start(port, folders["sidecars"]) as pair,
        ):
            if pair.pids:
                workload.inspect(pair)
            return workload.measure(pair, seconds, folders["load"])
