"""Every instance of a run, with what keeps it: the runner of its app, its sidecar, its probe.

Here stands what runs at the moment (`plan`), and only here; the others ask for it.
"""

import random
from collections.abc import Callable
from dataclasses import replace

from meshrun.supervisor.bodies import AppBody, app_policy
from meshrun.supervisor.configuration.model import Configuration
from meshrun.supervisor.controlplane import ControlPlane
from meshrun.supervisor.externals import Externals
from meshrun.supervisor.plan import Instance, Plan
from meshrun.supervisor.runner import NewSession, OnChange, Runner
from meshrun.supervisor.sidecars import Sidecars

__all__ = ["Fleet"]


class Fleet:
    """The instances of a run, which come and go; nothing here starts, stops or waits.

    `new_body` makes what is particular to an app's process, `new_session` what finds the rest of it
    when its main process has ended; `on_change` is told of its life,
    `on_added`, `on_updated` and `on_removed` that an instance comes, becomes another, and goes.
    """

    def __init__(
        self,
        plan: Plan,
        new_body: Callable[[Instance], AppBody],
        new_session: Callable[[Instance], NewSession],
        on_change: OnChange,
        on_added: Callable[[str], None],
        on_updated: Callable[[str], None],
        on_removed: Callable[[str], None],
    ) -> None:
        self.plan = replace(plan, instances=())
        self.apps: dict[str, Runner] = {}
        self._bodies: dict[str, AppBody] = {}
        self._new_body = new_body
        self._new_session = new_session
        self._on_change = on_change
        self._on_added = on_added
        self._on_updated = on_updated
        self._on_removed = on_removed

    def join(self, control: ControlPlane, sidecars: Sidecars, externals: Externals) -> None:
        """Name those who have an instance's other parts; they ask back for the plan."""
        self._control = control
        self._sidecars = sidecars
        self._externals = externals

    def add(self, instance: Instance) -> None:
        """Take up an instance; its app, its sidecar and its probe are to be started."""
        self.plan = self.plan.having(instance)
        self._control.add(instance)
        self._sidecars.add(instance)
        self._on_added(instance.name)
        if instance.app is None:
            self._externals.add(instance)
            return
        body = self._bodies[instance.name] = self._new_body(instance)
        self.apps[instance.name] = Runner(
            instance.name,
            app_policy(instance.app),
            body,
            self._on_change,
            random.random,
            session=self._new_session(instance),
        )

    def update(self, instance: Instance, *, new_sidecar: bool) -> None:
        """Take an instance as it is from now on: its next start, its probes, what is told of it.

        A `new_sidecar` is to be started; the old one has ended.
        """
        before = self.plan.by_name[instance.name]
        self.plan = self.plan.having(instance)
        self._control.update(instance)
        if new_sidecar:
            self._sidecars.remove(instance.name)
            self._sidecars.add(instance)
        if instance.app is None:
            self._externals.update(instance)
            return
        self._bodies[instance.name].instance = instance
        asks_anew = (before.ready, before.alive) != (instance.ready, instance.alive)
        self.apps[instance.name].revise(app_policy(instance.app), asks_anew=asks_anew)
        self._on_updated(instance.name)

    def remove(self, name: str) -> None:
        """Forget an instance: its app and its sidecar have ended."""
        self.plan = self.plan.without(name)
        self._control.remove(name)
        self._sidecars.remove(name)
        self._externals.remove(name)
        self.apps.pop(name, None)
        body = self._bodies.pop(name, None)
        if body is not None:
            body.output.finish()
        self._on_removed(name)

    def configure(self, configuration: Configuration) -> None:
        """Take what concerns all instances from a configuration."""
        self.plan = replace(self.plan, configuration=configuration)

    def settle(self, wanted: Plan) -> None:
        """Take order and ports of a plan to which this one has been brought."""
        self.plan = replace(self.plan.ordered_as(wanted), ports=wanted.ports)

    def pause_output(self) -> None:
        """Let the apps wait with what they write."""
        for body in self._bodies.values():
            body.pause_output()
        self._sidecars.pause_output()

    def resume_output(self) -> None:
        """Take the apps' output again."""
        for body in self._bodies.values():
            body.resume_output()
        self._sidecars.resume_output()

    def finish_output(self) -> None:
        """Take what is left of the apps' output: all of them have ended."""
        for body in self._bodies.values():
            body.output.finish()
