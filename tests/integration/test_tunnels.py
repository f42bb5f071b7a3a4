"""Tunnels between real sidecars: reuse, rotation, intentions, replay, and peers of every kind."""

import asyncio
import os
import queue
import select
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import cast

import msgspec
import pytest
from support.apps import App, echo, read_all, reset
from support.callers import caller
from support.framepeer import FramePeer, FrameServer, frame, joined
from support.relay import Relay
from support.sidecars import ControlledSidecar, Mesh, allow, deny, listen, port_of
from support.tlspair import TlsPairs, run, tcp_pair, until
from support.traffic import wait_until

from meshrun.proxy.framing import MOST_EARLY_BYTES, Frame, Refusal
from meshrun.proxy.handshake import Secured
from meshrun.proxy.identity import Credentials
from meshrun.proxy.intentions import Intention
from meshrun.proxy.messages import ConnectionFailed, Denied, Endpoint, Enforced, Logged
from meshrun.proxy.poller import Poller
from meshrun.proxy.pump import Pump
from meshrun.proxy.reports import Report
from meshrun.proxy.splice import Carrier, NoCarrier, Splice
from meshrun.proxy.tunnel import BATCH, InboundTunnel, Leftover, OutboundTunnel

OPEN = frame(Frame.OPEN)
ACCEPTED = frame(Frame.ACCEPTED)
FINISH = frame(Frame.FINISH)
RESET = frame(Frame.RESET)


def data(payload: bytes) -> bytes:
    return frame(Frame.DATA, payload)


def refused(code: int, text: bytes = b"no") -> bytes:
    return frame(Frame.REFUSED, bytes([code]) + text)


@pytest.fixture(scope="module")
def shared_mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


class Route:
    """Two sidecars, a relay between them, and an app whose handler each test sets."""

    def __init__(self, inbound: ControlledSidecar, outbound: ControlledSidecar, app: App) -> None:
        self.inbound = inbound
        self.outbound = outbound
        self.app = app
        self.relay: Relay
        self.handler: Callable[[socket.socket], None] = echo

    def call(self) -> socket.socket:
        return self.outbound.call("server")

    def ask(self, said: bytes = b"hello") -> bytes:
        """Return what a call brings back, which ends in order on both sides."""
        with self.call() as connection:
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            return read_all(connection)


@pytest.fixture(scope="module")
def shared_route(shared_mesh: Mesh) -> Iterator[Route]:
    routes: list[Route] = []

    def handle(connection: socket.socket) -> None:
        routes[0].handler(connection)

    with App(handle) as app:
        inbound = shared_mesh.sidecar("server", app=app.port)
        outbound = shared_mesh.sidecar("client", upstreams=["server"])
        routes.append(Route(inbound, outbound, app))
        yield routes[0]


@pytest.fixture
def route(shared_route: Route) -> Iterator[Route]:
    """The route without any tunnel, everything allowed and nothing reported."""
    shared_route.handler = echo
    shared_route.inbound.intend(allow("client", "server"))
    with Relay(shared_route.inbound) as relay:
        shared_route.relay = relay
        shared_route.outbound.balance("server", relay.endpoint)
        reports(shared_route.inbound)
        reports(shared_route.outbound)
        yield shared_route
        shared_route.outbound.balance("server")
        relay.wait_for(left=0)


def reports(sidecar: ControlledSidecar) -> list[Report]:
    """Return what the sidecar has reported and nobody has read yet; fail if it met a bug."""
    found: list[Report] = []
    while True:
        try:
            message = sidecar.received.get_nowait()
        except queue.Empty:
            return found
        assert not (isinstance(message, Logged) and message.level == "error"), message.message
        if isinstance(message, Report):
            found.append(message)


def ends_in_reset(connection: socket.socket) -> bool:
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def free_port() -> int:
    with listen() as reserved:
        return port_of(reserved)


# Reuse.


def test_connections_one_after_the_other_share_a_tunnel_and_a_spare(route: Route) -> None:
    for number in range(10):
        assert route.ask(b"%d" % number) == b"%d" % number
    # The second connection took the tunnel of the first, and had a spare made.
    route.relay.wait_for(accepted=2, left=2)
    assert not reports(route.inbound)
    assert not reports(route.outbound)


def test_a_spare_is_made_as_soon_as_the_last_idle_tunnel_is_taken(route: Route) -> None:
    route.ask()
    assert route.relay.accepted == 1
    with route.call():
        route.relay.wait_for(accepted=2)


def test_connections_at_the_same_time_have_a_tunnel_each(route: Route) -> None:
    for _ in range(2):
        connections = [route.call() for _ in range(20)]
        for number, connection in enumerate(connections):
            connection.sendall(b"%d" % number)
        for number, connection in enumerate(connections):
            with connection:
                assert connection.recv(100) == b"%d" % number
                connection.shutdown(socket.SHUT_WR)
                assert connection.recv(1) == b""
    assert 20 <= route.relay.accepted <= 42


