"""What a sidecar counts and tells of each request: exact, bounded, and never in the way."""

import asyncio
import time
from bisect import bisect_left
from collections.abc import Awaitable, Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy import channel, ledger
from meshrun.proxy.http.fields2 import Secret
from meshrun.proxy.ledger import MOST_SOURCES, OTHER, TEXTS, Ledger
from meshrun.proxy.messages import (
    LATENCY_BOUNDS_S,
    Connections,
    Exchanges,
    Record,
    Recorded,
    Stats,
    Verdicts,
)
from meshrun.supervisor.bell import Bell


class Wire:
    """A ledger, what it sent, and how full its channel is."""

    def __init__(self) -> None:
        self.sent: list[Recorded] = []
        self.backlog_bytes = 0
        self.ledger = Ledger(self._send, lambda: self.backlog_bytes)
        self.ledger.recording = True
        self._bell = Bell()

    def _send(self, message: Recorded) -> None:
        self.sent.append(message)
        self._bell.ring()

    async def sends(self, messages: int) -> None:
        """Wait until so many have been sent."""
        assert await self._bell.until(lambda: len(self.sent) >= messages, 20)

    @property
    def records(self) -> list[Record]:
        return [record for message in self.sent for record in message.records]

    @property
    def lost(self) -> int:
        return sum(message.lost for message in self.sent)


RECORD = Record(
    at=1.0,
    kind="request",
    source="web",
    identity="spiffe://shop.mesh/ns/default/dc/local/svc/web",
    destination="api",
    duration_s=0.001,
)


def record(**changes: str | int) -> Record:
    return msgspec.structs.replace(RECORD, **changes)


def on_a_loop(test: Callable[[Wire], Awaitable[None]]) -> None:
    async def run() -> None:
        await test(Wire())

    asyncio.run(run())


def stats(of: Ledger) -> Stats:
    return of.stats(1, ())


Requests = st.lists(
    st.tuples(
        st.sampled_from(["web", "api"]),
        st.integers(0, 999),
        st.floats(0, 100),
        st.integers(0, 1 << 40),
        st.integers(0, 1 << 40),
    ),
    max_size=50,
)


