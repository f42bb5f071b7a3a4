"""Brings a running mesh from one plan to another: who is drained, stopped and started, and when.

No call fails for it where another instance can take it, or can be waited for: an instance gets no
calls any more, those that it has end by themselves, and only then it is told to stop.
"""

import asyncio
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from meshrun.supervisor import dependencies
from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor.bell import Bell
from meshrun.supervisor.configuration.model import Dependency
from meshrun.supervisor.controlplane import ControlPlane
from meshrun.supervisor.dependants import Dependants
from meshrun.supervisor.difference import Change, Difference
from meshrun.supervisor.errors import StoppingError
from meshrun.supervisor.externals import Externals
from meshrun.supervisor.fleet import Fleet
from meshrun.supervisor.lifecycle import Phase, Status, Wanted
from meshrun.supervisor.plan import Instance, Plan
from meshrun.supervisor.reporter import Reporter
from meshrun.supervisor.sidecars import Sidecars

__all__ = ["ENFORCE_TIMEOUT_S", "Occasion", "Rollout", "Step", "steps"]

# Design 8: a launched sidecar that does not acknowledge within it is killed and started again.
ENFORCE_TIMEOUT_S = 2.0
# A sidecar needs some 50 ms until it serves; nobody waits for ever for one that cannot.
SIDECAR_TIMEOUT_S = 10.0
# How long the calls to an external service may take, which has no stop timeout.
EXTERNAL_DRAIN_S = 5.0