def test_a_server_may_speak_first_on_a_tunnel_that_was_used(route: Route) -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"220 ready\r\n")
        connection.sendall(b"250 " + connection.recv(100))
        connection.shutdown(socket.SHUT_WR)
        assert not connection.recv(1)

    route.handler = greet
    for _ in range(4):
        with route.call() as connection:
            assert connection.recv(100) == b"220 ready\r\n"
            connection.sendall(b"HELO\r\n")
            assert read_all(connection) == b"250 HELO\r\n"
            connection.shutdown(socket.SHUT_WR)


def test_both_sides_may_end_first_on_tunnels_that_were_used(route: Route) -> None:
    heard: queue.Queue[bytes] = queue.Queue()

    def finish_first(connection: socket.socket) -> None:
        connection.sendall(b"greeting")
        connection.shutdown(socket.SHUT_WR)
        heard.put(read_all(connection))

    def finish_last(connection: socket.socket) -> None:
        request = read_all(connection)
        connection.sendall(b"you said " + request)
        connection.shutdown(socket.SHUT_WR)

    for _ in range(4):
        route.handler = finish_last
        assert route.ask(b"everything") == b"you said everything"
        route.handler = finish_first
        with route.call() as connection:
            assert read_all(connection) == b"greeting"
            connection.sendall(b"long story")
            connection.shutdown(socket.SHUT_WR)
            assert heard.get(timeout=20) == b"long story"
    assert route.relay.accepted <= 3


def test_after_resets_the_next_stream_gets_its_own_bytes_and_no_others(route: Route) -> None:
    rng = Random(7)
    letters = b"abcdefghijklmnopqrstuvwxyz"

    def speak(connection: socket.socket) -> None:
        letter = connection.recv(1)
        size, resets = connection.recv(8).split(b",")[:2]
        connection.sendall(letter * int(size))
        if resets == b"1":
            reset(connection)
        else:
            read_all(connection)
            connection.shutdown(socket.SHUT_WR)

    route.handler = speak
    for _ in range(60):
        letter = bytes([rng.choice(letters)])
        size, far, near = rng.choice([10, 3000, 90000]), rng.random() < 0.3, rng.random() < 0.4
        received = b""
        with route.call() as connection:
            connection.sendall(letter)
            connection.sendall(b"%d,%d,".ljust(8) % (size, far))
            try:
                connection.sendall(b"." * rng.choice([0, 1, 100_000]))
                if near:
                    received = connection.recv(65536)
                    reset(connection)
                else:
                    connection.shutdown(socket.SHUT_WR)
                    while more := connection.recv(65536):
                        received += more
                    assert far or len(received) == size
            except TimeoutError:
                raise
            except OSError:  # also of a shutdown behind a reset
                assert far
        assert set(received) <= set(letter)


def test_a_tunnel_outlives_a_stream_that_was_reset(route: Route) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(10)
        reset(connection)

    for handler in (refuse, echo) * 5:
        route.handler = handler
        with route.call() as connection:
            connection.sendall(b"x")
            if handler is refuse:
                assert ends_in_reset(connection)
            else:
                assert connection.recv(1) == b"x"
                reset(connection)
    route.handler = echo
    assert route.ask() == b"hello"
    # None was cut; the next call may have come before the reset was answered.
    assert route.relay.open == route.relay.accepted <= 5


def test_a_reset_reaches_a_server_that_stands_still(route: Route) -> None:
    seen: queue.Queue[int] = queue.Queue()

    def stand_still(connection: socket.socket) -> None:
        broken = select.poll()
        broken.register(connection, 0)
        seen.put(len(broken.poll(5000)))

    route.handler = stand_still
    route.outbound.balance("server", route.inbound.endpoint)  # the relay would stand still too
    connection = route.call()
    connection.settimeout(0.5)
    try:
        while True:
            connection.sendall(b"x" * 1_000_000)
    except TimeoutError:
        reset(connection)
    assert seen.get(timeout=20) == 1


# Rotation.


@pytest.mark.parametrize("side", ["inbound", "outbound"])
def test_idle_tunnels_are_closed_after_a_rotation(route: Route, side: str) -> None:
    route.ask()
    route.ask()
    route.relay.wait_for(left=2)
    sidecar: ControlledSidecar = getattr(route, side)
    sidecar.rotate()
    route.relay.wait_for(left=0)
    assert route.ask() == b"hello"
    assert route.relay.accepted == 3


@pytest.mark.parametrize("side", ["inbound", "outbound"])
def test_a_live_stream_outlives_a_rotation_and_its_tunnel_does_not_outlive_it(
    route: Route, side: str
) -> None:
    with route.call() as connection:
        connection.sendall(b"before")
        assert connection.recv(100) == b"before"
        sidecar: ControlledSidecar = getattr(route, side)
        sidecar.rotate()
        assert route.ask() == b"hello"  # on a tunnel of its own
        connection.sendall(b"after")
        assert connection.recv(100) == b"after"
        assert route.relay.open == 2
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""
    route.relay.wait_for(left=1)


