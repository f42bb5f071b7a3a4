"""Where a response ends, and whose it is: as bytes from the app, and what the caller then saw."""

from collections.abc import Callable, Iterator

import pytest
from support.httpmesh import ENTRIES, ID, Entry, HttpMesh
from support.sidecars import listen, port_of
from support.wire import Wire

from meshrun.proxy.http.semantics import FIELD_LIMIT, HEAD_LIMIT_BYTES

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

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


def ask(wire: Wire, line: str = "GET /a HTTP/1.1", *fields: str, body: bytes = b"") -> None:
    """Send a request."""
    wire.say("\r\n".join([line, "Host: server", ID, *fields, "", ""]).encode() + body)


def asked(mesh: HttpMesh, entry: Entry, line: str = "GET /a HTTP/1.1") -> tuple[Wire, Wire]:
    """Send a request, and return the ends of the caller and of the app, which has heard it."""
    wire = mesh.call(entry)
    ask(wire, line)
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen(line.replace("1.0", "1.1"), ID, entry=entry)
    return wire, app


def asks_again(mesh: HttpMesh, entry: Entry, wire: Wire) -> None:
    """Send another request over the same connection, which comes to the app over a new one."""
    ask(wire, "GET /again HTTP/1.1")
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen("GET /again HTTP/1.1", ID, entry=entry)
    app.say(OK)
    assert wire.hear_answer().raw == OK


# No body, whatever the head says.


