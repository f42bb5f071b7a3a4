"""The suite of the data plane where it understands HTTP: every request is decided about."""

from importlib.metadata import version as installed_version
from importlib.util import find_spec

from benchmarks import backend, collection, contenders, rounds
from benchmarks.collection import Collection, installed
from benchmarks.http_workloads import Calls, Judged, JudgedRequests, Streams
from benchmarks.programs import BenchmarkError
from benchmarks.results import REFERENCE, Aims, Measurement, Settings
from benchmarks.rule import Rule

__all__ = ["AIMS", "CONTENDERS", "DESCRIPTIONS", "SUITE", "WORKLOADS", "run", "versions"]

SUITE = "http"
BODY_BYTES = 10 << 10

LOADS: tuple[Judged, ...] = (
    JudgedRequests(32),
    JudgedRequests(1),
    JudgedRequests(256),
    JudgedRequests(32, BODY_BYTES),
    Streams(32, connections=4),
    Calls(32),
)
# Whatever the rule, they are the same ones.
CANDIDATES = contenders.judging(Rule("http", "GET"))
CONTENDERS = tuple(candidate.name for candidate in CANDIDATES)
WORKLOADS = tuple(workload.name for workload in LOADS)

# As in `proxies`: the peers beside it.
AIMS: Aims = {}

DESCRIPTIONS = {
    "get-32": "HTTP/1.1: wrk, 32 connections that stay open, each waiting for its answer.",
    "get-1": "HTTP/1.1: wrk, one connection that stays open: what one hop there and back adds.",
    "get-256": "HTTP/1.1: wrk, 256 connections that stay open.",
    "post-32": (
        "HTTP/1.1: wrk, 32 connections that stay open, each request with a body of 10 KiB, which"
        " nginx reads and drops."
    ),
    "http2-32": (
        "HTTP/2 on every hop: h2load, 32 streams at a time, 8 on each of 4 connections, from one"
        " thread."
    ),
    "grpc-32": (
        "Unary gRPC calls, 100 bytes there and back, 32 at a time over one connection. Caller and"
        " service are grpcio, Python both: each costs several times what a sidecar does, so"
        " calls/s are mostly theirs, and what tells the sidecars apart is the CPU a call."
    ),
}


def versions() -> dict[str, str]:
    """Return the version of everything that is installed and takes part."""
    others = {
        "backend (nginx)": backend.version(),
        "gRPC (grpcio)": installed_version("grpcio") if find_spec("grpc") else None,
    }
    return collection.versions([c for c in CANDIDATES if c.name != REFERENCE], others)


def run(settings: Settings) -> list[Measurement]:
    """Measure what is asked for; what is not installed or fails is noted and left out."""
    if backend.version() is None:
        raise BenchmarkError("cannot measure http without nginx, the backend: apt install nginx")
    present = {candidate.name for candidate in installed(CANDIDATES, settings)}
    found = Collection(SUITE, settings, WORKLOADS, CONTENDERS)
    for workload in LOADS:
        if settings.only is None or workload.name in settings.only:
            judges = [c for c in contenders.judging(workload.rule) if c.name in present]
            rounds.measure(workload, judges, settings, found)
    return found.measurements()
