"""What is done to pairs that decide about each request, and what is read off them."""

import http.client
import re
import subprocess
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import msgspec

from benchmarks.contenders import Pair
from benchmarks.openloop import percentile
from benchmarks.programs import BenchmarkError
from benchmarks.results import Figure
from benchmarks.rule import Protocol, Rule
from benchmarks.workloads import WARM_UP_S, Requests, Workload, check, load, python

__all__ = ["Calls", "Judged", "JudgedRequests", "Streams"]

# A method that no rule here allows.
FORBIDDEN = "DELETE"
TIMEOUT_S = 10.0


class Judged(Workload):
    """A load of requests that a rule allows."""

    protocol: Protocol
    method: str

    @property
    def rule(self) -> Rule:
        """What a pair must let through, and no more."""
        return Rule(self.protocol, self.method)


class JudgedRequests(Requests, Judged):
    """Requests of HTTP/1.1 over connections that stay open, with a body or without."""

    protocol = "http"

    def __init__(self, connections: int, body_bytes: int = 0) -> None:
        super().__init__(connections)
        self.method = "POST" if body_bytes else "GET"
        self.name = f"{self.method.lower()}-{connections}"
        self._body_bytes = body_bytes

    def inspect(self, pair: Pair) -> None:
        """Send what the rule does not allow."""
        connection = http.client.HTTPConnection("127.0.0.1", pair.port, timeout=TIMEOUT_S)
        try:
            connection.request(FORBIDDEN, "/")
            status = connection.getresponse().status
        except (OSError, http.client.HTTPException) as error:
            raise BenchmarkError(f"cannot see whether {FORBIDDEN} is refused: {error}") from error
        finally:
            connection.close()
        _check_refusal(status == http.HTTPStatus.FORBIDDEN, str(status))

    def _command(self, pair: Pair, seconds: float) -> Sequence[str | Path]:
        return [*super()._command(pair, seconds), "--", self.method, str(self._body_bytes)]


class Streams(Judged):
    """Requests of HTTP/2, so many at a time over a few connections."""

    tool = "h2load"
    protocol = "http2"
    method = "GET"

    def __init__(self, at_a_time: int, connections: int) -> None:
        self.name = f"http2-{at_a_time}"
        self._connections = connections
        self._streams = at_a_time // connections

    def inspect(self, pair: Pair) -> None:
        """Send what the rule does not allow."""
        command = ["h2load", "-n1", "-H", f":method: {FORBIDDEN}", _url(pair)]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
        (codes,) = re.findall(r"^status codes: (.*)$", done.stdout, re.MULTILINE) or [done.stderr]
        _check_refusal(" 1 4xx" in codes, codes)

    def measure(self, pair: Pair, seconds: float, folder: Path) -> list[Figure]:
        """Load with h2load."""
        load(self._command(pair, WARM_UP_S, folder / "warm-up.tsv"), pair, WARM_UP_S)
        table = folder / "requests.tsv"
        output, cost = load(self._command(pair, seconds, table), pair, seconds)
        done, *failed = _counts(output)
        check(sum(failed), done)
        # A line a request: when it began, its status, and how many microseconds it took.
        took_us = sorted(int(line.split("\t")[2]) for line in table.read_text().splitlines())
        return [
            Figure("requests", "requests/s", "higher", done / seconds),
            Figure("p50", "ms", "lower", percentile(took_us, 0.5) / 1000),
            Figure("p99", "ms", "lower", percentile(took_us, 0.99) / 1000),
            *cost.figures(pair, "CPU", "µs/request", done / 1e6),
        ]

    def _command(self, pair: Pair, seconds: float, table: Path) -> Sequence[str | Path]:
        return [
            *("h2load", f"-c{self._connections}", f"-m{self._streams}"),
            *("-D", f"{seconds * 1000:.0f}ms", f"--log-file={table}", _url(pair)),
        ]


def _url(pair: Pair) -> str:
    return f"http://127.0.0.1:{pair.port}/"


def _counts(output: str) -> Sequence[int]:
    found = re.search(
        r"^requests: .* (\d+) succeeded, (\d+) failed, (\d+) errored, (\d+) timeout$",
        output,
        re.MULTILINE,
    )
    if found is None:
        raise BenchmarkError(f"cannot read what h2load measured: {output}")
    return [int(number) for number in found.groups()]


def _check_refusal(refused: bool, answer: str) -> None:
    if not refused:
        raise BenchmarkError(
            f"cannot count this: the rule is not enforced, {FORBIDDEN} was answered with {answer}"
        )


class _CallsReport(msgspec.Struct):
    calls: int
    seconds: float
    latencies_s: list[float]


class Calls(Judged):
    """Unary calls of gRPC, so many at a time over one connection."""

    protocol = "grpc"
    method = "POST"

    def __init__(self, at_a_time: int) -> None:
        self.name = f"grpc-{at_a_time}"
        self._at_a_time = at_a_time

    def lacking(self) -> str | None:
        """Return what it needs and does not find."""
        return None if find_spec("grpc") else "grpcio"

    def measure(self, pair: Pair, seconds: float, folder: Path) -> list[Figure]:
        """Load with grpcio."""
        command = python("grpc_load.py", pair.port, self._at_a_time, seconds, site=True)
        output, cost = load(command, pair, seconds)
        report = msgspec.json.decode(output, type=_CallsReport)
        took_s = sorted(report.latencies_s)
        return [
            Figure("calls", "calls/s", "higher", len(took_s) / report.seconds),
            Figure("p50", "ms", "lower", percentile(took_s, 0.5) * 1000),
            Figure("p99", "ms", "lower", percentile(took_s, 0.99) * 1000),
            *cost.figures(pair, "CPU", "µs/call", report.calls / 1e6),
        ]
