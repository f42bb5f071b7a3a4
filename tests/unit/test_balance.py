"""Which endpoint gets the next connection."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.balance import TCP_EJECTION, Balancer
from meshrun.proxy.messages import Endpoint

FAILURES_TO_EJECT = TCP_EJECTION.failures
LONGEST_EJECTION_S = TCP_EJECTION.longest_s


def endpoints(count: int) -> list[Endpoint]:
    return [
        Endpoint(instance=f"web.{n}", host="127.0.0.1", port=21000 + n) for n in range(1, count + 1)
    ]


def balancer(count: int) -> Balancer:
    made = Balancer()
    made.update(endpoints(count))
    return made


def eject(target: Balancer, endpoint: Endpoint, now: float) -> None:
    assert [target.failed(endpoint, now) for _ in range(FAILURES_TO_EJECT)][-1]


def test_without_endpoints_there_is_none_to_pick() -> None:
    assert Balancer().pick(0.0, Random(1)) is None


def test_the_one_with_fewer_in_flight_of_two_is_picked() -> None:
    one, two = endpoints(2)
    target = balancer(2)
    target.opened(one)
    assert {target.pick(0.0, Random(seed)) for seed in range(20)} == {two}
    target.closed(one)
    target.opened(two)
    assert {target.pick(0.0, Random(seed)) for seed in range(20)} == {one}


@given(st.integers(2, 10), st.integers(0, 2**32))
def test_open_connections_spread_evenly(count: int, seed: int) -> None:
    target, rng = balancer(count), Random(seed)
    taken = dict.fromkeys(endpoints(count), 0)
    for _ in range(50 * count):
        endpoint = target.pick(0.0, rng)
        assert endpoint is not None
        target.opened(endpoint)
        taken[endpoint] += 1
    # Two choices keep the longest queue within log log n of the mean; one choice would not.
    assert max(taken.values()) - min(taken.values()) <= 12


@given(st.integers(0, 5), st.sets(st.integers(0, 4)), st.integers(0, 2**32))
def test_what_was_tried_is_not_picked_again(count: int, tried: set[int], seed: int) -> None:
    all_of_them = endpoints(count)
    excluded = {all_of_them[i] for i in tried if i < count}
    picked = balancer(count).pick(0.0, Random(seed), excluded)
    assert (picked is None) == (len(excluded) == count)
    assert picked not in excluded


def test_failures_in_a_row_eject_until_a_time_that_grows() -> None:
    one, two = endpoints(2)
    target = balancer(2)
    eject(target, one, now=100.0)
    assert {target.pick(100.9, Random(seed)) for seed in range(20)} == {two}
    assert {target.pick(101.0, Random(seed)) for seed in range(20)} == {one, two}
    eject(target, one, now=101.0)
    assert {target.pick(102.9, Random(seed)) for seed in range(20)} == {two}
    for _ in range(20):
        eject(target, one, now=200.0)
    assert target.pick(200.0 + LONGEST_EJECTION_S, Random(1), {two}) == one
    assert {target.pick(200.0 + LONGEST_EJECTION_S, Random(seed)) for seed in range(20)} == {
        one,
        two,
    }


def test_a_success_ends_the_row() -> None:
    one, _ = endpoints(2)
    target = balancer(2)
    for _ in range(10 * FAILURES_TO_EJECT):
        assert not [target.failed(one, 0.0) for _ in range(FAILURES_TO_EJECT - 1)][-1]
        target.succeeded(one)


def test_the_last_one_is_never_refused() -> None:
    one, two = endpoints(2)
    target = balancer(2)
    eject(target, one, now=0.0)
    assert target.pick(0.0, Random(1), {two}) == one
    eject(target, two, now=0.0)
    assert target.pick(0.0, Random(1)) is not None


def test_what_is_known_of_those_that_stay_is_kept() -> None:
    one, two, three = endpoints(3)
    target = balancer(2)
    target.opened(one)
    target.update([one, three])
    assert {target.pick(0.0, Random(seed)) for seed in range(20)} == {three}
    assert len(target) == 2
    # It left: nothing is counted for it any more.
    target.closed(two)
    target.opened(two)
    assert not target.failed(two, 0.0)
