"""What the measurements of a suite have given so far, and what is said of them under way."""

import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol, TypeVar

from benchmarks.numbers import shown
from benchmarks.programs import BenchmarkError
from benchmarks.results import Figure, Measurement, Settings

__all__ = ["FAILURES", "Collection", "Figures", "installed", "rotated", "turns", "versions"]

# What fails one measurement. A process that dies under way is an OSError to whoever asks for its
# memory: one failure must not lose what the others did.
FAILURES = (BenchmarkError, OSError, subprocess.SubprocessError)
# Of a measurement's figures, as many as fit in a line.
SHOWN_FIGURES = 5

# What a measurement gives, by workload.
Figures = Mapping[str, Sequence[Figure]]


class Candidate(Protocol):
    """Whatever may take part: a pair of sidecars, a process manager."""

    name: str

    def version(self) -> str | None:
        """Return its version, None where it is not installed."""


Someone = TypeVar("Someone", bound=Candidate)
Item = TypeVar("Item")


class Collection:
    """The figures of one suite; `workloads` and `contenders` are the order of its tables."""

    def __init__(
        self, suite: str, settings: Settings, workloads: Sequence[str], contenders: Sequence[str]
    ) -> None:
        self._suite = suite
        self._settings = settings
        self._order = [(workload, contender) for workload in workloads for contender in contenders]
        # By workload and contender, then by metric.
        self._values: dict[tuple[str, str], dict[str, list[Figure]]] = {}

    def take(
        self,
        workloads: Sequence[str],
        contender: str,
        number: int,
        measure: Callable[[], Figures],
    ) -> None:
        """Measure a contender's round `number`, and keep of it what concerns these workloads."""
        try:
            figures = measure()
        except FAILURES as error:
            self.fail(", ".join(workloads), contender, number, error)
            return
        for workload in workloads:
            self.add(workload, contender, number, figures[workload])

    def add(self, workload: str, contender: str, number: int, figures: Sequence[Figure]) -> None:
        """Keep what a contender's round `number` (the first is 0) gave, and say it."""
        kept = self._values.setdefault((workload, contender), {})
        for figure in figures:
            kept.setdefault(figure.metric, []).append(figure)
        if figures:
            said = "   ".join(map(_shown, figures[:SHOWN_FIGURES]))
            self._settings.say(self._place(workload, contender, number) + said)

    def fail(self, workload: str, contender: str, number: int, error: Exception) -> None:
        """Say and note that a round gave nothing."""
        self._settings.say(f"{self._place(workload, contender, number)}failed: {error}")
        self._settings.note(f"{contender} failed in {workload}, round {number + 1}: {error}")

    def leave_out(self, workload: str, why: str) -> None:
        """Say and note that a workload is not measured at all."""
        said = f"{workload} is left out: {why}"
        self._settings.say(said)
        self._settings.note(said)

    def measurements(self) -> list[Measurement]:
        """Return all that was kept."""
        return [
            Measurement(
                suite=self._suite,
                workload=workload,
                contender=contender,
                metric=metric,
                unit=figures[0].unit,
                better=figures[0].better,
                rounds=tuple(figure.value for figure in figures),
            )
            for workload, contender in self._order
            for metric, figures in self._values.get((workload, contender), {}).items()
        ]

    def _place(self, workload: str, contender: str, number: int) -> str:
        return f"{workload:<16}{number + 1}/{self._settings.rounds}  {contender:<12}"


def installed(candidates: Sequence[Someone], settings: Settings) -> Sequence[Someone]:
    """Return those that are asked for and installed; say and note which are not installed."""
    present: list[Someone] = []
    for candidate in candidates:
        if not settings.wants(candidate.name):
            continue
        if candidate.version() is None:
            settings.say(
                f"{candidate.name} is not installed and left out; `make peers` installs it"
            )
            settings.note(f"{candidate.name} was not installed")
            continue
        present.append(candidate)
    return present


def versions(
    candidates: Sequence[Candidate], others: Mapping[str, str | None] | None = None
) -> dict[str, str]:
    """Return the version of everything that is installed: who takes part, and what it needs."""
    found = {each.name: each.version() for each in candidates} | dict(others or {})
    return {name: version for name, version in found.items() if version is not None}


def turns(items: Sequence[Item], rounds: int) -> Iterator[tuple[int, Item]]:
    """Yield whose turn it is, with the number of the round (the first is 0)."""
    for number in range(rounds):
        for item in rotated(items, number):
            yield number, item


def rotated(items: Sequence[Item], number: int) -> Sequence[Item]:
    """Return the order of a round, so that nobody is always the first or the last."""
    shift = number % max(1, len(items))
    return [*items[shift:], *items[:shift]]


def _shown(figure: Figure) -> str:
    name = "" if figure.unit.startswith(figure.metric) else f"{figure.metric} "
    return f"{name}{shown(figure.value)} {figure.unit}"
