"""Apps without processes: real runners and dependants over a launcher that only pretends.

What a launcher, a kernel and an app would do is done by the world of a simulation, as a history
says. It watches over what must never happen.
"""

import asyncio
import itertools
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC

from support.virtual import VirtualLoop

from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor.configuration.model import Dependency, HookName, Interval
from meshrun.supervisor.dependants import Dependants
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.launching import Process
from meshrun.supervisor.lifecycle import Phase, Policy, Status, Wanted
from meshrun.supervisor.lifecycle_events import Event, Exit
from meshrun.supervisor.processes import ProcessId
from meshrun.supervisor.runner import Feed, NotExecutableError, Runner, Which
from meshrun.supervisor.timetable import Timetable

__all__ = ["Luck", "Simulation"]

REAPED_S = 0.01
# How often those run that have a schedule.
EVERY_S = 7.0
# How soon it is seen that the clock was set.
LOOK_S = 60.0
TIMED = (Phase.STARTING, Phase.STOPPING, Phase.CLEANING, Phase.BACKOFF, Phase.CRASH_LOOP)
MOST_INSTANCES = 3


@dataclass(frozen=True)
class Luck:
    """How one try to start an app goes: how long it takes, and what the app is like.

    `willing_s` is how long it takes to end when asked to, None is for ever. `child` says whether
    it leaves something in its session, `deaf_child` that only KILL ends that. `hook_s` is how long
    a hook takes, None is for ever.
    """

    problem: str = ""
    spawn_s: float = 0.0
    willing_s: float | None = 0.1
    child: bool = False
    deaf_child: bool = False
    hook_s: float | None = 0.0


class _Process(Process):
    """A process that does as its luck says."""

    def __init__(self, app: "_App", luck: Luck) -> None:
        super().__init__(next(app.world.pids), -1, asyncio.get_running_loop().create_future())
        self.app = app
        self.luck = luck
        self.child = luck.child
        self._told = False

    def send_signal(self, number: int) -> None:
        """Obey, some time."""
        loop = asyncio.get_running_loop()
        if number == signal.SIGKILL:
            loop.call_later(REAPED_S, self.end, Exit(None, number))
        elif number == signal.SIGTERM and not self._told and self.luck.willing_s is not None:
            self._told = True
            loop.call_later(self.luck.willing_s, self.end, Exit(0))

    def end(self, exit_: Exit) -> None:
        """End, unless it has."""
        if not self.exited.done():
            self.exited.set_result(exit_)

    def close(self) -> None:
        """Have nothing to close."""


class _Rest:
    """What is left of the session of a process."""

    def __init__(self, app: "_App", process: _Process) -> None:
        self._app = app
        self._process = process
        self._on_ended: Callable[[], None] | None = None

    def members(self) -> list[ProcessId]:
        """Return nothing: these are no processes."""
        return []

    def send_signal(self, number: int) -> None:
        """Send a signal to the child, if there is one."""
        if number == signal.SIGKILL or not self._process.luck.deaf_child:
            asyncio.get_running_loop().call_later(REAPED_S, self._gone)

    def end(self, number: int, on_ended: Callable[[], None]) -> None:
        """End the child, and say so."""
        self._app.world.must(self._process.exited.done(), "the session of a live process is ended")
        if not self._process.child:
            on_ended()
            return
        self._on_ended = on_ended
        self.send_signal(number)

    def _gone(self) -> None:
        self._process.child = False
        if self._on_ended is not None:
            told, self._on_ended = self._on_ended, None
            told()


class _Asked:
    """A probe that history answers."""

    tries = 0

    def __init__(self, feed: Feed) -> None:
        self._feed = feed
        self._stopped = False

    def answer(self, event: Event) -> None:
        """Feed an answer, unless nobody asks any more."""
        if not self._stopped:
            self._feed(event)

    def stop(self) -> None:
        """Feed nothing more."""
        self._stopped = True


