"""The inbound side of real sidecars: who gets through to the app, and what becomes of the rest."""

import asyncio
import gc
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from support.apps import App, echo, reset
from support.certificates import LEAF, Made, Profile, make, uri
from support.sidecars import ControlledSidecar, Mesh, allow, deny, listen, port_of

from meshrun.proxy import sockets
from meshrun.proxy.identity import Credentials, Identity
from meshrun.proxy.inbound import Inbound
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.messages import ConnectionFailed, Denied, Logged
from meshrun.proxy.poller import Poller

CLIENT = uri("spiffe://test.mesh/ns/default/dc/local/svc/client")


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


@pytest.fixture
def app() -> Iterator[App]:
    with App(echo) as made:
        yield made


@pytest.fixture
def server(mesh: Mesh, app: App) -> ControlledSidecar:
    return mesh.sidecar("server", app=app.port, intentions=[allow("client", "server")])


def connect(context: ssl.SSLContext, sidecar: ControlledSidecar) -> ssl.SSLSocket:
    plain = socket.create_connection(("127.0.0.1", sidecar.endpoint.port), timeout=20)
    try:
        return context.wrap_socket(plain)
    except BaseException:
        plain.close()
        raise


def answer(context: ssl.SSLContext, sidecar: ControlledSidecar) -> bytes:
    """Call `sidecar`, say something, and return what came back."""
    with connect(context, sidecar) as secured:
        secured.sendall(b"let me in")
        return secured.recv(100)


def is_cut(connection: socket.socket) -> bool:
    """Whether the connection ends in a reset, or at least in no orderly way."""
    try:
        return connection.recv(100) == b""
    except (ConnectionResetError, ssl.SSLEOFError):
        return True


def is_refused(context: ssl.SSLContext, sidecar: ControlledSidecar) -> bool:
    """Whether a peer with `context` gets no answer, be it in the handshake or at the first read."""
    try:
        return answer(context, sidecar) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def by_the_root(mesh: Mesh, profile: Profile) -> ssl.SSLContext:
    """Return the context of a peer whose certificate the mesh's own root signed."""
    key = mesh.root.key
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    made = make(profile, Made(mesh.root.certificate, key), datetime.now(UTC))
    return mesh.client_context(made.leaf())


def without_certificate(mesh: Mesh) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=mesh.root.certificate_der)
    return context


def with_tls_1_2(mesh: Mesh) -> ssl.SSLContext:
    context = mesh.client_context(mesh.leaf("client"))
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def expired(mesh: Mesh) -> ssl.SSLContext:
    return mesh.client_context(mesh.leaf("client", ago=timedelta(hours=1)))


def self_signed(mesh: Mesh) -> ssl.SSLContext:
    return mesh.client_context(make(replace(LEAF, names=(CLIENT,)), now=datetime.now(UTC)).leaf())


def of_another_root(mesh: Mesh) -> ssl.SSLContext:
    return mesh.client_context(Mesh().leaf("client"))


def of_another_trust_domain(mesh: Mesh) -> ssl.SSLContext:
    return mesh.client_context(mesh.leaf("client", of="other.mesh"))


def with_two_names(mesh: Mesh) -> ssl.SSLContext:
    return by_the_root(mesh, replace(LEAF, names=(CLIENT, CLIENT)))


def of_no_service(mesh: Mesh) -> ssl.SSLContext:
    return by_the_root(mesh, replace(LEAF, names=(uri("spiffe://test.mesh/client"),)))


@pytest.mark.parametrize(
    ("context", "reason"),
    [
        (without_certificate, "certificate"),
        (with_tls_1_2, "protocol"),
        (expired, "expired"),
        (self_signed, "self"),
        (of_another_root, "certificate"),
        (of_another_trust_domain, "trust domain"),
        (with_two_names, "2 URI names"),
        (of_no_service, "not the identity of a service"),
    ],
)
def test_a_stranger_is_refused_and_the_app_sees_no_connection(
    mesh: Mesh,
    server: ControlledSidecar,
    app: App,
    context: Callable[[Mesh], ssl.SSLContext],
    reason: str,
) -> None:
    assert is_refused(context(mesh), server)
    refusal = server.expect(Denied)
    assert refusal.kind == "peer"
    assert reason in refusal.reason
    # The next call gets through, so the refused one would have been seen by now.
    assert answer(mesh.client_context(mesh.leaf("client")), server) == b"let me in"
    assert app.accepted == 1


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01", b"\0" * 70000])
def test_plain_tcp_is_refused_and_the_app_sees_no_connection(
    server: ControlledSidecar, app: App, said: bytes
) -> None:
    with socket.create_connection(("127.0.0.1", server.endpoint.port), timeout=20) as plain:
        try:
            plain.sendall(said)
            plain.shutdown(socket.SHUT_WR)
            while plain.recv(100):
                pass  # the TLS alert
        except ConnectionError:
            pass
    assert server.expect(Denied).kind == "peer"
    assert app.accepted == 0


