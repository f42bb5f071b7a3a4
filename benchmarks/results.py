"""What a run of the benchmarks measured, and what follows from it: pure, and kept as JSON."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Literal

import msgspec

__all__ = [
    "PRODUCT",
    "REFERENCE",
    "Aims",
    "Comparison",
    "Figure",
    "Machine",
    "Measurement",
    "Run",
    "Settings",
    "compare",
    "decode",
    "encode",
    "unique",
]

# The contender that the others are compared with.
PRODUCT = "meshrun"
# No contender: what the load and the backend do with nothing between them.
REFERENCE = "direct"

Better = Literal["higher", "lower"]
# What the product is to reach, by workload and metric, in the unit of the metric.
Aims = Mapping[tuple[str, str], float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a suite is asked to measure; None means everything that it has.

    `seconds` is how long one measurement loads its contender. `say` takes a line of progress,
    `note` what a reader of the results must know: what was left out, what failed.
    """

    rounds: int
    seconds: float
    quick: bool
    contenders: frozenset[str] | None
    say: Callable[[str], None]
    only: frozenset[str] | None = None
    note: Callable[[str], None] = field(default=lambda text: None)

    def wants(self, contender: str) -> bool:
        """Tell whether a contender is to be measured."""
        return self.contenders is None or contender in self.contenders


@dataclass(frozen=True, slots=True)
class Figure:
    """One value that a measurement gave."""

    metric: str
    unit: str
    better: Better
    value: float


class Measurement(msgspec.Struct, frozen=True, kw_only=True):
    """One figure of one contender under one workload, a value a round."""

    suite: str
    workload: str
    contender: str
    metric: str
    unit: str
    better: Better
    rounds: tuple[float, ...]

    @property
    def median(self) -> float:
        """The middle of the rounds."""
        return median(self.rounds)

    @property
    def lowest(self) -> float:
        """The smallest of the rounds."""
        return min(self.rounds)

    @property
    def highest(self) -> float:
        """The largest of the rounds."""
        return max(self.rounds)


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """What the figures were measured on."""

    cpu: str
    cores: int
    memory_bytes: int
    kernel: str
    system: str
    python: str
    openssl: str


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """One run of one suite: everything needed to write its tables, and to doubt them.

    `at` is UTC in ISO 8601. `notes` say what was left out or went wrong.
    """

    suite: str
    at: str
    meshrun: str
    machine: Machine
    versions: dict[str, str]
    rounds: int
    seconds: float
    measurements: list[Measurement]
    notes: list[str] = []


@dataclass(frozen=True, slots=True)
class Comparison:
    """How the product stands to a peer: `ratio` is over 1 where it is better, whatever is better.

    `apart` tells that every round of one is better than every round of the other.
    """

    ratio: float
    apart: bool


def compare(ours: Measurement, theirs: Measurement) -> Comparison | None:
    """Compare the medians; None where both are zero, or they are not of the same thing.

    Against zero the ratio is infinite or zero.
    """
    if (ours.workload, ours.metric, ours.unit) != (theirs.workload, theirs.metric, theirs.unit):
        return None
    better, worse = ours.median, theirs.median
    if ours.better == "lower":
        better, worse = worse, better
    if not better and not worse:
        return None
    return Comparison(
        ratio=better / worse if worse else math.inf,
        apart=ours.lowest > theirs.highest or ours.highest < theirs.lowest,
    )


def unique(names: Iterable[str]) -> Sequence[str]:
    """Return each name once, in the order in which they came first."""
    return tuple(dict.fromkeys(names))


def encode(run: Run) -> bytes:
    """Write a run as JSON for people and programs."""
    return msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n"


def decode(data: bytes) -> Run:
    """Read a run; raises msgspec.DecodeError or ValidationError for anything else."""
    return msgspec.json.decode(data, type=Run)