class _App:
    """The body of one instance, and what the world knows of it."""

    def __init__(self, world: "Simulation", name: str, policy: Policy) -> None:
        self.world = world
        self.name = name
        self.process: _Process | None = None
        self.asked: dict[Which, _Asked] = {}
        self.hooks: dict[HookName, tuple[Feed, asyncio.TimerHandle | None]] = {}
        self.spawning = False
        self.stopped = True  # the last command was a stop
        self.runner = Runner(
            name,
            policy,
            self,
            world.changed,
            lambda: 0.5,
            clock=world.loop.time,
            session=self._session,
        )

    def _session(self, _leader: int) -> _Rest:
        assert self.process is not None
        return _Rest(self, self.process)

    async def spawn(self) -> Process:
        """Pretend to start a process."""
        process = self.process
        self.world.must(not self.spawning, f"two starts of {self.name} at once")
        self.world.must(process is None or process.exited.done(), f"a second {self.name} lives")
        self.world.must(process is None or not process.child, f"{self.name} has a session left")
        self.world.must(not self.hooks, f"{self.name} starts while hooks of its last life run")
        luck = next(self.world.luck)
        self.spawning = True
        try:
            await asyncio.sleep(luck.spawn_s)
        finally:
            self.spawning = False
        if luck.problem == "for good":
            raise NotExecutableError("no such command")
        if luck.problem:
            raise MeshrunError("cannot fork")
        self.process = _Process(self, luck)
        return self.process

    def started(self, _pid: int, _feed: Feed) -> None:
        """Hear nothing."""

    def exited(self) -> None:
        """Have no output."""

    def probe(self, which: Which, feed: Feed) -> _Asked:
        """Let history answer."""
        self.asked[which] = _Asked(feed)
        return self.asked[which]

    def run_hook(self, order: events.RunHook, feed: Feed) -> None:
        """Pretend to run a hook."""
        hook, process = order.hook, self.process
        assert process is not None
        self.world.must(hook not in self.hooks, f"two hooks {hook} of {self.name} at once")
        alive = not process.exited.done()
        self.world.must(alive == (hook == "on_ready"), f"{hook} of {self.name} at the wrong time")
        after_s = process.luck.hook_s
        timer = None
        if after_s is not None:
            timer = self.world.loop.call_later(after_s, self._hook_ended, hook)
        self.hooks[hook] = (feed, timer)

    def _hook_ended(self, hook: HookName) -> None:
        feed, _ = self.hooks.pop(hook)
        feed(events.HookEnded(hook))

    def end_hook(self, order: events.EndHook) -> None:
        """End a hook by KILL; it does not obey anything else."""
        if order.signal == signal.SIGKILL and order.hook in self.hooks:
            feed, timer = self.hooks.pop(order.hook)
            if timer is not None:
                timer.cancel()
            self.world.loop.call_soon(feed, events.HookEnded(order.hook))

    def hook_members(self) -> list[ProcessId]:
        """Return nothing: these are no processes."""
        return []

    def command(self, event: Event) -> None:
        """Want something of it."""
        self.stopped = isinstance(event, events.Stop | events.Kill)
        self.runner.feed(event)

    def answer(self, which: Which, event: Event) -> None:
        """Answer a probe, if it is asked."""
        if which in self.asked:
            self.asked[which].answer(event)

    def says(self, event: Event) -> None:
        """Say something by itself, if it lives."""
        if self.process is not None and not self.process.exited.done():
            self.runner.feed(event)

    def end(self, code: int) -> None:
        """End by itself, if it lives."""
        if self.process is not None:
            self.process.end(Exit(code))


