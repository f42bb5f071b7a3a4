"""What an app says by itself, as the answer to a probe; time passes as the test says."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator

import pytest
from support.virtual import VirtualLoop

from meshrun.supervisor.configuration.model import NotifyCheck, Probe
from meshrun.supervisor.lifecycle_events import Event, LivenessLost, ProbeFailed, ProbeSucceeded
from meshrun.supervisor.probes.pulse import Awaiting, Heartbeat, Pulse

PROBE = Probe(check=NotifyCheck(), interval_s=2.0, failures=3, deadline_s=60.0)
SILENT = "no WATCHDOG=1 within"


@pytest.fixture
def loop() -> Iterator[VirtualLoop]:
    made = VirtualLoop()
    yield made
    made.close()


def after(
    loop: VirtualLoop, scenario: Callable[[Pulse, list[Event]], Awaitable[None]]
) -> list[Event]:
    """Return what has been fed at the end of a scenario."""
    fed: list[Event] = []

    async def run() -> None:
        await scenario(Pulse("WATCHDOG=1"), fed)

    loop.run_until_complete(run())
    return fed


def test_what_was_said_before_anybody_listened_counts(loop: VirtualLoop) -> None:
    async def scenario(pulse: Pulse, fed: list[Event]) -> None:
        pulse.beat()
        Awaiting(pulse, fed.append)

    assert after(loop, scenario) == [ProbeSucceeded()]


def test_one_that_waits_says_for_what_and_what_was_wrong_with_what_came(loop: VirtualLoop) -> None:
    async def scenario(pulse: Pulse, fed: list[Event]) -> None:
        waits = Awaiting(pulse, fed.append)
        pulse.fail("a stranger said so")
        pulse.beat()
        waits.stop()
        pulse.beat()

    assert after(loop, scenario) == [
        ProbeFailed("no WATCHDOG=1 yet"),
        ProbeFailed("a stranger said so"),
        ProbeSucceeded(),
    ]


def test_one_that_never_beats_has_its_deadline(loop: VirtualLoop) -> None:
    async def scenario(pulse: Pulse, fed: list[Event]) -> None:
        Heartbeat(pulse, PROBE, fed.append)
        await asyncio.sleep(59.9)
        assert fed == []
        await asyncio.sleep(0.2)

    assert after(loop, scenario) == [LivenessLost(f"{SILENT} 60 s", 60.0)]


def test_after_its_first_beat_it_must_go_on_beating(loop: VirtualLoop) -> None:
    async def scenario(pulse: Pulse, fed: list[Event]) -> None:
        Heartbeat(pulse, PROBE, fed.append)
        for _ in range(20):
            await asyncio.sleep(5.0)
            pulse.beat()
        assert fed == []
        await asyncio.sleep(5.9)
        assert fed == []
        await asyncio.sleep(0.2)

    (lost,) = after(loop, scenario)
    assert isinstance(lost, LivenessLost)
    assert lost.reason == f"{SILENT} 6 s"
    assert lost.ill_s == pytest.approx(6.0)


def test_a_beat_wakes_nobody_up(loop: VirtualLoop) -> None:
    async def scenario(pulse: Pulse, fed: list[Event]) -> None:
        heartbeat = Heartbeat(pulse, PROBE, fed.append)
        pulse.beat()
        timer = heartbeat._timer
        for _ in range(10):
            await asyncio.sleep(0.5)
            pulse.beat()
        assert heartbeat._timer is timer

    assert after(loop, scenario) == []


def test_one_that_says_it_is_ill_is_lost_at_once_and_once(loop: VirtualLoop) -> None:
    async def scenario(pulse: Pulse, fed: list[Event]) -> None:
        Heartbeat(pulse, PROBE, fed.append)
        pulse.fail("ill")
        pulse.beat()
        await asyncio.sleep(1000.0)

    assert after(loop, scenario) == [LivenessLost("ill", 0.0)]


def test_one_that_is_stopped_is_silent(loop: VirtualLoop) -> None:
    async def scenario(pulse: Pulse, fed: list[Event]) -> None:
        Heartbeat(pulse, PROBE, fed.append).stop()
        pulse.fail("ill")
        await asyncio.sleep(1000.0)

    assert after(loop, scenario) == []
