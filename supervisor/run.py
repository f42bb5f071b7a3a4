"""A run: every instance with its runner, and the decisions that concern more than one of them.

Order of a change in readiness: first the sidecars are told who takes calls, then the timeline. So
whoever saw a crash in the timeline calls nobody who crashed.
"""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path

from meshrun.proxy import messages
from meshrun.proxy.intentions import WILDCARD
from meshrun.supervisor import (
    blocking,
    bodies,
    ca,
    cgroup,
    dependencies,
    ends,
    lifecycle,
    runfile,
    sidecars,
    suggest,
)
from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor.access import Access, Entries
from meshrun.supervisor.bell import Bell
from meshrun.supervisor.configuration.model import Dependency, Schedule
from meshrun.supervisor.controlplane import ControlPlane
from meshrun.supervisor.dependants import Dependants
from meshrun.supervisor.errors import MeshrunError, StoppingError, UnknownNameError
from meshrun.supervisor.externals import Externals
from meshrun.supervisor.fleet import Fleet
from meshrun.supervisor.journal import Journal
from meshrun.supervisor.launching import Launcher
from meshrun.supervisor.lifecycle import Phase, Status
from meshrun.supervisor.lifecycle_events import Event
from meshrun.supervisor.logs import Logs
from meshrun.supervisor.oneoff import OneOff, OneOffs
from meshrun.supervisor.plan import Instance, Plan, Worker
from meshrun.supervisor.preparation import Prepared
from meshrun.supervisor.record import Record
from meshrun.supervisor.reloading import Reloading
from meshrun.supervisor.reporter import Reporter
from meshrun.supervisor.rollout import ENFORCE_TIMEOUT_S, Rollout, Step
from meshrun.supervisor.runner import Runner
from meshrun.supervisor.sessions import Marks, Session
from meshrun.supervisor.sidecars import Sidecars
from meshrun.supervisor.standing import Standing
from meshrun.supervisor.timeline import Timeline
from meshrun.supervisor.timetable import Timetable
from meshrun.supervisor.watching.watcher import Watcher
from meshrun.supervisor.window import Window

__all__ = [
    "KILL_S",
    "Run",
    "longest_stop_s",
]

ROTATE_TIMEOUT_S = 30.0
# How soon what was killed is gone; seconds, because of what must be written to disk first.
KILL_S = 4.0
# How many names of many a sentence has.
SHOWN = 5


def longest_stop_s(grace_s: float, longest_s: float) -> float:
    """Return how long a stop takes at most, where the most patient app has `grace_s` to end.

    A grace until all are told, the longest stop of one of them (`Policy.longest_stop_s`), a grace
    for the rest of its session, the sidecars', and what KILL needs.
    """
    return 2 * grace_s + longest_s + sidecars.POLICY.stop_timeout_s + KILL_S


