"""A run: every instance with its runner, and the decisions that concern more than one of them.

Order of a change in readiness: first the sidecars are told who takes calls, then the timeline. So
whoever saw a crash in the timeline calls nobody who crashed.
"""

import asyncio
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
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
    processes,
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
from meshrun.supervisor.reloading import Reloading
from meshrun.supervisor.reporter import Reporter
from meshrun.supervisor.rollout import ENFORCE_TIMEOUT_S, Rollout, Step
from meshrun.supervisor.runner import Runner
from meshrun.supervisor.sessions import Marks, Session
from meshrun.supervisor.sidecars import Sidecars
from meshrun.supervisor.timeline import Timeline
from meshrun.supervisor.timetable import Timetable

__all__ = [
    "KILL_S",
    "Readiness",
    "Run",
    "longest_stop_s",
]

ROTATE_TIMEOUT_S = 30.0
# How soon what was killed is gone; seconds, because of what must be written to disk first.
KILL_S = 4.0
# How many names of many a sentence has.
SHOWN = 5


def app_folder(instance: str) -> str:
    """Return what the cgroup of an instance's app is called within that of the run."""
    return f"app-{instance}"


def longest_stop_s(grace_s: float, longest_s: float) -> float:
    """Return how long a stop takes at most, where the most patient app has `grace_s` to end.

    A grace until all are told, the longest stop of one of them (`Policy.longest_stop_s`), a grace
    for the rest of its session, the sidecars', and what KILL needs.
    """
    return 2 * grace_s + longest_s + sidecars.POLICY.stop_timeout_s + KILL_S


