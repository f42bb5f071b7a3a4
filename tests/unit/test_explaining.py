"""What explains a failed call in the chaos run, and what does not."""

import math

import pytest
from support.explaining import (
    NOTICED_S,
    SPREAD_S,
    Call,
    Denial,
    Unrotated,
    complaints,
    troubles,
)

from meshrun.supervisor.cli.records import Event

RESET = "ConnectionResetError(104, 'Connection reset by peer')"
FORBIDDEN = "NoAnswerError(\"status 403 b'Forbidden'\")"


def call(failure: str = RESET, *, at: float = 100.0, source: str = "web.1", to: str = "db") -> Call:
    return Call(source=source, to=to, kind="ask", began=at, ended=at + 0.1, failure=failure)


def event(at: float, kind: str, subject: str, message: str = "ended: signal KILL") -> Event:
    return Event(at=at, kind=kind, subject=subject, message=f"{subject} {message}")


def complained(one: Call, *events: Event, denials: tuple[Denial, ...] = ()) -> list[str]:
    return [said.partition(":")[0] for said in complaints([one], events, denials)]


def test_a_call_that_went_well_needs_no_reason() -> None:
    assert complained(call("")) == []


def test_a_call_that_failed_needs_one() -> None:
    assert complained(call()) == ["failed for no reason"]


@pytest.mark.parametrize(
    ("kind", "subject", "explains"),
    [
        ("exited", "db.1", True),
        ("exited", "db.2", True),
        ("exited", "web.1", False),
        ("exited", "web.2", False),
        ("exited", "other.1", False),
        ("sidecar-exited", "db.2", True),
        ("sidecar-exited", "web.1", True),
        ("sidecar-exited", "web.2", False),
        ("not-ready", "db.1", True),
        ("rotated", "db.1", False),
        ("reloaded", "mesh", False),
        ("connection-failed", "web.1", False),
    ],
)
def test_trouble_of_the_destination_and_of_the_own_sidecar_explains(
    kind: str, subject: str, explains: bool
) -> None:
    assert (complained(call(), event(100.0, kind, subject)) == []) is explains


def test_what_meshrun_stops_in_order_explains_nothing() -> None:
    stopped = event(100.0, "exited", "db.1", "ended: signal INT")
    assert complained(call(), stopped) == ["failed for no reason"]
    cut = event(99.0, "not-drained", "db.1", "still has calls")
    assert complained(call(), cut, stopped) == []


def test_trouble_begins_a_moment_before_it_is_noticed_and_ends_once_all_have_heard_of_it() -> None:
    down, back = event(101.0, "exited", "db.1"), event(103.0, "ready", "db.1", "is ready")
    again = event(104.0, "exited", "db.2")
    (first, second) = troubles([down, back, again])
    assert (first.began, first.ended) == (101.0 - NOTICED_S, 103.0 + SPREAD_S)
    assert second.ended == math.inf
    for at, explains in ((99.8, False), (99.95, True), (103.9, True), (104.1, False)):
        assert (complained(call(at=at), down, back) == []) is explains


def test_each_worker_of_a_sidecar_is_back_for_itself() -> None:
    both = [event(at, "sidecar-exited", "db.1") for at in (1.0, 2.0)]
    (first, second) = troubles([*both, event(3.0, "sidecar-started", "db.1")])
    assert (first.ended, second.ended) == (3.0 + SPREAD_S, math.inf)


def test_a_denial_explains_what_overlaps_it_and_forbids_what_lies_within() -> None:
    denial = Denial(pair=("web", "db"), asked=98, in_force=99, taken_back=101, gone=102)
    for failure in (RESET, FORBIDDEN):
        for at in (97.95, 100.0, 101.9):
            assert complained(call(failure, at=at), denials=(denial,)) == []
    assert complained(call(FORBIDDEN, at=97.8), denials=(denial,)) == ["denied for no reason"]
    assert complained(call(FORBIDDEN, source="job.1"), denials=(denial,)) == [
        "denied for no reason"
    ]
    assert complained(call(""), denials=(denial,)) == ["not denied"]
    assert complained(call("", at=98.95), denials=(denial,)) == []
    assert complained(call("", at=100.95), denials=(denial,)) == []


def test_no_trouble_explains_a_denial() -> None:
    assert complained(call(FORBIDDEN), event(100.0, "exited", "db.1")) == ["denied for no reason"]


def test_nothing_explains_a_wrong_answer() -> None:
    wrong = call("WrongAnswerError('b in place of a')")
    assert complained(wrong, event(100.0, "exited", "db.1")) == ["a wrong answer"]


def test_a_denial_in_the_timeline_must_have_been_asked_for() -> None:
    said = Event(at=100, kind="denied", subject="db", message="", source="web", destination="db")
    assert complained(call(""), said) == ["nobody asked for that"]
    asked = Denial(pair=("web", "db"), asked=99, in_force=100.5, taken_back=101, gone=102)
    assert complained(call("", at=100.3), said, denials=(asked,)) == []


def test_a_sidecar_that_was_there_all_the_time_must_have_been_rotated() -> None:
    late = [Unrotated("db.1", 100.0, 130.0)]
    (said,) = complaints([], [event(90.0, "sidecar-exited", "db.2")], [], late)
    assert said.startswith("not rotated for no reason")
    assert not [*complaints([], [event(90.0, "sidecar-exited", "db.1")], [], late)]
