"""The suite of the data plane: every contender under every workload, in turns."""

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from benchmarks import backend, workloads
from benchmarks.contenders import CONTENDERS, SCALED, Contender
from benchmarks.numbers import shown
from benchmarks.programs import BenchmarkError, free_ports
from benchmarks.results import REFERENCE, Measurement, Settings
from benchmarks.workloads import Bulk, Connections, Figure, Idle, OpenLoop, Requests, Workload

__all__ = ["DESCRIPTIONS", "SUITE", "WORKLOADS", "run", "versions"]

SUITE = "proxies"
LATENCY = "latency"
LATENCY_CONNECTIONS = 32
# Of what the slowest contender can do.
LATENCY_SHARE = 0.5

CLOSED: tuple[Workload, ...] = (
    workloads.CALIBRATION,
    Requests(1),
    Requests(256),
    Connections(16),
    Bulk(1),
    Bulk(8),
    Idle(1000),
)
WORKLOADS = (*(workload.name for workload in CLOSED), LATENCY)

DESCRIPTIONS = {
    "requests-1": "wrk, one connection that stays open: what one hop there and back adds.",
    "requests-32": "wrk, 32 connections that stay open, each waiting for its answer.",
    "requests-256": "wrk, 256 connections that stay open.",
    "connections-16": (
        "ab, 16 at a time, each connection carrying one request; latencies from the dial to the"
        " end. To the client's sidecar every connection is new for everybody. Between the sidecars"
        " the peers make a TLS handshake for each; meshrun may serve one connection after another"
        " through a tunnel that stands, where it has one. That is a difference of the products and"
        " not of the settings, so it counts; what a handshake costs meshrun this does not show."
    ),
    "bulk-1": "One endless download; the reader drops the bytes in the kernel.",
    "bulk-8": "Eight endless downloads at once.",
    "idle-1000": (
        "1,000 connections that have carried one request and stay open: how much the sidecars'"
        " memory (PSS) has grown, by connection."
    ),
    "latency": (
        "Requests at a constant rate over 32 connections, half of what the slowest contender of"
        " this run can do. A latency counts from the moment at which the request was to be sent,"
        " so a proxy that stalls pays for everything that waited. `answered` is the rate that"
        " came back: where it is lower than the others', that proxy did not keep up."
    ),
}


def versions() -> dict[str, str]:
    """Return the version of everything that is installed and takes part."""
    found = {c.name: c.version() for c in CONTENDERS if c.name != REFERENCE}
    found["backend (nginx)"] = backend.version()
    return {name: version for name, version in found.items() if version is not None}


def run(settings: Settings) -> list[Measurement]:
    """Measure what is asked for; what is not installed or fails is noted and left out."""
    return _Suite(settings).run()


class _Suite:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._contenders = _present_contenders(settings)
        # By workload, contender and figure, in the order measured.
        self._values: dict[tuple[str, str], dict[str, list[Figure]]] = {}

    def run(self) -> list[Measurement]:
        wanted = [w for w in WORKLOADS if self._settings.only is None or w in self._settings.only]
        needed = {*wanted, workloads.CALIBRATION.name} if LATENCY in wanted else {*wanted}
        for workload in CLOSED:
            if workload.name in needed and self._has_tool(workload):
                self._measure(workload)
        if LATENCY in wanted:
            self._measure_latency()
        return self._measurements()

    def _measure_latency(self) -> None:
        rate = self._latency_rate()
        if rate is None:
            self._leave_out(
                LATENCY, f"{workloads.CALIBRATION.name}, which sets its rate, gave no result"
            )
            return
        self._settings.note(
            f"latency is measured at {rate:.0f} requests/s, {LATENCY_SHARE:.0%} of what the"
            f" slowest contender did in {workloads.CALIBRATION.name}"
        )
        self._measure(OpenLoop(LATENCY_CONNECTIONS, rate))

    def _has_tool(self, workload: Workload) -> bool:
        if workload.tool is None or shutil.which(workload.tool) is not None:
            return True
        self._leave_out(workload.name, f"{workload.tool} is not installed")
        return False

    def _leave_out(self, workload: str, why: str) -> None:
        said = f"{workload} is left out: {why}"
        self._settings.say(said)
        self._settings.note(said)

    def _latency_rate(self) -> float | None:
        medians = [
            measurement.median
            for measurement in self._measurements()
            if measurement.workload == workloads.CALIBRATION.name
            and measurement.metric == "requests"
            and measurement.contender != REFERENCE
        ]
        return LATENCY_SHARE * min(medians) if medians else None

    def _measure(self, workload: Workload) -> None:
        for number in range(self._settings.rounds):
            shift = number % max(1, len(self._contenders))
            # Rotated, so that nobody is always the first or the last.
            for contender in (*self._contenders[shift:], *self._contenders[:shift]):
                self._measure_once(workload, contender, number)

    def _measure_once(self, workload: Workload, contender: Contender, number: int) -> None:
        settings = self._settings
        place = f"{workload.name:<15}{number + 1}/{settings.rounds}  {contender.name:<9}"
        try:
            figures = _fresh(workload, contender, settings.seconds)
        # A sidecar that dies under way is an OSError to whoever asks for its memory: one failure
        # must not lose what the others did.
        except (BenchmarkError, OSError, subprocess.SubprocessError) as error:
            settings.say(f"{place}failed: {error}")
            settings.note(
                f"{contender.name} failed in {workload.name}, round {number + 1}: {error}"
            )
            return
        kept = self._values.setdefault((workload.name, contender.name), {})
        for figure in figures:
            kept.setdefault(figure.metric, []).append(figure)
        if figures:
            settings.say(place + "   ".join(_shown(figure) for figure in figures[:5]))

    def _measurements(self) -> list[Measurement]:
        return [
            Measurement(
                suite=SUITE,
                workload=workload,
                contender=contender,
                metric=metric,
                unit=figures[0].unit,
                better=figures[0].better,
                rounds=tuple(figure.value for figure in figures),
            )
            for (workload, contender), by_metric in self._values.items()
            for metric, figures in by_metric.items()
        ]


def _present_contenders(settings: Settings) -> Sequence[Contender]:
    if backend.version() is None:
        raise BenchmarkError(
            "cannot measure proxies without nginx, their backend: apt install nginx"
        )
    scaled = SCALED if settings.contenders is not None else ()
    wanted = [each for each in (*CONTENDERS, *scaled) if settings.wants(each.name)]
    missing = [contender.name for contender in wanted if contender.version() is None]
    for name in missing:
        settings.say(f"{name} is not installed and left out; `make peers` installs it")
        settings.note(f"{name} was not installed")
    return [contender for contender in wanted if contender.name not in missing]


def _fresh(workload: Workload, contender: Contender, seconds: float) -> list[Figure]:
    """Measure once with everything started anew: nothing is left of what was measured before."""
    with tempfile.TemporaryDirectory(prefix="meshrun-bench-") as name:
        folders = {part: Path(name) / part for part in ("backend", "sidecars", "load")}
        for folder in folders.values():
            folder.mkdir()
        (port,) = free_ports(1)
        with (
            backend.start(port, folders["backend"]),
            contender.start(port, folders["sidecars"]) as pair,
        ):
            return workload.measure(pair, seconds, folders["load"])


def _shown(figure: Figure) -> str:
    name = "" if figure.unit.startswith(figure.metric) else f"{figure.metric} "
    return f"{name}{shown(figure.value)} {figure.unit}"
