"""How long to wait before the next try."""

from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.backoff import delay_s


def test_delays_double_up_to_the_longest() -> None:
    assert [delay_s(n, 0.5, 3.0) for n in range(6)] == [0.0, 0.5, 1.0, 2.0, 3.0, 3.0]


@given(st.integers(0, 10**9))
def test_no_number_of_failures_is_too_large(failures: int) -> None:
    assert 0.0 <= delay_s(failures, 0.5, 30.0) <= 30.0
