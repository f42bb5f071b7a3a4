"""Who waits for whom: lets apps start when they may, and restarts those that follow a restart."""

from collections.abc import Callable, Mapping

from meshrun.supervisor import dependencies
from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor.configuration.model import Dependency
from meshrun.supervisor.dependencies import Lives, Verdict
from meshrun.supervisor.lifecycle import Phase, Status, Wanted
from meshrun.supervisor.runner import Runner

__all__ = ["Dependants"]


class Dependants:
    """Looks at every app that depends on others whenever something has changed.

    `runners` are the apps by instance, as they are at any time; `depends_on` has what an instance
    waits for, `statuses` where the instances of a service are.
    """

    def __init__(
        self,
        runners: Mapping[str, Runner],
        depends_on: Callable[[str], Mapping[str, Dependency]],
        statuses: Callable[[str], Mapping[str, Status]],
    ) -> None:
        self._runners = runners
        self._depends_on = depends_on
        self._statuses = statuses
        self._lives: dict[str, Lives] = {}

    def verdict(self, name: str) -> Verdict:
        """Say whether the dependencies of an instance let it start."""
        return dependencies.judge(self._depends_on(name), self._around(name))

    def _around(self, name: str) -> Mapping[str, Mapping[str, Status]]:
        return {service: self._statuses(service) for service in self._depends_on(name)}

    def changed(self, name: str, before: Status, after: Status) -> None:
        """Note with which dependencies a new life of an instance begins."""
        if after.phase is Phase.SPAWNING and after.number != before.number:
            self._lives[name] = dependencies.lives(self._depends_on(name), self._around(name))

    def forget(self, name: str) -> None:
        """An instance is no more."""
        self._lives.pop(name, None)

    def look(self, *, restart: bool) -> None:
        """Draw the consequences of a change; without `restart` nothing is started again."""
        for name, runner in tuple(self._runners.items()):
            phase = runner.status.phase
            if phase is Phase.WAITING:
                self._judge(name, runner)
            elif restart and phase in (Phase.STARTING, Phase.RUNNING):
                self._follow(name, runner)

    def _judge(self, name: str, runner: Runner) -> None:
        verdict = self.verdict(name)
        if verdict.met:
            runner.feed(events.DependenciesMet())
        elif verdict.hopeless:
            runner.feed(events.DependencyFailed("; ".join(verdict.waiting_for), verdict.cause))

    def _follow(self, name: str, runner: Runner) -> None:
        begun = self._lives.get(name)
        if not begun or runner.status.wanted is not Wanted.RUN:
            return
        other = dependencies.restarted(self._depends_on(name), begun, self._around(name))
        if other is not None:
            # Noted at once: the restart takes its time, and is wanted once.
            self._lives[name] = dependencies.lives(self._depends_on(name), self._around(name))
            runner.feed(events.Restart(f"{other} was started again"))
