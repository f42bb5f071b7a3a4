"""A bucket that fills with time and merit."""

from meshrun.proxy.http.patience import Patience


def test_burst_is_granted_and_then_the_rate() -> None:
    patience = Patience(10, 2)
    assert [patience.spend(100.0) for _ in range(11)] == [True] * 10 + [False]
    patience = Patience(10, 2)
    for _ in range(10):
        patience.spend(100.0)
    assert [patience.spend(101.0) for _ in range(3)] == [True, True, False]


def test_merit_counts_and_is_not_hoarded() -> None:
    patience = Patience(3, 0)
    patience.earn(100)
    assert [patience.spend(0.0) for _ in range(4)] == [True] * 3 + [False]
    patience = Patience(3, 0)
    assert all(patience.spend(0.0) for _ in range(3))
    patience.earn(2)
    assert [patience.spend(0.0) for _ in range(3)] == [True, True, False]


def test_what_costs_more_is_paid_for_at_once() -> None:
    patience = Patience(10, 2)
    assert patience.spend(0.0, 8)
    assert not patience.spend(0.0, 8)
