"""Does what the `watch` of apps says: files change, and an app is restarted, or gets a signal."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from meshrun.proxy import tasks
from meshrun.supervisor.bell import Bell
from meshrun.supervisor.configuration.model import Watch
from meshrun.supervisor.errors import StoppingError
from meshrun.supervisor.lifecycle import Phase, Wanted
from meshrun.supervisor.plan import Plan
from meshrun.supervisor.reporter import Reporter
from meshrun.supervisor.rollout import Occasion, Step
from meshrun.supervisor.runner import Runner
from meshrun.supervisor.watching.burst import Burst, Changes
from meshrun.supervisor.watching.scope import Scope
from meshrun.supervisor.watching.trees import Trees

__all__ = ["Watcher"]

Restart = Callable[[Collection[str], Occasion], Awaitable[Sequence[Step]]]


@dataclass(frozen=True, slots=True)
class _Key:
    """What is watched in the same way, for the same app: the instances share it."""

    service: str
    folder: str
    watch: Watch


@dataclass(slots=True, eq=False)
class _Watched:
    """A scope with the instances that it is for."""

    key: _Key
    scope: Scope
    instances: tuple[str, ...]
    burst: Burst
    timer: asyncio.TimerHandle | None = None
    given_up: bool = False


class Watcher:
    """Watches for the instances of a plan, as that is at any time.

    `restart` restarts instances, one of a service after the other. `spared` are absolute paths that
    no change of counts: what the run itself writes, and the file that it is made of.
    """

    def __init__(
        self,
        plan: Callable[[], Plan],
        apps: Mapping[str, Runner],
        restart: Restart,
        spared: Collection[str],
        reporter: Reporter,
        bell: Bell,
    ) -> None:
        self._plan = plan
        self._apps = apps
        self._restart = restart
        # An app's folder may be named by way of a symbolic link, or not.
        self._spared = {f(path) for path in spared for f in (os.path.abspath, os.path.realpath)}
        self._reporter = reporter
        self._bell = bell
        self._loop = asyncio.get_running_loop()
        self._trees: Trees | None = None
        self._watched: dict[_Key, _Watched] = {}
        self._due: dict[_Watched, Changes] = {}
        self._working = False
        self._started = False
        self._refreshing = False
        self._closed = False

    @property
    def revivable(self) -> set[str]:
        """The instances that a change starts again when they have ended."""
        return {
            name
            for watched in self._watched.values()
            if not watched.given_up
            for name in watched.instances
        }

    def start(self) -> None:
        """Begin to watch."""
        self._started = True
        self.refresh()

    def refresh(self) -> None:
        """Watch what the plan says now; soon, and once for all that has changed in it."""
        if self._started and not self._refreshing and not self._closed:
            self._refreshing = True
            self._loop.call_soon(self._refresh)

    def close(self) -> None:
        """Watch nothing more."""
        self._closed = True
        for watched in self._watched.values():
            _disarm(watched)
        self._due = {}
        if self._trees is not None:
            self._trees.close()

    # What is watched.

    def _refresh(self) -> None:
        self._refreshing = False
        if self._closed:
            return
        wanted = self._wanted()
        for key in tuple(self._watched):
            # What was given up is tried again: somebody may have mended it.
            if key not in wanted or self._watched[key].given_up:
                self._forget(self._watched.pop(key))
        for key, instances in wanted.items():
            if key in self._watched:
                self._watched[key].instances = instances
            else:
                self._begin(key, instances)

    def _wanted(self) -> dict[_Key, tuple[str, ...]]:
        wanted: dict[_Key, tuple[str, ...]] = {}
        for instance in self._plan().instances:
            if instance.app is not None and instance.app.watch is not None:
                folder = os.path.normpath(instance.cwd)
                key = _Key(instance.service, folder, instance.app.watch)
                wanted[key] = (*wanted.get(key, ()), instance.name)
        return wanted

    def _begin(self, key: _Key, instances: tuple[str, ...]) -> None:
        if self._trees is None:
            self._trees = Trees(self._changed, self._begun, self._gave_up)
        scope = Scope(key.folder, key.watch, self._spared)
        burst = Burst(key.watch.debounce_s)
        self._watched[key] = _Watched(key, scope, instances, burst)
        self._trees.watch(scope)

    def _forget(self, watched: _Watched) -> None:
        _disarm(watched)
        self._due.pop(watched, None)
        if self._trees is not None and not watched.given_up:
            self._trees.forget(watched.scope)

    def _of(self, scope: Scope) -> _Watched | None:
        """Return what a scope is for, None where it is not wanted any more."""
        return next((each for each in self._watched.values() if each.scope is scope), None)

    def _begun(self, scope: Scope, folders: int) -> None:
        watched = self._of(scope)
        if watched is not None:
            self._reporter.watching(watched.key.service, folders)

    def _gave_up(self, scope: Scope, why: str) -> None:
        watched = self._of(scope)
        if watched is None:
            return
        watched.given_up = True
        _disarm(watched)
        self._reporter.not_watching(watched.key.service, why)
        self._bell.ring()

    # Changes.

    def _changed(self, scope: Scope, paths: Collection[str]) -> None:
        watched = self._of(scope)
        if watched is None or self._closed:
            return
        watched.burst.add(map(scope.called, paths), self._loop.time())
        if watched.timer is None:
            self._arm(watched)

    def _arm(self, watched: _Watched) -> None:
        due_at = watched.burst.due_at
        if due_at is not None:
            watched.timer = self._loop.call_at(due_at, self._fire, watched)

    def _fire(self, watched: _Watched) -> None:
        watched.timer = None
        changes = watched.burst.take(self._loop.time())
        if changes is None:
            self._arm(watched)  # more has come meanwhile
            return
        before = self._due.pop(watched, None)
        self._due[watched] = changes if before is None else before.and_(changes)
        # Whoever waits for an app that has been started with older files waits for nothing.
        self._bell.ring()
        if not self._working:
            self._working = True
            tasks.start(self._work(), "follow changed files")

    async def _work(self) -> None:
        try:
            while self._due:
                due, self._due = self._due, {}
                reasons: dict[str, str] = {}
                for watched, changes in due.items():
                    names = self._follow(watched, changes)
                    reasons |= dict.fromkeys(names, str(changes))
                if reasons:
                    occasion = Occasion(
                        reasons=reasons, is_due_again=self._is_due, is_pressed=self._is_pressed
                    )
                    for step in await self._restart(list(reasons), occasion):
                        self._reporter.left_as_it_was(step.subject, step.reasons)
        except StoppingError:
            pass
        finally:
            self._working = False

    def _is_due(self, name: str) -> bool:
        return any(name in watched.instances for watched in self._due)

    def _is_pressed(self) -> bool:
        return bool(self._due)

    def _follow(self, watched: _Watched, changes: Changes) -> list[str]:
        """Signal who is to be signalled, and return who is to be restarted."""
        number = watched.key.watch.signal
        apps = [app for name in watched.instances if (app := self._apps.get(name)) is not None]
        # Who was stopped stays so, and who has not been started yet will see the files as they are.
        apps = [app for app in apps if _is_concerned(app)]
        told = [app for app in apps if number is not None and app.status.phase is Phase.RUNNING]
        restarted = [app.name for app in apps if app not in told]
        for app in told:
            app.signal_process(number or 0)
        service, plan = watched.key.service, self._plan()
        if told:
            shown = signal.Signals(number or 0).name.removeprefix("SIG")
            who = _called(service, plan, [app.name for app in told])
            self._reporter.files_changed(service, f"{who} gets {shown}: {changes}", restarts=False)
        if restarted:
            who = _called(service, plan, restarted)
            self._reporter.files_changed(service, f"{who} is restarted: {changes}", restarts=True)
        if watched.burst.is_storm and apps:
            self._reporter.storming(service, str(changes))
        return restarted


def _is_concerned(app: Runner) -> bool:
    status = app.status
    begins_later = status.phase in (Phase.WAITING, Phase.SCHEDULED)
    return status.wanted is not Wanted.STOP and not begins_later


def _called(service: str, plan: Plan, names: Collection[str]) -> str:
    """Return the service's name where all of its instances are meant, else theirs."""
    return service if len(names) == len(plan.of(service)) else ", ".join(names)


def _disarm(watched: _Watched) -> None:
    if watched.timer is not None:
        watched.timer.cancel()
        watched.timer = None
