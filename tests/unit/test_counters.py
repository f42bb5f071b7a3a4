"""Sums over workers and over their lives: what was counted once stays counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.messages import LATENCY_BOUNDS_S, Connections, Exchanges, Stats, Verdicts
from meshrun.supervisor.counters import Counters, summed

COUNT = st.integers(0, 1 << 50)
SOURCE = st.sampled_from(["web", "api", "(other)"])
EXCHANGES = st.builds(
    Exchanges,
    source=SOURCE,
    destination=st.sampled_from(["db", "api"]),
    reporter=st.sampled_from(["source", "destination"]),
    status_class=st.integers(0, 9),
    buckets=st.tuples(*[COUNT] * (len(LATENCY_BOUNDS_S) + 1)),
    duration_s=st.integers(0, 1000).map(float),
    received_bytes=COUNT,
    sent_bytes=COUNT,
)
CONNECTIONS = st.builds(
    Connections, source=SOURCE, opened=COUNT, open=COUNT, received_bytes=COUNT, sent_bytes=COUNT
)
VERDICTS = st.builds(Verdicts, source=SOURCE, allowed=COUNT, denied=COUNT, dry_run_denied=COUNT)
STATS = st.builds(
    Stats,
    number=st.just(0),
    exchanges=st.lists(EXCHANGES, max_size=4).map(tuple),
    connections=st.lists(CONNECTIONS, max_size=3).map(tuple),
    verdicts=st.lists(VERDICTS, max_size=3).map(tuple),
    lost_records=COUNT,
)


def figures(stats: Stats) -> dict[str, float]:
    """Every figure summed over all series."""
    found: dict[str, float] = {"lost": stats.lost_records}
    for e in stats.exchanges:
        for name, value in {
            **{f"bucket {number}": count for number, count in enumerate(e.buckets)},
            "duration": e.duration_s,
            "received": e.received_bytes,
            "sent": e.sent_bytes,
        }.items():
            found[name] = found.get(name, 0) + value
    for part in (*stats.connections, *stats.verdicts):
        for name in part.__struct_fields__:
            if name != "source":
                key = f"{type(part).__name__} {name}"
                found[key] = found.get(key, 0) + getattr(part, name)
    return found


@given(parts=st.lists(STATS, max_size=4))
def test_a_sum_has_each_series_once_and_loses_nothing(parts: list[Stats]) -> None:
    total = summed(parts)
    keys = [(e.source, e.destination, e.reporter, e.status_class) for e in total.exchanges]
    assert len(keys) == len(set(keys))
    assert len(total.connections) == len({c.source for c in total.connections})
    assert len(total.verdicts) == len({v.source for v in total.verdicts})
    expected: dict[str, float] = {"lost": 0}
    for part in parts:
        for name, value in figures(part).items():
            expected[name] = expected.get(name, 0) + value
    assert figures(total) == expected


@given(first=STATS, second=STATS)
def test_what_a_worker_counted_in_an_earlier_life_stays(first: Stats, second: Stats) -> None:
    worker = Counters()
    answer(worker, first)
    before = figures(worker.total())
    worker.ended()
    after = figures(worker.total())
    assert {**after, "Connections open": 0} == {**before, "Connections open": 0}
    assert after.get("Connections open", 0) == 0, "nothing is open at a dead one"
    answer(worker, second)
    grown = figures(worker.total())
    assert all(grown[name] >= value for name, value in after.items())


def answer(worker: Counters, stats: Stats) -> None:
    question = worker.ask()
    assert question is not None
    worker.answered(numbered(stats, question.number))


def numbered(stats: Stats, number: int) -> Stats:
    return Stats(
        number=number,
        exchanges=stats.exchanges,
        connections=stats.connections,
        verdicts=stats.verdicts,
        lost_records=stats.lost_records,
    )


def test_a_worker_is_asked_once_and_answers_only_what_it_was_asked() -> None:
    worker = Counters()
    question = worker.ask()
    assert question is not None
    assert worker.waiting
    assert worker.ask() is None
    worker.answered(Stats(number=question.number + 1, lost_records=9))
    assert worker.waiting
    worker.answered(Stats(number=question.number, lost_records=1))
    worker.answered(Stats(number=question.number, lost_records=9))
    assert worker.ask() is not None, "it owes nothing any more"
    assert worker.total().lost_records == 1


def test_a_worker_that_has_ended_owes_no_answer() -> None:
    worker = Counters()
    worker.ask()
    worker.ended()
    assert not worker.waiting
    question = worker.ask()
    assert question is not None
    assert question.number == 2, "a late answer of the dead one is none of the next"


def test_a_counter_of_a_worker_replaces_what_it_said_before() -> None:
    worker = Counters()
    for lost in (1, 2, 5):
        answer(worker, Stats(number=0, lost_records=lost))
    assert worker.total().lost_records == 5


@given(first=STATS, second=STATS)
def test_what_a_worker_counted_that_is_no_more_another_one_goes_on_with(
    first: Stats, second: Stats
) -> None:
    kept, gone = Counters(), Counters()
    answer(kept, first)
    answer(gone, second)
    gone.ended()
    before = [figures(kept.total()), figures(gone.total())]
    kept.take_over(gone)
    after = figures(kept.total())
    for name, value in after.items():
        assert value == pytest.approx(sum(each.get(name, 0) for each in before))
