"""What is done to a pair of sidecars, and what is read off it."""

import csv
import shutil
import socket
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from benchmarks import usage
from benchmarks.contenders import Pair
from benchmarks.programs import BenchmarkError
from benchmarks.results import Figure
from benchmarks.rule import Protocol

__all__ = [
    "CALIBRATION",
    "WARM_UP_S",
    "Bulk",
    "Connections",
    "Cost",
    "Idle",
    "OpenLoop",
    "Requests",
    "Workload",
    "check",
    "load",
    "python",
]

HERE = Path(__file__).parent
MIB = 1 << 20
WARM_UP_S = 0.3
# What a load program may take beyond the time that it was told to load.
GRACE_S = 30.0
# More connections than anything opens in a measurement: ab ends by time.
UNREACHED = 1_000_000
IDLE_REQUEST = b"GET / HTTP/1.1\r\nHost: backend\r\n\r\n"
IDLE_TIMEOUT_S = 30.0


class Workload(ABC):
    """Loads a pair for `seconds` and returns figures, the one that counts most first.

    `tool` is the program that it needs on the PATH, None where it brings its own. `protocol` is
    what the backend shall speak.
    """

    name: str
    tool: str | None = None
    protocol: Protocol = "http"

    def lacking(self) -> str | None:
        """Return what it needs and does not find."""
        return self.tool if self.tool is not None and shutil.which(self.tool) is None else None

    def inspect(self, pair: Pair) -> None:  # noqa: B027 - most expect nothing but a way through
        """See that a pair does what it is measured for; raises BenchmarkError where it does not."""

    @abstractmethod
    def measure(self, pair: Pair, seconds: float, folder: Path) -> list[Figure]:
        """Measure; raises BenchmarkError where the load fails."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What a load cost the pair: CPU time, and memory before it and in the midst of it."""

    idle_bytes: int
    loaded_bytes: int
    cpu_s: float

    def figures(self, pair: Pair, metric: str, unit: str, units: float) -> list[Figure]:
        """Return CPU time per so many units, and memory; nothing where there are no sidecars."""
        if not pair.pids:
            return []
        return [
            Figure(metric, unit, "lower", self.cpu_s / units),
            Figure("memory idle", "MiB", "lower", self.idle_bytes / MIB),
            Figure("memory loaded", "MiB", "lower", self.loaded_bytes / MIB),
        ]