def test_a_tunnel_is_closed_in_order_once_its_last_stream_under_an_old_leaf_is_over(
    shared_mesh: Mesh, route: Route
) -> None:
    with FramePeer.dial(shared_mesh, route.inbound) as peer:
        peer.say(OPEN)
        assert peer.hear() == (Frame.ACCEPTED, b"")
        route.inbound.rotate()
        peer.say(data(b"still here"))
        assert peer.hear() == (Frame.DATA, b"still here")
        peer.say(FINISH)
        assert peer.hear() == (Frame.FINISH, b"")
        assert peer.is_closed()


def test_a_tunnel_takes_no_stream_after_the_leaf_of_its_peer_has_expired(
    shared_mesh: Mesh, route: Route
) -> None:
    ttl_s = 2.0
    with FramePeer.dial(shared_mesh, route.inbound, ttl_s=ttl_s) as peer:
        expired = time.time() + ttl_s
        peer.say(OPEN)
        assert peer.hear() == (Frame.ACCEPTED, b"")
        wait_until(lambda: time.time() > expired, "the leaf has expired")
        peer.say(data(b"still here"))
        assert peer.hear() == (Frame.DATA, b"still here")
        peer.say(FINISH)
        assert peer.hear() == (Frame.FINISH, b"")
        assert peer.is_closed()


def test_a_stream_on_an_idle_tunnel_whose_leaf_has_expired_is_refused(
    shared_mesh: Mesh, route: Route
) -> None:
    ttl_s = 2.0
    with FramePeer.dial(shared_mesh, route.inbound, ttl_s=ttl_s) as peer:
        expired = time.time() + ttl_s
        wait_until(lambda: time.time() > expired, "the leaf has expired")
        peer.say(OPEN, data(b"too late"))
        kind, why = peer.hear()
        assert (kind, why[0]) == (Frame.REFUSED, Refusal.LEAVING)
        peer.say(RESET)
        assert peer.is_closed()


def test_after_its_own_leaf_has_expired_the_outbound_side_opens_a_new_tunnel(mesh: Mesh) -> None:
    with App(echo) as app:
        server = mesh.sidecar("server", app=app.port, default="allow")
        with Relay(server) as relay:
            client = mesh.sidecar("client", leaf_ttl_s=2.0, upstreams=["server"], timeout_s=10.0)
            client.balance("server", relay.endpoint)
            client.signs = False
            expired = time.time() + 2.0
            assert not is_refused(client)
            wait_until(lambda: time.time() > expired, "the leaf has expired")
            with client.call("server") as connection:
                connection.sendall(b"x")
                client.signs = True
                client.rotate()
                assert connection.recv(1) == b"x"
            assert relay.accepted >= 2


# Intentions.


def test_each_stream_is_judged_by_what_is_in_force_then(route: Route) -> None:
    route.ask()
    route.ask()
    route.relay.wait_for(accepted=2)
    reports(route.inbound)
    for _ in range(2):
        route.inbound.intend(deny("client", "server"))
        seen = route.app.accepted
        assert is_refused(route.outbound)
        assert route.app.accepted == seen
        denied = route.inbound.expect(Denied)
        assert (denied.kind, denied.source, denied.live) == ("intention", "client", False)
        route.inbound.intend(allow("client", "server"))
        assert route.ask() == b"hello"
    assert route.relay.accepted == 2
    assert not reports(route.outbound)


def test_a_deny_cuts_a_live_stream_and_not_its_tunnel(route: Route) -> None:
    route.ask()
    with route.call() as connection:
        connection.sendall(b"x")
        assert connection.recv(1) == b"x"
        route.relay.wait_for(accepted=2)
        (denied,) = intend(route.inbound, deny("client", "server"))
        assert ends_in_reset(connection)
    assert (denied.source, denied.live, denied.count) == ("client", True, 1)
    route.inbound.intend(allow("client", "server"))
    assert route.ask() == b"hello"
    assert route.relay.accepted == 2
    assert not reports(route.inbound)
    assert not reports(route.outbound)


def test_a_deny_reaches_a_stream_whose_app_does_not_listen_yet(mesh: Mesh) -> None:
    port = free_port()
    server = mesh.sidecar("server", app=port, intentions=[allow("client", "server")])
    with FramePeer.dial(mesh, server) as peer:
        peer.say(OPEN, data(b"early"))
        # Whichever it hears of first, the stream or the deny.
        server.send(msgspec.structs.replace(server.snapshot, version=2, intentions=()))
        denied = server.expect(Denied)
        assert (denied.source, denied.live) == ("client", False)
        server.expect(Enforced, lambda message: message.version == 2)
        assert peer.hear() == (Frame.REFUSED, bytes([Refusal.DENIED]) + b"denied")
        with App(echo, port=port) as app:
            peer.say(RESET)
            server.apply(msgspec.structs.replace(server.snapshot, version=2))
            peer.say(OPEN, data(b"again"))
            assert peer.hear() == (Frame.ACCEPTED, b"")
            assert peer.hear() == (Frame.DATA, b"again")
            assert app.accepted == 1
    assert not reports(server)


