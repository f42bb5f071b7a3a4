"""Other people's proxies as the other sidecar, in both directions: the app notices no difference.

In `they call us` a peer stands before the caller, in `we call them` before the app; the other one
is a real sidecar. What each peer cannot do is said where it is left out: docs/interoperation.md.
"""

import hashlib
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest
from benchmarks.peers import Envoy, HAProxy, Nginx, Side
from benchmarks.programs import free_ports
from support.apps import App, Handler, echo, read_all
from support.peers import PEERS, OpenSSL, OtherSidecar, write_credentials
from support.sidecars import PATIENCE_S, TRUST_DOMAIN, ControlledSidecar, Mesh, allow
from support.traffic import MIB, connect, pseudo_random

from meshrun.proxy.leaf import Leaf
from meshrun.proxy.messages import ConnectionFailed, Denied, Endpoint
from meshrun.proxy.spiffe import SpiffeId

ALLOWED = allow("client", "server")
LEAF_TTL_S = 3600.0
BULK_BYTES = 8 * MIB
GREETING = b"220 ready\r\n"

# Long enough for the handshake that it forbids, short enough for the many who are forbidden.
IMPOSTOR_TIMEOUT_S = 0.8

THEY_CALL, WE_CALL = "they call us", "we call them"
DIRECTIONS = [(who, peer) for peer in PEERS for who in (THEY_CALL, WE_CALL)]

# nginx ends both directions with the first (or, told not to, without close_notify, which no one can
# tell from an attacker's end); the openssl command goes with the first that ends.
HALF_CLOSING = [each for each in DIRECTIONS if each[1].name not in ("nginx", "openssl")]


def by_direction(direction: tuple[str, OtherSidecar]) -> str:
    return f"{direction[1].name}, {direction[0]}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """From a port to the app's, through a peer and a sidecar of ours."""

    port: int
    app_port: int
    peer: OtherSidecar
    ours: ControlledSidecar


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


@pytest.fixture(scope="module")
def app_port() -> int:
    (port,) = free_ports(1)
    return port


@pytest.fixture(scope="module")
def server(mesh: Mesh, app_port: int) -> ControlledSidecar:
    return mesh.sidecar("server", app=app_port, intentions=[ALLOWED])


@pytest.fixture(scope="module")
def client(mesh: Mesh) -> ControlledSidecar:
    return mesh.sidecar("client", upstreams=["server"])


@pytest.fixture(scope="module")
def hasty(mesh: Mesh) -> ControlledSidecar:
    return mesh.sidecar("client", upstreams=["server"], timeout_s=IMPOSTOR_TIMEOUT_S)


def identity(service: str) -> str:
    return str(SpiffeId.for_service(TRUST_DOMAIN, service))


def present(peer: OtherSidecar) -> OtherSidecar:
    if peer.version() is None:
        pytest.skip(f"{peer.name} is not installed; as root, `make peers` installs it")
    return peer


@contextmanager
def they_call(
    server: ControlledSidecar,
    mesh: Mesh,
    peer: OtherSidecar,
    folder: Path,
    *,
    service: str = "client",
    called: str = "server",
    alpn: str | None = None,
) -> Iterator[int]:
    """Let `peer` call `server` as `service`, meaning `called`; yields the port it listens on."""
    (port,) = free_ports(1)
    side = Side(
        listen_port=port,
        target_port=server.endpoint.port,
        credentials=write_credentials(folder, mesh, service, mesh.leaf(service, ttl_s=LEAF_TTL_S)),
        peer_identity=identity(called),
        alpn=alpn,
    )
    with present(peer).start_client(side, folder):
        yield port


@contextmanager
def we_call(
    client: ControlledSidecar,
    mesh: Mesh,
    peer: OtherSidecar,
    folder: Path,
    app_port: int,
    *,
    leaf: Leaf | None = None,
    caller: str = "client",
    alpn: str | None = None,
) -> Iterator[int]:
    """Let `peer`, which shows `leaf`, be what `client` calls; yields the port of that upstream."""
    (port,) = free_ports(1)
    shown = leaf or mesh.leaf("server", ttl_s=LEAF_TTL_S)
    side = Side(
        listen_port=port,
        target_port=app_port,
        credentials=write_credentials(folder, mesh, "server", shown),
        peer_identity=identity(caller),
        alpn=alpn,
    )
    with present(peer).start_server(side, folder):
        client.balance("server", Endpoint(instance=peer.name, host="127.0.0.1", port=port))
        yield client.upstream_port("server")


def by_name(peer: OtherSidecar) -> str:
    return peer.name


@pytest.fixture(scope="module", params=DIRECTIONS, ids=by_direction)
def way(
    request: pytest.FixtureRequest,
    mesh: Mesh,
    server: ControlledSidecar,
    client: ControlledSidecar,
    app_port: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Way]:
    who, peer = request.param
    folder = tmp_path_factory.mktemp(peer.name)
    if who == THEY_CALL:
        with they_call(server, mesh, peer, folder) as port:
            yield Way(port=port, app_port=app_port, peer=peer, ours=server)
    else:
        with we_call(client, mesh, peer, folder, app_port) as port:
            yield Way(port=port, app_port=app_port, peer=peer, ours=client)


