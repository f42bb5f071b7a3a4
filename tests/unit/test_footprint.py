"""What the chaos run takes for a leak."""

import dataclasses
from collections.abc import Mapping

import pytest
from support.footprint import Footprint, grown

MIB = 1024 * 1024
BEFORE = Footprint(
    sessions={"web.1": 1, "sidecar web.1": 1},
    strays=1,
    descriptors={"supervisor": {"socket": 30}, "launcher": {"pipe": 2}, "sidecar web.1": {}},
    memory_bytes={"supervisor": 50 * MIB, "launcher": 12 * MIB, "sidecar web.1": 14 * MIB},
    files={"/s/run.json": 900, "/s/state.db": MIB, "/s/logs/web.1.log": 10 * MIB},
    cgroups=frozenset({"app-web.1"}),
)


def found(**changes: object) -> list[str]:
    return [*grown(BEFORE, dataclasses.replace(BEFORE, **changes))]  # type: ignore[arg-type]


def test_the_same_and_less_is_no_leak() -> None:
    assert found() == []
    less = {"supervisor": {"socket": 28, "pipe": 2}, "launcher": {}}
    assert found(strays=0, descriptors=less, cgroups=frozenset(), files={}) == []


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sessions": {"web.1": 2, "sidecar web.1": 1}}, "processes: more {'web.1': 1}, less {}"),
        ({"sessions": {"web.1": 1}}, "processes: more {}, less {'sidecar web.1': 1}"),
        ({"strays": 2}, "processes that the launcher has not started: 1, then 2"),
        (
            {"descriptors": {"launcher": {"pipe": 2, "/a": 1}}},
            "descriptors of launcher: more {'/a': 1}, less {}",
        ),
        (
            {"memory_bytes": {"sidecar web.1": 64 * MIB}},
            "memory of sidecar web.1: 14.0 MiB, then 64.0",
        ),
        ({"cgroups": frozenset({"app-web.1", "app-web.9"})}, "cgroups: ['app-web.9']"),
        ({"files": {"/s/run.json.new": 1}}, "files: ['/s/run.json.new']"),
        ({"files": {"/s/logs/new.1.log": 12 * MIB}}, "/s/logs/new.1.log has 12.0 MiB"),
        ({"files": {"/s/state.db": 17 * MIB}}, "/s/state.db has 17.0 MiB"),
    ],
)
def test_what_there_is_more_of_is_said(changes: Mapping[str, object], said: str) -> None:
    assert found(**changes) == [said]