def intend(sidecar: ControlledSidecar, *intentions: Intention) -> list[Denied]:
    """Let these be all intentions from now on; return who was denied until they are enforced."""
    version = sidecar.snapshot.version + 1
    sidecar.snapshot = msgspec.structs.replace(
        sidecar.snapshot, version=version, intentions=intentions
    )
    sidecar.send(sidecar.snapshot)
    denied: list[Denied] = []
    while True:
        message = sidecar.received.get(timeout=20)
        if isinstance(message, Denied):
            denied.append(message)
        elif message == Enforced(version=version):
            return denied


# Replay.


@contextmanager
def two_servers(mesh: Mesh) -> Iterator[tuple[FrameServer, FrameServer, ControlledSidecar]]:
    with FrameServer(mesh) as first, FrameServer(mesh) as second:
        client = mesh.sidecar("client", upstreams=["server"], timeout_s=20.0)
        client.balance("server", first.endpoint)
        yield first, second, client


def hear_all(peer: FramePeer, payload: bytes) -> None:
    """Fail unless DATA frames with `payload` in all come next."""
    heard = b""
    while len(heard) < len(payload):
        kind, part = peer.hear()
        assert kind == Frame.DATA
        heard += part
    assert heard == payload


def test_early_bytes_are_sent_again_until_a_stream_is_accepted(mesh: Mesh) -> None:
    said = Random(1).randbytes(300_000)
    with two_servers(mesh) as (first, second, client), client.call("server") as connection:
        writer = threading.Thread(target=connection.sendall, args=(said,))
        writer.start()
        with first.accept() as peer:
            assert peer.hear() == (Frame.OPEN, b"")
            kind, early = peer.hear()
            assert kind == Frame.DATA
            assert 0 < len(early) <= MOST_EARLY_BYTES
            assert said.startswith(early)
        client.balance("server", second.endpoint)
        with second.accept() as peer:
            assert peer.hear() == (Frame.OPEN, b"")
            assert peer.hear() == (Frame.DATA, early)
            peer.say(ACCEPTED)
            hear_all(peer, said[len(early) :])
            writer.join()
            peer.say(data(b"got it"), FINISH)
            assert read_all(connection) == b"got it"
            connection.shutdown(socket.SHUT_WR)
            assert peer.hear() == (Frame.FINISH, b"")
    assert not reports(client)


def test_an_end_at_once_is_sent_again(mesh: Mesh) -> None:
    with two_servers(mesh) as (first, second, client), client.call("server") as connection:
        with first.accept() as peer:
            assert peer.hear() == (Frame.OPEN, b"")
            connection.shutdown(socket.SHUT_WR)
            assert peer.hear() == (Frame.FINISH, b"")
        client.balance("server", second.endpoint)
        with second.accept() as peer:
            assert [kind for kind, _ in peer.hear_stream()] == [Frame.OPEN, Frame.FINISH]
            peer.say(ACCEPTED, data(b"late"), FINISH)
            assert read_all(connection) == b"late"


def test_bytes_and_the_end_behind_them_are_sent_again(mesh: Mesh) -> None:
    with two_servers(mesh) as (first, second, client), client.call("server") as connection:
        with first.accept() as peer:
            assert peer.hear() == (Frame.OPEN, b"")
            # Both are there when the sidecar looks: it takes them at once.
            os.kill(client.pid, signal.SIGSTOP)
            connection.sendall(b"all of it")
            connection.shutdown(socket.SHUT_WR)
            os.kill(client.pid, signal.SIGCONT)
            assert peer.hear() == (Frame.DATA, b"all of it")
            assert peer.hear() == (Frame.FINISH, b"")
        client.balance("server", second.endpoint)
        with second.accept() as peer:
            assert list(peer.hear_stream()) == [
                (Frame.OPEN, b""),
                (Frame.DATA, b"all of it"),
                (Frame.FINISH, b""),
            ]
            peer.say(ACCEPTED, data(b"late"), FINISH)
            assert read_all(connection) == b"late"


def test_an_end_that_was_not_read_yet_is_no_hang_up(mesh: Mesh) -> None:
    with two_servers(mesh) as (first, second, client), client.call("server") as connection:
        with first.accept() as peer:
            assert peer.hear() == (Frame.OPEN, b"")
            connection.sendall(b"all of it")
            assert peer.hear() == (Frame.DATA, b"all of it")
            connection.shutdown(socket.SHUT_WR)
        client.balance("server", second.endpoint)
        with second.accept() as peer:
            assert peer.hear() == (Frame.OPEN, b"")
            assert peer.hear() == (Frame.DATA, b"all of it")
            peer.say(ACCEPTED)
            assert peer.hear() == (Frame.FINISH, b"")
            peer.say(data(b"late"), FINISH)
            assert read_all(connection) == b"late"


def test_a_stream_without_an_answer_fails_in_time_with_the_reason(mesh: Mesh) -> None:
    with FrameServer(mesh) as server:
        client = mesh.sidecar("client", upstreams=["server"], timeout_s=0.5)
        client.balance("server", server.endpoint)
        with client.call("server") as connection, server.accept() as peer:
            assert peer.hear() == (Frame.OPEN, b"")
            assert ends_in_reset(connection)
        assert "no answer" in client.expect(ConnectionFailed).reason


