"""What must be done so that one plan becomes another, and nothing more. Pure.

An instance is restarted only where its process would be another one; where a change is about how it
is kept (probes, restart policy) or about the mesh around it (limits of its upstreams), it goes on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, replace

import msgspec

from meshrun.proxy.intentions import Intention
from meshrun.supervisor.configuration.model import (
    App,
    Configuration,
    LogCheck,
    Mesh,
    NotifyCheck,
    Probe,
)
from meshrun.supervisor.plan import Instance, Plan, held

__all__ = ["Change", "Difference", "applied", "difference"]

# What an app says that concerns how it is kept: taken over while it runs.
_KEPT_BY = ("restart", "every", "stop", "depends_on", "watch")
# What it says that concerns its sidecar.
_MESH = ("connect_timeout_s", "max_connections", "idle_timeout_s")
# What is in the instance in its final form, or concerns no single instance. Any other key, also one
# that comes later, is taken for something that the process is started with.
_ELSEWHERE = (
    *(
        "name",
        "line",
        "instances",
        "workers",
        "upstreams",
        "protocol",
        "ready",
        "alive",
        "hooks",
        "port",
    ),
    *("command", "shell", "expand", "cwd", "env", "env_file"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """An instance that becomes another; what of it changes, in the words of the file.

    `process` are reasons to start its app anew, `sidecar` to start its sidecar anew, `supervision`
    what changes in how it is kept, and `mesh` in what its sidecar is told. All empty: nothing that
    concerns it by itself.
    """

    old: Instance
    new: Instance
    process: tuple[str, ...] = ()
    sidecar: tuple[str, ...] = ()
    supervision: tuple[str, ...] = ()
    mesh: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """The name of the instance."""
        return self.new.name

    @property
    def in_place(self) -> tuple[str, ...]:
        """What changes while the processes run on."""
        return (*self.supervision, *self.mesh)

    @property
    def restarts(self) -> bool:
        """Whether a process ends for it, and so calls must be kept away meanwhile."""
        return bool(self.process or self.sidecar)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """From the plan `old` to `new`: instances, and in `mesh` what changes for all of them.

    `vacating` are those that must have ended before others start, which take ports of theirs.
    """

    old: Plan
    new: Plan
    added: tuple[Instance, ...]
    removed: tuple[Instance, ...]
    changed: tuple[Change, ...]
    mesh: tuple[str, ...]
    vacating: frozenset[str]

    def __bool__(self) -> bool:
        told = any(change.restarts or change.in_place for change in self.changed)
        return bool(self.added or self.removed or told or self.mesh)


def difference(old: Plan, new: Plan) -> Difference:
    """Compare what runs with what shall run."""
    both = {
        name: (before, after)
        for name, after in new.by_name.items()
        # An external service that is an app now has nothing in common with what it was.
        if (before := old.by_name.get(name)) is not None
        and (before.app is None) == (after.app is None)
    }
    return Difference(
        old=old,
        new=new,
        added=tuple(i for i in new.instances if i.name not in both),
        removed=tuple(i for i in old.instances if i.name not in both),
        changed=tuple(_change(before, after) for before, after in both.values() if before != after),
        mesh=tuple(_mesh(old.configuration, new.configuration)),
        vacating=_vacating(old, new),
    )


def applied(plan: Plan, wanted: Difference) -> Plan:
    """Return the plan after the difference, which began with `plan`."""
    for instance in wanted.removed:
        plan = plan.without(instance.name)
    for change in wanted.changed:
        plan = plan.having(change.new)
    for instance in wanted.added:
        plan = plan.having(instance)
    plan = replace(plan, configuration=wanted.new.configuration, ports=wanted.new.ports)
    return plan.ordered_as(wanted.new)


def _change(old: Instance, new: Instance) -> Change:
    probes = [
        (key, before, after)
        for key, before, after in (("ready", old.ready, new.ready), ("alive", old.alive, new.alive))
        if before != after
    ]
    said = tuple(key for key, before, after in probes if _is_said(before) or _is_said(after))
    asked = tuple(key for key, _, _ in probes if key not in said)
    hooks = ("hooks",) if old.hooks != new.hooks else ()
    return Change(
        old=old,
        new=new,
        process=(*_process(old, new), *said),
        sidecar=tuple(_sidecar(old, new)),
        supervision=(*_app_keys(old.app, new.app, _KEPT_BY), *asked, *hooks),
        mesh=tuple(_told(old, new)),
    )


def _is_said(probe: Probe | None) -> bool:
    """Tell whether a probe waits for what an app says, which it may have said long ago."""
    return probe is not None and isinstance(probe.check, LogCheck | NotifyCheck)


def _process(old: Instance, new: Instance) -> Iterator[str]:
    if old.app is None or new.app is None:
        return
    if old.argv != new.argv:
        yield "command"
    if old.cwd != new.cwd:
        yield "cwd"
    # What is kept running and what runs at times are two kinds of app.
    if (old.app.every is None) != (new.app.every is None):
        yield "every"
    yield from _variables(old.environment or {}, new.environment or {})
    others = tuple(f.name for f in fields(App) if f.name not in (*_ELSEWHERE, *_KEPT_BY, *_MESH))
    yield from _app_keys(old.app, new.app, others)


def _variables(old: Mapping[str, str], new: Mapping[str, str]) -> Iterator[str]:
    """Name what of the environment differs: ports and upstreams by their keys, others as env."""
    differing = {name for name in (*old, *new) if old.get(name) != new.get(name)}
    if "PORT" in differing:
        yield "port"
    if any(name.startswith("UPSTREAM_") for name in differing):
        yield "upstreams"
    if any(name != "PORT" and not name.startswith("UPSTREAM_") for name in differing):
        yield "env"


def _app_keys(old: App | None, new: App | None, names: tuple[str, ...]) -> Iterator[str]:
    if old is None or new is None:
        return
    for name in names:
        if getattr(old, name) != getattr(new, name):
            yield _key(name)


def _key(field: str) -> str:
    """Return the key of the file: a field has its unit in its name."""
    return field.removesuffix("_s")


def _sidecar(old: Instance, new: Instance) -> Iterator[str]:
    """Name what a worker is forked with, or takes only once."""
    if old.workers != new.workers:
        yield "workers"
    if old.protocol != new.protocol:
        yield "protocol"
    if old.inbound_port != new.inbound_port:
        yield "port"
    if _listeners(old) != _listeners(new):
        yield "upstreams"


def _listeners(instance: Instance) -> list[tuple[str, int, str]]:
    return [(u.name, u.port, u.protocol) for u in instance.upstreams]


def _told(old: Instance, new: Instance) -> Iterator[str]:
    if old.upstreams != new.upstreams and _listeners(old) == _listeners(new):
        yield "upstreams"
    if old.app is None and old.target != new.target:
        yield "address"
    for name in _MESH:
        if getattr(old, name) != getattr(new, name):
            yield _key(name)


def _mesh(old: Configuration, new: Configuration) -> Iterator[str]:
    for field in fields(Mesh):
        if getattr(old.mesh, field.name) != getattr(new.mesh, field.name):
            yield _key(field.name)
    if _rules(old) != _rules(new):
        yield "intentions"


def _rules(configuration: Configuration) -> list[Intention]:
    """Leave out where intentions stand: a line that was put in above them changes none."""
    return [msgspec.structs.replace(i, where="") for i in configuration.intentions]


def _vacating(old: Plan, new: Plan) -> frozenset[str]:
    """Return who has a port that shall be another instance's.

    A holder's name begins with the instance's (`meshrun.supervisor.plan.held`).
    """
    wanted_by = {port: holder.split()[0] for holder, port in held(new.instances).items()}
    there = ((holder.split()[0], port) for holder, port in held(old.instances).items())
    return frozenset(name for name, port in there if wanted_by.get(port, name) != name)