@pytest.mark.slow
def test_slow_strangers_hold_nobody_up(mesh: Mesh, server: ControlledSidecar) -> None:
    address = ("127.0.0.1", server.endpoint.port)
    silent = [socket.create_connection(address) for _ in range(1200)]
    context = mesh.client_context(mesh.leaf("client"))
    assert answer(context, server) == b"let me in"
    for each in silent:
        each.close()


def test_a_service_without_an_intention_is_refused_with_the_reason(
    mesh: Mesh, server: ControlledSidecar, app: App
) -> None:
    with connect(mesh.client_context(mesh.leaf("intruder")), server) as secured:
        assert is_cut(secured)
    refusal = server.expect(Denied)
    assert refusal.kind == "intention"
    assert refusal.source == "intruder"
    assert "the default is deny" in refusal.reason
    assert not refusal.live
    assert app.accepted == 0


def test_a_flood_of_denials_is_summed_up(mesh: Mesh, server: ControlledSidecar) -> None:
    context = mesh.client_context(mesh.leaf("intruder"))
    for _ in range(20):
        with connect(context, server) as secured:
            assert is_cut(secured)
    told = 0
    while told < 20:
        refusal = server.expect(Denied)
        assert told == 0 or refusal.count > 1
        told += refusal.count
    assert told == 20


def test_a_deny_cuts_the_live_connections_it_forbids_and_no_others(
    mesh: Mesh, server: ControlledSidecar
) -> None:
    server.intend(allow("client", "server"), allow("other", "server"))
    client = connect(mesh.client_context(mesh.leaf("client")), server)
    other = connect(mesh.client_context(mesh.leaf("other")), server)
    with client, other:
        for connection in (client, other):
            connection.sendall(b"ping")
            assert connection.recv(4) == b"ping"
        server.intend(deny("client", "server"), allow("*", "server"))
        # Enforced has been said: the connection is gone by now, not soon.
        assert is_cut(client)
        other.sendall(b"pong")
        assert other.recv(4) == b"pong"


def test_a_cut_is_told_as_a_live_connection(mesh: Mesh, server: ControlledSidecar) -> None:
    with connect(mesh.client_context(mesh.leaf("client")), server) as client:
        client.sendall(b"ping")
        client.recv(4)
        server.send(msgspec.structs.replace(server.snapshot, version=2, intentions=()))
        refusal = server.expect(Denied)
    assert refusal.live
    assert refusal.source == "client"


def test_an_allow_takes_effect_at_once(mesh: Mesh, server: ControlledSidecar) -> None:
    context = mesh.client_context(mesh.leaf("late"))
    with connect(context, server) as secured:
        assert is_cut(secured)
    server.intend(allow("late", "server"))
    assert answer(context, server) == b"let me in"


def test_a_call_is_parked_until_the_app_listens(mesh: Mesh) -> None:
    with listen() as reserved:
        port = port_of(reserved)
    server = mesh.sidecar("server", app=port, default="allow")
    with connect(mesh.client_context(mesh.leaf("client")), server) as secured:
        secured.sendall(b"early")
        with App(echo, port=port):
            assert secured.recv(100) == b"early"


def test_a_call_to_an_app_that_never_listens_fails_with_the_reason(mesh: Mesh) -> None:
    with listen() as reserved:
        port = port_of(reserved)
    server = mesh.sidecar("server", app=port, default="allow", timeout_s=0.3)
    with connect(mesh.client_context(mesh.leaf("client")), server) as secured:
        assert is_cut(secured)
    failure = server.expect(ConnectionFailed)
    assert failure.upstream is None
    assert "refused" in failure.reason


def test_a_deny_reaches_parked_calls(mesh: Mesh) -> None:
    with listen() as reserved:
        port = port_of(reserved)
    server = mesh.sidecar("server", app=port, intentions=[allow("client", "server")])
    with connect(mesh.client_context(mesh.leaf("client")), server) as secured:
        secured.sendall(b"early")
        server.intend()
        with App(echo, port=port) as app:
            assert is_cut(secured)
            assert app.accepted == 0


