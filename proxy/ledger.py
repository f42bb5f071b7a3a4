"""Counts what goes over the sidecar, and tells of each request and connection where that is wanted.

Everything is counted once, where it ends. Whoever may call chooses neither how many series there
are nor what stands in them: a series is of a source that proved its name, a service that was
called, and a class of status.
"""

import asyncio
from bisect import bisect_left
from collections.abc import Callable, Iterable

import msgspec

from meshrun.proxy.messages import (
    LATENCY_BOUNDS_S,
    TOLD_TEXTS,
    Connections,
    Exchanges,
    Record,
    Recorded,
    Reporter,
    Stats,
    Verdicts,
)

__all__ = ["MOST_SOURCES", "OTHER", "Ledger"]

# Certificates of one trust domain may have any names; those beyond are counted as one, whose name
# no certificate can have (SPIFFE-ID 2.2).
MOST_SOURCES = 256
OTHER = "(other)"

BATCH_S = 0.1
BATCH_RECORDS = 256

# What the channel may have waiting: snapshots and denials go the same way.
MOST_BACKLOG_BYTES = 1024 * 1024

# What a caller writes is cut to so many characters in a record, where it is told apart from others.
MOST_PATH = 2048
MOST_TEXT = 256
TEXTS = dict.fromkeys(TOLD_TEXTS, MOST_TEXT) | {"path": MOST_PATH}

_NO_BUCKETS = [0] * (len(LATENCY_BOUNDS_S) + 1)


class _Exchanges:
    """The counters of one series of requests."""

    __slots__ = ("buckets", "duration_s", "received_bytes", "sent_bytes")

    def __init__(self) -> None:
        self.buckets = _NO_BUCKETS.copy()
        self.duration_s = 0.0
        self.received_bytes = 0
        self.sent_bytes = 0


class _Source:
    """The counters of one source: its tcp connections that are over, and how it was decided."""

    __slots__ = (
        "allowed",
        "denied",
        "dry_run_denied",
        "open",
        "opened",
        "received_bytes",
        "sent_bytes",
    )

    def __init__(self) -> None:
        self.opened = self.open = self.received_bytes = self.sent_bytes = 0
        self.allowed = self.denied = self.dry_run_denied = 0


