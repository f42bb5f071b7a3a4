"""Servers that pretend to be the one that a program calls: they get no byte of it.

A running mesh gives nobody the port of a sidecar, so its control plane is the test's own here.
"""

import socket
import ssl
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from support.apps import App
from support.certificates import LEAF, make, uri
from support.sidecars import TRUST_DOMAIN, ControlledSidecar, Mesh

from meshrun.proxy.messages import ConnectionFailed, Endpoint
from meshrun.proxy.spiffe import SpiffeId

SECRET = b"the password is"


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


@pytest.fixture(scope="module")
def client(mesh: Mesh) -> ControlledSidecar:
    return mesh.sidecar("client", upstreams=["server"], timeout_s=0.6)


def right(mesh: Mesh) -> ssl.SSLContext:
    return mesh.server_context(mesh.leaf("server"))


def of_another_service(mesh: Mesh) -> ssl.SSLContext:
    return mesh.server_context(mesh.leaf("other"))


def of_the_caller_itself(mesh: Mesh) -> ssl.SSLContext:
    return mesh.server_context(mesh.leaf("client"))


def of_another_trust_domain(mesh: Mesh) -> ssl.SSLContext:
    return mesh.server_context(mesh.leaf("server", of="other.mesh"))


def of_another_root(mesh: Mesh) -> ssl.SSLContext:
    return mesh.server_context(Mesh().leaf("server"))


def self_signed(mesh: Mesh) -> ssl.SSLContext:
    profile = replace(LEAF, names=(uri(str(SpiffeId.for_service(TRUST_DOMAIN, "server"))),))
    return mesh.server_context(make(profile, now=datetime.now(UTC)).leaf())


def expired(mesh: Mesh) -> ssl.SSLContext:
    return mesh.server_context(mesh.leaf("server", ago=timedelta(seconds=61)))


def with_tls_1_2(mesh: Mesh) -> ssl.SSLContext:
    context = right(mesh)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


IMPOSTORS = [
    (of_another_service, "svc/other, not spiffe://"),
    (of_the_caller_itself, "svc/client, not spiffe://"),
    (of_another_trust_domain, "not of the trust domain"),
    (of_another_root, "certificate verify failed"),
    (self_signed, "signed certificate"),
    (expired, "certificate has expired"),
    (with_tls_1_2, "protocol"),
]


def listening(
    context: ssl.SSLContext | None, heard: list[bytes]
) -> Callable[[socket.socket], None]:
    """Return a server, over TLS or plain, that writes down what its callers say."""

    def serve(connection: socket.socket) -> None:
        if context is None:
            heard.append(connection.recv(65536))
            connection.sendall(b"220 welcome\n")
            return
        with context.wrap_socket(connection, server_side=True) as secured:
            heard.append(secured.recv(65536))
            secured.sendall(b"thanks")

    return serve


def tell(client: ControlledSidecar, app: App) -> bytes:
    """Call the upstream whose only instance is `app`, and return what comes back."""
    client.balance("server", Endpoint(instance="server.1", host="127.0.0.1", port=app.port))
    with client.call("server") as connection:
        connection.sendall(SECRET)
        try:
            return connection.recv(100)
        except ConnectionResetError:
            return b""


@pytest.mark.parametrize(("impostor", "reason"), IMPOSTORS)
def test_an_impostor_hears_nothing(
    mesh: Mesh, client: ControlledSidecar, impostor: Callable[[Mesh], ssl.SSLContext], reason: str
) -> None:
    heard: list[bytes] = []
    with App(listening(impostor(mesh), heard)) as app:
        assert tell(client, app) == b""
        assert app.accepted > 0
    assert b"".join(heard) == b""
    assert reason in client.expect(ConnectionFailed).reason


def test_a_server_without_tls_hears_no_word_in_plain(client: ControlledSidecar) -> None:
    heard: list[bytes] = []
    with App(listening(None, heard)) as app:
        assert tell(client, app) == b""
    assert heard
    assert all(SECRET not in said for said in heard)
    client.expect(ConnectionFailed)


def test_the_one_that_is_meant_is_told(mesh: Mesh, client: ControlledSidecar) -> None:
    heard: list[bytes] = []
    with App(listening(right(mesh), heard)) as app:
        assert tell(client, app) == b"thanks"
    assert heard == [SECRET]
