"""Which endpoint gets the next connection."""

from random import Random

from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.balance import TCP_EJECTION, Balancer, InFlight
from meshrun.proxy.messages import Ejection, Endpoint

FAILURES_TO_EJECT = TCP_EJECTION.failures
LONGEST_EJECTION_S = TCP_EJECTION.longest_s


def endpoints(count: int) -> list[Endpoint]:
    return [
        Endpoint(instance=f"web.{n}", host="127.0.0.1", port=21000 + n) for n in range(1, count + 1)
    ]


def balancer(count: int) -> Balancer:
    made = Balancer(TCP_EJECTION)
    made.update(endpoints(count))
    return made


def eject(target: Balancer, endpoint: Endpoint, now: float) -> None:
    assert [target.failed(endpoint, now) for _ in range(TCP_EJECTION.failures)][-1]


def test_without_endpoints_there_is_none_to_pick() -> None:
    assert Balancer(TCP_EJECTION).pick(0.0, Random(1)) is None


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
    assert target.pick(200.0 + TCP_EJECTION.longest_s, Random(1), {two}) == one
    assert {target.pick(200.0 + TCP_EJECTION.longest_s, Random(seed)) for seed in range(20)} == {
        one,
        two,
    }


def test_a_success_ends_the_row() -> None:
    one, _ = endpoints(2)
    target = balancer(2)
    for _ in range(10 * TCP_EJECTION.failures):
        assert not [target.failed(one, 0.0) for _ in range(TCP_EJECTION.failures - 1)][-1]
        target.succeeded(one)


def test_the_last_one_is_never_refused() -> None:
    one, two = endpoints(2)
    target = balancer(2)
    eject(target, one, now=0.0)
    assert target.pick(0.0, Random(1), {two}) == one
    eject(target, two, now=0.0)
    assert target.pick(0.0, Random(1)) is not None


def test_the_rule_says_how_many_failures_eject_and_for_how_long() -> None:
    one, two = endpoints(2)
    target = Balancer(Ejection(failures=2, first_s=30.0, longest_s=45.0))
    target.update([one, two])
    for ejected_s in (30.0, 45.0, 45.0):
        assert [target.failed(one, 0.0) for _ in range(2)] == [False, True]
        assert {target.pick(ejected_s - 0.1, Random(seed)) for seed in range(20)} == {two}
        assert {target.pick(ejected_s, Random(seed)) for seed in range(20)} == {one, two}


def test_a_rule_of_no_failures_ejects_nobody() -> None:
    one, two = endpoints(2)
    target = Balancer(Ejection(failures=0))
    target.update([one, two])
    assert not any(target.failed(one, 0.0) for _ in range(1000))
    assert {target.pick(0.0, Random(seed)) for seed in range(20)} == {one, two}


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


def test_an_endpoint_that_comes_back_has_what_is_still_under_way_there() -> None:
    one, two = endpoints(2)
    target = balancer(2)
    eject(target, one, now=0.0)
    for _ in range(3):
        target.opened(one)
    target.update([two])
    target.closed(one)
    target.update([one, two])
    assert target.standing(one).in_flight == 2
    # What it did before is forgotten.
    target.opened(two)
    assert {target.pick(0.0, Random(seed), {two}) for seed in range(20)} == {one}
    target.closed(one)
    target.closed(one)
    assert {target.pick(0.0, Random(seed)) for seed in range(20)} == {one}


def test_with_one_healthy_among_many_that_one_is_picked() -> None:
    one, *others = endpoints(5)
    target = balancer(5)
    for other in others:
        eject(target, other, now=0.0)
    assert {target.pick(0.0, Random(seed)) for seed in range(50)} == {one}


WAYS = 3
STEPS = st.lists(
    st.tuples(
        st.sampled_from(["begin", "end", "move", "nowhere", "update"]),
        st.integers(0, WAYS - 1),
        st.integers(0, 7),
    ),
    max_size=100,
)


@given(STEPS)
def test_what_goes_one_way_is_counted_where_it_leads_and_nowhere_else(
    steps: list[tuple[str, int, int]],
) -> None:
    places = endpoints(3)
    target = balancer(3)
    ways = [InFlight() for _ in range(WAYS)]
    at: list[Endpoint | None] = [None] * WAYS
    counts = [0] * WAYS
    ready = set(places)
    for step, way, choice in steps:
        if step == "begin":
            ways[way].began()
            counts[way] += 1
        elif step == "end" and counts[way]:
            ways[way].ended()
            counts[way] -= 1
        elif step == "move" and places[choice % 3] in ready:
            at[way] = places[choice % 3]
            ways[way].move(target.standing(places[choice % 3]))
        elif step == "nowhere":
            at[way] = None
            ways[way].move(None)
        elif step == "update":
            ready = {place for n, place in enumerate(places) if choice >> n & 1}
            target.update(sorted(ready, key=lambda each: each.port))
            for n, place in enumerate(at):
                if place not in ready and not counts[n]:
                    at[n] = None  # nobody asks any more what is known of it
                    ways[n].move(None)
        for place in places:
            expected = sum(counts[n] for n in range(WAYS) if at[n] == place)
            assert target.standing(place).in_flight == expected