class Ledger:
    """The counters of a worker since its start, and the records that wait to be sent.

    `send` takes what was recorded, `backlog_bytes` says how much of what was sent has not been
    taken yet. While `recording` is true, whoever ends a request or connection hands in a `record`;
    records beyond what the channel takes are dropped and counted, and traffic does not wait.
    """

    def __init__(self, send: Callable[[Recorded], None], backlog_bytes: Callable[[], int]) -> None:
        self.recording = False
        self._send = send
        self._backlog_bytes = backlog_bytes
        self._exchanges: dict[tuple[str, str, int, Reporter], _Exchanges] = {}
        self._sources: dict[str, _Source] = {}
        self._batch: list[Record] = []
        self._lost = 0  # and not told yet
        self._lost_ever = 0
        self._timer: asyncio.TimerHandle | None = None

    # Counting.

    def exchanged(
        self,
        source: str,
        destination: str,
        status: int,
        duration_s: float,
        received_bytes: int,
        sent_bytes: int,
        reporter: Reporter = "destination",
    ) -> None:
        """One HTTP request is over, whether the app or the sidecar answered it.

        `status` is 0 where the caller was gone before there was one. The side of the source counts
        only what it answered itself: all else is counted at the destination.
        """
        counters = self._exchanges.get((source, destination, status // 100, reporter))
        if counters is None:
            counters = self._new_exchanges(source, destination, status // 100, reporter)
        counters.buckets[bisect_left(LATENCY_BOUNDS_S, duration_s)] += 1
        counters.duration_s += duration_s
        counters.received_bytes += received_bytes
        counters.sent_bytes += sent_bytes

    def judged(self, source: str, *, allowed: bool, dry_run: bool = False) -> None:
        """It was decided about one call; `dry_run` says that a rule on trial would have denied."""
        counters = self._sources.get(source) or self._of(source)
        if allowed:
            counters.allowed += 1
        else:
            counters.denied += 1
        if dry_run:
            counters.dry_run_denied += 1

    def connected(self, source: str) -> None:
        """A tcp connection has reached the app."""
        counters = self._sources.get(source) or self._of(source)
        counters.opened += 1
        counters.open += 1

    def disconnected(self, source: str, received_bytes: int, sent_bytes: int) -> None:
        """A tcp connection is over that had been `connected`."""
        counters = self._sources.get(source) or self._of(source)
        counters.open -= 1
        counters.received_bytes += received_bytes
        counters.sent_bytes += sent_bytes

    def stats(self, number: int, live: Iterable[tuple[str, int, int]]) -> Stats:
        """Return all counters; `live` are source, received and sent bytes of open connections."""
        received: dict[_Source, int] = {}
        sent: dict[_Source, int] = {}
        for source, received_bytes, sent_bytes in live:
            counters = self._of(source)
            received[counters] = received.get(counters, 0) + received_bytes
            sent[counters] = sent.get(counters, 0) + sent_bytes
        return Stats(
            number=number,
            exchanges=tuple(
                Exchanges(
                    source=source,
                    destination=destination,
                    reporter=reporter,
                    status_class=status_class,
                    buckets=tuple(each.buckets),
                    duration_s=each.duration_s,
                    received_bytes=each.received_bytes,
                    sent_bytes=each.sent_bytes,
                )
                for (source, destination, status_class, reporter), each in self._exchanges.items()
            ),
            connections=tuple(
                Connections(
                    source=source,
                    opened=each.opened,
                    open=each.open,
                    received_bytes=each.received_bytes + received.get(each, 0),
                    sent_bytes=each.sent_bytes + sent.get(each, 0),
                )
                for source, each in self._sources.items()
                if each.opened
            ),
            verdicts=tuple(
                Verdicts(
                    source=source,
                    allowed=each.allowed,
                    denied=each.denied,
                    dry_run_denied=each.dry_run_denied,
                )
                for source, each in self._sources.items()
                if each.allowed or each.denied
            ),
            lost_records=self._lost_ever,
        )

    def _of(self, source: str) -> _Source:
        counters = self._sources.get(source)
        if counters is None:
            name = source if len(self._sources) < MOST_SOURCES else OTHER
            counters = self._sources.setdefault(name, _Source())
        return counters

    def _new_exchanges(
        self, source: str, destination: str, status_class: int, reporter: Reporter
    ) -> _Exchanges:
        self._of(source)
        name = source if source in self._sources else OTHER
        # A status has three digits; whatever has not shall not be a series of its own.
        status_class = status_class if 0 < status_class < 10 else 0
        return self._exchanges.setdefault((name, destination, status_class, reporter), _Exchanges())

    # Recording.

    def record(self, record: Record) -> None:
        """Tell of a request or connection that is over, if that is wanted."""
        if not self.recording:
            return
        self._batch.append(_bounded(record))
        if len(self._batch) >= BATCH_RECORDS:
            self._flush()
        elif self._timer is None:
            self._start_timer()

    def close(self) -> None:
        """Send what waits, and record nothing more."""
        self.recording = False
        if self._batch or self._lost:
            self._flush()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _start_timer(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(BATCH_S, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._batch or self._lost:
            self._flush()

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if self._backlog_bytes() > MOST_BACKLOG_BYTES:
            self._lost += len(batch)
            self._lost_ever += len(batch)
            # How many is told when the channel takes messages again, also without more traffic.
            if self._timer is None and self.recording:
                self._start_timer()
            return
        lost, self._lost = self._lost, 0
        self._send(Recorded(records=tuple(batch), lost=lost))


def _bounded(record: Record) -> Record:
    # A text may be of a class of its own (`http.fields2.Secret`), which no channel takes.
    unfit = {
        name: text[:most]
        for name, most in TEXTS.items()
        if len(text := getattr(record, name)) > most or type(text) is not str
    }
    return msgspec.structs.replace(record, **unfit) if unfit else record
