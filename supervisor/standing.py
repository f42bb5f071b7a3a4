"""How every instance is, for whoever asks: ready or not, why, since when; and so how the run is."""

import time
from collections.abc import Callable

from meshrun.supervisor import dependencies
from meshrun.supervisor.bell import Bell
from meshrun.supervisor.controlplane import ControlPlane
from meshrun.supervisor.dependants import Dependants
from meshrun.supervisor.externals import Externals
from meshrun.supervisor.fleet import Fleet
from meshrun.supervisor.lifecycle import Phase, Status
from meshrun.supervisor.plan import Instance
from meshrun.supervisor.timetable import Timetable

__all__ = ["Readiness", "Standing"]

# How many names of many a sentence has.
SHOWN = 5


class Readiness:
    """The answer to "is everything ready": `failed` names the instance that never will be."""

    def __init__(self, ready: bool, failed: str | None = None, reason: str = "") -> None:
        self.ready = ready
        self.failed = failed
        self.reason = reason


class Standing:
    """Derives from its parts how each instance is; all that it keeps is since when.

    `stopping` tells whether the run is being stopped, `started_at` (wall-clock seconds) since when
    it is there.
    """

    def __init__(
        self,
        fleet: Fleet,
        externals: Externals,
        control: ControlPlane,
        dependants: Dependants,
        timetable: Timetable,
        bell: Bell,
        stopping: Callable[[], bool],
        started_at: float,
    ) -> None:
        self._fleet = fleet
        self._externals = externals
        self._control = control
        self._dependants = dependants
        self._timetable = timetable
        self._bell = bell
        self._stopping = stopping
        self._started_at = started_at
        self._since: dict[str, float] = {}

    # Of one instance.

    def changed(self, name: str) -> None:
        """Note that an instance is in another state from now on."""
        self._since[name] = time.time()

    def forget(self, name: str) -> None:
        """An instance is no more."""
        self._since.pop(name, None)

    def since(self, name: str) -> float:
        """Return when an instance came into the state that it is in; wall-clock seconds."""
        return self._since.get(name, self._started_at)

    def is_ready(self, instance: Instance) -> bool:
        """Tell whether an instance takes calls and its sidecar serves."""
        name = instance.name
        app = self._fleet.apps.get(name)
        takes_calls = app.status.ready if app is not None else name in self._externals.ready
        gets_calls = takes_calls and not self._control.is_withdrawn(name)
        return gets_calls and self._control.is_ready(name)

    def reason(self, name: str) -> str:
        """Say why an instance is in its state, nothing where that needs no saying."""
        app = self._fleet.apps.get(name)
        if app is None:
            return self._externals.reason(name)
        if app.status.phase is Phase.WAITING:
            return f"waits for {', '.join(self._dependants.verdict(name).waiting_for)}"
        if app.status.phase is Phase.SCHEDULED:
            return self._between_runs(name, app.status)
        if app.status.phase is Phase.CLEANING:
            return f"has ended ({app.status.reason}), its on_exit hook runs"
        if app.status.ready and self._control.is_withdrawn(name):
            return "gets no calls any more: it is to be stopped"
        if app.policy.scheduled and app.status.ready:
            return self._timetable.describe(name)
        if app.status.ready and app.status.reason:
            return f"started again: {app.status.reason}"
        return app.status.reason

    def _between_runs(self, name: str, status: Status) -> str:
        said = self._timetable.describe(name)
        if status.reason:
            return f"{said}; the last one failed: {status.reason}"
        return said if status.exit is None else f"{said}; the last one completed"

    def unmet(self, name: str) -> list[str]:
        """Say where the instances are that an instance waits for, and what their probes say."""
        verdict = self._dependants.verdict(name)
        now = time.monotonic()
        described = []
        for other in verdict.unmet:
            app = self._fleet.apps.get(other)
            if app is not None:
                tries = app.tries("ready")
                described.append(dependencies.describe(other, app.status, tries, now))
            else:
                reason = self._externals.reason(other) or "its sidecar does not serve yet"
                tried = dependencies.tried(self._externals.tries(other))
                described.append(f"{other} is not ready: {reason}{tried}")
        return described

    # Of all.

    async def ready(self, timeout_s: float) -> Readiness:
        """Wait until everything is ready or has completed, or until something has failed."""
        await self._bell.until(lambda: self.readiness() is not None, timeout_s)
        settled = self.readiness()
        if settled is not None:
            return settled
        late = next(i for i in self._fleet.plan.instances if not self._settled(i))
        app = self._fleet.apps.get(late.name)
        state = app.status.phase.shown if app is not None else "not ready"
        reason = app.status.reason if app is not None else self._externals.reason(late.name)
        why = f": {reason}" if reason else ""
        return Readiness(False, late.name, f"{late.name} is {state} after {timeout_s:g} s{why}")

    def readiness(self) -> Readiness | None:
        """Return whether everything is ready, None while that is not settled."""
        for name, app in self._fleet.apps.items():
            if app.status.phase in (Phase.FAILED, Phase.CRASH_LOOP):
                shown = app.status.phase.shown
                return Readiness(False, name, f"{name} {shown}: {app.status.reason}")
        if self._stopping():
            return Readiness(False, None, "the run is being stopped")
        return Readiness(True) if all(map(self._settled, self._fleet.plan.instances)) else None

    def _settled(self, instance: Instance) -> bool:
        app = self._fleet.apps.get(instance.name)
        if app is not None and (app.policy.scheduled or app.status.phase is Phase.COMPLETED):
            return True
        return self.is_ready(instance)

    def summary(self) -> str:
        """Say in a line for people how everything is."""
        open_ = [i.name for i in self._fleet.plan.instances if not self._settled(i)]
        total = len(self._fleet.plan.instances)
        ready = f"{total - len(open_)} of {total} instances ready"
        if not open_:
            return ready
        states = [f"{name} {self._state(name)}" for name in open_[:SHOWN]]
        more = f" and {len(open_) - SHOWN} more" if len(open_) > SHOWN else ""
        return f"{ready}; not ready: {', '.join(states)}{more}"

    def _state(self, name: str) -> str:
        app = self._fleet.apps.get(name)
        return f"({app.status.phase.shown})" if app is not None else "(external)"
