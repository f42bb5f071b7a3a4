"""What becomes of requests whose line no instance accepts: with instances in memory."""

import asyncio
import socket
from random import Random
from typing import cast

import pytest
from support.http2 import MemoryLink
from support.lines import Far, instances, upstream_of

from meshrun.proxy import outbound_tunnels
from meshrun.proxy.http import outbound
from meshrun.proxy.http.outbound import HttpOutbound
from meshrun.proxy.http.relay import MOST_KEPT_BYTES
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.messages import Endpoint, Requests, Upstream
from meshrun.proxy.poller import Poller
from meshrun.proxy.spiffe import SpiffeId

PATIENCE_S = 20.0

POST = b"POST / HTTP/1.1\r\nHost: server\r\n"
BARE = POST + b"Content-Length: 0\r\n\r\n"
WITH_BODY = POST + b"Content-Length: 4\r\n\r\nonce"
# Of a body that is under way still, as much as is kept, and more.
KEPT = POST + b"Content-Length: 1000000\r\n\r\n" + bytes(MOST_KEPT_BYTES)
LOST = KEPT + b"!"

OLD, NEW = instances(1, "old"), instances(1, "new")


class App(MemoryLink):
    """A connection of the app, of which the test can wait for an answer."""

    def __init__(self) -> None:
        super().__init__()
        self.answered = asyncio.Event()

    def write(self, data: bytes | memoryview) -> None:
        super().write(data)
        self.answered.set()

    async def answer(self) -> bytes:
        async with asyncio.timeout(PATIENCE_S):
            await self.answered.wait()
        return self.take().partition(b"\r\n")[0]


class Client:
    """An app, its outbound side, and the instances that it meets."""

    def __init__(
        self,
        monkeypatch: pytest.MonkeyPatch,
        *shares: tuple[str, tuple[Endpoint, ...]],
        connect_timeout_s: float = 60.0,
    ) -> None:
        self.far = Far(monkeypatch, "http")
        self.app = App()
        self.connect_timeout_s = connect_timeout_s
        monkeypatch.setattr(outbound, "SocketLink", lambda _poller, _sock: self.app)
        self.outbound = HttpOutbound(
            cast(Poller, None),
            self.far.identity,
            Ledger(lambda _: None, lambda: 0),
            lambda _: None,
            Random(1),
            SpiffeId.for_service("test.mesh", "client"),
            self.upstream(*shares),
        )
        self.outbound.serve(cast(socket.socket, None))

    def upstream(self, *shares: tuple[str, tuple[Endpoint, ...]]) -> Upstream:
        return upstream_of(
            *shares,
            protocol="http",
            requests=Requests(),
            connect_timeout_s=self.connect_timeout_s,
        )

    def check(self, endpoint: Endpoint) -> None:
        """Nothing is under way any more."""
        circuit = self.outbound.circuit
        assert (circuit.in_flight, circuit.pending) == (0, 0)
        assert self.far.in_flight(endpoint) == 0


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (BARE, b"HTTP/1.1 200 OK"),
        (WITH_BODY, b"HTTP/1.1 200 OK"),
        (KEPT, b"HTTP/1.1 200 OK"),
        (LOST, b"HTTP/1.1 503 Service Unavailable"),
    ],
    ids=["bare", "body", "kept", "lost"],
)
def test_what_no_instance_accepted_in_time_is_asked_of_another_if_its_body_is_kept(
    monkeypatch: pytest.MonkeyPatch, request_: bytes, status: bytes
) -> None:
    monkeypatch.setattr(outbound_tunnels, "ANSWER_GRACE_S", 0.0)

    async def scenario() -> None:
        both = instances(2)
        client = Client(monkeypatch, ("server", both), connect_timeout_s=0.05)
        client.app.deliver(request_)
        await client.far.settle()
        silent = client.far.connect()
        await client.far.settle()
        assert silent.state == "opened"
        # The next instance has all the time that it takes.
        client.connect_timeout_s = 60.0
        client.outbound.apply(client.upstream(("server", both)))
        if status.endswith(b"OK"):
            [other] = set(both) - {silent.endpoint}
            async with asyncio.timeout(PATIENCE_S):
                await client.far.attempted(other)
            await client.far.serve()
        assert await client.app.answer() == status
        for endpoint in both:
            client.check(endpoint)
        client.outbound.close()

    asyncio.run(scenario())


def test_what_no_instance_accepted_goes_to_another_service_when_its_own_is_left(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        client = Client(monkeypatch, ("old", OLD))
        client.app.deliver(BARE)
        await client.far.settle()
        peer = client.far.connect()
        await client.far.settle()
        peer.break_off()
        await client.far.settle()
        client.outbound.apply(client.upstream(("new", NEW)))
        async with asyncio.timeout(PATIENCE_S):
            await client.far.attempted(NEW[0])
        await client.far.serve()
        assert await client.app.answer() == b"HTTP/1.1 200 OK"
        client.check(NEW[0])
        client.outbound.close()

    asyncio.run(scenario())


def test_what_waits_for_a_service_that_is_left_goes_to_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        client = Client(monkeypatch, ("old", ()))
        client.app.deliver(WITH_BODY)
        await client.far.settle()
        client.outbound.apply(client.upstream(("new", NEW)))
        await client.far.serve()
        assert await client.app.answer() == b"HTTP/1.1 200 OK"
        client.check(NEW[0])
        client.outbound.close()

    asyncio.run(scenario())


def test_a_caller_that_goes_away_while_its_request_waits_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def scenario() -> None:
        client = Client(monkeypatch, ("server", instances(1)))
        client.app.deliver(BARE)
        await client.far.settle()
        assert client.outbound.circuit.pending == 1
        assert client.app.owner is not None
        client.app.owner.broken("reset by peer")
        await client.far.settle()
        assert client.far.attempts == []
        client.check(instances(1)[0])
        client.outbound.close()

    asyncio.run(scenario())