class Readiness:
    """The answer to "is everything ready": `failed` names the instance that never will be."""

    def __init__(self, ready: bool, failed: str | None = None, reason: str = "") -> None:
        self.ready = ready
        self.failed = failed
        self.reason = reason


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
        self.stopping = False
        self._launcher = launcher
        self._journal = journal
        self._reporter = Reporter(timeline, journal, logs.last)
        self._cgroup = str(prepared.cgroup) if prepared.cgroup is not None else None
        launcher.cgroup = self._cgroup
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
        self._run_file_due: asyncio.Handle | None = None
        self._known: dict[str, runfile.Recorded] = {}
        self._since: dict[str, float] = {}
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
        for instance in prepared.plan.instances:
            self.fleet.add(instance)
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

    def _new_body(self, instance: Instance) -> bodies.AppBody:
        folder = self._app_folder(instance)
        return bodies.AppBody(
            self._launcher,
            instance,
            folder,
            self.prepared.state,
            self.logs.write,
            self._reporter.hook_ended,
        )

    def _new_session(self, instance: Instance) -> Callable[[int], Session]:
        return partial(Session, marks=self._marks(instance, self._app_folder(instance)))

    def _app_folder(self, instance: Instance) -> Path | None:
        return self._leaf(app_folder(instance.name))

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
        self._write_run_file()
        self.sidecars.start()
        for app in self.apps.values():
            app.feed(events.Start())
        self.externals.start()
        self._changed()

    # What happens.

    def _app_changed(self, runner: Runner, before: Status, after: Status, event: Event) -> None:
        instance = self.plan.by_name[runner.name]
        self._tell_who_is_ready()
        if (before.phase.shown, before.ready) != (after.phase.shown, after.ready):
            self._since[instance.name] = time.time()
        self.dependants.changed(instance.name, before, after)
        self.timetable.changed(instance.name, before, after)
        self._reporter.app_changed(instance, before, after, event, time.monotonic())
        if after.pid != before.pid:
            self._known.pop(instance.name, None)
            self._run_file_changed()
        self._changed()

    def _worker_changed(self, worker: Worker, before: Status, after: Status, event: Event) -> None:
        stopping = self.stopping or before.wanted is not lifecycle.Wanted.RUN
        self._reporter.worker_changed(worker, before, after, event, stopping)
        if after.pid != before.pid:
            self._known.pop(f"sidecar {worker.name}", None)
            self._run_file_changed()
        self._changed()

    def _added(self, name: str) -> None:
        self._since[name] = time.time()

    def _updated(self) -> None:
        self.timetable.look()

    def _removed(self, name: str) -> None:
        self._since.pop(name, None)
        self.dependants.forget(name)
        self.timetable.forget(name)
        self.logs.forget(name)
        if self.prepared.cgroup is not None:
            cgroup.remove(self.prepared.cgroup / app_folder(name))

    def _external_changed(self, instance: Instance) -> None:
        self._tell_who_is_ready()
        self._since[instance.name] = time.time()
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
        return Status(pid=self.sidecars.of(instance.name)[0].pid, ready=self.is_ready(instance))

    def reason(self, name: str) -> str:
        """Say why an instance is in its state, nothing where that needs no saying."""
        app = self.apps.get(name)
        if app is None:
            return self.externals.reason(name)
        if app.status.phase is Phase.WAITING:
            return f"waits for {', '.join(self.dependants.verdict(name).waiting_for)}"
        if app.status.phase is Phase.SCHEDULED:
            return self._between_runs(name, app.status)
        if app.status.phase is Phase.CLEANING:
            return f"has ended ({app.status.reason}), its on_exit hook runs"
        if app.status.ready and self.control.is_withdrawn(name):
            return "gets no calls any more: it is to be stopped"
        if app.policy.scheduled and app.status.ready:
            return self.timetable.describe(name)
        return app.status.reason

    def _between_runs(self, name: str, status: Status) -> str:
        said = self.timetable.describe(name)
        if status.reason:
            return f"{said}; the last one failed: {status.reason}"
        return said if status.exit is None else f"{said}; the last one completed"

    def unmet(self, name: str) -> list[str]:
        """Say where the instances are that an instance waits for, and what their probes say."""
        verdict = self.dependants.verdict(name)
        now = time.monotonic()
        described = []
        for other in verdict.unmet:
            app = self.apps.get(other)
            if app is not None:
                tries = app.tries("ready")
                described.append(dependencies.describe(other, app.status, tries, now))
            else:
                reason = self.externals.reason(other) or "its sidecar does not serve yet"
                tried = dependencies.tried(self.externals.tries(other))
                described.append(f"{other} is not ready: {reason}{tried}")
        return described

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
                known = ", ".join(self.plan.services)
                raise UnknownNameError(f'no app "{name}" runs here; there are: {known}')
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
        return await self._reloading.reload(dry_run=dry_run)

    async def scale(self, wanted: Mapping[str, int]) -> list[Step]:
        """Run so many instances of apps; see `Reloading.scale`."""
        return await self._reloading.scale(wanted)

    def _layers(self) -> list[list[str]]:
        services = dependencies.stop_order(
            {i.service: i.app.depends_on for i in self.plan.instances if i.app is not None}
        )
        return [[i.name for s in layer for i in self.plan.of(s)] for layer in services]

    def is_ready(self, instance: Instance) -> bool:
        """Tell whether an instance takes calls and its sidecar serves."""
        app = self.apps.get(instance.name)
        takes_calls = app.status.ready if app is not None else instance.name in self.externals.ready
        gets_calls = takes_calls and not self.control.is_withdrawn(instance.name)
        return gets_calls and self.control.is_ready(instance.name)

    def since(self, name: str) -> float:
        """Return when an instance came into the state that it is in; wall-clock seconds."""
        return self._since.get(name, self.started_at)

    async def ready(self, timeout_s: float) -> Readiness:
        """Wait until everything is ready or has completed, or until something has failed."""
        await self.bell.until(lambda: self.readiness() is not None, timeout_s)
        settled = self.readiness()
        if settled is not None:
            return settled
        late = next(i for i in self.plan.instances if not self._settled(i))
        app = self.apps.get(late.name)
        state = app.status.phase.shown if app is not None else "not ready"
        reason = app.status.reason if app is not None else self.externals.reason(late.name)
        why = f": {reason}" if reason else ""
        return Readiness(False, late.name, f"{late.name} is {state} after {timeout_s:g} s{why}")

    def readiness(self) -> Readiness | None:
        """Return whether everything is ready, None while that is not settled."""
        for name, app in self.apps.items():
            if app.status.phase in (Phase.FAILED, Phase.CRASH_LOOP):
                shown = app.status.phase.shown
                return Readiness(False, name, f"{name} {shown}: {app.status.reason}")
        if self.stopping:
            return Readiness(False, None, "the run is being stopped")
        return Readiness(True) if all(map(self._settled, self.plan.instances)) else None

    def _settled(self, instance: Instance) -> bool:
        app = self.apps.get(instance.name)
        if app is not None and (app.policy.scheduled or app.status.phase is Phase.COMPLETED):
            return True
        return self.is_ready(instance)

    def summary(self) -> str:
        """Say in a line for people how everything is."""
        open_ = [i.name for i in self.plan.instances if not self._settled(i)]
        total = len(self.plan.instances)
        ready = f"{total - len(open_)} of {total} instances ready"
        if not open_:
            return ready
        states = [f"{name} {self._state(name)}" for name in open_[:SHOWN]]
        more = f" and {len(open_) - SHOWN} more" if len(open_) > SHOWN else ""
        return f"{ready}; not ready: {', '.join(states)}{more}"

    def _state(self, name: str) -> str:
        app = self.apps.get(name)
        return f"({app.status.phase.shown})" if app is not None else "(external)"

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
            ended = ends.ended(rule, apps, expected)
            found.extend([] if ended is None else [ended])
            return bool(found)

        await self.bell.until(over, None)
        return found[0]

    async def stop(self) -> None:
        """End everything in order: dependants, what they depend on, sidecars."""
        self.stopping = True
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

    # run.json

    def _run_file_changed(self) -> None:
        if self._run_file_due is None:
            # Once per turn of the loop, however many processes came and went in it.
            self._run_file_due = asyncio.get_running_loop().call_soon(self._write_run_file)

    def _write_run_file(self) -> None:
        self._run_file_due = None
        try:
            runfile.write(self.prepared.state, self._run_file())
        except OSError as error:
            self._journal.error(f"cannot write run.json: {error.strerror}")

    def _run_file(self) -> runfile.RunFile:
        recorded = [
            entry
            for prefix, runners in (("", self.apps.values()), ("sidecar ", self.sidecars.runners))
            for runner in runners
            if runner.status.pid is not None
            and (entry := self._recorded(f"{prefix}{runner.name}", runner.status.pid)) is not None
        ]
        supervisor = self._recorded("supervisor", os.getpid())
        launcher = self._recorded("launcher", self._launcher.pid)
        assert supervisor is not None
        return runfile.RunFile(
            run_id=self.prepared.run_id,
            boot_id=processes.boot_id(),
            supervisor=supervisor,
            launcher=launcher,
            processes=tuple(recorded),
            cgroup=self._cgroup,
            started_at=self.started_at,
        )

    def _recorded(self, name: str, pid: int) -> runfile.Recorded | None:
        # Looked up once for each process: the file is written again for every one that comes.
        known = self._known.get(name)
        if known is None or known.pid != pid:
            process = processes.identify(pid)
            if process is None:
                return None
            known = self._known[name] = runfile.Recorded(name, pid, process.start_time)
        return known


def _all_final(apps: Iterable[Runner]) -> bool:
    # Whom somebody has started again meanwhile nobody waits for.
    return all(a.status.final or a.status.wanted is not lifecycle.Wanted.STOP for a in apps)
