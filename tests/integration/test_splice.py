"""Bytes through two real sidecars: every way that a TCP connection can go on and end."""

import asyncio
import hashlib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from random import Random
from typing import cast

import pytest
from support.apps import App, echo, read_all, reset
from support.sidecars import ControlledSidecar, Mesh, listen
from support.traffic import wait_until

from meshrun.proxy import sockets
from meshrun.proxy.direct import Direct
from meshrun.proxy.handshake import Secured
from meshrun.proxy.poller import Poller
from meshrun.proxy.pump import Pump
from meshrun.proxy.splice import Splice

MIB = 1024 * 1024


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


class Route:
    """Two sidecars, and an app behind them whose handler each test sets."""

    def __init__(self, mesh: Mesh, app: App, *, tunnels: bool) -> None:
        self.handler: Callable[[socket.socket], None] = echo
        self.inbound = mesh.sidecar("server", app=app.port, default="allow")
        self.outbound = mesh.sidecar("client", upstreams=[self.inbound], tunnels=tunnels)

    def call(self) -> socket.socket:
        return self.outbound.call("server")

    @property
    def sidecars(self) -> tuple[ControlledSidecar, ControlledSidecar]:
        return self.outbound, self.inbound


@pytest.fixture(scope="module", params=["tunnel", "direct"])
def shared_route(mesh: Mesh, request: pytest.FixtureRequest) -> Iterator[Route]:
    routes: list[Route] = []

    def handle(connection: socket.socket) -> None:
        routes[0].handler(connection)  # which each test sets

    with App(handle) as app:
        routes.append(Route(mesh, app, tunnels=request.param == "tunnel"))
        yield routes[0]


@pytest.fixture
def route(shared_route: Route) -> Iterator[Route]:
    """A route on which every connection of the test must be gone after it."""
    before = [sidecar.descriptors() for sidecar in shared_route.sidecars]
    yield shared_route
    shared_route.outbound.rotate()  # closes the tunnels that are idle
    for sidecar, most in zip(shared_route.sidecars, before, strict=True):
        sidecar.wait_for_descriptors(most)


def noise(size: int, seed: int) -> bytes:
    return Random(seed).randbytes(size)


def ends_in_reset(connection: socket.socket) -> bool:
    try:
        while connection.recv(65536):
            pass
    except ConnectionResetError:
        return True
    return False


def sent_until_full(connection: socket.socket, most: int) -> int:
    """Send until nothing more is taken; return how much was."""
    connection.settimeout(0.5)
    sent = 0
    try:
        while sent < most:
            sent += connection.send(b"x" * MIB)
    except TimeoutError:
        return sent
    raise AssertionError("everything was taken, and must be in somebody's memory")


@pytest.mark.parametrize("size", [1, 16383, 16384, 16385, 65536, 65537, 1_000_003])
def test_bytes_arrive_as_they_were_sent(route: Route, size: int) -> None:
    route.handler = echo
    sent = noise(size, size)
    with route.call() as connection:
        writer = threading.Thread(target=connection.sendall, args=(sent,))
        writer.start()
        received = bytearray()
        while len(received) < size:
            received += connection.recv(65536)
        writer.join()
    assert received == sent


def test_a_client_that_ends_its_side_gets_the_delayed_answer(route: Route) -> None:
    asked = threading.Event()

    def answer_after_the_end(connection: socket.socket) -> None:
        request = read_all(connection)
        asked.set()
        connection.sendall(b"you said " + request)
        connection.shutdown(socket.SHUT_WR)

    route.handler = answer_after_the_end
    with route.call() as connection:
        connection.sendall(b"everything")
        assert not asked.is_set()
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"you said everything"


def test_a_server_that_ends_its_side_still_gets_the_rest(route: Route) -> None:
    heard: list[bytes] = []
    done = threading.Event()

    def speak_and_listen(connection: socket.socket) -> None:
        connection.sendall(b"greeting")
        connection.shutdown(socket.SHUT_WR)
        heard.append(read_all(connection))
        done.set()

    route.handler = speak_and_listen
    with route.call() as connection:
        assert read_all(connection) == b"greeting"
        connection.sendall(b"long story")
        connection.shutdown(socket.SHUT_WR)
        assert done.wait(20)
    assert heard == [b"long story"]


def test_urgent_data_is_no_end(route: Route) -> None:
    heard: list[bytes] = []
    done = threading.Event()

    def listen_to(connection: socket.socket) -> None:
        heard.append(read_all(connection))
        connection.shutdown(socket.SHUT_WR)
        done.set()

    route.handler = listen_to
    with route.call() as connection:
        connection.sendall(b"before")
        connection.send(b"!", socket.MSG_OOB)
        connection.sendall(b"after")
        connection.shutdown(socket.SHUT_WR)
        assert done.wait(20)
    # The urgent byte itself stands beside the stream (tcp(7)), and is not carried.
    assert heard == [b"beforeafter"]


