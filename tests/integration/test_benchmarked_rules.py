"""The pairs that the HTTP suite compares: what the rule allows passes, and nothing else."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from benchmarks import backend
from benchmarks.contenders import Contender, Pair, judging
from benchmarks.http_workloads import Calls, Judged, JudgedRequests, Streams
from benchmarks.programs import BenchmarkError, free_ports
from benchmarks.results import PRODUCT, REFERENCE

LOADS: list[Judged] = [
    JudgedRequests(2),
    JudgedRequests(2, body_bytes=10240),
    Streams(4, connections=2),
    Calls(2),
]
# All of them are slow, but for this.
CHECKED = [(PRODUCT, LOADS[-1])]


@contextmanager
def answering(status: int) -> Iterator[Pair]:
    """A server that gives every DELETE the same answer."""

    class Handler(BaseHTTPRequestHandler):
        def do_DELETE(self) -> None:
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield Pair(server.server_port, {})
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("load", "contender"),
    [
        pytest.param(
            *(load, contender),
            id=f"{load.name}-{contender.name}",
            marks=() if (contender.name, load) in CHECKED else pytest.mark.slow,
        )
        for load in LOADS
        for contender in judging(load.rule)
        if contender.name != REFERENCE
    ],
)
def test_the_rule_is_enforced_and_the_load_passes(
    load: Judged, contender: Contender, tmp_path: Path
) -> None:
    if backend.version() is None or contender.version() is None or load.lacking() is not None:
        pytest.skip("not installed: make peers")
    (port,) = free_ports(1)
    folders = [tmp_path / name for name in ("backend", "sidecars", "load")]
    for folder in folders:
        folder.mkdir()
    with (
        backend.start(load.protocol, port, folders[0]),
        contender.start(port, folders[1]) as pair,
    ):
        load.inspect(pair)
        first, *_ = load.measure(pair, 0.5, folders[2])
    assert first.value > 0


def test_a_rule_that_is_enforced_counts() -> None:
    with answering(403) as pair:
        JudgedRequests(1).inspect(pair)


def test_a_rule_that_is_not_enforced_does_not() -> None:
    with (
        answering(200) as pair,
        pytest.raises(BenchmarkError, match="DELETE was answered with 200"),
    ):
        JudgedRequests(1).inspect(pair)


def test_nobody_there_is_no_refusal() -> None:
    with answering(403) as pair:
        pass
    with pytest.raises(BenchmarkError, match="cannot see whether DELETE is refused"):
        JudgedRequests(1).inspect(pair)
