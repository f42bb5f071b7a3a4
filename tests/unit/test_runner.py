"""The driver of a process: what it does when things happen within each other, or fail."""

import asyncio
from collections.abc import Callable, Coroutine

import pytest

from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.launching import LauncherLostError, Process
from meshrun.supervisor.lifecycle import Phase, Policy, Status
from meshrun.supervisor.lifecycle_events import Event, Exit
from meshrun.supervisor.processes import ProcessId
from meshrun.supervisor.runner import Feed, NotExecutableError, Probing, Runner, Which

# No process has such a number (pid_max), so there is no session of that number either.
NOBODY = 2**22 + 5


class Asked:
    """A probe that is answered by the test."""

    tries = 0

    def __init__(self, feed: Feed) -> None:
        self._feed, self.stopped = feed, False

    def succeed(self) -> None:
        self._feed(events.ProbeSucceeded())

    def fail(self, reason: str) -> None:
        self._feed(events.ProbeFailed(reason))

    def stop(self) -> None:
        self.stopped = True


class Body:
    """Processes without processes: `live` are those that have been started and not ended."""

    def __init__(self) -> None:
        self.problems: list[Exception] = []
        self.processes: list[Process] = []
        self.heard: list[int] = []
        self.asked: list[Asked] = []
        self.drained = 0
        self.hooks: list[tuple[events.RunHook, Feed]] = []
        self.hooks_ended: list[events.EndHook] = []
        self.hook_problem: Exception | None = None

    async def spawn(self) -> Process:
        await asyncio.sleep(0)
        if self.problems:
            raise self.problems.pop(0)
        process = Process(NOBODY, -1, asyncio.get_running_loop().create_future())
        self.processes.append(process)
        return process

    def started(self, pid: int, _feed: Feed) -> None:
        self.heard.append(pid)

    def exited(self) -> None:
        self.drained += 1

    def run_hook(self, order: events.RunHook, feed: Feed) -> None:
        self.hooks.append((order, feed))
        if self.hook_problem is not None:
            raise self.hook_problem

    def end_hook(self, order: events.EndHook) -> None:
        self.hooks_ended.append(order)

    def hook_members(self) -> list[ProcessId]:
        return []

    def probe(self, _which: Which, feed: Feed) -> Probing | None:
        self.asked.append(Asked(feed))
        return self.asked[-1]


class Kept:
    """A runner with its body and all that it has told."""

    def __init__(self, policy: Policy | None = None) -> None:
        self.body = Body()
        self.told: list[tuple[Phase, Phase]] = []
        self.on_change: Callable[[Status], None] = lambda _: None
        self.runner = Runner("app.1", policy or Policy(), self.body, self._changed, lambda: 0.0)

    def _changed(self, _runner: Runner, before: Status, after: Status, _event: Event) -> None:
        self.told.append((before.phase, after.phase))
        self.on_change(after)

    async def start(self) -> None:
        self.runner.feed(events.Start())
        self.runner.feed(events.DependenciesMet())
        await turns()

    def phase(self) -> Phase:
        return self.runner.status.phase


async def turns() -> None:
    """Let everything happen that is about to."""
    for _ in range(10):
        await asyncio.sleep(0)


def run(scenario: Callable[[], Coroutine[None, None, None]]) -> None:
    asyncio.run(scenario())


def test_a_process_is_started_and_started_again_when_it_fails() -> None:
    async def scenario() -> None:
        kept = Kept()
        await kept.start()
        assert kept.phase() is Phase.RUNNING
        kept.body.processes[0].exited.set_result(Exit(1))
        await turns()
        assert (kept.phase(), len(kept.body.processes)) == (Phase.RUNNING, 2)
        assert kept.body.drained == 1

    run(scenario)