def test_a_server_may_speak_first(route: Route) -> None:
    def greet(connection: socket.socket) -> None:
        connection.sendall(b"220 ready\r\n")
        connection.sendall(b"250 " + connection.recv(100))
        connection.shutdown(socket.SHUT_WR)

    route.handler = greet
    with route.call() as connection:
        assert connection.recv(100) == b"220 ready\r\n"
        connection.sendall(b"HELO\r\n")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"250 HELO\r\n"


def test_an_end_at_once_arrives(route: Route) -> None:
    route.handler = echo
    with route.call() as connection:
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b""


def test_bulk_both_ways_at_once_arrives_whole_in_bounded_memory(route: Route) -> None:
    size = 64 * MIB
    there, back = noise(MIB, 1) * 64, noise(MIB, 2) * 64
    arrived: list[str] = []

    def exchange(connection: socket.socket) -> None:
        writer = threading.Thread(target=connection.sendall, args=(back,))
        writer.start()
        arrived.append(digest(connection, size))
        writer.join()
        connection.shutdown(socket.SHUT_WR)

    def digest(connection: socket.socket, length: int) -> str:
        seen = hashlib.sha256()
        while length:
            data = connection.recv(min(length, MIB))
            assert data, "it ended too early"
            seen.update(data)
            length -= len(data)
        return seen.hexdigest()

    route.handler = exchange
    with route.call() as connection:
        writer = threading.Thread(target=connection.sendall, args=(there,))
        writer.start()
        assert digest(connection, size) == hashlib.sha256(back).hexdigest()
        writer.join()
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""
    assert arrived == [hashlib.sha256(there).hexdigest()]
    for sidecar in route.sidecars:
        assert sidecar.memory_bytes() < 60 * MIB


def test_a_reader_that_stands_still_stops_the_writer_and_not_the_memory(route: Route) -> None:
    release = threading.Event()
    size = 64 * MIB

    def read_late(connection: socket.socket) -> None:
        release.wait(20)
        total = 0
        while data := connection.recv(MIB):
            total += len(data)
        connection.sendall(str(total).encode())
        connection.shutdown(socket.SHUT_WR)

    route.handler = read_late
    with route.call() as connection:
        sent = sent_until_full(connection, size)
        idle = [(sidecar.cpu_s(), sidecar.memory_bytes()) for sidecar in route.sidecars]
        connection.settimeout(20)
        time.sleep(0.3)
        for sidecar, (cpu_s, memory) in zip(route.sidecars, idle, strict=True):
            assert sidecar.cpu_s() - cpu_s < 0.1, "it spins"
            assert memory < 60 * MIB
        release.set()
        connection.sendall(b"y")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == str(sent + 1).encode()


def test_a_connection_whose_ends_stand_half_closed_costs_nothing(route: Route) -> None:
    release = threading.Event()

    def answer_late(connection: socket.socket) -> None:
        read_all(connection)
        release.wait(20)
        connection.sendall(b"late")
        connection.shutdown(socket.SHUT_WR)

    route.handler = answer_late
    with route.call() as connection:
        connection.shutdown(socket.SHUT_WR)
        before = [(sidecar.cpu_s(), sidecar.switches()) for sidecar in route.sidecars]
        time.sleep(0.5)
        for sidecar, (cpu_s, switches) in zip(route.sidecars, before, strict=True):
            assert sidecar.cpu_s() - cpu_s < 0.1, "it spins"
            assert sidecar.switches() - switches < 20
        release.set()
        assert read_all(connection) == b"late"


def test_a_reset_by_the_client_reaches_the_server(route: Route) -> None:
    seen: list[bool] = []
    done = threading.Event()

    def expect_reset(connection: socket.socket) -> None:
        connection.sendall(b"x" * 100_000)
        seen.append(ends_in_reset(connection))
        done.set()

    route.handler = expect_reset
    connection = route.call()
    assert connection.recv(10)
    connection.sendall(b"y" * 100_000)
    reset(connection)
    assert done.wait(20)
    assert seen == [True]


def test_a_reset_by_the_server_reaches_the_client(route: Route) -> None:
    def read_and_reset(connection: socket.socket) -> None:
        connection.recv(10)
        reset(connection)

    route.handler = read_and_reset
    with route.call() as connection:
        connection.sendall(b"x" * 100_000)
        assert ends_in_reset(connection)


def test_what_a_server_said_before_it_reset_is_not_lost(route: Route) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(10)
        connection.sendall(b"413 too large")
        connection.close()  # with bytes unread: a reset

    route.handler = refuse
    with route.call() as connection:
        connection.sendall(b"x" * 50_000)
        assert connection.recv(100) == b"413 too large"
        assert ends_in_reset(connection)


