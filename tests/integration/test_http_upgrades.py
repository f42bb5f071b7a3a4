"""Connections that change to another protocol: when, to what, and whose the bytes are."""

from collections.abc import Iterator

import pytest
from support.httpmesh import ENTRIES, ID, Entry, HttpMesh
from support.wire import Wire

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
SWITCHING = (
    b"HTTP/1.1 101 Switching Protocols\r\n"
    b"Sec-WebSocket-Accept: x\r\n"
    b"Connection: Upgrade\r\n"
    b"Upgrade: websocket\r\n\r\n"
)
# A frame of WebSocket, and what a parser of HTTP would make a request of.
FRAME = b"\x81\x05hello"
REQUEST = b"GET /smuggled HTTP/1.1\r\nHost: server\r\n\r\n"
DENIED = b"GET /denied HTTP/1.1\r\nHost: server\r\n\r\n"

each_entry = pytest.mark.parametrize("entry", ENTRIES)


@pytest.fixture(scope="module")
def running() -> Iterator[HttpMesh]:
    with HttpMesh() as mesh:
        yield mesh


@pytest.fixture
def mesh(running: HttpMesh) -> Iterator[HttpMesh]:
    """The mesh of this module, without connections; what a test has asked, it must answer."""
    yield running
    running.tidy()


def ask(wire: Wire, line: str, *fields: str, body: bytes = b"") -> None:
    """Send a request."""
    wire.say("\r\n".join([line, "Host: server", ID, *fields, "", ""]).encode() + body)


def asked(
    mesh: HttpMesh, entry: Entry, *fields: str, early: bytes = b"", upgrade: str = "websocket"
) -> tuple[Wire, Wire]:
    """Ask for another protocol, and return the ends of the caller and of the app."""
    wire = mesh.call(entry)
    ask(wire, "GET /chat HTTP/1.1", *fields, body=early)
    app = mesh.app.accept()
    behind = ["Connection: Upgrade", f"Upgrade: {upgrade}"] if upgrade else []
    kept = [field for field in fields if field.startswith("Sec-")]
    assert app.hear_request() == mesh.seen(
        "GET /chat HTTP/1.1", ID, *kept, entry=entry, behind=behind
    )
    return wire, app


UPGRADE = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x")


def say_for_ever(wire: Wire) -> None:
    """Send until it fails."""
    while True:
        wire.say(FRAME)


def round_trip(mesh: HttpMesh, entry: Entry) -> None:
    """Let a request of another connection come to the app and back.

    Whatever was sent before it has been seen by the sidecars then.
    """
    wire = mesh.call(entry)
    ask(wire, "GET /between HTTP/1.1")
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen("GET /between HTTP/1.1", ID, entry=entry)
    app.say(OK)
    assert wire.hear_answer().raw == OK


