"""Requests on which nothing moves are given up, and idle connections to the app are not kept."""

import time
from collections.abc import Iterator

import pytest
from support.httpmesh import HttpMesh
from support.wire import Wire
from support.wire2 import Wire2

from meshrun.proxy.messages import ConnectionFailed

IDLE_S = 0.4
LONGER_S = 3 * IDLE_S

GET = b"GET /a HTTP/1.1\r\nHost: server\r\n\r\n"
UPGRADE = b"GET /a HTTP/1.1\r\nHost: server\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


# Requests.


@pytest.fixture(scope="module")
def requests() -> Iterator[HttpMesh]:
    """A mesh whose server gives up what does not move."""
    with HttpMesh(constants={"meshrun.proxy.gate:EXCHANGE_IDLE_S": IDLE_S}) as mesh:
        yield mesh


@pytest.fixture
def mesh(requests: HttpMesh) -> Iterator[HttpMesh]:
    yield requests
    requests.tidy()


def given_up(mesh: HttpMesh) -> bool:
    """Whether the server says that it gave something up."""
    return "nothing moved" in mesh.server.expect(ConnectionFailed).reason


def test_a_request_on_which_nothing_moves_is_answered_and_the_app_sees_a_reset(
    mesh: HttpMesh,
) -> None:
    with mesh.call("peer") as wire:
        wire.say(GET)
        app = mesh.app.accept()
        app.hear_request()
        assert wire.hear_answer().status == 504
        assert given_up(mesh)
        app.hear_break()
        wire.say(GET)  # the connection of the caller is as good as before
        app = mesh.app.accept()
        app.hear_request()
        app.say(OK)
        assert wire.hear_answer().body == b"ok"


def test_a_response_that_stops_is_broken_off(mesh: HttpMesh) -> None:
    with mesh.call("peer") as wire:
        wire.say(GET)
        app = mesh.app.accept()
        app.hear_request()
        app.say(CHUNKED + b"1\r\nx\r\n")
        assert given_up(mesh)
        app.hear_break()
        assert wire.hear_break().endswith(b"1\r\nx\r\n")


def test_an_upgraded_connection_on_which_nothing_moves_is_reset(mesh: HttpMesh) -> None:
    with mesh.call("peer") as wire:
        wire.say(UPGRADE)
        app = mesh.app.accept()
        app.hear_request()
        app.say(SWITCHED)
        wire.hear_head()
        assert given_up(mesh)
        app.hear_break()
        wire.hear_break()


def test_a_response_that_moves_now_and_then_is_heard_to_its_end(mesh: HttpMesh) -> None:
    with mesh.call("peer") as wire:
        wire.say(GET)
        app = mesh.app.accept()
        app.hear_request()
        app.say(CHUNKED)
        until = time.monotonic() + LONGER_S
        count = 0
        while time.monotonic() < until:
            app.say(b"1\r\nx\r\n")
            count += 1
            time.sleep(IDLE_S / 10)
        app.say(b"0\r\n\r\n")
        assert wire.hear_answer().body == b"x" * count


# Connections to the app.


@pytest.fixture(scope="module", params=["http", "http2"])
def connections(request: pytest.FixtureRequest) -> Iterator[HttpMesh]:
    """A mesh whose server does not keep what is idle."""
    constants = {"meshrun.proxy.http.inbound:APP_IDLE_S": IDLE_S}
    with HttpMesh(protocol=request.param, constants=constants) as mesh:
        yield mesh


class Pair:
    """A caller and the app, in whatever version of HTTP."""

    def __init__(self, mesh: HttpMesh) -> None:
        self._mesh = mesh
        self._caller = mesh.call("peer")
        self._caller2 = Wire2(self._caller, client=True) if mesh.protocol == "http2" else None

    def ask(self, after_s: float = 0.0) -> Wire:
        """Let a request be answered over a new connection to the app, and return that."""
        if self._caller2 is None:
            self._caller.say(GET)
            app = self._mesh.app.accept()
            app.hear_request()
            time.sleep(after_s)
            app.say(OK)
            assert self._caller.hear_answer().body == b"ok"
        else:
            number = self._caller2.ask("/a")
            app = self._mesh.app.accept()
            app2 = Wire2(app, client=False)
            asked, _ = app2.hear_request()
            time.sleep(after_s)
            app2.answer(asked)
            assert self._caller2.hear_answer(number).status == 200
        return app


def test_an_idle_connection_to_the_app_is_closed_and_the_next_request_makes_another(
    connections: HttpMesh,
) -> None:
    pair = Pair(connections)
    for _ in range(3):
        pair.ask().hear_rest()  # in order, while the caller's connection stays
    connections.tidy()


def test_one_that_carries_a_request_is_not_idle(connections: HttpMesh) -> None:
    Pair(connections).ask(after_s=LONGER_S).hear_rest()
    connections.tidy()