def load(command: Sequence[str | Path], pair: Pair, seconds: float) -> tuple[str, Cost]:
    """Run a load program to its end; return its output and what it cost the pair."""
    idle_bytes = usage.pss_bytes(pair.pids)
    cpu_before_s = usage.cpu_s(pair.pids)
    with subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            loaded_bytes = _memory_midway(process, pair, seconds)
            output, errors = process.communicate(timeout=seconds + GRACE_S)
        except subprocess.TimeoutExpired:
            raise BenchmarkError(
                f"cannot load: {command[0]} had not ended {GRACE_S:g} s after its time"
            ) from None
        finally:
            process.kill()
    if process.returncode != 0:
        # The last line of a traceback is its reason, and so is the last line of wrk and ab.
        reason = (errors.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
        raise BenchmarkError(f"cannot load with {Path(command[0]).name}: {reason}")
    return output, Cost(idle_bytes, loaded_bytes, usage.cpu_s(pair.pids) - cpu_before_s)


def _memory_midway(process: subprocess.Popen[str], pair: Pair, seconds: float) -> int:
    try:
        process.wait(seconds / 2)
    except subprocess.TimeoutExpired:
        pass  # as it should be
    return usage.pss_bytes(pair.pids)


class _WrkReport(msgspec.Struct):
    requests: int
    duration_us: int
    p50_us: float
    p99_us: float
    failed: int


class Requests(Workload):
    """Requests over connections that stay open, each sent when the last one was answered."""

    tool = "wrk"

    def __init__(self, connections: int) -> None:
        self.name = f"requests-{connections}"
        self._connections = connections

    def measure(self, pair: Pair, seconds: float, folder: Path) -> list[Figure]:
        """Load with wrk."""
        _, warm_up = load(self._command(pair, WARM_UP_S), pair, WARM_UP_S)
        output, cost = load(self._command(pair, seconds), pair, seconds)
        cost = replace(cost, idle_bytes=warm_up.idle_bytes)
        report = msgspec.json.decode(output.strip().splitlines()[-1], type=_WrkReport)
        check(report.failed, report.requests)
        return [
            Figure(
                "requests", "requests/s", "higher", report.requests / (report.duration_us / 1e6)
            ),
            Figure("p50", "ms", "lower", report.p50_us / 1000),
            Figure("p99", "ms", "lower", report.p99_us / 1000),
            *cost.figures(pair, "CPU", "µs/request", report.requests / 1e6),
        ]

    def _command(self, pair: Pair, seconds: float) -> Sequence[str | Path]:
        threads = min(2, self._connections)
        return [
            *("wrk", f"-t{threads}", f"-c{self._connections}", f"-d{_wrk_seconds(seconds)}"),
            *("-s", HERE / "wrk.lua", f"http://127.0.0.1:{pair.port}/"),
        ]


def _wrk_seconds(seconds: float) -> str:
    # wrk takes whole seconds only.
    return f"{max(1, round(seconds))}s"


class Connections(Workload):
    """Connections that carry one request each, so many at a time."""

    tool = "ab"

    def __init__(self, at_a_time: int) -> None:
        self.name = f"connections-{at_a_time}"
        self._at_a_time = at_a_time

    def measure(self, pair: Pair, seconds: float, folder: Path) -> list[Figure]:
        """Load with ab."""
        table = folder / "ab.csv"
        output, cost = load(self._command(pair, seconds, table), pair, seconds)
        complete = int(_field(output, "Complete requests"))
        check(int(_field(output, "Failed requests")), complete)
        took_s = float(_field(output, "Time taken for tests").split()[0])
        with table.open(encoding="ascii") as file:
            percentiles = {row[0]: float(row[1]) for row in list(csv.reader(file))[1:]}
        return [
            Figure("connections", "connections/s", "higher", complete / took_s),
            Figure("p50", "ms", "lower", percentiles["50"]),
            Figure("p99", "ms", "lower", percentiles["99"]),
            *cost.figures(pair, "CPU", "µs/connection", complete / 1e6),
        ]

    def _command(self, pair: Pair, seconds: float, table: Path) -> Sequence[str | Path]:
        return [
            *("ab", "-q", "-r", "-c", str(self._at_a_time)),
            # In this order: -t sets a number of requests too.
            *("-t", str(max(1, round(seconds))), "-n", str(UNREACHED), "-e", table),
            f"http://127.0.0.1:{pair.port}/",
        ]


def _field(output: str, name: str) -> str:
    for line in output.splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return value.strip()
    raise BenchmarkError(f"cannot read what ab measured: it says nothing of {name!r}: {output}")


def check(failed: int, done: int) -> None:
    """Raise BenchmarkError unless something was done and nothing failed."""
    if failed or not done:
        raise BenchmarkError(f"cannot count this: {failed} operations failed, {done} were done")


class _SinkReport(msgspec.Struct):
    bytes: int
    counted: int
    seconds: float


class Bulk(Workload):
    """Downloads that never end, so many at once."""

    def __init__(self, streams: int) -> None:
        self.name = f"bulk-{streams}"
        self._streams = streams

    def measure(self, pair: Pair, seconds: float, folder: Path) -> list[Figure]:
        """Load with the sink."""
        output, cost = load(python("sink.py", pair.port, self._streams, seconds), pair, seconds)
        report = msgspec.json.decode(output, type=_SinkReport)
        return [
            Figure("throughput", "MB/s", "higher", report.counted / report.seconds / 1e6),
            *cost.figures(pair, "CPU", "s/GB", report.bytes / 1e9),
        ]


class _OpenLoopReport(msgspec.Struct):
    requests: int
    rate: float
    p50: float
    p99: float
    p999: float


class OpenLoop(Workload):
    """Requests at a constant rate, latency counted from when each was to be sent."""

    def __init__(self, connections: int, rate: float) -> None:
        self.name = "latency"
        self._connections = connections
        self._rate = rate

    def measure(self, pair: Pair, seconds: float, folder: Path) -> list[Figure]:
        """Load with the open loop."""
        output, cost = load(
            python("openloop.py", pair.port, self._rate, self._connections, seconds),
            pair,
            seconds,
        )
        report = msgspec.json.decode(output, type=_OpenLoopReport)
        return [
            Figure("p99", "ms", "lower", report.p99 * 1000),
            Figure("p50", "ms", "lower", report.p50 * 1000),
            Figure("p99.9", "ms", "lower", report.p999 * 1000),
            Figure("answered", "requests/s", "higher", report.rate),
            *cost.figures(pair, "CPU", "µs/request", report.requests / 1e6),
        ]


def python(name: str, *args: float, site: bool = False) -> Sequence[str | Path]:
    """Return the command that runs a program of this folder; `site` if it needs more than Python.

    Without, it starts without looking for anything else.
    """
    return [sys.executable, "-I", *(() if site else ("-S",)), HERE / name, *map(str, args)]


class Idle(Workload):
    """Connections that have carried one request and stay open."""

    def __init__(self, connections: int) -> None:
        self.name = f"idle-{connections}"
        self._connections = connections

    def measure(self, pair: Pair, seconds: float, folder: Path) -> list[Figure]:
        """Open them, let them rest for `seconds` (3 at most), and see how the sidecars grew."""
        before = _by_side(pair)
        opened: list[socket.socket] = []
        try:
            opened.extend(_ask(pair.port) for _ in range(self._connections))
            time.sleep(min(seconds, 3.0))  # what is measured is rest
            after = _by_side(pair)
        except OSError as error:
            raise BenchmarkError(
                f"cannot open connection {len(opened) + 1} of {self._connections}: {error}"
            ) from error
        finally:
            for connection in opened:
                connection.close()
        grown = {side: (after[side] - before[side]) / 1024 for side in before}
        per_connection = {side: kib / self._connections for side, kib in grown.items()}
        if not per_connection:
            return []
        return [
            Figure("both sides", "KiB/connection", "lower", sum(per_connection.values())),
            *(
                Figure(f"{side} side", "KiB/connection", "lower", kib)
                for side, kib in per_connection.items()
            ),
            Figure("pair before", "MiB", "lower", sum(before.values()) / MIB),
            Figure("pair with them", "MiB", "lower", sum(after.values()) / MIB),
        ]


def _by_side(pair: Pair) -> Mapping[str, int]:
    return {side: usage.pss_bytes(pair.sides[side]) for side in sorted(pair.sides)}


def _ask(port: int) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", port), timeout=IDLE_TIMEOUT_S)
    try:
        connection.sendall(IDLE_REQUEST)
        # The answer is shorter than this and comes at once; that it came is what counts.
        if not connection.recv(65536).startswith(b"HTTP/1.1 200 "):
            raise ConnectionError("the answer is not 200")
    except OSError:
        connection.close()
        raise
    return connection


CALIBRATION = Requests(32)
