"""Connections on which nothing moves are cut where that is asked for, and memory is given back."""

import asyncio
import socket
import time
from collections.abc import Iterator

import msgspec
import pytest
from support.apps import App, echo
from support.sidecars import ControlledSidecar, Mesh

from meshrun.proxy import memory
from meshrun.proxy.idleness import IdleWatch
from meshrun.proxy.memory import Trimmer
from meshrun.proxy.messages import ConnectionFailed

IDLE_S = 0.4


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


@pytest.fixture(scope="module", params=[True, False], ids=["tunnel", "direct"])
def route(
    mesh: Mesh, request: pytest.FixtureRequest
) -> Iterator[tuple[ControlledSidecar, ControlledSidecar]]:
    """A client and a server in front of an echo."""
    with App(echo) as app:
        server = mesh.sidecar("server", app=app.port, default="allow")
        yield mesh.sidecar("client", upstreams=[server], tunnels=request.param), server


def limit(sidecar: ControlledSidecar, idle_timeout_s: float | None) -> None:
    """Let connections of this sidecar be idle for that long."""
    snapshot, limits = sidecar.snapshot, {"idle_timeout_s": idle_timeout_s}
    if snapshot.inbound is not None:
        inbound = msgspec.structs.replace(snapshot.inbound, **limits)
        sidecar.apply(msgspec.structs.replace(snapshot, inbound=inbound))
    else:
        upstreams = tuple(msgspec.structs.replace(each, **limits) for each in snapshot.upstreams)
        sidecar.apply(msgspec.structs.replace(snapshot, upstreams=upstreams))


def carries(connection: socket.socket) -> bool:
    try:
        connection.sendall(b"ping")
        return connection.recv(100) == b"ping"
    except ConnectionError:
        return False


@pytest.mark.parametrize("side", [0, 1], ids=["outbound", "inbound"])
def test_a_silent_connection_is_cut_and_the_reason_is_said(
    route: tuple[ControlledSidecar, ControlledSidecar], side: int
) -> None:
    limited = route[side]
    with route[0].call("server") as connection:
        assert carries(connection)
        limit(limited, IDLE_S)
        began = time.monotonic()
        with pytest.raises(ConnectionResetError):
            connection.recv(1)
        assert time.monotonic() - began < 10 * IDLE_S
        assert "idle_timeout" in limited.expect(ConnectionFailed).reason
    limit(limited, None)


@pytest.mark.parametrize("side", [0, 1], ids=["outbound", "inbound"])
def test_one_that_speaks_now_and_then_lives_on(
    route: tuple[ControlledSidecar, ControlledSidecar], side: int
) -> None:
    limit(route[side], 2.0)
    with route[0].call("server") as connection:
        until = time.monotonic() + 3.0
        while time.monotonic() < until:
            assert carries(connection)
            connection.settimeout(0.1)
            with pytest.raises(TimeoutError):
                connection.recv(1)
            connection.settimeout(20)
    limit(route[side], None)


def test_without_a_limit_a_silent_connection_lives_on(
    route: tuple[ControlledSidecar, ControlledSidecar],
) -> None:
    client, server = route
    limit(server, IDLE_S)
    limit(server, None)
    with client.call("server") as connection:
        assert carries(connection)
        connection.settimeout(3 * IDLE_S)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        connection.settimeout(20)
        assert carries(connection)


@pytest.mark.parametrize(("left", "trims"), [(63, True), (64, False), (128, False)])
def test_memory_is_given_back_once_most_connections_have_gone(
    monkeypatch: pytest.MonkeyPatch, left: int, trims: bool
) -> None:
    trimmed: list[bool] = []
    monkeypatch.setattr(memory, "trim", lambda: trimmed.append(True))
    monkeypatch.setattr(memory, "PERIOD_S", 0.01)
    watched = [memory.MANY]

    async def come_and_go() -> None:
        trimmer = Trimmer(lambda: watched[0])
        trimmer.connected()
        watched[0] = left
        await asyncio.sleep(0.1)  # ten periods of its timer
        trimmer.close()

    asyncio.run(come_and_go())
    assert trimmed == [True] * trims


def test_a_time_that_is_said_again_and_again_is_over_all_the_same() -> None:
    async def main() -> None:
        cuts: list[str] = []
        watch = IdleWatch(lambda: [Silent()], cuts.append)
        async with asyncio.timeout(10 * IDLE_S):
            while not cuts:
                watch.set(IDLE_S)
                await asyncio.sleep(IDLE_S / 100)
        watch.close()

    asyncio.run(main())


class Silent:
    """What has been idle for ever."""

    def idle_s(self) -> float:
        return 3600.0

    def reset(self, reason: str) -> None:
        assert "idle_timeout" in reason
