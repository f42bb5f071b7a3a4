"""Which requests are sent again, after how long, and how many at the same time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.http.exchange import Failure
from meshrun.proxy.http.retries import Budget, back_off_s, may_retry

REPEATABLE = ("GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE")
OTHERS = ("POST", "PATCH", "LINK", "get")


@pytest.mark.parametrize("method", [*REPEATABLE, *OTHERS])
def test_what_has_reached_nobody_is_sent_again_whatever_it_is(method: str) -> None:
    assert may_retry(method, Failure.UNSENT, body_sent=False)


@pytest.mark.parametrize("method", [*REPEATABLE, *OTHERS])
def test_what_got_no_answer_is_sent_again_only_if_twice_is_the_same_as_once(method: str) -> None:
    assert may_retry(method, Failure.SILENT, body_sent=False) == (method in REPEATABLE)


@pytest.mark.parametrize("method", [*REPEATABLE, *OTHERS])
def test_what_was_answered_in_part_is_never_sent_again(method: str) -> None:
    assert not may_retry(method, Failure.BROKEN, body_sent=False)


@pytest.mark.parametrize("failure", Failure)
def test_what_has_lost_its_body_is_never_sent_again(failure: Failure) -> None:
    assert not may_retry("PUT", failure, body_sent=True)


@pytest.mark.parametrize("method", [*REPEATABLE, *OTHERS])
@pytest.mark.parametrize("failure", Failure)
def test_what_has_kept_its_body_is_sent_again_if_it_has_reached_nobody(
    failure: Failure, method: str
) -> None:
    again = may_retry(method, failure, body_sent=True, body_kept=True)
    assert again is (failure is Failure.UNSENT)


@pytest.mark.parametrize(
    ("attempt", "longest_s"), [(1, 0.025), (2, 0.05), (3, 0.1), (4, 0.2), (5, 0.25), (10, 0.25)]
)
def test_the_wait_before_a_retry_is_anything_up_to_a_bound_that_grows(
    attempt: int, longest_s: float
) -> None:
    assert back_off_s(attempt, 0.0) == 0.0
    assert back_off_s(attempt, 0.5) == pytest.approx(longest_s / 2)
    assert back_off_s(attempt, 1.0) == pytest.approx(longest_s)


@pytest.mark.parametrize(
    ("in_flight", "allowed"), [(0, 3), (1, 3), (15, 3), (19, 3), (20, 4), (1000, 200)]
)
def test_retries_are_a_fifth_of_the_requests_or_three(in_flight: int, allowed: int) -> None:
    budget = Budget()
    assert [budget.take(in_flight) for _ in range(allowed + 2)] == [*[True] * allowed, False, False]
    budget.give_back()
    assert budget.take(in_flight)
    assert not budget.take(in_flight)


@given(st.lists(st.one_of(st.none(), st.integers(0, 100)), max_size=200))
def test_a_budget_is_never_overdrawn(steps: list[int | None]) -> None:
    budget, taken = Budget(), 0
    for in_flight in steps:
        if in_flight is None:
            if taken:
                budget.give_back()
                taken -= 1
        else:
            most = max(3, in_flight // 5)
            assert budget.take(in_flight) == (taken < most)
            taken += taken < most