@each_entry
def test_responses_without_a_body_leave_the_connection_in_order(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire, app = asked(mesh, entry, "HEAD /a HTTP/1.1")
    head = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n"
    app.say(head)
    assert wire.hear_answer("HEAD").raw == head
    for head in (
        b"HTTP/1.1 204 No Content\r\nX: 1\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nETag: x\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ):
        ask(wire)
        assert app.hear_request() == mesh.seen("GET /a HTTP/1.1", ID, entry=entry)
        app.say(head)
        assert wire.hear_answer().raw == head
    ask(wire, "HEAD /a HTTP/1.1")
    app.hear_request()
    app.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert wire.hear_answer("HEAD").raw == b"HTTP/1.1 200 OK\r\n\r\n"
    ask(wire)
    app.hear_request()
    app.say(OK)
    assert wire.hear_answer().raw == OK


EXCESS = {
    "HEAD": ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 41\r\n\r\n"),
    "204": ("GET", b"HTTP/1.1 204 No Content\r\n\r\n"),
    "304": ("GET", b"HTTP/1.1 304 Not Modified\r\nContent-Length: 41\r\n\r\n"),
    "a length": ("GET", OK),
    "chunks": (
        "GET",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n",
    ),
}
FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"


@each_entry
@pytest.mark.parametrize("case", EXCESS)
@pytest.mark.parametrize("later", [False, True], ids=["at once", "later"])
def test_what_comes_behind_a_response_is_no_answer_to_the_next_request(
    mesh: HttpMesh, entry: Entry, case: str, later: bool
) -> None:
    method, response = EXCESS[case]
    wire, app = asked(mesh, entry, f"{method} /a HTTP/1.1")
    app.say(response if later else response + FORGED)
    assert wire.hear_answer(method).raw == response
    if later:
        app.say(FORGED)
    asks_again(mesh, entry, wire)
    assert app.unheard == b""


# Interim responses.


@each_entry
def test_interim_responses_come_before_the_final_one(mesh: HttpMesh, entry: Entry) -> None:
    wire, app = asked(mesh, entry)
    interim = [
        b"HTTP/1.1 102 Processing\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n",
        b"HTTP/1.1 103 Early Hints\r\nLink: </b.css>; rel=preload\r\n\r\n",
    ]
    app.say(interim[0])
    assert wire.hear_answer().raw == interim[0]
    app.say(interim[1] + interim[2] + OK)
    assert [wire.hear_answer().raw for _ in range(3)] == [*interim[1:], OK]
    ask(wire)
    app.hear_request()
    app.say(OK)
    assert wire.hear_answer().raw == OK


@each_entry
def test_http_1_0_hears_of_no_interim_response_and_of_no_chunks(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire, app = asked(mesh, entry, "GET /a HTTP/1.0")
    app.say(b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n")
    app.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX: 1\r\n\r\n")
    assert wire.hear_rest() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nok"


# The end of the connection is the end of the response.


@each_entry
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_response_up_to_the_end_of_the_connection_comes_whole(
    mesh: HttpMesh, entry: Entry, version: str
) -> None:
    wire, app = asked(mesh, entry)
    app.say(f"HTTP/{version} 200 OK\r\nX: 1\r\n\r\n".encode())
    head = b"HTTP/1.1 200 OK\r\nX: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert wire.hear_head() == head
    app.say(b"one")
    assert wire.hear(8) == b"3\r\none\r\n"
    app.say(b"two")
    assert wire.hear(8) == b"3\r\ntwo\r\n"
    app.end()
    assert wire.hear(5) == b"0\r\n\r\n"
    asks_again(mesh, entry, wire)


@each_entry
def test_http_1_0_hears_the_end_as_an_end(mesh: HttpMesh, entry: Entry) -> None:
    wire, app = asked(mesh, entry, "GET /a HTTP/1.0")
    app.say(b"HTTP/1.0 200 OK\r\n\r\nall")
    app.end()
    assert wire.hear_rest() == b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nall"


BROKEN = {
    "up to the end of the connection": (b"HTTP/1.1 200 OK\r\n\r\nhalf", False),
    "with a length": (b"HTTP/1.1 200 OK\r\nContent-Length: 8\r\n\r\nhalf", True),
    "in chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", True),
    "in the last chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n0\r\n",
        True,
    ),
}


@each_entry
@pytest.mark.parametrize("case", BROKEN)
@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_response_that_is_broken_off_is_seen_to_be(
    mesh: HttpMesh, entry: Entry, case: str, version: str
) -> None:
    response, also_by_an_end = BROKEN[case]
    for end in (Wire.reset, Wire.end) if also_by_an_end else (Wire.reset,):
        wire, app = asked(mesh, entry, f"GET /a HTTP/{version}")
        app.say(response)
        wire.hear_head()
        assert wire.hear(4)[:4] in (b"half", b"4\r\nh")
        end(app)
        assert not wire.hear_break().endswith(b"0\r\n\r\n")


@pytest.mark.parametrize("tunnels", [True, False], ids=["tunnels", "direct"])
def test_a_response_is_broken_off_when_the_sidecar_of_the_app_is_killed(tunnels: bool) -> None:
    with HttpMesh(tunnels=tunnels) as mesh:
        halves = []
        for version in ("1.0", "1.1"):
            for case in ("up to the end of the connection", "with a length", "in chunks"):
                wire, app = asked(mesh, "app", f"GET /a HTTP/{version}")
                app.say(BROKEN[case][0])
                wire.hear_head()
                wire.hear(4)
                halves.append(wire)
        mesh.server.kill()
        for wire in halves:
            assert not wire.hear_break().endswith(b"0\r\n\r\n")
        mesh.tidy()
        mesh.server.start()


# What is no response.

RESPONSES: dict[str, bytes] = {
    "length and chunks": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"
    ),
    "chunks and length": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 2\r\n\r\n0\r\n\r\n"
    ),
    "two lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 6\r\n\r\nforged",
    "one length twice": b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok",
    "a list of lengths": b"HTTP/1.1 200 OK\r\nContent-Length: 2, 2\r\n\r\nok",
    "a length with a sign": b"HTTP/1.1 200 OK\r\nContent-Length: +2\r\n\r\nok",
    "chunks on 1.0": b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "an unknown coding": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
    "a coding before chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
    "a folded field": b"HTTP/1.1 200 OK\r\nX: 1\r\n Content-Length: 2\r\n\r\nok",
    "a bare LF": b"HTTP/1.1 200 OK\r\nX: 1\nContent-Length: 2\r\n\r\nok",
    "nothing but bare LF": b"HTTP/1.1 200 OK\nContent-Length: 2\n\nok",
    "a bare CR in a value": b"HTTP/1.1 200 OK\r\nX: 1\rY: 2\r\nContent-Length: 2\r\n\r\nok",
    "NUL in a value": b"HTTP/1.1 200 OK\r\nX: \0\r\nContent-Length: 2\r\n\r\nok",
    "white space before a colon": b"HTTP/1.1 200 OK\r\nContent-Length : 2\r\n\r\nok",
    "an empty line before": b"\r\n" + OK,
    "a status of four digits": b"HTTP/1.1 2000 OK\r\nContent-Length: 2\r\n\r\nok",
    "a status of two digits": b"HTTP/1.1 20 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/2": b"HTTP/2.0 200 OK\r\nContent-Length: 2\r\n\r\nok",
    "HTTP/0.9": b"<html>\r\n\r\n",
    "a body of 204": b"HTTP/1.1 204 No Content\r\nContent-Length: 2\r\n\r\nok",
    "chunks of 103": b"HTTP/1.1 103 Early Hints\r\nTransfer-Encoding: chunked\r\n\r\n" + OK,
    "101 that nobody asked for": (
        b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    ),
    "Connection names the length": (
        b"HTTP/1.1 200 OK\r\nConnection: content-length\r\nContent-Length: 2\r\n\r\nok"
    ),
    "a head of more than 60 KiB": (
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * HEAD_LIMIT_BYTES + b"\r\nContent-Length: 2\r\n\r\nok"
    ),
    "more than 100 fields": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n" + b"X: 1\r\n" * (FIELD_LIMIT + 1) + b"\r\nok"
    ),
}


