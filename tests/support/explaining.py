"""Whether each call that failed had a reason to: what the timeline says against what callers say.

Pure. A call may fail where an event of its source's sidecar or of its destination overlaps it, or
an intention that denies it; never for what a mesh does in order (restarts, reloads, rotations). And
it must fail, where it is denied all the time.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import msgspec

from meshrun.supervisor.cli.records import Event

__all__ = [
    "Call",
    "Denial",
    "Trouble",
    "Unrotated",
    "complaints",
    "service",
    "troubles",
]

# An event is written once somebody has looked: a moment after a call has noticed it.
NOTICED_S = 1.0
# How long callers may still feel what is over: all sidecars must have heard of it.
SPREAD_S = 1.0
# Denials are summed up and told a second later, or when who tells them is no longer stopped.
SUMMED_S = 6.0

# From the first of these until one of the others an instance is not what its callers may rely on.
ILL = ("exited", "killing", "not-alive", "not-ready", "not-drained", "stopping", "backoff")
WELL = ("ready", "stopped", "completed")
# Of these an app dies only where meshrun stops it, in order.
IN_ORDER = "signal INT"


class Call(msgspec.Struct, frozen=True, kw_only=True):
    """What an instance says of one of its calls (`tests/apps/steady.py`); wall-clock seconds."""

    source: str
    to: str
    kind: str
    began: float
    ended: float
    failure: str

    @property
    def pair(self) -> tuple[str, str]:
        """The services that it was between."""
        return service(self.source), self.to

    @property
    def denied(self) -> bool:
        """Whether it was told that it is denied."""
        return "status 403" in self.failure

    @property
    def wrong(self) -> bool:
        """Whether it got what belongs to somebody else."""
        return self.failure.startswith("WrongAnswerError")

    def __str__(self) -> str:
        what = self.failure or "went well"
        return (
            f"{self.began:.3f} to {self.ended:.3f} {self.source} => {self.to} {self.kind}: {what}"
        )


@dataclass(frozen=True, slots=True)
class Trouble:
    """A time in which something was wrong with an instance, or with its sidecar alone."""

    instance: str
    began: float
    ended: float
    what: str
    sidecar: bool = False

    def explains(self, call: Call) -> bool:
        """Whether a call may have failed for it."""
        mine = self.sidecar and self.instance == call.source
        theirs = service(self.instance) == call.to
        return (mine or theirs) and self.began <= call.ended and call.began <= self.ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Denial:
    """An intention that denied a pair: asked for, in force, taken back, gone; wall-clock seconds.

    One that is in the file from the beginning to the end has no bounds.
    """

    pair: tuple[str, str]
    asked: float = -math.inf
    in_force: float = -math.inf
    taken_back: float = math.inf
    gone: float = math.inf

    def explains(self, call: Call) -> bool:
        """Whether a call may have been denied."""
        overlaps = self.asked <= call.ended and call.began <= self.gone
        return call.pair == self.pair and overlaps

    def forbids(self, call: Call) -> bool:
        """Whether a call must have been denied."""
        within = self.in_force < call.began and call.ended < self.taken_back
        return call.pair == self.pair and within


@dataclass(frozen=True, slots=True)
class Unrotated:
    """A sidecar that had no new leaf in the time that it was asked for one."""

    instance: str
    asked: float
    given_up: float


def service(instance: str) -> str:
    """Return the service of an instance."""
    return instance.rpartition(".")[0]


def troubles(events: Iterable[Event]) -> list[Trouble]:
    """Return what was wrong with instances and with sidecars, by the events of a run, in order."""
    apps: dict[str, Event] = {}
    sidecars: dict[str, list[Event]] = {}
    found = []
    for event in events:
        name = event.subject
        if event.kind in ILL and not event.message.endswith(IN_ORDER):
            apps.setdefault(name, event)
        elif event.kind in WELL and name in apps:
            found.append(_trouble(apps.pop(name), event.at))
        elif event.kind == "sidecar-exited":
            sidecars.setdefault(name, []).append(event)
        elif event.kind == "sidecar-started" and sidecars.get(name):
            found.append(_trouble(sidecars[name].pop(0), event.at, sidecar=True))
    found += (_trouble(event, math.inf) for event in apps.values())
    found += (
        _trouble(event, math.inf, sidecar=True) for each in sidecars.values() for event in each
    )
    return found


def _trouble(event: Event, ended: float, *, sidecar: bool = False) -> Trouble:
    began = event.at - NOTICED_S
    return Trouble(event.subject, began, ended + SPREAD_S, event.message, sidecar)


def complaints(
    calls: Iterable[Call],
    events: Sequence[Event],
    denials: Sequence[Denial],
    unrotated: Iterable[Unrotated] = (),
) -> Iterator[str]:
    """Yield what is wrong with calls, denials that nobody asked for, rotations that did not come.

    A sidecar may have no new leaf where it was not there for some of the time.
    """
    known = troubles(events)
    callers = set()
    for call in calls:
        callers.add(call.pair[0])
        if call.wrong:
            yield f"a wrong answer: {call}"
        elif not call.failure:
            if any(denial.forbids(call) for denial in denials):
                yield f"not denied: {call}"
        elif not any(denial.explains(call) for denial in denials):
            if call.denied:
                yield f"denied for no reason: {call}"
            elif not any(trouble.explains(call) for trouble in known):
                yield f"failed for no reason: {call}"
    # Others are known by an address: whoever is killed in a handshake leaves that behind.
    said = [event for event in events if event.kind == "denied" and event.source in callers]
    yield from _denied_for_nothing(said, denials)
    for late in unrotated:
        if not any(
            trouble.sidecar
            and trouble.instance == late.instance
            and trouble.began <= late.given_up
            and late.asked <= trouble.ended
            for trouble in known
        ):
            yield f"not rotated for no reason: {late}"


def _denied_for_nothing(said: Iterable[Event], denials: Sequence[Denial]) -> Iterator[str]:
    for event in said:
        if not any(
            denial.pair == (event.source, event.destination)
            and denial.asked <= event.at <= denial.gone + SUMMED_S
            for denial in denials
        ):
            yield f"nobody asked for that: {event.at:.3f} {event.message}"
