"""The table of one direction of a connection."""

import pytest

from meshrun.proxy.flow import READS, TRANSITIONS, WATCHES, Event, Flow, after


def test_an_ordinary_life() -> None:
    flow = Flow.FLOWING
    seen = []
    for event in (Event.SINK_FULL, Event.SINK_DRAINED, Event.SINK_FULL, Event.SOURCE_ENDED):
        flow = after(flow, event)
        seen.append(flow)
    assert seen == [Flow.HELD, Flow.FLOWING, Flow.HELD, Flow.ENDING]
    assert after(flow, Event.SINK_DRAINED) is Flow.ENDED


def test_nothing_leaves_the_end() -> None:
    assert not [pair for pair in TRANSITIONS if pair[0] is Flow.ENDED]


def test_what_is_left_over_is_always_watched_and_never_added_to() -> None:
    assert {flow for flow, event in TRANSITIONS if event is Event.SINK_DRAINED} == WATCHES
    assert {flow for flow, event in TRANSITIONS if event is Event.SINK_FULL} == READS
    assert not READS & WATCHES


def test_what_cannot_happen_is_a_bug_and_loud() -> None:
    with pytest.raises(KeyError):
        after(Flow.ENDED, Event.SOURCE_ENDED)
