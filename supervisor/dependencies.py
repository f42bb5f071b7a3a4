"""When an app may start: what `depends_on` asks for against where its dependencies are."""

import enum
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from meshrun.supervisor.configuration.model import Condition, Dependency
from meshrun.supervisor.lifecycle import Phase, Status

__all__ = [
    "Lives",
    "Statuses",
    "Verdict",
    "describe",
    "expected_to_complete",
    "judge",
    "lives",
    "restarted",
    "stop_order",
    "tried",
]

# The instances of an app's dependencies, by service, each as it was.
Statuses = Mapping[str, Mapping[str, Status]]


class Outlook(enum.Enum):
    """What is to be expected of a dependency."""

    MET = enum.auto()
    WAIT = enum.auto()
    NEVER = enum.auto()


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether to start, wait or give up, and why.

    `waiting_for` has a sentence for each service that is not where it must be, `unmet` its
    instances that are not. `cause` is what failed first of a chain of dependencies that fail.
    """

    outlook: Outlook
    waiting_for: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()
    cause: str = ""

    @property
    def met(self) -> bool:
        """Whether the app may start."""
        return self.outlook is Outlook.MET

    @property
    def hopeless(self) -> bool:
        """Whether it never will."""
        return self.outlook is Outlook.NEVER


def _outlook(condition: Condition, status: Status) -> Outlook:
    succeeded = status.phase is Phase.COMPLETED
    failed = status.phase is Phase.FAILED
    if condition == "completed":
        # It must have run: what failed because it could not even be started has completed nothing.
        met = succeeded or (failed and status.started_at is not None)
    elif condition == "succeeded":
        met = succeeded and status.exit is not None and status.exit.ok
    elif condition == "started":
        met = status.pid is not None or succeeded
    else:  # what has completed its work was ready for it
        met = status.ready or succeeded
    if met:
        return Outlook.MET
    return Outlook.NEVER if failed else Outlook.WAIT


def judge(depends_on: Mapping[str, Dependency], statuses: Statuses) -> Verdict:
    """Judge all dependencies of an app.

    A service that does not take part in the run (`--no-deps`) is not waited for.
    """
    open_: dict[str, list[str]] = {}
    failed: list[str] = []
    causes: list[str] = []
    for service, dependency in depends_on.items():
        condition = dependency.condition
        outlooks = {
            name: _outlook(condition, status) for name, status in statuses.get(service, {}).items()
        }
        never = [name for name, outlook in outlooks.items() if outlook is Outlook.NEVER]
        waits = [name for name, outlook in outlooks.items() if outlook is Outlook.WAIT]
        if never:
            cause = _first_cause(never[0], statuses[service][never[0]])
            causes.append(cause)
            failed.append(f"{service} will never be {condition}: {cause}")
        elif waits:
            open_[f"{service} to be {condition}"] = waits
    if failed:
        return Verdict(Outlook.NEVER, tuple(failed), cause=causes[0])
    if not open_:
        return Verdict(Outlook.MET)
    unmet = tuple(name for names in open_.values() for name in names)
    return Verdict(Outlook.WAIT, tuple(open_), unmet)


def expected_to_complete(depends_on: Iterable[Mapping[str, Dependency]]) -> frozenset[str]:
    """Return the services of which another one waits for the end: migrations, and the like."""
    return frozenset(
        service
        for dependencies in depends_on
        for service, dependency in dependencies.items()
        if dependency.condition in ("completed", "succeeded")
    )


def _first_cause(name: str, status: Status) -> str:
    return status.cause or f"{name} failed: {status.reason or 'nobody knows why'}"


def describe(name: str, status: Status, tries: int, now: float) -> str:
    """Say where an instance is that somebody waits for, since when, and what its probe says."""
    said = f"{name} is {status.phase.shown}"
    if status.phase is Phase.RUNNING and not status.ready:
        said += " and not ready"
    if not status.final:
        said += f" for {max(0.0, now - status.since):.1f} s"
    if status.reason:
        said += f": {status.reason}"
    return f"{said}{tried(tries)}"


def tried(tries: int) -> str:
    """Say how often something has been asked, where that is worth saying."""
    return f" ({tries} tries)" if tries > 1 else ""


# The lives of an app's dependencies: for each instance when it was started last.
Lives = Mapping[str, float | None]


def lives(depends_on: Mapping[str, Dependency], statuses: Statuses) -> Lives:
    """Return the lives of those dependencies whose restarts an app follows."""
    return {
        name: status.started_at
        for service, dependency in depends_on.items()
        if dependency.on_restart == "restart"
        for name, status in statuses.get(service, {}).items()
    }


def restarted(depends_on: Mapping[str, Dependency], begun: Lives, statuses: Statuses) -> str | None:
    """Return an instance that has been started again since an app began, None where none has.

    Only once its service is again where the app needs it: an app that followed each try of a
    dependency in a crash loop would be in one itself. `begun` are the lives as the app began;
    an instance that was not there then is a new one and nobody's restart.
    """
    for service, dependency in depends_on.items():
        if dependency.on_restart != "restart":
            continue
        if not judge({service: dependency}, statuses).met:
            continue
        for name, status in statuses.get(service, {}).items():
            now = status.started_at
            if name in begun and now is not None and now != begun[name]:
                return name
    return None


def stop_order(depends_on: Mapping[str, Mapping[str, Dependency]]) -> list[list[str]]:
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