def greet_and_echo(connection: socket.socket) -> None:
    connection.sendall(GREETING)
    echo(connection)


def listening(heard: list[bytes]) -> Handler:
    """Return an app that says nothing and writes down what its callers say."""

    def listen(connection: socket.socket) -> None:
        heard.append(read_all(connection))

    return listen


def is_answered(connection: socket.socket, message: bytes) -> bool:
    connection.sendall(message)
    return connection.recv(100) == message


def is_ended(connection: socket.socket) -> bool:
    """Whether the connection ends, in order or not, without an answer to what is said."""
    try:
        connection.sendall(b"let me in")
        return connection.recv(100) == b""
    except ConnectionError:
        return True


def test_a_request_is_answered(way: Way) -> None:
    with App(echo, port=way.app_port), connect(way.port) as connection:
        assert is_answered(connection, b"hello")
        assert is_answered(connection, b"again")


def test_the_app_may_speak_first(way: Way) -> None:
    with App(greet_and_echo, port=way.app_port), connect(way.port) as connection:
        assert connection.recv(100) == GREETING
        assert is_answered(connection, b"hello")


def test_an_answer_that_ends_with_the_connection_arrives_whole(way: Way) -> None:
    def answer_and_go(connection: socket.socket) -> None:
        connection.sendall(b"heard " + connection.recv(100))
        connection.shutdown(socket.SHUT_RDWR)

    with App(answer_and_go, port=way.app_port), connect(way.port) as connection:
        connection.sendall(b"a question")
        assert read_all(connection) == b"heard a question"


def test_a_message_that_ends_with_the_connection_arrives_whole(way: Way) -> None:
    heard: queue.Queue[bytes] = queue.Queue()

    def greet_and_listen(connection: socket.socket) -> None:
        connection.sendall(GREETING)
        heard.put(read_all(connection))

    with App(greet_and_listen, port=way.app_port):
        with connect(way.port) as connection:
            assert connection.recv(100) == GREETING
            connection.sendall(b"all of it")
        assert heard.get(timeout=PATIENCE_S) == b"all of it"


def test_a_caller_may_say_everything_and_go_at_once(way: Way) -> None:
    heard: queue.Queue[bytes] = queue.Queue()
    with App(lambda connection: heard.put(read_all(connection)), port=way.app_port):
        with connect(way.port) as connection:
            connection.sendall(b"all of it")
        assert heard.get(timeout=PATIENCE_S) == b"all of it"


@pytest.mark.parametrize("way", HALF_CLOSING, indirect=True, ids=by_direction)
def test_a_caller_that_has_said_everything_still_hears_the_answer(way: Way) -> None:
    with App(echo, port=way.app_port), connect(way.port) as connection:
        assert is_answered(connection, b"hello")
        connection.sendall(b"all of it")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"all of it"


@pytest.mark.parametrize("way", HALF_CLOSING, indirect=True, ids=by_direction)
def test_an_app_that_has_said_everything_still_hears_the_caller(way: Way) -> None:
    heard: queue.Queue[bytes] = queue.Queue()

    def say_and_listen(connection: socket.socket) -> None:
        connection.sendall(b"all of it")
        connection.shutdown(socket.SHUT_WR)
        heard.put(read_all(connection))

    with App(say_and_listen, port=way.app_port), connect(way.port) as connection:
        assert read_all(connection) == b"all of it"
        connection.sendall(b"and ")
        connection.sendall(b"mine")
        connection.shutdown(socket.SHUT_WR)
        assert heard.get(timeout=PATIENCE_S) == b"and mine"


def send_bulk(connection: socket.socket, seed: int) -> None:
    for chunk in pseudo_random(BULK_BYTES, seed):
        connection.sendall(chunk)


def hash_bulk(connection: socket.socket) -> str:
    """Return the hash of the next BULK_BYTES."""
    found = hashlib.sha256()
    left = BULK_BYTES
    while left and (data := connection.recv(min(left, 65536))):
        found.update(data)
        left -= len(data)
    return found.hexdigest()


def hash_of(seed: int) -> str:
    found = hashlib.sha256()
    for chunk in pseudo_random(BULK_BYTES, seed):
        found.update(chunk)
    return found.hexdigest()


def exchange(connection: socket.socket, seed: int) -> str:
    """Send bulk and receive as much at the same time; return the hash of that."""
    sender = threading.Thread(target=send_bulk, args=(connection, seed))
    sender.start()
    try:
        return hash_bulk(connection)
    finally:
        sender.join()


def test_megabytes_in_both_directions_at_once_arrive_unchanged(way: Way) -> None:
    heard: queue.Queue[str] = queue.Queue()

    def serve(connection: socket.socket) -> None:
        heard.put(exchange(connection, seed=2))

    with App(serve, port=way.app_port), connect(way.port) as connection:
        assert exchange(connection, seed=1) == hash_of(2)
        assert heard.get(timeout=PATIENCE_S) == hash_of(1)


