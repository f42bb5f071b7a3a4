"""The loads of the HTTP suite: what they send, and what they read."""

import asyncio
from pathlib import Path

import pytest
from benchmarks import grpc_load, http_workloads
from benchmarks.contenders import Pair
from benchmarks.http_workloads import Calls, JudgedRequests, Streams
from benchmarks.programs import BenchmarkError
from benchmarks.rule import Rule

PAIR = Pair(22000, {})

# As h2load 1.52 ends.
H2LOAD = """\
finished in 2.00s, 18301.50 req/s, 2.93MB/s
requests: 36603 total, 36605 started, 36603 done, 36601 succeeded, 2 failed, 1 errored, 0 timeout
status codes: 36601 2xx, 0 3xx, 2 4xx, 0 5xx
time for request:       30us     20.69ms      1.69ms      2.06ms    87.54%
"""


def test_each_load_needs_one_rule() -> None:
    assert JudgedRequests(32).rule == Rule("http", "GET")
    assert JudgedRequests(32, 10).rule == Rule("http", "POST")
    assert Streams(32, connections=4).rule == Rule("http2", "GET")
    assert Calls(32).rule == Rule("grpc", "POST")


def test_wrk_is_told_what_to_send() -> None:
    command = JudgedRequests(32, 10240)._command(PAIR, 5)
    assert command[-4:] == ["http://127.0.0.1:22000/", "--", "POST", "10240"]
    assert {"-c32", "-d5s"} < set(map(str, command))


def test_streams_are_spread_over_the_connections() -> None:
    command = Streams(32, connections=4)._command(PAIR, 1.5, Path("/t"))
    assert {"-c4", "-m8", "1500ms", "--log-file=/t"} < set(map(str, command))


def test_h2load_is_read_with_its_failures() -> None:
    assert list(http_workloads._counts(H2LOAD)) == [36601, 2, 1, 0]
    with pytest.raises(BenchmarkError, match="cannot read what h2load measured: nothing"):
        http_workloads._counts("nothing")


def test_calls_follow_each_other_so_many_at_a_time() -> None:
    under_way = most = 0

    async def call() -> bytes:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0)
        under_way -= 1
        return grpc_load.MESSAGE

    latencies_s, took_s = asyncio.run(grpc_load.generate(call, 3, 0.01))
    assert most == 3
    assert len(latencies_s) > 3
    assert took_s >= 0.01
    assert all(0 <= latency_s <= took_s for latency_s in latencies_s)


def test_another_answer_ends_the_load() -> None:
    async def call() -> bytes:
        return b"something else"

    with pytest.raises(ConnectionError, match="not what was sent"):
        asyncio.run(grpc_load.generate(call, 1, 1.0))
