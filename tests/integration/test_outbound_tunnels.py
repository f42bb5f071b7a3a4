"""Streams without an answer, on a loop: each has its own time."""

import asyncio
from random import Random
from typing import cast

import pytest

from meshrun.proxy import outbound_tunnels
from meshrun.proxy.balance import Balancer
from meshrun.proxy.framing import Refusal
from meshrun.proxy.identity import Identity
from meshrun.proxy.messages import Endpoint
from meshrun.proxy.outbound_tunnels import OutboundTunnels
from meshrun.proxy.poller import Poller
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.splice import Rider
from meshrun.proxy.tunnel import Leftover, OutboundTunnel, Unaccepted

ENDPOINT = Endpoint(instance="server.1", host="127.0.0.1", port=1)
PATIENCE_S = 20.0


class Silent:
    """A tunnel whose other side never answers."""

    endpoint = ENDPOINT

    def __init__(self) -> None:
        self.cut_for = asyncio.Event()

    def open(self, rider: Rider, leftover: Leftover, unaccepted: Unaccepted) -> None: ...

    def cut(self, reason: str) -> None:
        assert reason == "no answer"
        self.cut_for.set()


def unaccepted(refusal: Refusal | None, reason: str, leftover: Leftover) -> None: ...


def test_a_stream_that_is_due_sooner_than_one_of_before_is_cut_in_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbound_tunnels, "ANSWER_GRACE_S", 0.0)
    poller = Poller()

    async def scenario() -> None:
        tunnels = OutboundTunnels(
            poller,
            cast(Identity, None),
            Random(1),
            Balancer(),
            "server",
            SpiffeId.for_service("test.mesh", "server"),
        )
        now = asyncio.get_running_loop().time()
        late, soon = Silent(), Silent()
        for tunnel, due in ((late, now + 60.0), (soon, now + 0.01)):
            tunnels.ride(
                cast(OutboundTunnel, tunnel), cast(Rider, None), Leftover(), unaccepted, due
            )
        async with asyncio.timeout(PATIENCE_S):
            await soon.cut_for.wait()
        assert not late.cut_for.is_set()
        tunnels.tunnel_closed(cast(OutboundTunnel, soon))
        tunnels.close()

    with asyncio.Runner(loop_factory=poller.new_loop) as runner:
        runner.run(scenario())