@each_entry
@pytest.mark.parametrize("case", RESPONSES)
def test_a_response_without_one_reading_is_a_502_and_its_connection_is_not_used_again(
    mesh: HttpMesh, entry: Entry, case: str
) -> None:
    wire, app = asked(mesh, entry)
    app.say(RESPONSES[case])
    answer = wire.hear_answer()
    assert answer.status == 502
    assert b"forged" not in answer.raw
    asks_again(mesh, entry, wire)


@each_entry
def test_the_fields_of_a_connection_stay_on_it(mesh: HttpMesh, entry: Entry) -> None:
    wire, app = asked(mesh, entry)
    app.say(
        b"HTTP/1.1 200 Fine by me\r\n"
        b"Connection: X-Mine, close, x-OTHER\r\n"
        b"x-mine: 1\r\n"
        b"X-Other: 2\r\n"
        b"X-Kept: 3\r\n"
        b"Set-Cookie: a=b\r\n"
        b"set-cookie: c=d\r\n"
        b"Keep-Alive: timeout=5\r\n"
        b"Proxy-Connection: close\r\n"
        b"Upgrade: h2c\r\n"
        b"Server_Name: x\r\n"
        b"Trailer: X-Sum, Content-Length\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
        b"1;ext\r\na\r\n001\r\nb\r\n0\r\nX-Sum: 1\r\nContent-Length: 5\r\nSet-Cookie: e=f\r\n\r\n"
    )
    answer = wire.hear_answer()
    assert answer.raw.startswith(
        b"HTTP/1.1 200 Fine by me\r\n"
        b"X-Kept: 3\r\n"
        b"Set-Cookie: a=b\r\n"
        b"set-cookie: c=d\r\n"
        b"Server_Name: x\r\n"
        b"Trailer: X-Sum, Content-Length\r\n"
        b"Transfer-Encoding: chunked\r\n\r\n"
    )
    assert answer.body == b"ab"
    assert answer.trailers == [("X-Sum", "1")]
    # It was the app's connection that it has closed, not the caller's.
    assert app.hear_rest() == b""
    asks_again(mesh, entry, wire)


@each_entry
@pytest.mark.parametrize("forged", ["X-Meshrun-Failure: unsent", "x-meshrun-FAILURE: silent"])
def test_an_app_cannot_say_that_it_has_not_heard_a_request(
    mesh: HttpMesh, entry: Entry, forged: str
) -> None:
    wire = mesh.call(entry)
    ask(wire, "POST /a HTTP/1.1", "Content-Length: 0")
    app = mesh.app.accept()
    app.hear_request()
    app.say(f"HTTP/1.1 503 No\r\n{forged}\r\nContent-Length: 2\r\n\r\nno".encode())
    assert wire.hear_answer().raw == b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\nno"
    assert mesh.app.untouched()


# An app that is not there, does not wait, or does not wait any longer.


@each_entry
def test_a_connection_goes_on_behind_a_request_that_found_no_app(
    mesh: HttpMesh, entry: Entry
) -> None:
    with listen() as sock:
        absent = port_of(sock)
    mesh.serve_on(absent, timeout_s=0.1)
    wire = mesh.call(entry)
    try:
        ask(wire, "POST /a HTTP/1.1", "Content-Length: 4", body=b"body")
        answer = wire.hear_answer()
        assert (answer.status, answer.values("connection")) == (503, [])
    finally:
        mesh.serve_on(mesh.app.port)
    asks_again(mesh, entry, wire)