@given(requests=Requests)
def test_every_request_is_in_one_series_and_one_bucket(
    requests: list[tuple[str, int, float, int, int]],
) -> None:
    counted = Wire().ledger
    for source, status, duration_s, received, sent in requests:
        counted.exchanged(source, "db", status, duration_s, received, sent)
    found = {(e.source, e.status_class): e for e in stats(counted).exchanges}
    assert set(found) == {(source, status // 100) for source, status, *_ in requests}
    for (source, status_class), e in found.items():
        same = [r for r in requests if (r[0], r[1] // 100) == (source, status_class)]
        buckets = [0] * (len(LATENCY_BOUNDS_S) + 1)
        for _, _, duration_s, _, _ in same:
            buckets[bisect_left([*LATENCY_BOUNDS_S, float("inf")], duration_s)] += 1
        assert list(e.buckets) == buckets
        assert e.duration_s == pytest.approx(sum(r[2] for r in same))
        assert e.received_bytes == sum(r[3] for r in same)
        assert e.sent_bytes == sum(r[4] for r in same)
        assert (e.destination, e.reporter) == ("db", "destination")


def test_a_latency_that_is_a_bound_is_within_it() -> None:
    counted = Wire().ledger
    for bound in LATENCY_BOUNDS_S:
        counted.exchanged("web", "db", 200, bound, 0, 0)
    counted.exchanged("web", "db", 200, LATENCY_BOUNDS_S[-1] + 0.1, 0, 0)
    (series,) = stats(counted).exchanges
    assert series.buckets == (1,) * (len(LATENCY_BOUNDS_S) + 1)


def test_what_the_source_answered_itself_is_a_series_of_its_own() -> None:
    counted = Wire().ledger
    counted.exchanged("web", "web", 503, 0.1, 1, 2)
    counted.exchanged("web", "web", 503, 0.1, 1, 2, "source")
    assert {e.reporter for e in stats(counted).exchanges} == {"source", "destination"}
    assert {sum(e.buckets) for e in stats(counted).exchanges} == {1}


@pytest.mark.parametrize("status", [0, 99, 1000, 99999, -1])
def test_a_status_that_is_none_has_no_class(status: int) -> None:
    counted = Wire().ledger
    counted.exchanged("web", "db", status, 0.1, 0, 0)
    counted.exchanged("web", "db", status, 0.1, 0, 0)
    (series,) = stats(counted).exchanges
    assert (series.status_class, sum(series.buckets)) == (0, 2)


def test_decisions_and_connections_are_counted_by_source() -> None:
    counted = Wire().ledger
    counted.judged("web", allowed=True)
    counted.judged("web", allowed=True, dry_run=True)
    counted.judged("spy", allowed=False)
    for _ in range(3):
        counted.connected("web")
    counted.disconnected("web", 10, 20)
    found = counted.stats(7, [("web", 1, 2), ("web", 3, 4)])
    assert found.number == 7
    assert found.verdicts == (
        Verdicts(source="web", allowed=2, denied=0, dry_run_denied=1),
        Verdicts(source="spy", allowed=0, denied=1, dry_run_denied=0),
    )
    assert found.connections == (
        Connections(source="web", opened=3, open=2, received_bytes=14, sent_bytes=26),
    )


def test_asking_changes_nothing() -> None:
    counted = Wire().ledger
    counted.connected("web")
    live = [("web", 5, 6)]
    assert counted.stats(1, live) == counted.stats(1, live)


def test_callers_of_many_names_do_not_make_many_series() -> None:
    counted = Wire().ledger
    strangers = [f"s{number}" for number in range(2 * MOST_SOURCES)]
    for name in strangers:
        counted.judged(name, allowed=False)
        counted.exchanged(name, "db", 403, 0.001, 0, 9)
        counted.connected(name)
        counted.disconnected(name, 1, 2)
    found = stats(counted)
    series: list[tuple[Exchanges | Connections | Verdicts, ...]] = [
        found.exchanges,
        found.connections,
        found.verdicts,
    ]
    for each in series:
        assert {part.source for part in each} == {*strangers[:MOST_SOURCES], OTHER}
    assert sum(v.denied for v in found.verdicts) == len(strangers)
    assert sum(sum(e.buckets) for e in found.exchanges) == len(strangers)
    assert sum(c.received_bytes for c in found.connections) == len(strangers)
    assert [c.open for c in found.connections] == [0] * (MOST_SOURCES + 1)
    # The most that there can be fits into a message.
    channel.encode(found)


def test_nothing_is_recorded_that_nobody_asked_for() -> None:
    wire = Wire()
    wire.ledger.recording = False
    wire.ledger.record(record())
    wire.ledger.close()
    assert not wire.sent


def test_what_a_caller_wrote_is_cut() -> None:
    async def test(wire: Wire) -> None:
        long = "x" * 10_000
        wire.ledger.record(record(path=long, user_agent=long, method=long, authority="a" * 256))
        wire.ledger.close()
        (told,) = wire.records
        assert len(told.path) == 2048
        assert len(told.user_agent) == len(told.method) == len(told.authority) == 256

    on_a_loop(test)


def test_a_text_of_a_class_of_its_own_goes_over_the_channel() -> None:
    async def test(wire: Wire) -> None:
        told = record()
        for name in TEXTS:
            told = msgspec.structs.replace(told, **{name: Secret("x")})
        wire.ledger.record(told)
        wire.ledger.close()
        (message,) = wire.sent
        (decoded,) = channel.from_sidecar().feed(channel.encode(message))
        assert decoded == message

    on_a_loop(test)


def test_records_go_in_batches_and_wait_no_longer_than_a_moment() -> None:
    async def test(wire: Wire) -> None:
        began = asyncio.get_running_loop().time()
        for number in range(ledger.BATCH_RECORDS + 1):
            wire.ledger.record(record(status=number))
        assert len(wire.sent) == 1, "a full batch goes at once"
        await wire.sends(2)
        assert asyncio.get_running_loop().time() - began >= ledger.BATCH_S
        assert [r.status for r in wire.records] == list(range(ledger.BATCH_RECORDS + 1))
        assert not wire.lost

    on_a_loop(test)


def test_a_channel_that_is_full_loses_records_and_says_so_when_it_is_not() -> None:
    async def test(wire: Wire) -> None:
        wire.backlog_bytes = ledger.MOST_BACKLOG_BYTES + 1
        for _ in range(ledger.BATCH_RECORDS * 3):
            wire.ledger.record(record())
        wire.ledger.record(record(path="/waits"))
        assert not wire.sent
        wire.backlog_bytes = 0
        # Also where nothing more is recorded.
        await wire.sends(1)
        assert (len(wire.records), wire.lost) == (1, ledger.BATCH_RECORDS * 3)
        assert stats(wire.ledger).lost_records == wire.lost
        wire.ledger.record(record())
        wire.ledger.close()
        assert wire.lost == ledger.BATCH_RECORDS * 3, "said once"

    on_a_loop(test)


def test_nothing_wakes_up_when_everything_has_been_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def test(wire: Wire) -> None:
        loop = asyncio.get_running_loop()
        wire.ledger.record(record())
        await wire.sends(1)
        timers: list[float] = []
        call_later = loop.call_later

        def noting(delay: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
            timers.append(delay)
            return call_later(delay, callback)

        monkeypatch.setattr(loop, "call_later", noting)
        wire.ledger.exchanged("web", "db", 200, 0.1, 0, 0)
        await asyncio.sleep(0)
        assert not timers

    on_a_loop(test)


def test_at_the_end_what_waits_is_sent() -> None:
    async def test(wire: Wire) -> None:
        wire.ledger.record(record())
        wire.ledger.close()
        assert len(wire.records) == 1
        wire.ledger.record(record())
        wire.ledger.close()
        assert len(wire.records) == 1

    on_a_loop(test)


def test_the_messages_survive_the_channel() -> None:
    counted = Wire().ledger
    counted.exchanged("web", "db", 200, 0.1, 1, 2)
    counted.connected("web")
    counted.judged("web", allowed=True)
    decoder = channel.from_sidecar()
    told = Recorded(records=(record(path="/\u00e4\x9b"),), lost=3)
    assert decoder.feed(channel.encode(told)) == [told]
    assert decoder.feed(channel.encode(stats(counted))) == [stats(counted)]
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(told), type=Recorded) == told


def test_counting_a_request_costs_next_to_nothing() -> None:
    counted = Wire().ledger
    counted.exchanged("web", "db", 200, 0.1, 1, 2)
    best_s = float("inf")
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(1000):
            counted.exchanged("web", "db", 200, 0.1, 1, 2)
        best_s = min(best_s, (time.perf_counter() - began) / 1000)
    # A third of that where it was written; ten times more would be another algorithm.
    assert best_s < 3e-6
