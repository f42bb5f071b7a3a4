"""The pairs that the HTTP suite compares: what the rule allows passes, and nothing else."""

from pathlib import Path

import pytest
from benchmarks import backend
from benchmarks.contenders import Contender, judging
from benchmarks.http_workloads import Calls, Judged, JudgedRequests, Streams
from benchmarks.programs import free_ports
from benchmarks.results import REFERENCE

LOADS: list[Judged] = [
    JudgedRequests(2),
    JudgedRequests(2, body_bytes=10240),
    Streams(4, connections=2),
    Calls(2),
]


@pytest.mark.parametrize(
    ("load", "contender"),
    [
        pytest.param(load, contender, id=f"{load.name}-{contender.name}")
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