def test_a_live_connection_outlives_a_rotation_and_new_ones_follow(way: Way) -> None:
    with App(echo, port=way.app_port), connect(way.port) as live:
        assert is_answered(live, b"before")
        way.ours.rotate()
        assert is_answered(live, b"after")
        with connect(way.port) as fresh:
            assert is_answered(fresh, b"new")
        assert is_answered(live, b"still there")


@pytest.mark.parametrize("peer", PEERS, ids=by_name)
def test_a_caller_without_permission_is_refused_and_reported(
    mesh: Mesh, server: ControlledSidecar, app_port: int, peer: OtherSidecar, tmp_path: Path
) -> None:
    # A name for each: what is alike is summed up, and told a second later.
    intruder = f"{peer.name}-intruder"
    with (
        they_call(server, mesh, peer, tmp_path, service=intruder) as port,
        App(echo, port=app_port) as app,
    ):
        with connect(port) as connection:
            assert is_ended(connection)
        refusal = server.expect(Denied, lambda message: message.source == intruder)
        assert app.accepted == 0
    assert refusal.kind == "intention"


@pytest.mark.parametrize("peer", PEERS, ids=by_name)
def test_a_deny_cuts_a_live_call_of_theirs(
    mesh: Mesh, server: ControlledSidecar, app_port: int, peer: OtherSidecar, tmp_path: Path
) -> None:
    with (
        they_call(server, mesh, peer, tmp_path) as port,
        App(echo, port=app_port),
        connect(port) as live,
    ):
        assert is_answered(live, b"hello")
        server.intend()
        try:
            assert is_ended(live)
        finally:
            server.intend(ALLOWED)


def of_another_service(mesh: Mesh) -> Leaf:
    return mesh.leaf("other")


def of_another_root(_: Mesh) -> Leaf:
    return Mesh().leaf("server")


def expired(mesh: Mesh) -> Leaf:
    return mesh.leaf("server", ago=timedelta(seconds=61))


@pytest.mark.parametrize(
    ("leaf", "reason"),
    [
        (of_another_service, "svc/other, not spiffe://"),
        (of_another_root, "certificate verify failed"),
        (expired, "certificate has expired"),
    ],
)
@pytest.mark.parametrize("peer", PEERS, ids=by_name)
def test_an_impostor_of_theirs_hears_nothing(
    mesh: Mesh,
    hasty: ControlledSidecar,
    app_port: int,
    peer: OtherSidecar,
    leaf: Callable[[Mesh], Leaf],
    reason: str,
    tmp_path: Path,
) -> None:
    heard: list[bytes] = []
    with (
        we_call(hasty, mesh, peer, tmp_path, app_port, leaf=leaf(mesh)) as port,
        App(listening(heard), port=app_port),
    ):
        with connect(port) as connection:
            assert is_ended(connection)
        failure = hasty.expect(ConnectionFailed, lambda message: peer.name in message.reason)
        assert reason in failure.reason
    assert b"".join(heard) == b""


@pytest.mark.parametrize("peer", [Envoy(), HAProxy()], ids=by_name)
def test_a_server_that_checks_identities_takes_ours_for_what_it_is(
    mesh: Mesh, client: ControlledSidecar, app_port: int, peer: OtherSidecar, tmp_path: Path
) -> None:
    heard: list[bytes] = []
    with (
        we_call(client, mesh, peer, tmp_path, app_port, caller="another") as port,
        App(listening(heard), port=app_port),
        connect(port) as connection,
    ):
        assert is_ended(connection)
    assert b"".join(heard) == b""


def test_a_caller_that_checks_identities_takes_ours_for_what_it_is(
    mesh: Mesh, server: ControlledSidecar, app_port: int, tmp_path: Path
) -> None:
    heard: list[bytes] = []
    with (
        they_call(server, mesh, Envoy(), tmp_path, called="another") as port,
        App(listening(heard), port=app_port),
        connect(port) as connection,
    ):
        assert is_ended(connection)
    assert b"".join(heard) == b""


@pytest.mark.parametrize("peer", [Envoy(), HAProxy(), OpenSSL()], ids=by_name)
def test_a_caller_that_names_another_protocol_is_served(
    mesh: Mesh, server: ControlledSidecar, app_port: int, peer: OtherSidecar, tmp_path: Path
) -> None:
    with (
        they_call(server, mesh, peer, tmp_path, alpn="h2") as port,
        App(echo, port=app_port),
        connect(port) as connection,
    ):
        assert is_answered(connection, b"hello")


@pytest.mark.parametrize("peer", [Envoy(), HAProxy(), Nginx(), OpenSSL()], ids=by_name)
def test_a_server_that_names_another_protocol_is_reached(
    mesh: Mesh, client: ControlledSidecar, app_port: int, peer: OtherSidecar, tmp_path: Path
) -> None:
    with (
        we_call(client, mesh, peer, tmp_path, app_port, alpn="h2") as port,
        App(echo, port=app_port),
    ):
        for message in (b"first", b"second"):
            with connect(port) as connection:
                assert is_answered(connection, message)
