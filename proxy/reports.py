"""Tells the control plane what was refused and what failed, without letting a flood through."""

import asyncio
from collections.abc import Callable, Iterator

import msgspec

from meshrun.proxy.messages import ConnectionFailed, Denied

__all__ = ["Report", "Reporter", "Summary"]

Report = Denied | ConnectionFailed

PERIOD_S = 1.0

# More kinds than this within one period are an attack, told apart no further.
MOST_KINDS = 256


class Summary:
    """Counts reports that are alike within one period. Pure.

    Denials that differ in their example of a request only are alike: the first one's is told.
    """

    def __init__(self) -> None:
        # By what they have in common: the first of them, and how many came after it.
        self._counts: dict[Report, tuple[Report, int]] = {}

    def __bool__(self) -> bool:
        return bool(self._counts)

    def add(self, report: Report) -> Report | None:
        """Return `report` if it is the first of its kind in this period, else count it."""
        kind = _kind(report)
        if kind not in self._counts and len(self._counts) >= MOST_KINDS:
            kind = report = _coarser(report)
        if kind not in self._counts:
            self._counts[kind] = report, 0
            return report
        first, count = self._counts[kind]
        self._counts[kind] = first, count + 1
        return None

    def turn(self) -> Iterator[Report]:
        """End the period: yield what was counted beyond the first, as sums."""
        counts, self._counts = self._counts, {}
        for kind, (first, count) in counts.items():
            if count:
                # Goes on in the next period: its next one is not news.
                self._counts[kind] = first, 0
                yield msgspec.structs.replace(first, count=count)


class Reporter:
    """Sends a report of a new kind at once and the sums of others each second, on the loop."""

    def __init__(self, send: Callable[[Report], None]) -> None:
        self._send = send
        self._summary = Summary()
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None

    def report(self, report: Report) -> None:
        """Send `report` or count it."""
        news = self._summary.add(report)
        if news is not None:
            self._send(news)
        if self._timer is None:
            self._timer = self._loop.call_later(PERIOD_S, self._turn)

    def close(self) -> None:
        """Stop; what is only counted is lost."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _turn(self) -> None:
        self._timer = None
        for summed in self._summary.turn():
            self._send(summed)
        if self._summary:
            self._timer = self._loop.call_later(PERIOD_S, self._turn)


def _kind(report: Report) -> Report:
    if isinstance(report, Denied) and report.request:
        return msgspec.structs.replace(report, request="")
    return report


def _coarser(report: Report) -> Report:
    if isinstance(report, Denied):
        return Denied(
            kind=report.kind,
            source="others",
            reason="too many kinds to tell apart",
            dry_run=report.dry_run,
        )
    return ConnectionFailed(upstream=report.upstream, reason="too many kinds to tell apart")