def test_what_was_accepted_is_never_sent_again(mesh: Mesh) -> None:
    with two_servers(mesh) as (first, second, client), client.call("server") as connection:
        with first.accept() as peer:
            connection.sendall(b"once")
            assert peer.hear() == (Frame.OPEN, b"")
            hear_all(peer, b"once")
            client.balance("server", second.endpoint)
            peer.say(ACCEPTED)
        assert ends_in_reset(connection)
        # The next tunnel carries the next stream.
        with client.call("server") as other:
            other.sendall(b"another")
            with second.accept() as peer:
                assert peer.hear() == (Frame.OPEN, b"")
                hear_all(peer, b"another")


@pytest.mark.parametrize(
    ("answer", "again"),
    [
        (refused(Refusal.UNREACHABLE), True),
        (refused(Refusal.BUSY), True),
        (refused(Refusal.LEAVING), True),
        (refused(Refusal.DENIED), False),
        (RESET, False),
    ],
)
def test_which_refusals_send_a_stream_again(mesh: Mesh, answer: bytes, again: bool) -> None:
    with two_servers(mesh) as (first, second, client), client.call("server") as connection:
        connection.sendall(b"hello")
        with first.accept() as peer:
            assert peer.hear() == (Frame.OPEN, b"")
            hear_all(peer, b"hello")
            client.balance("server", second.endpoint)
            peer.say(answer)
            assert peer.hear() == (Frame.RESET, b"")
            if again:
                with second.accept() as other:
                    assert other.hear() == (Frame.OPEN, b"")
                    hear_all(other, b"hello")
                    other.say(ACCEPTED, data(b"welcome"), FINISH)
                    assert read_all(connection) == b"welcome"
            else:
                assert ends_in_reset(connection)
    assert not reports(client)


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_sidecar_killed_before_it_accepts_loses_and_doubles_nothing(
    mesh: Mesh, elsewhere: bool
) -> None:
    said = Random(2).randbytes(300_000)
    heard: queue.Queue[bytes] = queue.Queue()

    def hear(connection: socket.socket) -> None:
        heard.put(read_all(connection))
        connection.sendall(b"got it")
        connection.shutdown(socket.SHUT_WR)

    port = free_port()
    server = mesh.sidecar("server", app=port, default="allow", timeout_s=20.0)
    with Relay(server) as relay:
        client = mesh.sidecar("client", upstreams=["server"], timeout_s=20.0)
        client.balance("server", relay.endpoint)
        with client.call("server") as connection:
            writer = threading.Thread(target=connection.sendall, args=(said,))
            writer.start()
            wait_until(lambda: relay.forwarded > 30_000, "the early bytes are under way")
            server.kill()
            with App(hear, port=port) as app:
                if elsewhere:
                    other = mesh.sidecar("server", app=port, default="allow")
                    client.balance("server", other.endpoint)
                else:
                    server.start()
                writer.join()
                connection.shutdown(socket.SHUT_WR)
                assert read_all(connection) == b"got it"
                assert heard.get(timeout=20) == said
                assert app.accepted == 1
    assert not reports(client)


# Reports.


def test_an_app_that_never_listens_fails_with_the_reason_on_both_sides(mesh: Mesh) -> None:
    server = mesh.sidecar("server", app=free_port(), default="allow", timeout_s=0.3)
    client = mesh.sidecar("client", upstreams=[server], timeout_s=0.3)
    with client.call("server") as connection:
        connection.sendall(b"hello")
        assert ends_in_reset(connection)
    assert client.expect(ConnectionFailed) == ConnectionFailed(
        upstream="server", reason=f"{server.instance}: its app does not answer (waited 0.3 s)"
    )
    failed = server.expect(ConnectionFailed)
    assert failed.upstream is None
    assert "refused for 0.3 s" in failed.reason
    assert not reports(client)
    assert not reports(server)


@pytest.mark.slow
def test_a_call_moves_from_an_app_that_never_listens_to_one_that_does(mesh: Mesh) -> None:
    with App(echo) as app:
        dead = mesh.sidecar("server", app=free_port(), default="allow", timeout_s=0.2)
        alive = mesh.sidecar("server", app=app.port, default="allow")
        client = mesh.sidecar("client", upstreams=[dead, alive], timeout_s=10.0)
        for _ in range(6):
            with client.call("server") as connection:
                connection.sendall(b"hello")
                assert connection.recv(100) == b"hello"
        assert not reports(client)


def test_more_callers_than_the_app_may_have_are_refused_with_the_reason(mesh: Mesh) -> None:
    with App(echo) as app:
        server = mesh.sidecar("server", app=app.port, default="allow")
        client = mesh.sidecar("client", upstreams=[server], timeout_s=0.5)
        inbound = server.snapshot.inbound
        assert inbound is not None
        limited = msgspec.structs.replace(inbound, max_connections=1)
        server.apply(msgspec.structs.replace(server.snapshot, inbound=limited))
        with client.call("server") as first:
            first.sendall(b"x")
            assert first.recv(1) == b"x"
            assert is_refused(client)
            assert "it has too many connections" in client.expect(ConnectionFailed).reason
            assert server.expect(ConnectionFailed).reason == (
                "1 connections are open, and no more are allowed (max_connections)"
            )
            assert app.accepted == 1
            first.sendall(b"z")
            assert first.recv(1) == b"z"
        wait_until(lambda: not is_refused(client), "the place is free again")


