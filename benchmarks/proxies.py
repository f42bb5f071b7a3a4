"""The suite of the data plane: every contender under every workload, in turns."""

from collections.abc import Sequence

from benchmarks import backend, collection, contenders, rounds, workloads
from benchmarks.collection import Collection, installed
from benchmarks.programs import BenchmarkError
from benchmarks.results import REFERENCE, Aims, Measurement, Settings
from benchmarks.workloads import Bulk, Connections, Idle, OpenLoop, Requests, Workload

__all__ = ["AIMS", "CONTENDERS", "DESCRIPTIONS", "SUITE", "WORKLOADS", "run", "versions"]

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
CONTENDERS = tuple(each.name for each in (*contenders.CONTENDERS, *contenders.SCALED))
WORKLOADS = (*(workload.name for workload in CLOSED), LATENCY)

# Those of the data plane are relative: the peers beside it are what it is to reach.
AIMS: Aims = {}

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
    taking_part = [c for c in contenders.CONTENDERS if c.name != REFERENCE]
    return collection.versions(taking_part, {"backend (nginx)": backend.version()})


def run(settings: Settings) -> list[Measurement]:
    """Measure what is asked for; what is not installed or fails is noted and left out."""
    if backend.version() is None:
        raise BenchmarkError(
            "cannot measure proxies without nginx, their backend: apt install nginx"
        )
    scaled = contenders.SCALED if settings.contenders is not None else ()
    present = installed((*contenders.CONTENDERS, *scaled), settings)
    found = Collection(SUITE, settings, WORKLOADS, CONTENDERS)
    wanted = [w for w in WORKLOADS if settings.only is None or w in settings.only]
    needed = {*wanted, workloads.CALIBRATION.name} if LATENCY in wanted else {*wanted}
    for workload in CLOSED:
        if workload.name in needed:
            rounds.measure(workload, present, settings, found)
    if LATENCY in wanted:
        rate = _latency_rate(found.measurements())
        if rate is None:
            found.leave_out(
                LATENCY, f"{workloads.CALIBRATION.name}, which sets its rate, gave no result"
            )
        else:
            settings.note(
                f"latency is measured at {rate:.0f} requests/s, {LATENCY_SHARE:.0%} of what the"
                f" slowest contender did in {workloads.CALIBRATION.name}"
            )
            rounds.measure(OpenLoop(LATENCY_CONNECTIONS, rate), present, settings, found)
    return found.measurements()


def _latency_rate(measurements: Sequence[Measurement]) -> float | None:
    medians = [
        measurement.median
        for measurement in measurements
        if measurement.workload == workloads.CALIBRATION.name
        and measurement.metric == "requests"
        and measurement.contender != REFERENCE
    ]
    return LATENCY_SHARE * min(medians) if medians else None
