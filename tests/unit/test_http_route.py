"""Which way requests go, over which lines, and what waits: on a loop, with instances in memory."""

import asyncio

import pytest
from support.lines import Far, instances

from meshrun.proxy.messages import Protocol, Requests

ONE = instances(1)
TWO = instances(2)


@pytest.mark.parametrize("protocol", ["http2", "grpc"])
def test_a_burst_over_http2_shares_one_tunnel(
    monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, protocol)
        far.lead_to(("server", ONE))
        burst = [far.ask() for _ in range(50)]
        await far.settle()
        assert far.circuit.pending == 50
        peer = far.connect()
        await far.settle()
        assert not far.attempts
        assert far.circuit.pending == 0
        # Those that come while the stream is not accepted go the same way.
        burst += [far.ask() for _ in range(10)]
        peer.accept()
        await far.settle()
        assert peer.requests == 60
        for _ in range(60):
            peer.answer()
        await far.settle()
        assert {each.ended() for each in burst} == {"200"}
        assert len(far.peers) == 1
        far.routes.close()

    asyncio.run(scenario())


def test_a_burst_that_one_line_cannot_carry_takes_another(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, "http2")
        far.lead_to(("server", ONE))
        burst = [far.ask() for _ in range(150)]
        await far.settle()
        first = far.connect()
        await far.settle()
        # As many as a peer takes that has not said how many it takes.
        assert (far.circuit.pending, len(far.attempts)) == (50, 1)
        second = far.connect()
        await far.settle()
        for peer, count in ((first, 100), (second, 50)):
            peer.accept()
            await far.settle()
            assert peer.requests == count
            for _ in range(count):
                peer.answer()
        await far.settle()
        assert {each.ended() for each in burst} == {"200"}
        far.routes.close()

    asyncio.run(scenario())


def test_what_waits_for_another_line_takes_room_on_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, "http2")
        far.lead_to(("server", ONE))
        burst = [far.ask() for _ in range(101)]
        await far.settle()
        peer = far.connect()
        await far.settle()
        assert (far.circuit.pending, len(far.attempts)) == (1, 1)
        peer.accept()
        await far.settle()
        for _ in range(100):
            peer.answer()
        await far.settle()
        # Nobody waits for the second connection any more.
        assert (far.circuit.pending, far.attempts) == (0, [])
        assert peer.requests == 1
        peer.answer()
        await far.settle()
        assert {each.ended() for each in burst} == {"200"}
        far.routes.close()

    asyncio.run(scenario())


def test_a_burst_over_http1_takes_a_line_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, "http")
        far.lead_to(("server", ONE))
        burst = [far.ask() for _ in range(5)]
        await far.settle()
        for attempt in list(far.attempts):
            far.connect(attempt)
        await far.settle()
        assert [peer.state for peer in far.peers] == ["opened"] * 5
        for peer in far.peers:
            peer.accept()
            peer.answer()
        await far.settle()
        assert {each.ended() for each in burst} == {"200"}
        # The next takes one of them.
        again = far.ask()
        await far.settle()
        [peer] = [peer for peer in far.peers if peer.requests]
        peer.answer()
        assert again.ended() == "200"
        far.routes.close()

    asyncio.run(scenario())


def test_more_than_may_wait_are_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, "http2")
        far.circuit.limits = Requests(most_pending=2)
        far.lead_to(("server", ONE))
        burst = [far.ask() for _ in range(3)]
        assert [each.ended() for each in burst] == ["", "", "503"]
        assert "(max_pending)" in far.failures[0]
        burst[0].abort()
        assert far.ask().ended() == ""
        far.routes.close()

    asyncio.run(scenario())


def test_each_request_that_waits_has_its_own_time(monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, "http2", connect_timeout_s=0.2)
        far.lead_to(("server", ()))
        first = far.ask()
        await asyncio.sleep(0.1)
        second = far.ask()
        async with asyncio.timeout(20):
            await first.over.wait()
        assert first.ended() == "503"
        assert far.failures == ["no instance of server is ready (waited 0.2 s)"]
        assert not second.ended()
        far.lead_to(("server", ONE))
        await far.settle()
        peer = far.connect()
        await far.settle()
        assert peer.requests == 1
        peer.accept()
        peer.answer()
        await far.settle()
        assert second.ended() == "200"
        far.routes.close()

    asyncio.run(scenario())


def test_nobody_is_called_for_requests_that_nobody_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, "http2")
        far.lead_to(("server", ONE))
        burst = [far.ask() for _ in range(3)]
        await far.settle()
        assert len(far.attempts) == 1
        for each in burst:
            each.abort()
        await far.settle()
        assert far.attempts == []
        assert far.circuit.pending == 0
        far.routes.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("protocol", ["http", "http2"])