def is_refused(client: ControlledSidecar) -> bool:
    """Whether a call ends in a reset, which may come before it is known to be connected."""
    try:
        with client.call("server") as connection:
            connection.sendall(b"x")
            return connection.recv(1) != b"x"
    except ConnectionResetError:
        return True


def test_more_calls_than_the_upstream_may_have_are_refused_with_the_reason(mesh: Mesh) -> None:
    with App(echo) as app:
        server = mesh.sidecar("server", app=app.port, default="allow")
        client = mesh.sidecar("client", upstreams=[server])
        (upstream,) = client.snapshot.upstreams
        limited = msgspec.structs.replace(upstream, max_connections=1)
        client.apply(msgspec.structs.replace(client.snapshot, upstreams=(limited,)))
        with client.call("server") as first:
            first.sendall(b"x")
            assert first.recv(1) == b"x"
            assert is_refused(client)
            assert client.expect(ConnectionFailed) == ConnectionFailed(
                upstream="server",
                reason="1 connections are open, and no more are allowed (max_connections)",
            )
            assert app.accepted == 1
        wait_until(lambda: not is_refused(client), "the place is free again")


# Peers that break the protocol.

TOO_EARLY = (data(b"x" * MOST_EARLY_BYTES), data(b"x"))


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\nHost: server\r\n\r\n",
        b"\0" * 4,
        b"\xff" * 100_000,
        frame(Frame.OPEN, b"x"),
        joined(OPEN, OPEN),
        joined(OPEN, RESET, OPEN, RESET),  # two streams cannot come at once
        data(b"x"),
        FINISH,
        RESET,
        ACCEPTED,
        refused(1),
        data(b"") * 100_000,
        joined(OPEN, data(b"") * 100_000),
        joined(OPEN, FINISH, data(b"x")),
        joined(OPEN, FINISH, FINISH),
        joined(OPEN, FINISH, RESET),
        joined(OPEN, FINISH, OPEN),
        joined(OPEN, RESET, RESET),
        joined(OPEN, *TOO_EARLY),
    ],
    ids=lambda said: said[:12].hex(),
)
def test_a_caller_that_breaks_the_protocol_is_cut_and_no_other(
    patient: ControlledSidecar, shared_mesh: Mesh, said: bytes
) -> None:
    with FramePeer.dial(shared_mesh, patient) as other:
        other.say(OPEN, data(b"good"))
        with FramePeer.dial(shared_mesh, patient) as peer:
            try:
                peer.say(said)
            except (ConnectionError, ssl.SSLError):
                pass  # cut before it could say all
            assert peer.is_cut()
        other.say(RESET)
        assert other.hear() == (Frame.RESET, b"")
    reports(patient)


@pytest.fixture(scope="module")
def patient(shared_mesh: Mesh) -> ControlledSidecar:
    """A sidecar whose app does not listen, so that no stream is answered."""
    return shared_mesh.sidecar("server", app=free_port(), default="allow", timeout_s=60.0)


def test_a_stream_may_have_all_its_early_bytes(mesh: Mesh) -> None:
    port = free_port()
    server = mesh.sidecar("server", app=port, default="allow")
    said = Random(3).randbytes(MOST_EARLY_BYTES)
    with FramePeer.dial(mesh, server) as peer:
        for at in range(0, len(said), 1000):
            peer.say(*([OPEN] if not at else []), data(said[at : at + 1000]))
        peer.say(FINISH)
        with App(echo, port=port):
            assert peer.hear() == (Frame.ACCEPTED, b"")
            hear_all(peer, said)
            assert peer.hear() == (Frame.FINISH, b"")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        OPEN,
        data(b"x"),
        FINISH,
        frame(Frame.REFUSED),
        refused(0),
        refused(9),
        refused(1, b"x" * 256),
        joined(ACCEPTED, ACCEPTED),
        joined(ACCEPTED, refused(1)),
        joined(ACCEPTED, FINISH, data(b"x")),
        joined(ACCEPTED, OPEN),
    ],
    ids=lambda answer: answer[:12].hex(),
)
def test_an_endpoint_that_breaks_the_protocol_is_cut(
    shared_mesh: Mesh, unbound: ControlledSidecar, answer: bytes
) -> None:
    with FrameServer(shared_mesh) as server:
        unbound.balance("server", server.endpoint)
        with unbound.call("server") as connection:
            connection.sendall(b"hello")
            with server.accept() as peer:
                assert peer.hear() == (Frame.OPEN, b"")
                peer.say(answer)
                assert peer.is_cut()
            if answer.startswith(ACCEPTED):
                wait_until(lambda: is_broken(connection), "the app's connection is reset")
            else:
                with server.accept() as peer:
                    peer.say(ACCEPTED, data(b"welcome"))
                    assert connection.recv(100) == b"welcome"
        unbound.balance("server")
    reports(unbound)


