"""One-off commands: a temporary sidecar with an app's identity and upstream ports of its own.

The command itself is no process of the run: it is a child of whoever called, in their terminal.
What belongs to the run is the sidecar beside it, which lives until its holder is gone.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from meshrun.supervisor import environment, ports
from meshrun.supervisor.bell import Bell
from meshrun.supervisor.configuration import interpolation
from meshrun.supervisor.configuration.model import App, Configuration
from meshrun.supervisor.controlplane import ControlPlane
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.listeners import Listeners
from meshrun.supervisor.plan import Instance, injected_into, outbound_only
from meshrun.supervisor.sidecars import Sidecars
from meshrun.supervisor.timeline import Timeline

__all__ = ["MOST", "OneOff", "OneOffs", "PlannedOneOff", "name_of", "plan"]

# Each is a sidecar; somebody who runs more at a time has a loop that does not end.
MOST = 100
# A sidecar needs some 50 ms until it serves.
READY_TIMEOUT_S = 10.0
LONGEST_PROGRAM = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedOneOff:
    """The temporary instance, and what of its environment lies over the caller's.

    The layers are those of `environment.effective`: the caller's own variables never come here.
    """

    instance: Instance
    env_file: Mapping[str, str]
    env: Mapping[str, str]
    injected: Mapping[str, str]


def name_of(app: str, number: int) -> str:
    """Return `web.run-1` for the first command of `web`; no instance of an app is called so."""
    return f"{app}.run-{number}"


def plan(
    configuration: Configuration,
    app: App,
    number: int,
    given: Mapping[str, int],
    port: int | None,
    caller: Mapping[str, str],
) -> PlannedOneOff:
    """Plan a command of `app`; `given` has the port of each upstream, by its name.

    It takes no calls and has no PORT; where `env` speaks of the app's, that is `port`, where the
    app itself listens. Raises MeshrunError where `env` names a variable that is not there.
    """
    instance = outbound_only(configuration, app, name_of(app.name, number), number, given)
    # Not the run's marker: whose command this is decides about its end, no clean-up does.
    injected = injected_into(instance, port=None, run_id=None)
    of_app = {"PORT": str(port)} if port else {}
    lookup = environment.effective(caller, app.env_file, {}, {**injected, **of_app})
    return PlannedOneOff(
        instance=instance,
        env_file=app.env_file,
        env={key: interpolation.expand(value, lookup) for key, value in app.env.items()},
        injected=injected,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OneOff:
    """A command that has its sidecar; `pid` is of who holds it, `started_at` monotonic seconds."""

    planned: PlannedOneOff
    program: str
    pid: int | None
    started_at: float

    @property
    def instance(self) -> Instance:
        """The temporary instance."""
        return self.planned.instance


class OneOffs:
    """The one-off commands of a run."""

    def __init__(
        self,
        listeners: Listeners,
        control: ControlPlane,
        sidecars: Sidecars,
        timeline: Timeline,
        bell: Bell,
        reserved: Callable[[], Mapping[str, int]],
    ) -> None:
        """`reserved` are the ports by holder that others had, and shall find again."""
        self._listeners = listeners
        self._control = control
        self._sidecars = sidecars
        self._timeline = timeline
        self._bell = bell
        self._reserved = reserved
        self._running: dict[str, OneOff] = {}

    @property
    def running(self) -> tuple[OneOff, ...]:
        """Those that have a sidecar, in the order in which they came."""
        return tuple(self._running.values())

    def is_ready(self, one_off: OneOff) -> bool:
        """Tell whether its sidecar serves."""
        return self._control.is_ready(one_off.instance.name)

    def begin(
        self,
        configuration: Configuration,
        app: App,
        *,
        port: int | None,
        caller: Mapping[str, str],
        program: str,
        pid: int | None,
    ) -> OneOff:
        """Start the sidecar of a command; whoever calls must `end` it.

        Raises MeshrunError: too many, no port is free, `env` cannot be expanded.
        """
        if len(self._running) >= MOST:
            raise MeshrunError(f"cannot run more than {MOST} commands at the same time")
        number = next(n for n in range(1, MOST + 1) if name_of(app.name, n) not in self._running)
        one_off = OneOff(
            planned=self._planned(configuration, app, number, port, caller),
            program=program[:LONGEST_PROGRAM],
            pid=pid,
            started_at=time.monotonic(),
        )
        name = one_off.instance.name
        self._running[name] = one_off
        self._control.add(one_off.instance)
        self._sidecars.add(one_off.instance)
        self._sidecars.start_of(name)
        holder = "" if pid is None else f", pid {pid}"
        self._timeline.add("command-begun", name, f"{name} runs {one_off.program}{holder}")
        return one_off

    async def ready(self, one_off: OneOff) -> None:
        """Return when its sidecar serves. Raises MeshrunError if it does not in time."""
        if not await self._bell.until(lambda: self.is_ready(one_off), READY_TIMEOUT_S):
            raise MeshrunError(
                f"cannot run a command as {one_off.instance.service}: its sidecar is not ready "
                f"after {READY_TIMEOUT_S:g} s; see `meshrun events`"
            )

    def _planned(
        self,
        configuration: Configuration,
        app: App,
        number: int,
        port: int | None,
        caller: Mapping[str, str],
    ) -> PlannedOneOff:
        reserved = set(self._reserved().values())
        claimed: list[int] = []

        def claim(_wish: ports.Wish, candidate: int) -> bool:
            if candidate in reserved or not self._listeners.claim(candidate):
                return False
            claimed.append(candidate)
            return True

        wishes = [ports.Wish(u.name, configuration.mesh.ports) for u in app.upstreams]
        try:
            given = ports.allocate(wishes, {}, claim)
            return plan(configuration, app, number, given, port, caller)
        except MeshrunError:
            for taken in claimed:
                self._listeners.release(taken)
            raise

    async def end(self, one_off: OneOff) -> None:
        """End the sidecar of a command; returns when nothing is left of it."""
        name = one_off.instance.name
        self._sidecars.stop_of(name)
        await self._bell.until(lambda: all(s.final for s in self._sidecars.of(name)), None)
        self._sidecars.remove(name)
        self._control.remove(name)
        for upstream in one_off.instance.upstreams:
            self._listeners.release(upstream.port)
        del self._running[name]
        self._timeline.add("command-ended", name, f"{name} has ended")
