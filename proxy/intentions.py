"""Who may call whom: the model, the precedence, and the decision.

Semantics are Consul's: exactly one intention decides, the one of highest precedence; where none
matches, the default does (Consul docs, "Intentions: precedence and match order").
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec

__all__ = [
    "WILDCARD",
    "Action",
    "Decision",
    "Intention",
    "decide",
    "layered",
    "ordered",
    "precedence",
]

Action = Literal["allow", "deny"]

WILDCARD = "*"


class Intention(msgspec.Struct, frozen=True, kw_only=True):
    """Whether `source` may call `destination`; each is a service name or `*`.

    `where` is the place that a reader would change: `mesh.toml:12`, or `runtime`.
    `created_at` is wall-clock seconds since the epoch, 0 for an intention of the file.
    """

    source: str
    destination: str
    action: Action
    id: str = ""
    origin: Literal["file", "runtime"] = "file"
    where: str = ""
    description: str = ""
    meta: dict[str, str] = {}
    created_at: float = 0.0

    @property
    def pair(self) -> tuple[str, str]:
        """Source and destination: what makes an intention unique within its layer."""
        return self.source, self.destination

    def __str__(self) -> str:
        return f"{self.source} => {self.destination} ({self.action})"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, by which intention (None: by the default), and that in words."""

    allowed: bool
    intention: Intention | None
    reason: str


def precedence(intention: Intention) -> int:
    """Return 9, 8, 6 or 5: exactness of the destination outranks that of the source."""
    highest = 6 if intention.destination == WILDCARD else 9
    return highest - 1 if intention.source == WILDCARD else highest


def ordered(intentions: Iterable[Intention]) -> list[Intention]:
    """Sort into evaluation order; ties, which cannot change an outcome, by name."""
    return sorted(intentions, key=lambda i: (-precedence(i), i.source, i.destination))


def layered(base: Iterable[Intention], over: Iterable[Intention]) -> list[Intention]:
    """Lay the runtime intentions over the file's: a pair that stands in both is the runtime's."""
    return ordered({i.pair: i for layer in (base, over) for i in layer}.values())


def decide(
    intentions: Sequence[Intention], source: str, destination: str, default: Action
) -> Decision:
    """Decide whether `source` may open a connection to `destination`."""
    matching = [
        i
        for i in intentions
        if i.source in (source, WILDCARD) and i.destination in (destination, WILDCARD)
    ]
    if not matching:
        return Decision(
            allowed=default == "allow",
            intention=None,
            reason=f"no intention matches {source} => {destination}; the default is {default}",
        )
    deciding = max(matching, key=precedence)
    where = f", {deciding.where}" if deciding.where else ""
    return Decision(
        allowed=deciding.action == "allow",
        intention=deciding,
        reason=f"intention {deciding}{where}",
    )