@each_entry
def test_an_app_that_answers_half_a_request_ends_the_connections(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire = mesh.call(entry)
    ask(wire, "POST /a HTTP/1.1", "Content-Length: 100", body=b"half")
    app = mesh.app.accept()
    app.hear_head()
    assert app.hear(4) == b"half"
    app.say(b"HTTP/1.1 413 Too much\r\nContent-Length: 2\r\n\r\nno")
    answer = wire.hear_answer()
    assert (answer.status, answer.body, answer.values("connection")) == (413, b"no", ["close"])
    ask(wire, "GET /smuggled HTTP/1.1")
    assert wire.hear_rest() == b""
    assert app.hear_rest() == b""
    assert mesh.app.untouched()


@each_entry
def test_a_connection_goes_on_behind_an_answer_that_overtook_its_request(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire = mesh.call(entry)
    ask(wire, "POST /a HTTP/1.1", "Transfer-Encoding: chunked", body=b"1\r\na\r\n")
    app = mesh.app.accept()
    app.hear_head()
    assert app.hear(6) == b"1\r\na\r\n"
    app.say(OK)
    answer = wire.hear_answer()
    assert (answer.raw, answer.values("connection")) == (OK, [])
    wire.say(b"0\r\n\r\n")
    asks_again(mesh, entry, wire)


@each_entry
def test_an_app_may_answer_while_it_still_listens(mesh: HttpMesh, entry: Entry) -> None:
    wire = mesh.call(entry)
    ask(wire, "POST /a HTTP/1.1", "Transfer-Encoding: chunked", body=b"1\r\na\r\n")
    app = mesh.app.accept()
    app.hear_head()
    assert app.hear(6) == b"1\r\na\r\n"
    app.say(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nA\r\n")
    wire.hear_head()
    assert wire.hear(6) == b"1\r\nA\r\n"
    wire.say(b"1\r\nb\r\n")
    assert app.hear(6) == b"1\r\nb\r\n"
    app.say(b"1\r\nB\r\n")
    assert wire.hear(6) == b"1\r\nB\r\n"
    wire.say(b"0\r\n\r\n")
    assert app.hear(5) == b"0\r\n\r\n"
    app.say(b"0\r\n\r\n")
    assert wire.hear(5) == b"0\r\n\r\n"
    ask(wire)
    assert app.hear_request() == mesh.seen("GET /a HTTP/1.1", ID, entry=entry)
    app.say(OK)
    assert wire.hear_answer().raw == OK


@each_entry
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("end", [Wire.end, Wire.reset], ids=["closed", "reset"])
def test_an_app_that_has_hung_up_is_called_again(
    mesh: HttpMesh, entry: Entry, method: str, end: Callable[[Wire], None]
) -> None:
    wire, app = asked(mesh, entry)
    app.say(OK)
    assert wire.hear_answer().raw == OK
    end(app)
    body = ["Content-Length: 0"] if method == "POST" else []
    ask(wire, f"{method} /again HTTP/1.1", *body)
    app = mesh.app.accept()
    seen = mesh.seen(f"{method} /again HTTP/1.1", ID, entry=entry, behind=body)
    assert app.hear_request() == seen
    app.say(OK)
    assert wire.hear_answer().raw == OK


@each_entry
@pytest.mark.parametrize("end", [Wire.end, Wire.reset], ids=["closed", "reset"])
def test_a_request_that_meets_the_end_of_a_connection_is_made_again_if_it_may_be(
    mesh: HttpMesh, entry: Entry, end: Callable[[Wire], None]
) -> None:
    wire, app = asked(mesh, entry)
    app.say(OK)
    assert wire.hear_answer().raw == OK
    ask(wire, "GET /again HTTP/1.1")
    app.hear_request()
    end(app)
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen("GET /again HTTP/1.1", ID, entry=entry)
    app.say(OK)
    assert wire.hear_answer().raw == OK
    ask(wire, "POST /once HTTP/1.1", "Content-Length: 0")
    app.hear_request()
    end(app)
    assert wire.hear_answer().status == 503
    assert mesh.app.untouched()
