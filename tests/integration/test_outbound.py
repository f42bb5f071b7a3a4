"""The outbound side of real sidecars: choice of an endpoint, its identity, and waiting for one."""

import socket
import time
from collections.abc import Iterator

import pytest
from support.apps import App, echo, read_all, reset, told_by
from support.sidecars import ControlledSidecar, Mesh, listen, port_of

from meshrun.proxy.messages import ConnectionFailed, Endpoint


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


def server(mesh: Mesh, app: App, service: str = "server") -> ControlledSidecar:
    return mesh.sidecar(service, app=app.port, default="allow")


def ask(client: ControlledSidecar, upstream: str = "server") -> bytes:
    with client.call(upstream) as connection:
        connection.sendall(b"hello")
        return connection.recv(100)


def at(port: int, instance: str = "server.9") -> Endpoint:
    return Endpoint(instance=instance, host="127.0.0.1", port=port)


def is_reset(connection: socket.socket) -> bool:
    try:
        connection.recv(100)
    except ConnectionResetError:
        return True
    return False


def test_calls_spread_over_the_instances(mesh: Mesh) -> None:
    with App(told_by("one")) as one, App(told_by("two")) as two:
        client = mesh.sidecar("client", upstreams=[server(mesh, one), server(mesh, two)])
        connections = [client.call("server") for _ in range(12)]
        names = []
        for connection in connections:
            with connection:
                connection.sendall(b"who?")
                names.append(connection.recv(100))
        # Those in flight count: each instance has about half of them.
        assert {name: names.count(name) >= 4 for name in names} == {b"one": True, b"two": True}


def test_with_one_of_two_endpoints_dead_every_call_succeeds(mesh: Mesh) -> None:
    with listen() as reserved:
        dead = at(port_of(reserved))
    with App(told_by("alive")) as app:
        alive = server(mesh, app)
        client = mesh.sidecar("client", upstreams=[alive])
        client.balance("server", alive.endpoint, dead)
        assert {ask(client) for _ in range(20)} == {b"alive"}


@pytest.mark.slow
def test_a_silent_endpoint_does_not_hold_a_call_for_long(mesh: Mesh) -> None:
    with App(told_by("alive")) as app, listen() as silent:
        alive = server(mesh, app)
        client = mesh.sidecar("client", upstreams=[alive], timeout_s=10.0)
        client.balance("server", alive.endpoint, at(port_of(silent)))
        began = time.monotonic()
        assert {ask(client) for _ in range(4)} == {b"alive"}
        assert time.monotonic() - began < 8.0


def test_an_endpoint_of_another_service_is_refused(mesh: Mesh) -> None:
    with App(echo) as app:
        wrong = server(mesh, app, "other")
        client = mesh.sidecar("client", upstreams=["server"], timeout_s=0.4)
        client.balance("server", wrong.endpoint)
        with client.call("server") as connection:
            connection.sendall(b"secret")
            assert is_reset(connection)
        failure = client.expect(ConnectionFailed)
        assert failure.upstream == "server"
        assert "svc/other, not" in failure.reason


def test_without_an_endpoint_a_call_is_parked_until_there_is_one(mesh: Mesh) -> None:
    client = mesh.sidecar("client", upstreams=["server"])
    with App(echo) as app, client.call("server") as connection:
        connection.sendall(b"early")
        client.balance("server", server(mesh, app).endpoint)
        assert connection.recv(100) == b"early"


def test_without_an_endpoint_in_time_a_call_fails_with_the_reason(mesh: Mesh) -> None:
    client = mesh.sidecar("client", upstreams=["server"], timeout_s=0.2)
    with client.call("server") as connection:
        assert is_reset(connection)
    failure = client.expect(ConnectionFailed)
    assert "no instance of server is ready (waited 0.2 s)" in failure.reason


def test_a_parked_call_is_not_polled_for(mesh: Mesh) -> None:
    client = mesh.sidecar("client", upstreams=["server"], timeout_s=60.0)
    with client.call("server") as connection:
        connection.sendall(b"early")
        client.balance("server")
        before = client.switches()
        connection.settimeout(1.0)
        with pytest.raises(TimeoutError):
            connection.recv(1)
        assert client.switches() - before <= 3


@pytest.mark.parametrize("sent", [b"", b"early"])
def test_an_app_that_resets_while_parked_is_given_up(mesh: Mesh, sent: bytes) -> None:
    client = mesh.sidecar("client", upstreams=["server"], timeout_s=60.0)
    before = client.descriptors()
    connection = client.call("server")
    connection.sendall(sent)
    client.balance("server")
    reset(connection)
    client.wait_for_descriptors(before)


def test_an_app_that_leaves_while_parked_without_a_word_is_given_up(mesh: Mesh) -> None:
    client = mesh.sidecar("client", upstreams=["server"], timeout_s=60.0)
    before = client.descriptors()
    with client.call("server"):
        client.wait_for_descriptors(least=before + 1)
    client.wait_for_descriptors(before)


def test_a_request_whose_sender_finished_writing_while_parked_is_answered(mesh: Mesh) -> None:
    client = mesh.sidecar("client", upstreams=["server"])
    with App(echo) as app, client.call("server") as connection:
        connection.sendall(b"early")
        connection.shutdown(socket.SHUT_WR)
        client.balance("server", server(mesh, app).endpoint)
        assert read_all(connection) == b"early"


def test_a_call_waits_while_a_killed_sidecar_starts_again(mesh: Mesh) -> None:
    with App(echo) as app:
        there = server(mesh, app)
        client = mesh.sidecar("client", upstreams=[there], timeout_s=20.0)
        there.kill()
        with client.call("server") as connection:
            connection.sendall(b"patience")
            there.start()
            assert connection.recv(100) == b"patience"
