"""How many requests may be under way, wait, and be sent again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.http.circuit import Circuit
from meshrun.proxy.messages import Requests


def circuit(*, most_in_flight: int = 1024, most_pending: int = 1024) -> Circuit:
    made = Circuit()
    made.limits = Requests(most_in_flight=most_in_flight, most_pending=most_pending)
    return made


@pytest.mark.parametrize("most", [0, 1, 5])
def test_no_more_requests_than_allowed_are_under_way(most: int) -> None:
    target = circuit(most_in_flight=most)
    assert [target.take() for _ in range(most + 1)] == [*[True] * most, False]
    if most:
        target.give_back()
        assert [target.take(), target.take()] == [True, False]


@pytest.mark.parametrize("most", [0, 1, 5])
def test_no_more_requests_than_allowed_wait(most: int) -> None:
    target = circuit(most_pending=most)
    assert [target.take_pending() for _ in range(most + 1)] == [*[True] * most, False]
    if most:
        target.give_back_pending()
        assert [target.take_pending(), target.take_pending()] == [True, False]


def test_a_limit_that_was_lowered_holds_for_those_that_come() -> None:
    target = circuit(most_in_flight=3)
    assert [target.take() for _ in range(3)] == [True] * 3
    target.limits = Requests(most_in_flight=1)
    target.give_back()
    target.give_back()
    assert not target.take()
    target.give_back()
    assert target.take()


def test_the_budget_of_retries_grows_with_what_is_under_way() -> None:
    target = circuit()
    for _ in range(50):
        assert target.take()
    assert [target.take_retry() for _ in range(11)] == [*[True] * 10, False]
    target.give_back_retry()
    assert target.take_retry()


@given(st.lists(st.booleans(), max_size=200), st.integers(0, 10))
def test_what_is_counted_is_what_was_taken_and_not_given_back(steps: list[bool], most: int) -> None:
    target, taken = circuit(most_in_flight=most), 0
    for takes in steps:
        if takes:
            assert target.take() == (taken < most)
            taken = min(taken + 1, most)
        elif taken:
            target.give_back()
            taken -= 1
        assert target.in_flight == taken