Action = Literal["changed", "removed", "added", "restarted", "sidecar-restarted", "kept"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What is done to an instance, or to the `mesh`; `reasons` are keys of the file.

    One that is "kept" has not been restarted, though it should be: another did not come back.
    """

    action: Action
    subject: str
    reasons: tuple[str, ...] = ()

    def __str__(self) -> str:
        reasons = f" ({', '.join(self.reasons)})" if self.reasons else ""
        what = "restarted sidecar of" if self.action == "sidecar-restarted" else self.action
        return f"{what} {self.subject}{reasons}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Occasion:
    """Why instances are restarted that nobody has asked for: `reasons` has it by their names.

    `is_due_again` tells of an instance whether it will be restarted once more anyway, `is_pressed`
    whether others wait for the end of this.
    """

    reasons: Mapping[str, str]
    is_due_again: Callable[[str], bool]
    is_pressed: Callable[[], bool]


def steps(wanted: Difference) -> list[Step]:
    """Return what a difference will do, in the order in which it is done."""
    in_place = [change for change in wanted.changed if not change.restarts and change.in_place]
    return [
        *([Step(action="changed", subject="mesh", reasons=wanted.mesh)] if wanted.mesh else ()),
        *(Step(action="changed", subject=c.name, reasons=c.in_place) for c in in_place),
        *(Step(action="removed", subject=instance.name) for instance in wanted.removed),
        *(Step(action="added", subject=instance.name) for instance in wanted.added),
        *(_restart_step(change) for change in wanted.changed if change.restarts),
    ]


def _restart_step(change: Change) -> Step:
    action: Action = "restarted" if change.process else "sidecar-restarted"
    reasons = dict.fromkeys((*change.process, *change.sidecar, *change.in_place))
    return Step(action=action, subject=change.name, reasons=tuple(reasons))


def _kept(name: str, failed: str) -> Step:
    return Step(action="kept", subject=name, reasons=(f"{failed} did not come back",))


class Rollout:
    """Changes what runs; whoever calls sees to it that one change comes after the other.

    Every method that waits raises StoppingError when the run is being ended.
    """

    def __init__(
        self,
        fleet: Fleet,
        control: ControlPlane,
        sidecars: Sidecars,
        externals: Externals,
        dependants: Dependants,
        reporter: Reporter,
        bell: Bell,
        is_stopping: Callable[[], bool],
    ) -> None:
        self._fleet = fleet
        self._control = control
        self._sidecars = sidecars
        self._externals = externals
        self._dependants = dependants
        self._reporter = reporter
        self._bell = bell
        self._is_stopping = is_stopping

    async def apply(self, wanted: Difference) -> list[Step]:
        """Bring the run to the new plan; returns whom that did not reach, and why.

        What changes in place comes first: nobody calls a moment longer whom he may not call.
        """
        self.want_running()
        stopped = {
            name for name, app in self._fleet.apps.items() if app.status.wanted is Wanted.STOP
        }
        self._fleet.configure(wanted.new.configuration)
        for change in wanted.changed:
            if not change.restarts:
                self._fleet.update(change.new, new_sidecar=False)
        await self.enforce()
        await self._clear_way(wanted)
        await self._add(wanted.added)
        kept = await self._replace_all(wanted, stopped)
        self._try_again()
        await self._until(lambda: all(self._is_settled(i.name) for i in wanted.added))
        self._fleet.settle(wanted.new)
        return kept

    async def restart(self, names: Collection[str], occasion: Occasion | None = None) -> list[Step]:
        """Restart apps, dependencies first, each service one instance after the other.

        Where one does not come back the others of its service are left alone, and returned. By an
        `occasion` nobody is started whom somebody has stopped.
        """
        self.want_running()
        plan = self._fleet.plan
        kept: list[Step] = []
        for layer in _layers(plan, names):
            services = [[i for i in plan.of(service) if i.name in names] for service in layer]
            rolled = (self._restart_all(instances, occasion) for instances in services)
            for left in await asyncio.gather(*rolled):
                kept += left
        return kept

    async def enforce(self) -> None:
        """Return when every running sidecar enforces what is so now; one that does not is ended."""
        for worker in await self._control.enforced(ENFORCE_TIMEOUT_S):
            reason = f"it did not enforce a change within {ENFORCE_TIMEOUT_S:g} s"
            self._sidecars.broke(worker, reason)

    def want_running(self) -> None:
        """Raise StoppingError when the run is being ended."""
        if self._is_stopping():
            raise StoppingError("cannot change anything: the mesh is being stopped")

    # The parts of a change.

    async def _clear_way(self, wanted: Difference) -> None:
        """End what goes, and what has ports that others get; dependants first."""
        plan = self._fleet.plan
        removed = {instance.name for instance in wanted.removed}
        names = removed | wanted.vacating
        for layer in reversed(_layers(plan, names)):
            there = [i for service in layer for i in plan.of(service) if i.name in names]
            await self._drain(there)
            await self._stop_apps(there)
            await self._stop_sidecars(there)
            for instance in there:
                if instance.name in removed:
                    self._fleet.remove(instance.name)
        self._control.publish()

    async def _add(self, added: Iterable[Instance]) -> None:
        for instance in added:
            self._fleet.add(instance)
        for instance in added:
            self._sidecars.start_of(instance.name)
            if instance.app is None:
                self._externals.start_of(instance.name)
            else:
                self._fleet.apps[instance.name].feed(events.Start())
        self._control.publish()
        await self._sidecars_ready(added)

    async def _replace_all(self, wanted: Difference, stopped: Collection[str]) -> list[Step]:
        by_name = {change.name: change for change in wanted.changed if change.restarts}
        kept: list[Step] = []
        for layer in _layers(wanted.new, by_name):
            services = [
                [c for i in wanted.new.of(service) if (c := by_name.get(i.name)) is not None]
                for service in layer
            ]
            rolled = (self._roll(changes, wanted.vacating, stopped) for changes in services)
            for left in await asyncio.gather(*rolled):
                kept += left
        return kept

    async def _roll(
        self, changes: Sequence[Change], vacating: Collection[str], stopped: Collection[str]
    ) -> list[Step]:
        """Replace the instances of a service, one after the other, as long as each comes back."""
        failed: str | None = None
        kept: list[Step] = []
        for change in changes:
            # What was ended to make room has nothing to go back to.
            if failed is not None and change.name not in vacating:
                kept.append(_kept(change.name, failed))
                continue
            try:
                back = await self._replace(change, runs=change.name not in stopped)
            finally:
                self._control.restore([change.name])
            failed = failed if back else change.name
        return kept

    async def _replace(self, change: Change, *, runs: bool) -> bool:
        """Put an instance in the place of another; one that somebody has stopped stays so.

        Returns whether it has come back.
        """
        old = [self._fleet.plan.by_name[change.name]]
        ended = self._sidecars.has_ended(change.name)  # to make room for others
        await self._drain(old)
        if change.process:
            await self._stop_apps(old)
        if change.sidecar:
            await self._stop_sidecars(old)
        new_sidecar = ended or bool(change.sidecar)
        self._fleet.update(change.new, new_sidecar=new_sidecar)
        self._control.publish()
        if new_sidecar:
            self._sidecars.start_of(change.name)
            await self._sidecars_ready([change.new])
        app = self._fleet.apps.get(change.name)
        if app is None or not runs or not (change.process or ended):
            return True
        app.feed(events.Start())
        await self._until(lambda: self._is_settled(change.name))
        return _is_back(app.status)

    async def _restart_all(
        self, instances: Sequence[Instance], occasion: Occasion | None
    ) -> list[Step]:
        """Restart the instances of a service, one after the other, as long as each comes back."""
        for index, instance in enumerate(instances):
            rest = instances[index + 1 :]
            if not await self._restart(instance, occasion, last=not rest):
                return [_kept(i.name, instance.name) for i in rest]
        return []

    async def _restart(self, instance: Instance, occasion: Occasion | None, *, last: bool) -> bool:
        """Restart an instance; returns whether it has come back, or nobody waits for that."""
        name = instance.name
        app = self._fleet.apps[name]

        def is_out_of_date() -> bool:
            again = occasion is not None and occasion.is_due_again(name)
            return again or (last and occasion is not None and occasion.is_pressed())

        def is_to_be_left() -> bool:
            stopped = app.status.wanted is Wanted.STOP
            return occasion is not None and (stopped or occasion.is_due_again(name))

        if is_to_be_left():
            return True
        try:
            await self._drain([instance])
            if is_to_be_left():
                return True
            app.feed(
                events.Restart() if occasion is None else events.Restart(occasion.reasons[name])
            )
            # For what it waits nobody else here waits with it.
            await self._until(
                lambda: (
                    app.status.phase is Phase.WAITING
                    or _is_up_or_fallen(app.status)
                    or is_out_of_date()
                )
            )
            waits = app.status.phase is Phase.WAITING
            return waits or _is_back(app.status) or is_out_of_date()
        finally:
            self._control.restore([name])

    def _try_again(self) -> None:
        """Start those that failed only because others had, unless these are failed still."""
        plan = self._fleet.plan
        for layer in _layers(plan, self._fleet.apps):
            for instance in (i for service in layer for i in plan.of(service)):
                app = self._fleet.apps[instance.name]
                failed = app.status.phase is Phase.FAILED and app.status.cause
                if failed and not self._dependants.verdict(instance.name).hopeless:
                    app.feed(events.Start())

    # Single acts.

    async def _drain(self, instances: Iterable[Instance]) -> None:
        """Let no more calls come to instances, and those that are there end by themselves."""
        chosen = [i for i in instances if i.inbound_port is not None and self._takes_calls(i)]
        if not chosen:
            return
        names = [instance.name for instance in chosen]
        self._control.withdraw(names)
        # Who has not heard of it yet may call one more time.
        await self.enforce()
        self.want_running()
        self._control.drain(names)

        def drained() -> bool:
            return self._is_stopping() or all(map(self._control.is_drained, names))

        timeout_s = max(map(_drain_s, chosen))
        await self._bell.until(drained, timeout_s)
        self.want_running()
        for name in names:
            if not self._control.is_drained(name):
                self._reporter.not_drained(name, timeout_s)

    def _takes_calls(self, instance: Instance) -> bool:
        app = self._fleet.apps.get(instance.name)
        return app is None or app.status.alive

    async def _stop_apps(self, instances: Iterable[Instance]) -> None:
        apps = [app for i in instances if (app := self._fleet.apps.get(i.name)) is not None]
        # Somebody may start one meanwhile; here it must end all the same.
        while not all(app.status.final for app in apps):
            for app in apps:
                app.feed(events.Stop())
            await self._until(
                lambda: all(
                    app.status.final or app.status.wanted is not Wanted.STOP for app in apps
                )
            )

    async def _stop_sidecars(self, instances: Collection[Instance]) -> None:
        for instance in instances:
            self._sidecars.stop_of(instance.name)
        await self._until(lambda: all(self._sidecars.has_ended(i.name) for i in instances))

    async def _sidecars_ready(self, instances: Iterable[Instance]) -> None:
        def ready() -> bool:
            return self._is_stopping() or all(self._control.is_ready(i.name) for i in instances)

        await self._bell.until(ready, SIDECAR_TIMEOUT_S)
        self.want_running()

    async def _until(self, reached: Callable[[], bool]) -> None:
        await self._bell.until(lambda: self._is_stopping() or reached(), None)
        self.want_running()

    # How far somebody has come.

    def _is_settled(self, name: str, asking: tuple[str, ...] = ()) -> bool:
        """Tell whether an app has come as far as it will without anybody's help."""
        app = self._fleet.apps.get(name)
        if app is None:
            return True
        if app.status.phase is Phase.WAITING:
            unmet = self._dependants.verdict(name).unmet
            return not any(self._may_come(other, (*asking, name)) for other in unmet)
        return _is_up_or_fallen(app.status)

    def _may_come(self, name: str, waiting: tuple[str, ...]) -> bool:
        """Tell whether an app may yet become what the last of `waiting` needs of it."""
        app = self._fleet.apps.get(name)
        if app is None or name in waiting:
            return False
        if app.status.phase is Phase.RUNNING:
            depends_on = self._depends_on(waiting[-1])
            service = self._fleet.plan.by_name[name].service
            return depends_on[service].condition in ("completed", "succeeded")
        return not self._is_settled(name, waiting)

    def _depends_on(self, name: str) -> Mapping[str, Dependency]:
        app = self._fleet.plan.by_name[name].app
        return app.depends_on if app is not None else {}


def _is_up_or_fallen(status: Status) -> bool:
    """Tell whether an app that was started is up, or has failed."""
    # One that is to be tried a second time may be so for ever.
    fallen = status.phase in (Phase.BACKOFF, Phase.CRASH_LOOP)
    return status.ready or status.final or fallen or status.phase is Phase.SCHEDULED


def _is_back(status: Status) -> bool:
    """Tell whether it is up, or has done its work."""
    return status.ready or status.phase in (Phase.COMPLETED, Phase.STOPPED, Phase.SCHEDULED)


def _drain_s(instance: Instance) -> float:
    return EXTERNAL_DRAIN_S if instance.app is None else instance.app.stop.timeout_s


def _layers(plan: Plan, names: Collection[str]) -> list[list[str]]:
    """Return the services of instances in layers, what a service depends on before it."""
    services = {i.service: i.app.depends_on if i.app is not None else {} for i in plan.instances}
    chosen = {plan.by_name[name].service for name in names}
    layers = dependencies.stop_order(services)[::-1]
    return [[service for service in layer if service in chosen] for layer in layers]
