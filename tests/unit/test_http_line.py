"""What is counted of requests, whatever happens to the lines that they go over."""

import asyncio

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from support.lines import Asked, Far, instances
from support.sampling import EXAMPLES

from meshrun.proxy.framing import Refusal
from meshrun.proxy.messages import Protocol

pytestmark = pytest.mark.long

OLD, NEW = instances(3, "old"), instances(2, "new")

# What happens, and to which of those that it may happen to.
EVENTS = (
    "ask",
    "ask",
    "ask",
    "abort",
    "connect",
    "connect",
    "fail",
    "accept",
    "accept",
    "refuse",
    "answer",
    "answer",
    "break",
    "leave",
    "rotate",
    "rush",
)
STEPS = st.lists(st.tuples(st.sampled_from(EVENTS), st.integers(0, 1000)), max_size=60)


class World:
    """A client of two services, and what may happen to it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, protocol: Protocol) -> None:
        self.far = Far(monkeypatch, protocol)
        self.asked: list[Asked] = []
        self.lead_to(7)

    @property
    def under_way(self) -> list[Asked]:
        return [each for each in self.asked if not each.ended()]

    def lead_to(self, choice: int) -> None:
        """Let some instances be ready: those whose bit is set."""
        old = [each for n, each in enumerate(OLD) if choice >> n & 1]
        new = [each for n, each in enumerate(NEW) if choice >> (3 + n) & 1]
        services = [(name, ready) for name, ready in (("old", old), ("new", new)) if ready]
        self.far.lead_to(*(services or [("old", [])]))

    def happen(self, event: str, choice: int) -> None:
        """Let something happen, where it can."""
        far = self.far
        opened = [peer for peer in far.peers if peer.state == "opened" and not peer.closed]
        asking = [
            peer
            for peer in far.peers
            if peer.state == "accepted" and peer.requests and not peer.closed
        ]
        if event == "ask":
            self.asked.append(far.ask(("GET", "POST")[choice % 2]))
        elif event == "rush":
            self.asked += [far.ask() for _ in range(choice % 150)]
        elif event == "leave":
            self.lead_to(choice)
        elif event == "rotate":
            far.routes.rotate()
        elif event == "abort" and self.under_way:
            self.under_way[choice % len(self.under_way)].abort()
        elif event == "connect" and far.attempts:
            far.connect(far.attempts[choice % len(far.attempts)])
        elif event == "fail" and far.attempts:
            far.refuse(far.attempts[choice % len(far.attempts)])
        elif event == "accept" and opened:
            opened[choice % len(opened)].accept()
        elif event == "refuse" and opened:
            opened[choice % len(opened)].refuse(list(Refusal)[choice % len(Refusal)])
        elif event == "answer" and asking:
            asking[choice % len(asking)].answer()
        elif event == "break" and far.peers:
            far.peers[choice % len(far.peers)].break_off()

    def check(self) -> None:
        """What is counted is under way, or is an attempt."""
        counted = sum(self.far.in_flight(endpoint) for endpoint in (*OLD, *NEW))
        waiting = [each for each in self.under_way if each.line is None]
        assert counted <= len(self.under_way) + len(self.far.attempts)
        assert self.far.circuit.pending == len(waiting)


@pytest.mark.parametrize("protocol", ["http", "http2"])
@given(steps=STEPS)
@example(
    steps=[
        *(("ask", 0), ("ask", 0), ("connect", 0), ("refuse", 0)),
        *(("fail", 0), ("refuse", 0), ("leave", 8), ("leave", 0)),
    ]
)
@settings(deadline=None, max_examples=EXAMPLES)
def test_what_is_counted_is_given_back_once(
    protocol: Protocol, steps: list[tuple[str, int]]
) -> None:
    async def scenario(monkeypatch: pytest.MonkeyPatch) -> None:
        world = World(monkeypatch, protocol)
        for event, choice in steps:
            world.happen(event, choice)
            await world.far.settle()
            world.check()
        for each in world.under_way:
            each.abort()
        await world.far.settle()
        for endpoint in (*OLD, *NEW):
            assert world.far.in_flight(endpoint) == 0
        assert world.far.circuit.pending == 0
        world.far.routes.close()
        await world.far.settle()
        assert world.far.attempts == []
        assert all(peer.closed for peer in world.far.peers)

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(scenario(monkeypatch))


@pytest.mark.parametrize("protocol", ["http", "http2"])
@given(steps=STEPS)
@example(steps=[("ask", 0), ("connect", 0), ("leave", 8), ("refuse", 1)])
@settings(deadline=None, max_examples=EXAMPLES)
def test_every_request_is_answered_once_instances_are_well(
    protocol: Protocol, steps: list[tuple[str, int]]
) -> None:
    async def scenario(monkeypatch: pytest.MonkeyPatch) -> None:
        world = World(monkeypatch, protocol)
        for event, choice in steps:
            world.happen(event, choice)
            await world.far.settle()
        world.lead_to(1)  # which wakes all that are parked
        await world.far.serve()
        assert not world.under_way
        for endpoint in (*OLD, *NEW):
            assert world.far.in_flight(endpoint) == 0
        world.far.routes.close()

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(scenario(monkeypatch))