def is_broken(connection: socket.socket) -> bool:
    """Whether a connection is reset, maybe behind an end."""
    try:
        connection.recv(100)
        connection.sendall(b"x")
    except ConnectionError:
        return True
    return False


@pytest.fixture(scope="module")
def unbound(shared_mesh: Mesh) -> ControlledSidecar:
    """A sidecar whose upstream is the test."""
    return shared_mesh.sidecar("client", upstreams=["server"], timeout_s=20.0)


@pytest.mark.parametrize("open_first", [False, True])
def test_a_tunnel_that_ends_without_close_notify_ends_nothing_in_order(
    mesh: Mesh, open_first: bool
) -> None:
    seen: queue.Queue[bool] = queue.Queue()
    with App(lambda connection: seen.put(ends_in_reset(connection))) as app:
        server = mesh.sidecar("server", app=app.port, default="allow")
        before = server.descriptors()
        peer = FramePeer.dial(mesh, server)
        if open_first:
            peer.say(OPEN, data(b"x"))
            assert peer.hear() == (Frame.ACCEPTED, b"")
        peer.close()
        if open_first:
            assert seen.get(timeout=20)
        server.wait_for_descriptors(before)
    assert not reports(server)


# Peers without tunnels.


@pytest.mark.parametrize("offered", [[], ["h2"], ["h2", "http/1.1"]])
def test_a_caller_that_knows_no_tunnels_is_served(
    route: Route, shared_mesh: Mesh, offered: list[str]
) -> None:
    context = shared_mesh.client_context(shared_mesh.leaf("client"))
    if offered:
        context.set_alpn_protocols(offered)
    address = ("127.0.0.1", route.inbound.endpoint.port)
    with context.wrap_socket(socket.create_connection(address, timeout=20)) as secured:
        assert secured.selected_alpn_protocol() is None
        secured.sendall(b"hello")
        assert secured.recv(100) == b"hello"