def test_a_caller_that_says_everything_with_its_last_flight_and_goes_is_heard(
    mesh: Mesh, server: ControlledSidecar
) -> None:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = mesh.client_context(mesh.leaf("client")).wrap_bio(incoming, outgoing)
    address = ("127.0.0.1", server.endpoint.port)
    with socket.create_connection(address, timeout=20) as plain:
        while True:
            try:
                tls.do_handshake()
                break
            except ssl.SSLWantReadError:
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(65536))
        tls.write(b"all of it")
        with pytest.raises(ssl.SSLWantReadError):
            tls.unwrap()  # it says close_notify, and would wait for the other's
        plain.sendall(outgoing.read())
        plain.shutdown(socket.SHUT_WR)
        while data := plain.recv(65536):
            incoming.write(data)
    assert tls.read(100) == b"all of it"


def test_a_peer_that_resets_while_parked_is_given_up(mesh: Mesh) -> None:
    with listen() as reserved:
        port = port_of(reserved)
    server = mesh.sidecar("server", app=port, default="allow", timeout_s=60.0)
    before = server.descriptors()
    secured = connect(mesh.client_context(mesh.leaf("client")), server)
    secured.sendall(b"early")
    reset(secured)
    server.wait_for_descriptors(before)


def test_out_of_descriptors_it_waits_says_so_and_goes_on(mesh: Mesh, app: App) -> None:
    server = mesh.sidecar("server", app=app.port, default="allow", descriptors=40)
    address = ("127.0.0.1", server.endpoint.port)
    silent = [socket.create_connection(address) for _ in range(60)]
    assert "cannot accept" in server.expect(Logged).message
    before = server.cpu_s()
    silent[-1].settimeout(0.5)
    with pytest.raises(TimeoutError):
        silent[-1].recv(1)
    assert server.cpu_s() - before < 0.2, "it spins"
    for each in silent:
        each.close()
    assert answer(mesh.client_context(mesh.leaf("client")), server) == b"let me in"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_with_a_leaf_gets_through_also_after_key_updates(
    mesh: Mesh, server: ControlledSidecar, tmp_path: Path
) -> None:
    leaf = mesh.leaf("client")
    (tmp_path / "leaf.pem").write_bytes(
        leaf.key_pem + ssl.DER_cert_to_PEM_cert(leaf.chain_der[0]).encode()
    )
    (tmp_path / "root.pem").write_bytes(mesh.root.certificate_pem)
    process = subprocess.Popen(
        [
            *("openssl", "s_client", "-connect", f"127.0.0.1:{server.endpoint.port}"),
            *("-cert", str(tmp_path / "leaf.pem"), "-key", str(tmp_path / "leaf.pem")),
            *("-CAfile", str(tmp_path / "root.pem"), "-tls1_3", "-verify_return_error"),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process:
        # Alone on a line, K asks openssl for a KeyUpdate that the other side must answer.
        for word, reply in ((b"before", b"before"), (b"K", b"KEYUPDATE"), (b"after", b"after")):
            process.stdin.write(word + b"\n")
            process.stdin.flush()
            while (line := process.stdout.readline()) != reply + b"\n":
                assert line, "openssl gave up"
        process.stdin.write(b"Q\n")


class Ready(Identity):
    """An identity that needs no control plane."""

    def __init__(self, credentials: Credentials) -> None:
        super().__init__(lambda _: None, lambda: 0.0, Random(1), lambda: None)
        self._ready = credentials

    async def credentials(self) -> Credentials:
        return self._ready


async def cut_handshakes(poller: Poller, credentials: Credentials, count: int) -> int:
    """Begin and cut `count` handshakes; return how many objects only the collector could free."""
    ledger = Ledger(lambda _: None, lambda: 0)
    inbound = Inbound(poller, Ready(credentials), lambda _: None, ledger, Random(), lambda: None)
    with listen() as listener:
        gc.collect()
        for _ in range(count):
            with socket.create_connection(listener.getsockname()):
                inbound.serve(sockets.set_up(listener.accept()[0]))
                await asyncio.sleep(0)
                inbound.close()
                await asyncio.sleep(0)
                await asyncio.sleep(0)
    await asyncio.sleep(0)
    return gc.collect()


def test_handshakes_that_were_cut_leave_no_garbage(mesh: Mesh) -> None:
    leaf = mesh.leaf("server")
    context = mesh.client_context(leaf)
    credentials = Credentials(leaf, mesh.server_context(leaf), context, context)
    gc.disable()
    try:
        poller = Poller()
        with asyncio.Runner(loop_factory=poller.new_loop) as runner:
            assert runner.run(cut_handshakes(poller, credentials, 200)) < 200
    finally:
        gc.enable()
