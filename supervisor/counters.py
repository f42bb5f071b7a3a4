"""What the workers of the sidecars have counted: summed, and kept when one of them ends. Pure.

Prometheus takes a counter that falls for one that began anew, and adds up what it had: right for
one process, wrong for the sum of several. So the last that was known of a worker that has ended
stays in the sum; what it counted after that is lost with it.
"""

from collections.abc import Iterable, Sequence

import msgspec

from meshrun.proxy.messages import (
    Connections,
    Exchanges,
    Stats,
    StatsRequested,
    Verdicts,
)

__all__ = ["Counters", "summed"]

NOTHING = Stats(number=0)


class Counters:
    """The counters of one worker, over all of its lives in this run."""

    def __init__(self) -> None:
        self._past = NOTHING
        self._last = NOTHING
        self._asked = 0
        self._number = 0

    @property
    def waiting(self) -> bool:
        """Whether it was asked and has not answered yet."""
        return self._asked != 0

    def ask(self) -> StatsRequested | None:
        """Return what to ask it, None while it owes an answer already."""
        if self._asked:
            return None
        self._number += 1
        self._asked = self._number
        return StatsRequested(number=self._number)

    def answered(self, stats: Stats) -> None:
        """Take an answer; one to nothing that was asked counts for nothing."""
        if stats.number == self._asked:
            self._asked = 0
            self._last = stats

    def ended(self) -> None:
        """Its process has ended: what it counted stays, what was open is closed."""
        self._past = summed([self._past, _closed(self._last)])
        self._last = NOTHING
        self._asked = 0

    def take_over(self, other: "Counters") -> None:
        """Count from now on also what a worker has counted that is no more."""
        self._past = summed([self._past, other.total()])

    def total(self) -> Stats:
        """Return what is known now."""
        return summed([self._past, self._last])


def _closed(stats: Stats) -> Stats:
    return msgspec.structs.replace(
        stats,
        connections=tuple(msgspec.structs.replace(each, open=0) for each in stats.connections),
    )


def summed(parts: Iterable[Stats]) -> Stats:
    """Add up, series by series; the sum has number 0."""
    exchanges: dict[tuple[str, str, str, int], list[Exchanges]] = {}
    connections: dict[str, list[Connections]] = {}
    verdicts: dict[str, list[Verdicts]] = {}
    lost = 0
    for part in parts:
        lost += part.lost_records
        for e in part.exchanges:
            key = (e.source, e.destination, e.reporter, e.status_class)
            exchanges.setdefault(key, []).append(e)
        for c in part.connections:
            connections.setdefault(c.source, []).append(c)
        for v in part.verdicts:
            verdicts.setdefault(v.source, []).append(v)
    return Stats(
        number=0,
        exchanges=tuple(map(_exchanges, exchanges.values())),
        connections=tuple(map(_connections, connections.values())),
        verdicts=tuple(map(_verdicts, verdicts.values())),
        lost_records=lost,
    )


def _exchanges(same: Sequence[Exchanges]) -> Exchanges:
    return msgspec.structs.replace(
        same[0],
        buckets=tuple(map(sum, zip(*(e.buckets for e in same), strict=True))),
        duration_s=sum(e.duration_s for e in same),
        received_bytes=sum(e.received_bytes for e in same),
        sent_bytes=sum(e.sent_bytes for e in same),
    )


def _connections(same: Sequence[Connections]) -> Connections:
    return msgspec.structs.replace(
        same[0],
        opened=sum(c.opened for c in same),
        open=sum(c.open for c in same),
        received_bytes=sum(c.received_bytes for c in same),
        sent_bytes=sum(c.sent_bytes for c in same),
    )


def _verdicts(same: Sequence[Verdicts]) -> Verdicts:
    return msgspec.structs.replace(
        same[0],
        allowed=sum(v.allowed for v in same),
        denied=sum(v.denied for v in same),
        dry_run_denied=sum(v.dry_run_denied for v in same),
    )