class Run:
    """The running mesh: starts, watches and ends it; the API and the signals call its methods."""

    def __init__(
        self,
        prepared: Prepared,
        launcher: Launcher,
        journal: Journal,
        timeline: Timeline,
        logs: Logs,
    ) -> None:
        self.prepared = prepared
        self.timeline = timeline
        self.logs = logs
        self.started_at = time.time()
        self.bell = Bell()
        self.window = Window()
        self.stopping = False
        self._launcher = launcher
        self._journal = journal
        self._reporter = Reporter(timeline, journal, logs.last, logs.mark)
        launcher.cgroup = str(prepared.cgroup) if prepared.cgroup is not None else None
        self.fleet = Fleet(
            prepared.plan,
            self._new_body,
            self._new_session,
            self._app_changed,
            self._added,
            self._updated,
            self._removed,
        )
        self.dependants = Dependants(self.apps, self._depends_on, self._statuses)
        self.timetable = Timetable(self.apps, self._schedule_of)
        self._record = Record(prepared, launcher.pid, self.started_at, self._running, journal)
        self.killed_at: float | None = None
        logging = self.plan.configuration.mesh.access_log
        self.access = Access(logs, time.time, logging=logging)
        self.control = ControlPlane(
            lambda: self.plan,
            prepared.root,
            prepared.book.effective,
            self.access.wanted_of,
            self,
            time.time,
        )
        sidecars_folder = self._leaf("sidecars")
        self.sidecars = Sidecars(
            launcher,
            None if sidecars_folder is None else str(sidecars_folder),
            prepared.listeners.sockets,
            self.control,
            self._reporter,
            journal,
            self._worker_changed,
        )
        self.one_offs = OneOffs(
            prepared.listeners,
            self.control,
            self.sidecars,
            timeline,
            self.bell,
            prepared.database.ports,
        )
        self.externals = Externals(self._external_changed)
        self.fleet.join(self.control, self.sidecars, self.externals)
        self.standing = Standing(
            self.fleet,
            self.externals,
            self.control,
            self.dependants,
            self.timetable,
            self.bell,
            lambda: self.stopping,
            self.started_at,
        )
        self.rollout = Rollout(
            self.fleet,
            self.control,
            self.sidecars,
            self.externals,
            self.dependants,
            self._reporter,
            self.bell,
            lambda: self.stopping,
        )
        self._reloading = Reloading(
            prepared, self.fleet, self.rollout, self.access, self._reporter, self.bell
        )
        self.watcher = Watcher(
            lambda: self.plan,
            self.apps,
            self._reloading.restart,
            # What this run writes, and what it is made of, which only a reload has a use for.
            (str(prepared.state.path), str(prepared.source.path)),
            self._reporter,
            self.bell,
        )
        for instance in prepared.plan.instances:
            self.fleet.add(instance)

    def _new_body(self, instance: Instance) -> bodies.AppBody:
        folder = self._app_folder(instance)
        return bodies.AppBody(
            self._launcher,
            instance,
            folder,
            self.prepared.state,
            self.logs.write,
            self._reporter.output_held,
            self._reporter.hook_ended,
            lambda: self.apps[instance.name].status.restarts,
            self.window,
        )

    def _new_session(self, instance: Instance) -> Callable[[int], Session]:
        return partial(Session, marks=self._marks(instance, self._app_folder(instance)))

    def _app_folder(self, instance: Instance) -> Path | None:
        return self._leaf(cgroup.app_leaf(instance.name))

    @property
    def plan(self) -> Plan:
        """What runs now."""
        return self.fleet.plan

    @property
    def apps(self) -> Mapping[str, Runner]:
        """What keeps the apps, by instance."""
        return self.fleet.apps

    @property
    def reloading(self) -> bool:
        """Whether a changed configuration is being applied; the bell is rung for it."""
        return self._reloading.active

    def _running(self) -> Iterator[tuple[str, int]]:
        for prefix, runners in (("", self.apps.values()), ("sidecar ", self.sidecars.runners)):
            for runner in runners:
                if runner.status.pid is not None:
                    yield f"{prefix}{runner.name}", runner.status.pid

    def _leaf(self, name: str) -> Path | None:
        folder = self.prepared.cgroup
        return None if folder is None else cgroup.make_leaf(folder, name)

    def _marks(self, instance: Instance, folder: Path | None) -> Marks:
        variables = instance.environment or {}
        return Marks(
            environment=tuple((name, variables[name]) for name in runfile.INSTANCE_MARKERS),
            orphans=self._launcher.orphans,
            folder=folder,
        )

    # Beginning.

    def start(self) -> None:
        """Start everything: sidecars at once, apps as their dependencies allow."""
        self._record.write()
        self.sidecars.start()
        for app in self.apps.values():
            app.feed(events.Start())
        self.externals.start()
        self.watcher.start()
        self._changed()

    # What happens.

    def _app_changed(self, runner: Runner, before: Status, after: Status, event: Event) -> None:
        instance = self.plan.by_name[runner.name]
        self._tell_who_is_ready()
        if (before.phase.shown, before.ready) != (after.phase.shown, after.ready):
            self.standing.changed(instance.name)
        self.dependants.changed(instance.name, before, after)
        self.timetable.changed(instance.name, before, after)
        self._reporter.app_changed(instance, before, after, event, time.monotonic())
        if after.pid != before.pid:
            self._record.changed(instance.name)
        self._changed()

    def _worker_changed(self, worker: Worker, before: Status, after: Status, event: Event) -> None:
        stopping = self.stopping or before.wanted is not lifecycle.Wanted.RUN
        self._reporter.worker_changed(worker, before, after, event, stopping)
        if after.pid != before.pid:
            self._record.changed(f"sidecar {worker.name}")
        self._changed()

    def _added(self, name: str) -> None:
        self.standing.changed(name)
        self.watcher.refresh()

    def _updated(self, _name: str) -> None:
        self.watcher.refresh()
        self.timetable.look()

    def _removed(self, name: str) -> None:
        self.watcher.refresh()
        self.standing.forget(name)
        self.dependants.forget(name)
        self.timetable.forget(name)
        self.logs.forget(name)
        if self.prepared.cgroup is not None:
            cgroup.remove(self.prepared.cgroup / cgroup.app_leaf(name))

    def _external_changed(self, instance: Instance) -> None:
        self._tell_who_is_ready()
        self.standing.changed(instance.name)
        reason = self.externals.reason(instance.name)
        self._reporter.external_changed(instance, reason)
        self._changed()

    def _changed(self) -> None:
        """Draw the consequences of a change for everybody else."""
        self._tell_who_is_ready()
        self.dependants.look(restart=not self.stopping)
        self.timetable.look()
        self.bell.ring()

    def _tell_who_is_ready(self) -> None:
        ready = [name for name, app in self.apps.items() if app.status.ready]
        self.control.set_ready({*ready, *self.externals.ready})

    def _depends_on(self, name: str) -> Mapping[str, Dependency]:
        app = self.plan.by_name[name].app
        return app.depends_on if app is not None else {}

    def _schedule_of(self, name: str) -> Schedule | None:
        app = self.plan.by_name[name].app
        return app.every if app is not None else None

    def _statuses(self, service: str) -> Mapping[str, Status]:
        return {other.name: self._dependency_status(other) for other in self.plan.of(service)}

    def _dependency_status(self, instance: Instance) -> Status:
        if instance.app is not None:
            return self.apps[instance.name].status
        return Status(
            pid=self.sidecars.of(instance.name)[0].pid, ready=self.standing.is_ready(instance)
        )

    # What sidecars report (the observer of the control plane).

    def denied(self, worker: Worker, report: messages.Denied) -> None:
        """Pass on a denial."""
        self._reporter.denied(worker, report)

    def connection_failed(self, worker: Worker, report: messages.ConnectionFailed) -> None:
        """Pass on a failed connection."""
        self._reporter.connection_failed(worker, report)

    def rotated(self, worker: Worker, leaf: ca.IssuedLeaf, *, first: bool) -> None:
        """Pass on a new leaf."""
        self._reporter.rotated(worker, leaf, first=first)

    def worker_ready(self, worker: Worker) -> None:
        """See who waited for it."""
        self._changed()

    def recorded(self, worker: Worker, message: messages.Recorded) -> None:
        """Pass on what went over it."""
        self.access.take(worker.instance, message)

    def worker_said(self, worker: Worker, report: messages.Logged) -> None:
        """Pass on a line."""
        self._reporter.worker_said(worker, report)

    def worker_broke(self, worker: Worker, reason: str) -> None:
        """Have it ended."""
        self.sidecars.broke(worker, reason)

    def worker_drained(self, worker: Worker) -> None:
        """See who waited for it."""
        self.bell.ring()

    def worker_closed(self, worker: Worker, reason: str) -> None:
        """See that it ends."""
        self.sidecars.closed(worker, reason)

    # What people want.

    def resolve(self, names: Iterable[str]) -> list[str]:
        """Return the instances that names of apps and instances mean; none means all."""
        found: list[str] = []
        for name in names:
            matching = [i.name for i in self.plan.instances if name in (i.name, i.service)]
            if not matching:
                known = self.plan.services
                hint = suggest.hint(name, [*known, *self.plan.by_name])
                there = ", ".join(known)
                raise UnknownNameError(f'no app "{name}" runs here{hint}; there are: {there}')
            found += matching
        return list(dict.fromkeys(found)) or list(self.plan.by_name)

    def want_service(self, name: str) -> None:
        """Raise UnknownNameError, with the nearest right name, unless a service has this one."""
        known = self.plan.services
        if name not in known:
            there = ", ".join(known)
            raise UnknownNameError(
                f'no service "{name}" runs here{suggest.hint(name, known)}; there are: {there}'
            )

    def begin_one_off(self, name: str, program: str, pid: int | None) -> OneOff:
        """Give a command of an app a sidecar; `pid` is of who holds it until `one_offs.end`.

        Raises StoppingError, UnknownNameError, MeshrunError.
        """
        if self.stopping:
            raise StoppingError("cannot run a command: the mesh is being stopped")
        configuration = self.plan.configuration
        app = configuration.apps.get(name)
        if app is None:
            known = ", ".join(configuration.apps)
            raise UnknownNameError(
                f'no app "{name}"{suggest.hint(name, configuration.apps)}; there are: {known}'
            )
        port = next((instance.port for instance in self.plan.of(name)), app.port)
        return self.one_offs.begin(
            configuration, app, port=port, caller=os.environ, program=program, pid=pid
        )

    def tap(
        self, tell: Callable[[Entries], None], source: str | None, destination: str
    ) -> Callable[[], None]:
        """Call `tell` with what goes to `destination`, until what is returned is called.

        `source` is None for any. The sidecars record only as long as somebody taps. That somebody
        looks is an event of its own: paths and identities are others' business too.
        """
        unfollow = self.access.follow(tell, source=source, destination=destination)
        self.control.publish()
        what = f"{source or WILDCARD} => {destination}"
        self._say_tapped("tapped", f"somebody looks at {what} (meshrun tap)", source, destination)

        def stop() -> None:
            if unfollow():
                self.control.publish()
                message = f"nobody looks at {what} by that tap any more"
                self._say_tapped("untapped", message, source, destination)

        return stop

    def _say_tapped(self, kind: str, message: str, source: str | None, destination: str) -> None:
        self.timeline.add(kind, destination, message, source=source, destination=destination)

    async def tapped(self) -> None:
        """Return when the sidecars record for whoever taps."""
        await self.control.enforced(ENFORCE_TIMEOUT_S)

    def _startable(self, names: Iterable[str]) -> list[str]:
        if self.stopping:
            raise StoppingError("cannot start anything: the mesh is being stopped")
        return [name for name in self.resolve(names) if name in self.apps]

    async def start_apps(self, names: Iterable[str]) -> list[str]:
        """Start apps that do not run; returns once each has been started or waits for others.

        One that has a schedule runs now if it was named, and then at its times.
        """
        named = list(names)
        chosen = self._startable(named)
        for name in chosen:
            self.apps[name].feed(events.Start(now=bool(named)))
        self._changed()
        await self.bell.until(
            lambda: all(
                self.apps[n].status.phase is not Phase.SPAWNING for n in chosen if n in self.apps
            ),
            None,
        )
        return [name for name in chosen if name in self.apps]

    async def stop_apps(self, names: Iterable[str]) -> list[str]:
        """Stop apps, those that depend on others first; returns when they have ended."""
        chosen = [name for name in self.resolve(names) if name in self.apps]
        for layer in self._layers():
            running = [self.apps[n] for n in layer if n in chosen and n in self.apps]
            for app in running:
                app.feed(events.Stop())
            await self.bell.until(partial(_all_final, running), None)
        return [name for name in chosen if name in self.apps]

    async def restart_apps(self, names: Iterable[str]) -> tuple[list[str], list[Step]]:
        """Restart apps, dependencies first, each service one instance after the other.

        Returns those that were chosen, and of them those that were left alone, since another of
        their service did not come back. What only waits for its time has nothing to restart.
        """
        chosen = [
            name
            for name in self._startable(names)
            if self.apps[name].status.phase is not Phase.SCHEDULED
        ]
        kept = await self._reloading.restart(chosen)
        return [name for name in chosen if name in self.apps], kept

    async def reload(self, *, dry_run: bool) -> list[Step]:
        """Apply a changed file; see `Reloading.reload`."""
        try:
            return await self._reloading.reload(dry_run=dry_run)
        finally:
            self.watcher.refresh()  # also what could not be watched before

    async def scale(self, wanted: Mapping[str, int]) -> list[Step]:
        """Run so many instances of apps; see `Reloading.scale`."""
        return await self._reloading.scale(wanted)

    def _layers(self) -> list[list[str]]:
        services = dependencies.stop_order(
            {i.service: i.app.depends_on for i in self.plan.instances if i.app is not None}
        )
        return [[i.name for s in layer for i in self.plan.of(s)] for layer in services]

    async def enforce_intentions(self) -> None:
        """Return when every running sidecar enforces the intentions as they are now."""
        await self.rollout.enforce()

    async def rotate(self, names: Collection[str]) -> None:
        """Give sidecars new leaves; raises MeshrunError naming those that did not take theirs."""
        chosen = self.resolve(names)
        if not names:
            chosen += [one_off.instance.name for one_off in self.one_offs.running]
        late = await self.control.rotate(chosen, ROTATE_TIMEOUT_S)
        if late:
            names = ", ".join(worker.name for worker in late)
            raise MeshrunError(
                f"cannot rotate: {names} serve no new leaf after {ROTATE_TIMEOUT_S:g} s"
            )

    # Ending.

    async def ended_by_itself(self, rule: ends.EndRule) -> ends.Ended:
        """Wait until the run ends by what its apps do; for ever if there is none."""
        found: list[ends.Ended] = []

        def over() -> bool:
            if self._reloading.busy:
                return False
            apps = {n: (self.plan.by_name[n].service, app.status) for n, app in self.apps.items()}
            expected = dependencies.expected_to_complete(
                i.app.depends_on for i in self.plan.instances if i.app is not None
            )
            ended = ends.ended(rule, apps, expected, self.watcher.revivable)
            found.extend([] if ended is None else [ended])
            return bool(found)

        await self.bell.until(over, None)
        return found[0]

    async def stop(self) -> None:
        """End everything in order: dependants, what they depend on, sidecars."""
        self.stopping = True
        self.watcher.close()
        self.externals.stop()
        self.bell.ring()
        grace_s = self._grace_s
        # One grace for all: after it nobody waits for a dependant any more.
        hurry = asyncio.get_running_loop().call_later(grace_s, self._stop_all)
        await self.stop_apps([])
        hurry.cancel()
        self.sidecars.stop()
        await self.bell.until(lambda: self.sidecars.ended, None)
        self.control.close()

    @property
    def _grace_s(self) -> float:
        return max((app.policy.stop_timeout_s for app in self.apps.values()), default=0.0)

    @property
    def longest_stop_s(self) -> float:
        """How long `stop` takes at most."""
        longest_s = max((app.policy.longest_stop_s for app in self.apps.values()), default=0.0)
        return longest_stop_s(self._grace_s, longest_s)

    def _stop_all(self) -> None:
        for app in self.apps.values():
            app.feed(events.Stop())

    def kill(self) -> None:
        """End everything at once, politely no more."""
        if self.killed_at is None:
            self.killed_at = time.monotonic()
            self._journal.warning("killing everything")
        for app in self.apps.values():
            app.feed(events.Kill())

    def describe_blocking(self) -> list[str]:
        """Say of all that have been told to end what is left, and how long they may take, in lines.

        Those that are to end after them are waited for by nobody yet.
        """
        told = [app for app in self.apps.values() if app.status.phase.shown == "stopping"]
        now = time.monotonic()
        lines = [blocking.describe(app.blocker(), now) for app in told[:SHOWN]]
        if len(told) > SHOWN:
            lines.append(f"waiting for {len(told) - SHOWN} more")
        return lines or ["waiting for the sidecars to end"]

    def pause_output(self) -> None:
        """Let the apps wait with what they write."""
        self.fleet.pause_output()

    def resume_output(self) -> None:
        """Take the apps' output again."""
        self.fleet.resume_output()

    def finish_output(self) -> None:
        """Take what is left of the apps' output: all of them have ended."""
        self.fleet.finish_output()


def _all_final(apps: Iterable[Runner]) -> bool:
    # Whom somebody has started again meanwhile nobody waits for.
    return all(a.status.final or a.status.wanted is not lifecycle.Wanted.STOP for a in apps)