@dataclass
class Simulation:
    """Services with instances, each kept by a real runner; dependencies by real dependants."""

    loop: VirtualLoop
    policies: Mapping[str, Policy]
    depends_on: Mapping[str, Mapping[str, Dependency]]
    luck: Iterator[Luck]
    apps: dict[str, _App] = field(default_factory=dict)
    runners: dict[str, Runner] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    stopping: bool = False
    # How far the wall clock is ahead of the loop's.
    ahead_s: float = 0.0

    def __post_init__(self) -> None:
        self.pids = itertools.count(1)
        self.dependants = Dependants(
            self.runners, lambda name: self.depends_on[_service(name)], self._statuses
        )
        self.timetable = Timetable(
            self.runners,
            self._schedule_of,
            lambda: self.loop.time() + self.ahead_s,
            lambda: UTC,
            longest_timer_s=LOOK_S,
        )
        for service in self.policies:
            self.add(service)

    def must(self, holds: bool, what: str) -> None:
        """Note what must not happen."""
        if not holds:
            self.problems.append(what)

    def _statuses(self, service: str) -> Mapping[str, Status]:
        return {n: r.status for n, r in self.runners.items() if _service(n) == service}

    def _schedule_of(self, name: str) -> Interval | None:
        return Interval(EVERY_S) if self.runners[name].policy.scheduled else None

    def of(self, service: str) -> list[_App]:
        """Return the instances of a service."""
        return [app for name, app in self.apps.items() if _service(name) == service]

    def add(self, service: str) -> None:
        """Take up one instance more."""
        numbers = [int(app.name.rpartition(".")[2]) for app in self.of(service)]
        if len(numbers) < MOST_INSTANCES:
            name = f"{service}.{max(numbers, default=0) + 1}"
            self.apps[name] = _App(self, name, self.policies[service])
            self.runners[name] = self.apps[name].runner

    def scale_up(self, service: str) -> None:
        """Take up one instance more, and start it."""
        before = set(self.apps)
        self.add(service)
        for name in set(self.apps) - before:
            self.apps[name].command(events.Start())

    def scale_down(self, service: str) -> None:
        """Stop the last instance; it is forgotten once it has ended."""
        last = self.of(service)[-1]
        if len(self.of(service)) > 1:
            last.command(events.Stop())

    def changed(self, runner: Runner, before: Status, after: Status, event: Event) -> None:
        """Do what a run does when something has changed, and look whether all is as it must be."""
        if after.phase is Phase.SPAWNING and after.number != before.number:
            self.must(not self.apps[runner.name].stopped, f"{runner.name} starts after a stop")
        if isinstance(event, events.TimerFired) and before.due_at is not None:
            early = self.loop.time() < before.due_at - 1e-6
            self.must(not early, f"a timer of {runner.name} fired early")
        self._check(runner.name, after)
        self.dependants.changed(runner.name, before, after)
        self.timetable.changed(runner.name, before, after)
        self.look()

    def look(self) -> None:
        """Draw the consequences of a change."""
        self.dependants.look(restart=not self.stopping)
        self.timetable.look()

    def _check(self, name: str, status: Status) -> None:
        now = self.loop.time()
        self.must(not status.ready or status.phase is Phase.RUNNING, f"{name} is ready: {status}")
        self.must(status.since <= now, f"{name} is where it is since later")
        if status.phase in TIMED:
            self.must(status.due_at is not None, f"{name} could wait for ever: {status}")
        if status.phase in (Phase.FAILED, Phase.BACKOFF, Phase.CRASH_LOOP, Phase.KILLING):
            self.must(bool(status.reason), f"{name} waits or has failed without a reason: {status}")

    def unexplained(self) -> list[str]:
        """Return what waits for nothing that could still come; asked when nothing moves any more.

        An app that waits must wait for somebody who waits too, is tried again, lives, or was
        stopped by a command, and must be able to say so.
        """
        found = []
        for name, runner in self.runners.items():
            status = runner.status
            wanted = runner.policy.scheduled and status.wanted is not Wanted.STOP
            next_at = self.timetable.next_at(name)
            if (next_at is not None) != wanted:
                found.append(f"{name}, {status}, is due at {next_at}")
            in_s = 0.0 if next_at is None else next_at - self.loop.time() - self.ahead_s
            if not -1e-6 <= in_s <= EVERY_S + 1e-6:
                found.append(f"{name} is due in {in_s} s")
            if status.phase is not Phase.WAITING:
                continue
            verdict = self.dependants.verdict(name)
            if verdict.met or verdict.hopeless or not verdict.waiting_for:
                found.append(f"{name} waits though it need not: {verdict}")
            found += [
                f"{name} waits for {other}, which is {self.runners[other].status}"
                for other in verdict.unmet
                if self.runners[other].status.phase is Phase.FAILED
            ]
        return found


def _service(name: str) -> str:
    return name.partition(".")[0]
