"""When an app may start, and in which order apps are stopped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.configuration.model import Condition
from meshrun.supervisor.dependencies import judge, stop_order
from meshrun.supervisor.lifecycle import Phase, Status
from meshrun.supervisor.lifecycle_events import Exit

WAITING = Status(phase=Phase.WAITING)
STARTING = Status(phase=Phase.STARTING, pid=1)
READY = Status(phase=Phase.RUNNING, pid=1, ready=True)
BACKOFF = Status(phase=Phase.BACKOFF, exit=Exit(1))
STOPPED = Status(phase=Phase.STOPPED, exit=Exit(0))
COMPLETED = Status(phase=Phase.COMPLETED, exit=Exit(0))
FAILED = Status(phase=Phase.FAILED, exit=Exit(1))

MET, WAIT, NEVER = "met", "wait", "never"
TABLE: dict[Condition, dict[str, str]] = {
    "started": {
        "WAITING": WAIT,
        "STARTING": MET,
        "READY": MET,
        "BACKOFF": WAIT,
        "STOPPED": WAIT,
        "COMPLETED": MET,
        "FAILED": NEVER,
    },
    "ready": {
        "WAITING": WAIT,
        "STARTING": WAIT,
        "READY": MET,
        "BACKOFF": WAIT,
        "STOPPED": WAIT,
        "COMPLETED": MET,
        "FAILED": NEVER,
    },
    "completed": {
        "WAITING": WAIT,
        "STARTING": WAIT,
        "READY": WAIT,
        "BACKOFF": WAIT,
        "STOPPED": WAIT,
        "COMPLETED": MET,
        "FAILED": MET,
    },
    "succeeded": {
        "WAITING": WAIT,
        "STARTING": WAIT,
        "READY": WAIT,
        "BACKOFF": WAIT,
        "STOPPED": WAIT,
        "COMPLETED": MET,
        "FAILED": NEVER,
    },
}
STATUSES = {
    "WAITING": WAITING,
    "STARTING": STARTING,
    "READY": READY,
    "BACKOFF": BACKOFF,
    "STOPPED": STOPPED,
    "COMPLETED": COMPLETED,
    "FAILED": FAILED,
}
CASES = [(c, name, expected) for c, row in TABLE.items() for name, expected in row.items()]


@pytest.mark.parametrize(("condition", "name", "expected"), CASES)
def test_a_condition_is_met_open_or_hopeless(
    condition: Condition, name: str, expected: str
) -> None:
    verdict = judge({"db": condition}, {"db": [STATUSES[name]]})
    assert (verdict.met, verdict.hopeless) == (expected == MET, expected == NEVER)


def test_all_instances_must_be_there_and_the_open_ones_are_named() -> None:
    verdict = judge(
        {"db": "ready", "cache": "started"}, {"db": [READY, STARTING], "cache": [READY]}
    )
    assert not verdict.met
    assert verdict.waiting_for == ("db to be ready",)


def test_one_failure_is_more_than_any_wait() -> None:
    verdict = judge({"db": "ready", "job": "succeeded"}, {"db": [WAITING], "job": [FAILED]})
    assert verdict.hopeless
    assert verdict.waiting_for == ("job has failed, and will not be succeeded",)


def test_what_takes_no_part_in_the_run_is_not_waited_for() -> None:
    assert judge({"db": "ready"}, {}).met
    assert judge({"db": "ready"}, {"db": []}).met


def test_dependants_are_stopped_before_what_they_depend_on() -> None:
    layers = stop_order(
        {"db": {}, "api": {"db": "ready"}, "web": {"api": "ready", "db": "started"}, "cron": {}}
    )
    assert layers == [["web", "cron"], ["api"], ["db"]]


NAMES = "abcdefgh"
graphs = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=20)


@given(edges=graphs)
def test_every_service_has_its_layer_whatever_the_graph(edges: list[tuple[str, str]]) -> None:
    graph: dict[str, dict[str, Condition]] = {name: {} for name in NAMES}
    for a, b in edges:
        graph[min(a, b)][max(a, b)] = "ready"  # no circles: the configuration refuses them
    graph = {name: {d: c for d, c in deps.items() if d != name} for name, deps in graph.items()}
    layers = stop_order(graph)
    assert sorted(name for layer in layers for name in layer) == sorted(NAMES)
    place = {name: number for number, layer in enumerate(layers) for name in layer}
    assert all(place[name] < place[needed] for name in graph for needed in graph[name])


def test_a_circle_is_stopped_too() -> None:
    assert sorted(stop_order({"a": {"b": "ready"}, "b": {"a": "ready"}})[0]) == ["a", "b"]
