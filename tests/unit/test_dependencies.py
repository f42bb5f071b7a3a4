"""When an app may start, and in which order apps are stopped."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.configuration.model import Condition, Dependency
from meshrun.supervisor.dependencies import (
    Statuses,
    describe,
    judge,
    lives,
    restarted,
    stop_order,
)
from meshrun.supervisor.lifecycle import Phase, Status
from meshrun.supervisor.lifecycle_events import Exit

WAITING = Status(phase=Phase.WAITING)
STARTING = Status(phase=Phase.STARTING, pid=1)
READY = Status(phase=Phase.RUNNING, pid=1, ready=True)
BACKOFF = Status(phase=Phase.BACKOFF, exit=Exit(1))
STOPPED = Status(phase=Phase.STOPPED, exit=Exit(0))
COMPLETED = Status(phase=Phase.COMPLETED, exit=Exit(0))
FAILED = Status(phase=Phase.FAILED, exit=Exit(1), started_at=5.0, reason="exit code 1")

READY_IT_MUST_BE = Dependency(condition="ready")

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
    verdict = judge({"db": Dependency(condition=condition)}, {"db": {"db.1": STATUSES[name]}})
    assert (verdict.met, verdict.hopeless) == (expected == MET, expected == NEVER)


def test_all_instances_must_be_there_and_the_open_ones_are_named() -> None:
    verdict = judge(
        {"db": READY_IT_MUST_BE, "cache": Dependency(condition="started")},
        {"db": {"db.1": READY, "db.2": STARTING}, "cache": {"cache.1": READY}},
    )
    assert not verdict.met
    assert (verdict.waiting_for, verdict.unmet) == (("db to be ready",), ("db.2",))


def test_one_failure_is_more_than_any_wait() -> None:
    verdict = judge(
        {"db": READY_IT_MUST_BE, "job": Dependency(condition="succeeded")},
        {"db": {"db.1": WAITING}, "job": {"job.1": FAILED}},
    )
    assert verdict.hopeless
    assert verdict.waiting_for == ("job will never be succeeded: job.1 failed: exit code 1",)


def test_what_failed_because_of_others_passes_the_first_cause_on() -> None:
    api = Status(phase=Phase.FAILED, reason="db will never be ready: …", cause="db.1 failed: no")
    verdict = judge({"api": READY_IT_MUST_BE}, {"api": {"api.1": api}})
    assert verdict.waiting_for == ("api will never be ready: db.1 failed: no",)
    assert verdict.cause == "db.1 failed: no"


def test_what_never_ran_has_completed_nothing() -> None:
    never = Status(phase=Phase.FAILED, reason="no such command")
    completed = Dependency(condition="completed")
    assert judge({"job": completed}, {"job": {"job.1": never}}).hopeless


def running(started_at: float, *, ready: bool = True) -> Statuses:
    status = Status(phase=Phase.RUNNING, pid=1, ready=ready, started_at=started_at)
    return {"db": {"db.1": status}}


FOLLOWED = {"db": Dependency(on_restart="restart")}


def test_a_restart_is_followed_once_the_dependency_is_back() -> None:
    begun = lives(FOLLOWED, running(1.0))
    assert restarted(FOLLOWED, begun, running(1.0)) is None
    assert restarted(FOLLOWED, begun, {"db": {"db.1": BACKOFF}}) is None
    assert restarted(FOLLOWED, begun, running(2.0, ready=False)) is None
    assert restarted(FOLLOWED, begun, running(2.0)) == "db.1"


def test_a_restart_that_is_to_be_ignored_and_a_new_instance_are_nobody_s_restart() -> None:
    ignored = {"db": Dependency()}
    assert restarted(ignored, lives(ignored, running(1.0)), running(2.0)) is None
    begun = lives(FOLLOWED, running(1.0))
    more = {"db": {**running(1.0)["db"], "db.2": running(5.0)["db"]["db.1"]}}
    assert restarted(FOLLOWED, begun, more) is None


def test_what_began_while_its_dependency_was_away_follows_its_return() -> None:
    begun = lives(FOLLOWED, {"db": {"db.1": Status(phase=Phase.SPAWNING)}})
    assert restarted(FOLLOWED, begun, running(2.0)) == "db.1"


def test_an_instance_that_others_wait_for_is_described() -> None:
    starting = Status(phase=Phase.STARTING, since=7.0, reason="refused")
    assert describe("db.1", starting, 14, 10.2) == "db.1 is starting for 3.2 s: refused (14 tries)"
    assert describe("db.1", STOPPED, 0, 10.0) == "db.1 is stopped"
    ill = Status(phase=Phase.RUNNING, since=1.0, reason="answered 500")
    assert describe("db.1", ill, 1, 2.0) == "db.1 is running and not ready for 1.0 s: answered 500"


def test_what_takes_no_part_in_the_run_is_not_waited_for() -> None:
    assert judge({"db": READY_IT_MUST_BE}, {}).met
    assert judge({"db": READY_IT_MUST_BE}, {"db": {}}).met


def test_dependants_are_stopped_before_what_they_depend_on() -> None:
    layers = stop_order(
        {
            "db": {},
            "api": {"db": READY_IT_MUST_BE},
            "web": {"api": READY_IT_MUST_BE, "db": READY_IT_MUST_BE},
            "cron": {},
        }
    )
    assert layers == [["web", "cron"], ["api"], ["db"]]


NAMES = "abcdefgh"
graphs = st.lists(st.tuples(st.sampled_from(NAMES), st.sampled_from(NAMES)), max_size=20)


@given(edges=graphs)
def test_every_service_has_its_layer_whatever_the_graph(edges: list[tuple[str, str]]) -> None:
    graph: dict[str, dict[str, Dependency]] = {name: {} for name in NAMES}
    for a, b in edges:
        graph[min(a, b)][max(a, b)] = READY_IT_MUST_BE  # no circles: the configuration refuses them
    graph = {name: {d: c for d, c in deps.items() if d != name} for name, deps in graph.items()}
    layers = stop_order(graph)
    assert sorted(name for layer in layers for name in layer) == sorted(NAMES)
    place = {name: number for number, layer in enumerate(layers) for name in layer}
    assert all(place[name] < place[needed] for name in graph for needed in graph[name])


def test_a_circle_is_stopped_too() -> None:
    assert sorted(stop_order({"a": {"b": READY_IT_MUST_BE}, "b": {"a": READY_IT_MUST_BE}})[0]) == [
        "a",
        "b",
    ]