def test_what_a_server_said_is_not_lost_on_a_client_that_goes_on_writing(route: Route) -> None:
    def refuse(connection: socket.socket) -> None:
        connection.recv(10)
        connection.sendall(b"413 too large")
        connection.close()

    route.handler = refuse
    for _ in range(20):
        with route.call() as connection:
            connection.settimeout(20)
            try:
                for _ in range(50):
                    connection.sendall(b"x" * 20_000)
            except ConnectionError:
                pass
            assert connection.recv(100) == b"413 too large"


def test_a_reset_reaches_a_side_that_has_finished_writing(route: Route) -> None:
    def reset_late(connection: socket.socket) -> None:
        read_all(connection)
        reset(connection)

    route.handler = reset_late
    with route.call() as connection:
        connection.shutdown(socket.SHUT_WR)
        assert ends_in_reset(connection)


@pytest.mark.parametrize("tunnels", [True, False])
def test_a_killed_sidecar_is_a_reset_or_an_error_never_an_end(mesh: Mesh, tunnels: bool) -> None:
    with App(echo) as app:
        route = Route(mesh, app, tunnels=tunnels)
        with route.call() as connection:
            connection.sendall(b"ping")
            assert connection.recv(4) == b"ping"
            route.inbound.kill()
            assert ends_in_reset(connection)


@pytest.mark.parametrize("tunnels", [True, False])
@pytest.mark.parametrize("victim", ["inbound", "outbound"])
def test_both_ends_see_a_reset_when_either_sidecar_is_killed(
    mesh: Mesh, victim: str, tunnels: bool
) -> None:
    seen: list[bool] = []
    done = threading.Event()

    def greet_and_expect_reset(connection: socket.socket) -> None:
        connection.sendall(b"here")
        seen.append(ends_in_reset(connection))
        done.set()

    with App(greet_and_expect_reset) as app:
        route = Route(mesh, app, tunnels=tunnels)
        with route.call() as connection:
            connection.sendall(b"ping")
            assert connection.recv(4) == b"here"
            (route.inbound if victim == "inbound" else route.outbound).kill()
            assert ends_in_reset(connection)
            assert done.wait(20)
    assert seen == [True]


def test_a_parked_call_sees_a_reset_when_its_sidecar_is_killed(mesh: Mesh) -> None:
    client = mesh.sidecar("client", upstreams=["server"], timeout_s=60.0)
    before = client.descriptors()
    with client.call("server") as connection:
        wait_until(lambda: client.descriptors() > before, "the call is accepted")
        client.kill()
        assert ends_in_reset(connection)


def test_many_connections_at_once(route: Route) -> None:
    route.handler = echo
    connections = [route.call() for _ in range(100)]
    for index, connection in enumerate(connections):
        connection.sendall(str(index).encode())
    for index, connection in enumerate(connections):
        with connection:
            assert connection.recv(100) == str(index).encode()


class Answering:
    """Stands in for TLS whose peer sends nothing but KeyUpdates: each byte has its answer."""

    def __init__(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> None:
        self._incoming = incoming
        self._outgoing = outgoing

    def write(self, _data: bytes) -> int:
        raise AssertionError("nothing is sent")

    def read(self, _size: int, _buffer: memoryview) -> int:
        self._outgoing.write(self._incoming.read())
        raise ssl.SSLWantReadError


def connected() -> tuple[socket.socket, socket.socket]:
    with listen() as listener:
        far = socket.create_connection(listener.getsockname())
        far.setblocking(False)
        return far, sockets.set_up(listener.accept()[0])


async def flood_of_questions(poller: Poller, most: int) -> tuple[int, list[str | None]]:
    """Ask for up to `most` bytes of answers and read none; return how many, and how it ended."""
    loop = asyncio.get_running_loop()
    ended: list[str | None] = []
    app_far, app = connected()
    far, peer = connected()
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = cast(ssl.SSLObject, Answering(incoming, outgoing))
    splice = Splice(poller, app, ended.append)
    Direct(Pump(poller, Secured(peer, tls, incoming, outgoing)), splice).start()
    asked = 0
    with app_far, far:
        try:
            while asked < most and not ended:
                await asyncio.wait_for(loop.sock_sendall(far, b"?" * 65536), 20)
                asked += 65536
        except ConnectionError:
            pass
    if not ended:
        splice.reset("the test is over")
    return asked, ended


def test_a_peer_that_never_reads_the_answers_it_asks_for_is_cut() -> None:
    poller = Poller()
    with asyncio.Runner(loop_factory=poller.new_loop) as runner:
        asked, ended = runner.run(flood_of_questions(poller, 64 * MIB))
    assert ended == ["the peer does not read the answers it asks for"]
    assert asked < 64 * MIB