def test_what_was_not_accepted_goes_to_another_instance_with_all_it_has(
    monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, protocol)
        far.lead_to(("server", ONE))
        asked = far.ask("POST")
        await far.settle()
        first = far.connect()
        await far.settle()
        far.lead_to(("server", TWO[1:]))
        first.break_off()
        await far.settle()
        second = far.connect()
        assert second.endpoint == TWO[1]
        await far.settle()
        assert second.requests == 1
        second.accept()
        second.answer()
        await far.settle()
        assert asked.ended() == "200"
        far.routes.close()

    asyncio.run(scenario())


def test_a_line_that_is_on_its_way_elsewhere_takes_no_more_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, "http2")
        far.lead_to(("server", ONE))
        first = far.ask()
        await far.settle()
        peer = far.connect()
        await far.settle()
        peer.break_off()
        await far.settle()
        second = far.ask()
        await far.settle()
        # Each has a journey of its own.
        assert (far.circuit.pending, len(far.attempts)) == (1, 2)
        await far.serve()
        assert (first.ended(), second.ended()) == ("200", "200")
        far.routes.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("protocol", ["http", "http2"])
def test_a_line_on_its_way_elsewhere_ends_with_its_last_request(
    monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, protocol)
        far.lead_to(("server", ONE))
        asked = far.ask()
        await far.settle()
        peer = far.connect()
        await far.settle()
        peer.break_off()
        await far.settle()
        # It is counted nowhere; its journey is.
        assert len(far.attempts) == far.in_flight(ONE[0]) == 1
        asked.abort()
        await far.settle()
        assert far.attempts == []
        far.routes.close()

    asyncio.run(scenario())


def test_a_line_that_nobody_waits_for_ends_when_it_is_not_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, "http2")
        far.lead_to(("server", ONE))
        asked = far.ask()
        await far.settle()
        peer = far.connect()
        await far.settle()
        asked.abort()
        # It is kept, for it may be accepted yet.
        peer.break_off()
        await far.settle()
        assert far.attempts == []
        again = far.ask()
        await far.serve()
        assert again.ended() == "200"
        far.routes.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("protocol", ["http", "http2"])
def test_what_may_not_be_sent_twice_avoids_an_instance_that_has_hung_up(
    monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    async def scenario() -> None:
        far = Far(monkeypatch, protocol)
        far.lead_to(("server", ONE))
        warm = far.ask()
        await far.settle()
        first = far.connect()
        await far.settle()
        first.accept()
        await far.settle()
        first.answer()
        await far.settle()
        assert warm.ended() == "200"
        first.gone = True
        far.lead_to(("server", TWO))
        # Whichever is picked, nothing goes over the line to the first.
        asked = [far.ask("POST") for _ in range(4)]
        await far.settle()
        assert {attempt.endpoint for attempt in far.attempts} >= {TWO[1]}
        while far.attempts:
            if far.attempts[0].endpoint == TWO[1]:
                far.connect()
            else:
                far.refuse(far.attempts[0])
            await far.settle()
        await far.serve()
        assert {each.ended() for each in asked} == {"200"}
        far.routes.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("protocol", ["http", "http2"])
def test_what_is_under_way_to_a_service_that_is_left_goes_on(
    monkeypatch: pytest.MonkeyPatch, protocol: Protocol
) -> None:
    old, new = instances(1, "old"), instances(1, "new")

    async def scenario() -> None:
        far = Far(monkeypatch, protocol)
        far.lead_to(("old", old))
        under_way = far.ask("POST")
        await far.settle()
        peer = far.connect()
        await far.settle()
        peer.accept()
        await far.settle()
        waiting = far.ask("POST") if protocol == "http" else None
        await far.settle()
        far.lead_to(("new", new))
        await far.settle()
        assert not under_way.ended()
        peer.answer()
        await far.settle()
        assert under_way.ended() == "200"
        # What was not sent yet goes to the service that is there, as do those that come.
        asked = [far.ask("POST"), *([waiting] if waiting is not None else [])]
        await far.settle()
        assert {attempt.endpoint.instance for attempt in far.attempts} == {"new.1"}
        await far.serve()
        assert {each.ended() for each in asked} == {"200"}
        # Nothing of the old one is left.
        assert peer.closed
        far.routes.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("protocol", ["http", "http2"])
@pytest.mark.parametrize("broken_first", [True, False])
def test_what_no_instance_has_accepted_is_unsent_when_its_service_is_left(
    monkeypatch: pytest.MonkeyPatch, protocol: Protocol, broken_first: bool
) -> None:
    old, new = instances(1, "old"), instances(1, "new")

    async def scenario() -> None:
        far = Far(monkeypatch, protocol)
        far.lead_to(("old", old))
        asked = far.ask("POST")
        await far.settle()
        peer = far.connect()
        await far.settle()
        if broken_first:
            peer.break_off()
            await far.settle()
            assert not asked.ended()
            far.lead_to(("new", new))
        else:
            far.lead_to(("new", new))
            await far.settle()
            assert not asked.ended()
            peer.break_off()
        await far.settle()
        assert asked.ended() == "old is not called any more"
        assert asked.unsent
        assert far.attempts == []
        far.routes.close()

    asyncio.run(scenario())
