"""When an app may start: what `depends_on` asks for against where its dependencies are."""

import enum
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from meshrun.supervisor.configuration.model import Condition
from meshrun.supervisor.lifecycle import Phase, Status

__all__ = ["Verdict", "expected_to_complete", "judge", "stop_order"]


class Outlook(enum.Enum):
    """What is to be expected of a dependency."""

    MET = enum.auto()
    WAIT = enum.auto()
    NEVER = enum.auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to start, wait or give up, and why; `waiting_for` names each open dependency."""

    outlook: Outlook
    waiting_for: tuple[str, ...] = ()

    @property
    def met(self) -> bool:
        """Whether the app may start."""
        return self.outlook is Outlook.MET

    @property
    def hopeless(self) -> bool:
        """Whether it never will."""
        return self.outlook is Outlook.NEVER


def _outlook(condition: Condition, status: Status) -> Outlook:
    ended = status.phase in (Phase.COMPLETED, Phase.FAILED)
    succeeded = status.phase is Phase.COMPLETED
    failed = status.phase is Phase.FAILED
    if condition == "completed":
        return Outlook.MET if ended else Outlook.WAIT
    if condition == "succeeded":
        met = succeeded and status.exit is not None and status.exit.ok
    elif condition == "started":
        met = status.pid is not None or succeeded
    else:  # what has completed its work was ready for it
        met = status.ready or succeeded
    if met:
        return Outlook.MET
    return Outlook.NEVER if failed else Outlook.WAIT


def judge(depends_on: Mapping[str, Condition], statuses: Mapping[str, Sequence[Status]]) -> Verdict:
    """Judge all dependencies of an app; `statuses` are those of each service's instances.

    A service that does not take part in the run (`--no-deps`) is not waited for.
    """
    open_: list[str] = []
    failed: list[str] = []
    for service, condition in depends_on.items():
        outlooks = [_outlook(condition, status) for status in statuses.get(service, ())]
        if Outlook.NEVER in outlooks:
            failed.append(f"{service} has failed, and will not be {condition}")
        elif Outlook.WAIT in outlooks:
            open_.append(f"{service} to be {condition}")
    if failed:
        return Verdict(Outlook.NEVER, tuple(failed))
    return Verdict(Outlook.WAIT, tuple(open_)) if open_ else Verdict(Outlook.MET)


def expected_to_complete(depends_on: Iterable[Mapping[str, Condition]]) -> frozenset[str]:
    """Return the services of which another one waits for the end: migrations, and the like."""
    return frozenset(
        service
        for conditions in depends_on
        for service, condition in conditions.items()
        if condition in ("completed", "succeeded")
    )


def stop_order(depends_on: Mapping[str, Mapping[str, Condition]]) -> list[list[str]]:
    """Return the services in layers: everything that depends on one stands in an earlier layer."""
    left = dict(depends_on)
    layers: list[list[str]] = []
    while left:
        needed = {dependency for name in left for dependency in left[name] if dependency in left}
        # A circle cannot get here (the configuration refuses it); should one, it goes as a layer.
        layer = [name for name in left if name not in needed] or list(left)
        layers.append(layer)
        for name in layer:
            del left[name]
    return layers
