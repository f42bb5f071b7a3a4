"""Who has a place at an app whose connections are limited, and who must give it up."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import msgspec
import pytest
from support.httpmesh import ID, RULES, HttpMesh
from support.wire import Wire, call_over_tunnel

MOST = 4
MOST_LINGERING = 8
CONSTANTS = {
    "meshrun.proxy.http.inbound:SPARE_S": 0,
    "meshrun.proxy.http.link:MOST_LINGERING": MOST_LINGERING,
}
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ASKED = f"GET /a HTTP/1.1\r\nHost: server\r\n{ID}\r\n\r\n".encode()


@pytest.fixture
def mesh() -> Iterator[HttpMesh]:
    with HttpMesh(RULES, constants=CONSTANTS) as running:
        inbound = running.server.snapshot.inbound
        assert inbound is not None
        limited = msgspec.structs.replace(inbound, max_connections=MOST)
        running.server.apply(msgspec.structs.replace(running.server.snapshot, inbound=limited))
        yield running


@pytest.fixture
def stranger(mesh: HttpMesh) -> Iterator[Callable[[], Wire]]:
    """Return what connects as a service of the mesh that no intention is about."""
    leaf = mesh.mesh.leaf("stranger")
    with ExitStack() as stack:
        yield lambda: stack.enter_context(call_over_tunnel(mesh.mesh, mesh.server, leaf))


def test_callers_that_are_denied_hold_no_place_against_others(
    mesh: HttpMesh, stranger: Callable[[], Wire]
) -> None:
    strangers = [stranger() for _ in range(MOST)]
    for wire in strangers:
        wire.say(ASKED)
        assert wire.hear_answer().status == 403
    wire = mesh.call()
    wire.say(ASKED)
    app = mesh.app.accept()
    app.hear_request()
    app.say(OK)
    assert wire.hear_answer().body == b"ok"
    strangers[0].hear_break()  # the one that had been there for longest
    for other in strangers[1:]:
        other.say(ASKED)
        assert other.hear_answer().status == 403


def test_connection_with_a_request_keeps_its_place(
    mesh: HttpMesh, stranger: Callable[[], Wire]
) -> None:
    wires = [mesh.call("tunnel") for _ in range(MOST)]
    apps = []
    for wire in wires:
        wire.say(ASKED)
        apps.append(mesh.app.accept())
        apps[-1].hear_request()
    with pytest.raises(ConnectionResetError):
        stranger().hear_answer()
    for wire, app in zip(wires, apps, strict=True):
        app.say(OK)
        assert wire.hear_answer().body == b"ok"


def test_connections_that_were_closed_for_their_peers_do_not_pile_up(
    mesh: HttpMesh, stranger: Callable[[], Wire]
) -> None:
    before = mesh.server.descriptors()
    for _ in range(5 * MOST_LINGERING):
        wire = stranger()
        wire.say(b"no request\r\n\r\n")
        assert wire.hear_answer().status == 400
    wire = stranger()
    wire.say(ASKED)
    assert wire.hear_answer().status == 403  # what was put off to the next turn is done by now
    assert mesh.server.descriptors() <= before + MOST_LINGERING + 1