def test_what_happens_in_consequence_comes_after_and_in_order() -> None:
    async def scenario() -> None:
        kept = Kept()

        def answer(status: Status) -> None:
            if status.phase is Phase.WAITING:
                kept.runner.feed(events.DependenciesMet())
                kept.runner.feed(events.Stop())

        kept.on_change = answer
        kept.runner.feed(events.Start())
        assert kept.told == [
            (Phase.STOPPED, Phase.WAITING),
            (Phase.WAITING, Phase.SPAWNING),
            (Phase.SPAWNING, Phase.SPAWNING),
        ]
        await turns()
        assert kept.phase() is Phase.STOPPING
        kept.body.processes[0].exited.set_result(Exit(0))
        await turns()
        assert kept.phase() is Phase.STOPPED

    run(scenario)


@pytest.mark.parametrize(
    ("problem", "phase"),
    [
        (NotExecutableError("cannot run it"), Phase.FAILED),
        (MeshrunError("cannot fork"), Phase.RUNNING),
        (OSError(24, "Too many open files"), Phase.RUNNING),
        (LauncherLostError("gone"), Phase.SPAWNING),
    ],
)
def test_what_cannot_be_started_is_failed_or_tried_again_or_over(
    problem: Exception, phase: Phase
) -> None:
    async def scenario() -> None:
        kept = Kept()
        kept.body.problems.append(problem)
        await kept.start()
        assert kept.phase() is phase

    run(scenario)


def test_a_probe_is_asked_while_it_lives_and_no_longer() -> None:
    async def scenario() -> None:
        kept = Kept(Policy(has_ready=True))
        await kept.start()
        (asked,) = kept.body.asked
        asked.fail("refused")
        assert (kept.phase(), kept.runner.status.reason) == (Phase.STARTING, "refused")
        asked.succeed()
        assert kept.phase() is Phase.RUNNING
        kept.body.processes[0].exited.set_result(Exit(1))
        await turns()
        assert asked.stopped
        assert len(kept.body.asked) == 2
        assert kept.phase() is Phase.STARTING
        kept.runner.feed(events.Kill())
        kept.body.processes[1].exited.set_result(Exit(None, 9))
        await turns()
        assert kept.phase() is Phase.STOPPED

    run(scenario)


def test_a_hook_that_cannot_even_be_tried_is_not_waited_for() -> None:
    async def scenario() -> None:
        kept = Kept(Policy(has_on_exit=True, restart="never"))
        reported: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: reported.append(str(context["exception"]))
        )
        kept.body.hook_problem = ValueError("a NUL")
        await kept.start()
        kept.body.processes[0].exited.set_result(Exit(0))
        await turns()
        assert kept.phase() is Phase.COMPLETED
        assert [order for order, _ in kept.body.hooks] == [
            events.RunHook("on_exit", Exit(0), again=False)
        ]
        assert reported == ["a NUL"]

    run(scenario)


def test_a_timer_is_that_of_the_phase_it_was_set_in() -> None:
    async def scenario() -> None:
        kept = Kept(Policy(stop_timeout_s=0.01))
        await kept.start()
        kept.runner.feed(events.Stop())
        assert kept.phase() is Phase.STOPPING
        kept.body.processes[0].exited.set_result(Exit(0))
        await turns()
        kept.runner.feed(events.Start())
        kept.runner.feed(events.DependenciesMet())
        await asyncio.sleep(0.03)
        assert kept.phase() is Phase.RUNNING

    run(scenario)


def test_somebody_who_fails_when_told_does_not_keep_it_from_living_and_ending() -> None:
    async def scenario() -> None:
        reported: list[str] = []
        asyncio.get_running_loop().set_exception_handler(
            lambda _loop, context: reported.append(str(context["exception"]))
        )
        kept = Kept(Policy(restart="never"))

        def fail(_status: Status) -> None:
            raise AttributeError("told badly")

        kept.on_change = fail
        await kept.start()
        assert kept.phase() is Phase.RUNNING
        kept.body.processes[0].exited.set_result(Exit(0))
        await turns()
        assert kept.phase() is Phase.COMPLETED
        assert set(reported) == {"told badly"}

    run(scenario)
