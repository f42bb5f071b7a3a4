"""Random histories of whole sets of apps: real runners and dependants, pretended processes."""

import asyncio
import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sampling import HISTORIES
from support.simulation import Luck, Simulation
from support.virtual import VirtualLoop

from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor.configuration.model import Dependency
from meshrun.supervisor.lifecycle import Phase, Policy

SERVICES = ("db", "api", "web")
# Longer than all that a run without commands may take to come to rest.
LONG_S = 160.0
BETWEEN = (Phase.STARTING, Phase.STOPPING, Phase.ENDING, Phase.CLEANING)

policies = st.builds(
    Policy,
    restart=st.sampled_from(["always", "never", "on-failure"]),
    stop_timeout_s=st.sampled_from([0.5, 5.0]),
    has_ready=st.booleans(),
    has_alive=st.booleans(),
    scheduled=st.sampled_from([False, False, True]),
    has_on_ready=st.booleans(),
    has_on_exit=st.booleans(),
    hook_timeout_s=st.sampled_from([0.2, 10.0]),
    ready_deadline_s=st.just(10.0),
    notifies=st.just(True),
)
dependencies = st.builds(
    Dependency,
    condition=st.sampled_from(["started", "ready", "completed", "succeeded"]),
    on_restart=st.sampled_from(["ignore", "restart"]),
)
lucks = st.builds(
    Luck,
    problem=st.sampled_from([*[""] * 8, "for now", "for good"]),
    spawn_s=st.sampled_from([0.0, 0.2]),
    willing_s=st.sampled_from([0.0, 0.3, None]),
    child=st.booleans(),
    deaf_child=st.booleans(),
    hook_s=st.sampled_from([0.0, 1.0, None]),
)
HAPPENINGS = (
    *("start", "stop", "restart", "kill", "scale up", "scale down"),
    *("ends well", "crashes", "is ready", "is ready", "is not ready", "is not alive"),
    *("says that it stops", "asks for time", "says", "the clock jumps"),
    *("start now", "the clock is set", "the clock is set back"),
)
happenings = st.tuples(
    st.sampled_from(HAPPENINGS),
    st.sampled_from([0.0, 0.0, 0.0, 0.01, 0.15, 0.15, 1.0, 6.0, 40.0]),  # seconds until the next
)
# Several things in a row happen to one instance: what is rare comes of what follows closely.
episodes = st.tuples(
    st.sampled_from(SERVICES),
    st.sampled_from([0, 0, 0, 1, 2]),  # which of its instances
    st.lists(happenings, min_size=1, max_size=8),
)
History = list[tuple[str, int, list[tuple[str, float]]]]


@pytest.fixture(scope="module")
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def happen(world: Simulation, what: str, service: str, number: int) -> None:
    """Let something happen to an instance."""
    apps = world.of(service)
    app = apps[number % len(apps)]
    match what:
        case "start":
            app.command(events.Start())
        case "start now":
            app.command(events.Start(now=True))
        case "stop":
            app.command(events.Stop())
        case "restart":
            app.command(events.Restart())
        case "kill":
            app.command(events.Kill())
        case "scale up":
            world.scale_up(service)
        case "scale down":
            world.scale_down(service)
        case "ends well":
            app.end(0)
        case "crashes":
            app.end(1)
        case "is ready":
            app.answer("ready", events.ProbeSucceeded())
        case "is not ready":
            app.answer("ready", events.ProbeFailed("refused"))
        case "is not alive":
            app.answer("alive", events.LivenessLost("silent", 3.0))
        case "says that it stops":
            app.says(events.StoppingAnnounced())
        case "asks for time":
            app.says(events.TimeoutExtended(1000.0))
        case "says":
            app.says(events.Said("loading"))
        case "the clock jumps":
            world.loop.now += 3600.0
        case "the clock is set":
            world.ahead_s += 5000.0
        case "the clock is set back":
            world.ahead_s -= 5000.0
    world.look()


async def live(world: Simulation, history: History) -> None:
    """Live through a history, come to rest, and be stopped."""
    problems = world.problems
    world.loop.set_exception_handler(lambda _loop, context: problems.append(str(context)))
    for app in world.apps.values():
        app.command(events.Start())
    world.look()
    for service, number, episode in history:
        for what, pause_s in episode:
            happen(world, what, service, number)
            await asyncio.sleep(pause_s)
    # Nobody wants anything any more: whatever waits for something must get it or say for what.
    await asyncio.sleep(LONG_S)
    problems += world.unexplained()
    for name, runner in world.runners.items():
        if (
            runner.status.phase in BETWEEN
            and world.loop.time() - runner.status.since > LONG_S - 50.0
        ):
            problems.append(f"{name} hangs: {runner.status}")
    world.stopping = True
    begun = world.loop.time()
    for app in world.apps.values():
        app.command(events.Stop())
    while not all(runner.status.final for runner in world.runners.values()):
        await asyncio.sleep(0.1)
        longest_s = max(policy.longest_stop_s for policy in world.policies.values())
        if world.loop.time() - begun > 2 * longest_s + 1.0:
            problems.append(f"not stopped: {world.runners}")
            break
    for app in world.apps.values():
        alive = app.process is not None and not app.process.exited.done()
        if alive or app.runner.status.phase is Phase.SPAWNING or app.hooks:
            problems.append(f"{app.name} lives after the stop")
    await asyncio.sleep(1.0)


@settings(max_examples=HISTORIES)
@given(
    of_service=st.fixed_dictionaries(dict.fromkeys(SERVICES, policies)),
    edges=st.tuples(dependencies, dependencies, dependencies),
    luck=st.lists(lucks, min_size=1, max_size=8),
    history=st.lists(episodes, max_size=8),
)
def test_whatever_happens_to_apps_that_depend_on_each_other_every_wait_ends_and_a_stop_wins(
    loop: VirtualLoop,
    of_service: dict[str, Policy],
    edges: tuple[Dependency, Dependency, Dependency],
    luck: list[Luck],
    history: History,
) -> None:
    async def scenario() -> list[str]:
        depends_on = {
            "db": {},
            "api": {"db": edges[0]},
            "web": {"api": edges[1], "db": edges[2]},
        }
        world = Simulation(loop, of_service, depends_on, itertools.cycle(luck))
        await live(world, history)
        return world.problems

    loop.reset()
    assert loop.run_until_complete(scenario()) == []