@pytest.mark.parametrize("known", [[], ["h2"]])
def test_an_endpoint_that_knows_no_tunnels_is_reached(mesh: Mesh, known: list[str]) -> None:
    context = mesh.server_context(mesh.leaf("server"))
    if known:
        context.set_alpn_protocols(known)

    def serve(plain: socket.socket) -> None:
        with context.wrap_socket(plain, server_side=True) as secured:
            while said := secured.recv(100):
                secured.sendall(said)

    with App(serve) as app:
        client = mesh.sidecar("client", upstreams=["server"])
        server = msgspec.structs.replace(client.endpoint, instance="server.9", port=app.port)
        client.balance("server", server)
        for _ in range(3):
            with client.call("server") as connection:
                connection.sendall(b"hello")
                assert connection.recv(100) == b"hello"
        assert app.accepted == 3
        assert not reports(client)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_an_endpoint_that_insists_on_another_protocol_is_reached(
    mesh: Mesh, tmp_path: Path
) -> None:
    leaf = mesh.leaf("server")
    certificate = ssl.DER_cert_to_PEM_cert(leaf.chain_der[0]).encode()
    (tmp_path / "leaf.pem").write_bytes(leaf.key_pem + certificate)
    (tmp_path / "root.pem").write_bytes(mesh.root.certificate_pem)
    process = subprocess.Popen(
        [
            *("openssl", "s_server", "-accept", "127.0.0.1:0", "-alpn", "h2", "-rev"),
            *("-cert", str(tmp_path / "leaf.pem"), "-key", str(tmp_path / "leaf.pem")),
            *("-CAfile", str(tmp_path / "root.pem"), "-tls1_3", "-Verify", "2"),
        ],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        assert process.stdout is not None
        lines = iter(process.stdout.readline, "")
        accepting = next(line for line in lines if line.startswith("ACCEPT "))
        client = mesh.sidecar("client", upstreams=["server"])
        server = msgspec.structs.replace(
            client.endpoint, instance="server.9", port=int(accepting.rpartition(":")[2])
        )
        client.balance("server", server)
        for _ in range(2):
            with client.call("server") as connection:
                connection.sendall(b"olleh\n")
                assert connection.recv(100) == b"hello\n"
        assert not reports(client)
    finally:
        process.kill()
        process.communicate()


# What only a tunnel within the test shows.


class Recorder:
    """The owner of a tunnel of either side, which answers nothing."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def stream_accepted(self, _: object) -> None:
        self.told.append("accepted")

    def tunnel_idle(self, _: object) -> None:
        self.told.append("idle")

    def tunnel_closed(self, _: object) -> None:
        self.told.append("closed")

    def stream_opened(self, _: object) -> None:
        self.told.append("opened")

    def stream_abandoned(self, _: object) -> None:
        self.told.append("abandoned")


# Which credentials a tunnel has is its owner's business.
NONE = cast(Credentials, None)


def test_a_tunnel_that_is_being_closed_takes_no_stream() -> None:
    async def main(poller: Poller) -> list[str]:
        client, server = TlsPairs().join(*tcp_pair())
        owner = Recorder()
        tunnel = InboundTunnel(Pump(poller, server), owner, caller("client"), NONE, 0.0)
        tunnel.start()
        client.tls.write(OPEN)
        client.sock.send(client.outgoing.read())
        reset(client.sock)
        tunnel.close()  # its close_notify meets the reset, with the OPEN still unread
        return owner.told

    assert run(main) == ["closed"]


def test_an_idle_tunnel_keeps_nothing_of_a_stream_that_was_given_up() -> None:
    async def main(poller: Poller) -> None:
        client, server = TlsPairs().join(*tcp_pair())
        owner = Recorder()
        endpoint = Endpoint(instance="server.1", host="127.0.0.1", port=1)
        tunnel = OutboundTunnel(Pump(poller, client), owner, endpoint, NONE, 0.0)
        tunnel.start()
        near, app = tcp_pair()
        near.send(b"x" * 50_000)
        tunnel.open(Splice(poller, app, lambda _: None), Leftover(), lambda *_: None)
        reset(near)
        server.tls.write(RESET)
        server.sock.send(server.outgoing.read())
        await until(lambda: owner.told == ["idle"], "the reset is answered")
        assert tunnel._leftover == Leftover()
        assert tunnel._unaccepted is None
        tunnel.close()
        server.sock.close()

    run(main)


class Taker:
    """A rider that notes what it is given, and what the loop does meanwhile."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.taken: list[int] = []
        self.holds = False
        self.carrier: Carrier = NoCarrier()

    def start(self, carrier: Carrier) -> None:
        self.carrier = carrier

    def look(self) -> None:
        pass

    def resend(self, data: bytes, *, last: bool) -> None:
        pass

    def deliver(self, data: memoryview) -> None:
        self.taken.append(len(data))
        self.told.append("data")
        asyncio.get_running_loop().call_soon(self.told.append, "others")
        if self.holds:
            self.carrier.hold()

    def end(self) -> None:
        self.told.append("end")

    def drained(self) -> None:
        pass

    def broken(self, reason: str) -> None:
        self.told.append(f"broken: {reason}")

    def disown(self) -> None:
        pass


class Accepting(Recorder):
    """The owner of an inbound tunnel that accepts its stream for `rider`."""

    def __init__(self, rider: Taker) -> None:
        super().__init__()
        self._rider = rider

    def stream_opened(self, tunnel: object) -> None:
        assert isinstance(tunnel, InboundTunnel)
        tunnel.accept(self._rider)


# With OPEN three turns of the loop.
TINY = data(b"x") * (BATCH * 5 // 2)


def with_tiny_frames(
    script: Callable[[Taker, Secured], Coroutine[object, object, None]],
) -> Taker:
    """Return the rider of a stream whose other end obeys `script`."""

    async def main(poller: Poller) -> Taker:
        client, server = TlsPairs().join(*tcp_pair())
        rider = Taker()
        tunnel = InboundTunnel(Pump(poller, server), Accepting(rider), caller("client"), NONE, 0.0)
        tunnel.start()
        await script(rider, client)
        tunnel.cut("the test is over")
        client.sock.close()
        return rider

    return run(main)


def say(peer: Secured, *frames: bytes) -> None:
    """Let all of `frames` come at once."""
    for each in frames:
        peer.tls.write(each)
    sealed = peer.outgoing.read()
    assert peer.sock.send(sealed) == len(sealed)


def test_tiny_frames_are_delivered_together_and_in_turns() -> None:
    async def script(rider: Taker, peer: Secured) -> None:
        say(peer, OPEN + TINY, FINISH)
        await until(lambda: "end" in rider.told, "all is delivered")

    rider = with_tiny_frames(script)
    assert rider.taken == [BATCH - 1, BATCH, BATCH // 2 + 1]
    assert rider.told[:6] == ["data", "others", "data", "others", "data", "end"]


def test_a_rider_that_holds_gets_what_was_received_and_no_more() -> None:
    async def script(rider: Taker, peer: Secured) -> None:
        rider.holds = True
        say(peer, OPEN + TINY)
        await until(lambda: sum(rider.taken) * 5 == len(TINY), "what came is delivered")
        say(peer, data(b"y"))
        for _ in range(10):
            await asyncio.sleep(0)
        assert len(rider.taken) == 3
        rider.holds = False
        rider.carrier.resume()
        await until(lambda: len(rider.taken) == 4, "the rest is delivered")

    with_tiny_frames(script)


def test_an_end_of_the_connection_is_heard_behind_the_frames_before_it() -> None:
    async def script(rider: Taker, peer: Secured) -> None:
        peer.tls.write(OPEN + TINY)
        with suppress(ssl.SSLWantReadError):
            peer.tls.unwrap()
        say(peer)
        await until(lambda: any(told.startswith("broken") for told in rider.told), "it has ended")

    rider = with_tiny_frames(script)
    assert sum(rider.taken) * 5 == len(TINY)
    assert [told for told in rider.told if told != "others"] == [
        *["data"] * 3,
        "broken: the other side closed the connection within a stream",
    ]