@each_entry
def test_after_the_101_of_the_app_all_bytes_are_the_other_protocols(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire, app = asked(mesh, entry, *UPGRADE)
    app.say(SWITCHING + FRAME)
    assert wire.hear_answer().raw == SWITCHING
    assert wire.hear(len(FRAME)) == FRAME
    for said in (FRAME, REQUEST, DENIED, b"\r\n\r\n", b"\n\0"):
        wire.say(said)
        assert app.hear(len(said)) == said
        app.say(said)
        assert wire.hear(len(said)) == said
    assert mesh.app.untouched()


@each_entry
@pytest.mark.parametrize("early", [FRAME, DENIED, REQUEST * 5000], ids=["frame", "head", "200 KB"])
def test_what_is_sent_early_waits_for_the_101_unread(
    mesh: HttpMesh, entry: Entry, early: bytes
) -> None:
    wire, app = asked(mesh, entry, *UPGRADE, early=early[:50_000])
    if early[50_000:]:
        wire.say(early[50_000:])
    round_trip(mesh, entry)
    assert app.pending() == b""
    app.say(SWITCHING)
    assert wire.hear_answer().raw == SWITCHING
    assert app.hear(len(early)) == early
    wire.say(FRAME)
    assert app.hear(len(FRAME)) == FRAME


@each_entry
def test_what_is_sent_early_is_the_next_request_where_the_app_does_not_change(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire, app = asked(
        mesh,
        entry,
        *UPGRADE,
        early=DENIED + REQUEST.replace(b"\r\n\r\n", b"\r\n%b\r\n\r\n" % ID.encode()),
    )
    round_trip(mesh, entry)
    assert app.pending() == b""
    app.say(OK)
    assert wire.hear_answer().raw == OK
    assert wire.hear_answer().status == 403
    assert app.hear_request() == mesh.seen("GET /smuggled HTTP/1.1", ID, entry=entry)
    app.say(OK)
    assert wire.hear_answer().raw == OK
    assert app.pending() == b""


@each_entry
@pytest.mark.parametrize("status", [200, 400, 426])
def test_what_is_sent_early_is_refused_where_it_is_no_request(
    mesh: HttpMesh, entry: Entry, status: int
) -> None:
    wire, app = asked(mesh, entry, *UPGRADE, early=FRAME + REQUEST)
    app.say(b"HTTP/1.1 %d Said\r\nContent-Length: 0\r\n\r\n" % status)
    assert wire.hear_answer().status == status
    answer = wire.hear_answer()
    assert (answer.status, answer.values("connection")) == (400, ["close"])
    assert wire.hear_rest() == b""
    assert mesh.app.untouched()
    if entry == "app":  # the sidecar of the caller keeps the way to the app
        assert app.pending() == b""
    else:
        assert app.hear_rest() == b""


def test_either_side_may_end_first_and_still_listen(mesh: HttpMesh) -> None:
    for first_is_app in (True, False):
        wire, app = asked(mesh, "app", *UPGRADE)
        app.say(SWITCHING)
        wire.hear_answer()
        first, other = (app, wire) if first_is_app else (wire, app)
        first.say(FRAME)
        first.end()
        assert other.hear_rest() == FRAME
        other.say(REQUEST)
        other.end()
        assert first.hear_rest() == REQUEST


@each_entry
def test_a_reset_after_the_101_is_one_on_the_other_side(mesh: HttpMesh, entry: Entry) -> None:
    wire, app = asked(mesh, entry, *UPGRADE)
    app.say(SWITCHING)
    wire.hear_answer()
    app.reset()
    assert wire.hear_break() == b""
    wire, app = asked(mesh, "app", *UPGRADE)
    app.say(SWITCHING)
    wire.hear_answer()
    wire.reset()
    assert app.hear_break() == b""


def test_a_reset_reaches_a_side_that_has_heard_the_end(mesh: HttpMesh) -> None:
    for first_is_app in (True, False):
        wire, app = asked(mesh, "app", *UPGRADE)
        app.say(SWITCHING)
        wire.hear_answer()
        first, other = (app, wire) if first_is_app else (wire, app)
        first.end()
        assert other.hear_rest() == b""
        first.reset()
        # Only who sends can meet it: the end of the other direction has been heard already.
        with pytest.raises(OSError, match=r"reset|Broken pipe"):
            say_for_ever(other)


def test_an_end_that_was_sent_early_comes_to_the_app(mesh: HttpMesh) -> None:
    wire, app = asked(mesh, "app", *UPGRADE, early=FRAME)
    wire.end()
    round_trip(mesh, "app")
    app.say(SWITCHING)
    assert wire.hear_answer().raw == SWITCHING
    assert app.hear_rest() == FRAME
    app.say(FRAME)
    app.end()
    assert wire.hear_rest() == FRAME


# To what.


@each_entry
@pytest.mark.parametrize(
    "fields",
    [
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABk"),
        ("Connection: Upgrade", "Upgrade: H2C"),
        ("Connection: upgrade", "Upgrade: h2c, HTTP/2.0, TLS/1.3"),
        ("Connection: Upgrade", "Upgrade: h2c", "Upgrade: h2"),
        ("Upgrade: websocket",),
        ("Connection: close", "Upgrade: websocket"),
        ("HTTP2-Settings: AAMAAABk",),
    ],
)
def test_an_upgrade_to_more_requests_or_half_asked_for_is_taken_out(
    mesh: HttpMesh, entry: Entry, fields: tuple[str, ...]
) -> None:
    wire, app = asked(mesh, entry, *fields, upgrade="")
    app.say(OK)
    assert wire.hear_answer().body == b"ok"


@each_entry
def test_of_several_protocols_those_stay_that_carry_no_requests(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire, app = asked(
        mesh,
        entry,
        "Connection: Upgrade",
        "Upgrade: h2c, websocket, ,foo/1",
        upgrade="websocket, foo/1",
    )
    app.say(OK)
    assert wire.hear_answer().body == b"ok"


@each_entry
@pytest.mark.parametrize(
    "fields",
    ["Upgrade: h2c\r\nConnection: Upgrade", "Upgrade: websocket", "Connection: Upgrade"],
)
def test_a_101_to_what_cannot_follow_is_a_502(mesh: HttpMesh, entry: Entry, fields: str) -> None:
    wire, app = asked(mesh, entry, *UPGRADE, early=REQUEST)
    app.say(f"HTTP/1.1 101 Switching Protocols\r\n{fields}\r\n\r\n".encode() + FRAME)
    assert wire.hear_answer().status == 502
    # What was sent early is a request again.
    app = mesh.app.accept()
    assert app.hear_request().startswith(b"GET /smuggled HTTP/1.1\r\n")
    app.say(OK)
    assert wire.hear_answer().body == b"ok"


@each_entry
@pytest.mark.parametrize("case", ["a body", "HTTP/1.0"])
def test_no_upgrade_behind_a_body_or_on_1_0(mesh: HttpMesh, entry: Entry, case: str) -> None:
    wire = mesh.call(entry)
    upgrade = ("Connection: Upgrade, keep-alive", "Upgrade: websocket")
    if case == "a body":
        ask(wire, "POST /chat HTTP/1.1", "Content-Length: 4", *upgrade, body=b"body" + REQUEST)
        seen = mesh.seen(
            "POST /chat HTTP/1.1", ID, entry=entry, behind=["Content-Length: 4"], body=b"body"
        )
    else:
        ask(wire, "GET /chat HTTP/1.0", *upgrade, body=REQUEST)
        seen = mesh.seen("GET /chat HTTP/1.1", ID, entry=entry)
    app = mesh.app.accept()
    assert app.hear_request() == seen
    app.say(SWITCHING)
    assert wire.hear_answer().status == 502
    app = mesh.app.accept()
    assert app.hear_request().startswith(b"GET /smuggled HTTP/1.1\r\n")
    app.say(OK)
    assert wire.hear_answer().body == b"ok"


@each_entry
def test_another_protocol_may_be_required(mesh: HttpMesh, entry: Entry) -> None:
    wire = mesh.call(entry)
    ask(wire, "GET /chat HTTP/1.1")
    app = mesh.app.accept()
    app.hear_request()
    required = (
        b"HTTP/1.1 426 Upgrade Required\r\nContent-Length: 0\r\n"
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    app.say(required)
    assert wire.hear_answer().raw == required
