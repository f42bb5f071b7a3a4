"""When nothing goes to an app any more, as far as its sidecar can know."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator
from itertools import chain, repeat

import msgspec
import pytest
from support.answerer import named
from support.apps import App, echo
from support.sidecars import ControlledSidecar, Mesh

from meshrun.proxy import drain
from meshrun.proxy.drain import Drain
from meshrun.proxy.messages import Drained

PATIENCE_S = 10.0
# How long is waited for what must not come.
SHORT_S = 5 * drain.QUIET_S


class Watched:
    """A drain that finds the app busy as often as the test says, then idle."""

    def __init__(self) -> None:
        self.answers: Iterator[bool] = repeat(False)
        self.told = 0
        self._heard = asyncio.Event()
        self.drain = Drain(lambda: next(self.answers), self._drained)

    def _drained(self) -> None:
        self.told += 1
        self._heard.set()

    async def heard(self) -> None:
        async with asyncio.timeout(PATIENCE_S):
            await self._heard.wait()
        self._heard.clear()


def run(scenario: Callable[[Watched], Awaitable[None]]) -> None:
    async def main() -> None:
        watched = Watched()
        await scenario(watched)
        watched.drain.close()

    asyncio.run(main())


def test_an_app_that_nobody_calls_is_drained_after_a_quiet_moment() -> None:
    async def scenario(watched: Watched) -> None:
        begun = time.monotonic()
        watched.drain.set(on=True)
        await watched.heard()
        assert time.monotonic() - begun >= 1.9 * drain.QUIET_S

    run(scenario)


@pytest.mark.parametrize("busy", [[True], [False, True], [False, False, True]])
def test_a_call_is_waited_for_also_one_that_comes_late(busy: list[bool]) -> None:
    async def scenario(watched: Watched) -> None:
        watched.answers = chain(busy, repeat(False))
        watched.drain.set(on=True)
        await asyncio.sleep(SHORT_S)
        assert watched.told == 0
        watched.drain.look()  # the call is over
        await watched.heard()

    run(scenario)


def test_who_is_not_asked_any_more_says_nothing_and_may_be_asked_again() -> None:
    async def scenario(watched: Watched) -> None:
        watched.drain.set(on=True)
        watched.drain.set(on=False)
        watched.drain.look()
        await asyncio.sleep(SHORT_S)
        assert watched.told == 0
        watched.drain.set(on=True)
        await watched.heard()
        watched.drain.set(on=True)
        await asyncio.sleep(SHORT_S)
        assert watched.told == 1

    run(scenario)


def ask_whether_drained(sidecar: ControlledSidecar) -> None:
    """Tell a sidecar that nobody is sent to it any more."""
    inbound = sidecar.snapshot.inbound
    assert inbound is not None
    draining = msgspec.structs.replace(inbound, draining=True)
    sidecar.apply(msgspec.structs.replace(sidecar.snapshot, inbound=draining))


def says_nothing(sidecar: ControlledSidecar) -> bool:
    """Tell whether a sidecar has not said in the meantime that it is drained."""
    time.sleep(SHORT_S)
    return not any(isinstance(message, Drained) for message in list(sidecar.received.queue))


def test_a_sidecar_says_that_the_last_connection_has_ended() -> None:
    with Mesh() as mesh, App(echo) as app:
        server = mesh.sidecar("server", app=app.port, default="allow")
        client = mesh.sidecar("client", upstreams=[server])
        with client.call("server") as first, client.call("server") as second:
            for connection in (first, second):
                connection.sendall(b"ping")
                assert connection.recv(4) == b"ping"
            client.balance("server")
            ask_whether_drained(server)
            first.close()
            assert says_nothing(server)
            second.sendall(b"still")
            assert second.recv(5) == b"still"
        server.expect(Drained, lambda message: message.version == server.snapshot.version)


def test_a_sidecar_does_not_wait_for_connections_without_a_request() -> None:
    with Mesh() as mesh, App(named("server")) as app:
        server = mesh.sidecar("server", app=app.port, default="allow", protocol="http")
        client = mesh.sidecar("client", upstreams=[server], protocol="http")
        with client.call("server") as connection:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            assert connection.recv(100).startswith(b"HTTP/1.1 200")
            ask_whether_drained(server)
            server.expect(Drained)
