"""Measures pairs of sidecars under a workload, in turns, everything started anew each time."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from benchmarks import backend
from benchmarks.collection import Collection, Figures, turns
from benchmarks.contenders import Contender
from benchmarks.programs import free_ports
from benchmarks.results import Settings
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
    for number, contender in turns(contenders, settings.rounds):
        measure_once = partial(_fresh, workload, contender, settings.seconds)
        into.take([workload.name], contender.name, number, measure_once)


def _fresh(workload: Workload, contender: Contender, seconds: float) -> Figures:
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
            return {workload.name: workload.measure(pair, seconds, folders["load"])}
