"""Who may call whom: the model, the precedence, and the decision.

Semantics are Consul's: exactly one intention decides, the one of highest precedence; where none
matches, the default does (Consul docs, "Intentions: precedence and match order"). One with
permissions is about HTTP requests: the first permission that a request fits decides about it, and
where none does, the default, never the intention of the next lower precedence.
"""

import typing
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec

from meshrun.proxy.http.heads import folded
from meshrun.proxy.permissions import Action, Asked, Fields, HeaderMatch, Matcher, Permission

__all__ = [
    "WILDCARD",
    "Action",
    "Asked",
    "Decision",
    "HeaderMatch",
    "Intention",
    "Permission",
    "Protocol",
    "Rules",
    "decide",
    "layered",
    "ordered",
    "precedence",
]

Protocol = typing.Literal["tcp", "http", "http2", "grpc"]

WILDCARD = "*"


class Intention(msgspec.Struct, frozen=True, kw_only=True):
    """Whether `source` may call `destination`; each is a service name or `*`.

    With `permissions` it is they that say so, in their order, and `action` is "deny": that is what
    whoever knows no requests makes of it, as Consul's authorize endpoint does. `dry_run` lets
    through, and reports, whatever the intention would deny.

    `where` is the place that a reader would change: `mesh.toml:12`, or `runtime`.
    `created_at` is wall-clock seconds since the epoch, 0 for an intention of the file.
    """

    source: str
    destination: str
    action: Action
    permissions: tuple[Permission, ...] = ()
    dry_run: bool = False
    id: str = ""
    origin: typing.Literal["file", "runtime"] = "file"
    where: str = ""
    description: str = ""
    meta: dict[str, str] = {}
    created_at: float = 0.0

    @property
    def pair(self) -> tuple[str, str]:
        """Source and destination: what makes an intention unique within its layer."""
        return self.source, self.destination

    @property
    def effect(self) -> str:
        """What it does, in a word or two: `allow`, `2 permissions`, `deny, dry run`."""
        count = len(self.permissions)
        plural = "" if count == 1 else "s"
        effect = f"{count} permission{plural}" if count else self.action
        return f"{effect}, dry run" if self.dry_run else effect

    def __str__(self) -> str:
        return f"{self.source} => {self.destination} ({self.effect})"

    @property
    def reference(self) -> str:
        """It and its place, as a reason names it: `intention web => db (allow), mesh.toml:12`."""
        return f"intention {self}, {self.where}" if self.where else f"intention {self}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What was decided, by which intention (None: by the default), and that in words.

    `allowed` says whether the call is let through. With `dry_run` it is though it would have been
    denied, which is to be reported. `permission` is the number, from 1, of the one that decided.
    Nothing that a caller chose is in `reason`.
    """

    allowed: bool
    intention: Intention | None
    reason: str
    permission: int | None = None
    dry_run: bool = False


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


class _Rule:
    """One intention about calls to one service, with every decision that it can make."""

    __slots__ = ("_otherwise", "_permissions", "_unasked", "names")

    def __init__(
        self, intention: Intention, destination: str, default: Action, protocol: Protocol
    ) -> None:
        self._permissions: tuple[tuple[Matcher, Decision], ...] = ()
        # Of the headers that are looked at; a rule on trial changes nothing.
        self.names = frozenset(
            folded(header.name)
            for permission in intention.permissions
            for header in permission.headers
            if not intention.dry_run
        )
        if not intention.permissions:
            self._otherwise = self._unasked = _decision(intention, intention.action)
            return
        if protocol == "tcp":
            why = (
                f": permissions are about HTTP requests, and {destination} is a tcp service: denied"
            )
            self._otherwise = self._unasked = _decision(intention, "deny", why)
            return
        self._permissions = tuple(
            (Matcher(permission), _permitted(intention, number, permission.action))
            for number, permission in enumerate(intention.permissions, start=1)
        )
        self._otherwise = _decision(
            intention, default, f": no permission matches; the default is {default}"
        )
        why = ": permissions are about HTTP requests, and no request was named: denied"
        self._unasked = _decision(intention, "deny", why)

    def decide(self, request: Asked | None) -> Decision:
        if request is None:
            return self._unasked
        if self._permissions:
            fields = Fields(request)
            for matcher, decision in self._permissions:
                if matcher.matches(request, fields):
                    return decision
        return self._otherwise


def _decision(
    intention: Intention, action: Action, why: str = "", permission: int | None = None
) -> Decision:
    only_said = intention.dry_run and action == "deny"
    return Decision(
        allowed=action == "allow" or only_said,
        intention=intention,
        reason=f"{intention.reference}{why}",
        permission=permission,
        dry_run=only_said,
    )


def _permitted(intention: Intention, number: int, action: Action) -> Decision:
    verb = "allows" if action == "allow" else "denies"
    return _decision(intention, action, f": permission {number} {verb}", number)


class Rules:
    """The intentions about calls to one service of `protocol`, ready to decide about each request.

    To decide takes as long with ten thousand intentions as with one. What an intention says is
    compiled when it decides for the first time: most of many never do.
    """

    def __init__(
        self,
        intentions: Iterable[Intention],
        destination: str,
        default: Action,
        protocol: Protocol,
    ) -> None:
        self._destination = destination
        self._default = default
        self._protocol = protocol
        self._exact: dict[str, Intention] = {}
        self._wide: dict[str, Intention] = {}
        self._compiled: dict[int, _Rule] = {}
        for intention in intentions:
            if intention.destination == destination:
                self._exact.setdefault(intention.source, intention)
            elif intention.destination == WILDCARD:
                self._wide.setdefault(intention.source, intention)

    def decide(self, source: str, request: Asked | None = None) -> Decision:
        """Decide whether `source` may make `request`; without one, whether it may do all it likes.

        Without a request an intention with permissions denies, as in Consul.
        """
        intention = self._deciding(source)
        if intention is None:
            return Decision(
                allowed=self._default == "allow",
                intention=None,
                reason=f"no intention matches {source} => {self._destination}; "
                f"the default is {self._default}",
            )
        rule = self._compiled.get(id(intention)) or self._compile(intention)
        return rule.decide(request)

    def looks_at(self, source: str, name: str) -> bool:
        """Tell whether a header of this name may decide about requests of `source`.

        Also one that some apps take for it.
        """
        intention = self._deciding(source)
        if intention is None:
            return False
        rule = self._compiled.get(id(intention)) or self._compile(intention)
        return folded(name) in rule.names

    def _deciding(self, source: str) -> Intention | None:
        return (
            self._exact.get(source)
            or self._exact.get(WILDCARD)
            or self._wide.get(source)
            or self._wide.get(WILDCARD)
        )

    def _compile(self, intention: Intention) -> _Rule:
        rule = _Rule(intention, self._destination, self._default, self._protocol)
        self._compiled[id(intention)] = rule
        return rule


def decide(
    intentions: Sequence[Intention],
    source: str,
    destination: str,
    default: Action,
    request: Asked | None = None,
    *,
    protocol: Protocol = "tcp",
) -> Decision:
    """Decide once what `Rules` decide again and again; `protocol` is that of `destination`."""
    return Rules(intentions, destination, default, protocol).decide(source, request)
