"""Requests that two parsers could read differently, as bytes on a socket, and what the app saw.

They come through the sidecar of the caller, which is the first of two parsers, and straight to the
second: from a peer of the mesh that is hostile, with tunnels and without.
"""

import select
import socket
from collections.abc import Iterator

import pytest
from support.httpmesh import ENTRIES, ID, Entry, HttpMesh
from support.wire import Answer, Wire

from meshrun.proxy.http.own_fields import REQUEST_ID_BYTES
from meshrun.proxy.http.semantics import (
    FIELD_LIMIT,
    HEAD_LIMIT_BYTES,
    LONGEST_NAME,
    RAW_LIMIT_BYTES,
)

HEAD_TIMEOUT = "meshrun.proxy.http.server1:HEAD_TIMEOUT_S"

SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: server\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

each_entry = pytest.mark.parametrize("entry", ENTRIES)
# With tunnels and without, what takes heads and bodies apart is the same.
each_parser = pytest.mark.parametrize("entry", ["app", "peer"])


@pytest.fixture(scope="module")
def running() -> Iterator[HttpMesh]:
    with HttpMesh() as mesh:
        yield mesh


@pytest.fixture
def mesh(running: HttpMesh) -> Iterator[HttpMesh]:
    """The mesh of this module, without connections; what a test has asked, it must answer."""
    yield running
    running.tidy()


def post(*fields: str, line: str = "POST /a HTTP/1.1", body: bytes = b"") -> bytes:
    """Return a request with these fields, and its body."""
    return "\r\n".join([line, "Host: server", *fields, "", ""]).encode("latin-1") + body


def get(line: str, *fields: str) -> bytes:
    """Return a request with exactly these lines."""
    return "\r\n".join([line, *fields, "", ""]).encode("latin-1")


def is_closed(wire: Wire, answer: Answer) -> bool:
    """Whether an answer says that it is the last, and the end comes behind it."""
    return answer.values("connection") == ["close"] and wire.hear_rest() == b""


# Heads that have no reading here, and what is answered. Behind each comes another request.
HEADS: dict[str, tuple[int, bytes]] = {
    # How long the body is.
    "length and chunks": (
        400,
        post("Content-Length: 6", "Transfer-Encoding: chunked", body=b"0\r\n\r\n"),
    ),
    "chunks and length": (
        400,
        post("Transfer-Encoding: chunked", "Content-Length: 6", body=b"0\r\n\r\n"),
    ),
    "chunks and no length": (400, post("Transfer-Encoding: chunked", "Content-Length: 0")),
    "two lengths": (400, post("Content-Length: 0", "Content-Length: 41")),
    "one length twice": (400, post("Content-Length: 0", "Content-Length: 0")),
    "a list of lengths": (400, post("Content-Length: 0, 0")),
    "a length with a sign": (400, post("Content-Length: +41")),
    "a negative length": (400, post("Content-Length: -1")),
    "a hexadecimal length": (400, post("Content-Length: 0x29")),
    "a length with an underscore": (400, post("Content-Length: 4_1")),
    "a length with an exponent": (400, post("Content-Length: 4e1")),
    "a length in two words": (400, post("Content-Length: 4 1")),
    "no length in its field": (400, post("Content-Length:")),
    "a length of 19 digits": (400, post("Content-Length: 9999999999999999999")),
    "a length that overflows to 0": (400, post("Content-Length: 18446744073709551616")),
    "a length in other digits": (400, post("Content-Length: \xb2")),
    "a blank behind a length": (400, post("Content-Length: 41 ")),
    "a tab behind chunked": (400, post("Transfer-Encoding: chunked\t")),
    "a vertical tab before chunked": (400, post("Transfer-Encoding: \x0bchunked")),
    "chunks on 1.0": (400, post("Transfer-Encoding: chunked", line="POST /a HTTP/1.0")),
    "chunks twice": (400, post("Transfer-Encoding: chunked", "Transfer-Encoding: chunked")),
    "chunks of chunks": (400, post("Transfer-Encoding: chunked, chunked")),
    "chunks, and then no chunks": (400, post("Transfer-Encoding: chunked, identity")),
    "a coding like chunked": (400, post("Transfer-Encoding: xchunked")),
    "a coding with a parameter": (400, post("Transfer-Encoding: chunked;x=1")),
    "identity": (400, post("Transfer-Encoding: identity")),
    "no coding in its field": (400, post("Transfer-Encoding:")),
    "a quoted coding": (400, post('Transfer-Encoding: "chunked"')),
    "compressed chunks": (501, post("Transfer-Encoding: gzip, chunked")),
    # Where a line, or a field, ends.
    "a folded field": (400, post("X: 1\r\n 2")),
    "a folded coding": (400, post("Transfer-Encoding:\r\n chunked")),
    "a fold with a tab": (400, post("X: 1\r\n\tContent-Length: 41")),
    "a field that begins with a blank": (400, get("GET /a HTTP/1.1", " Host: server")),
    "a bare LF behind a field": (400, post("X: 1\nContent-Length: 41")),
    "a bare LF behind the first line": (400, b"GET /a HTTP/1.1\nHost: server\r\n\r\n"),
    "a bare LF as the empty line": (400, b"GET /a HTTP/1.1\r\nHost: server\r\n\n"),
    "nothing but bare LF": (400, b"GET /a HTTP/1.1\nHost: server\n\n"),
    "a bare CR within a value": (400, post("X: 1\rContent-Length: 41")),
    "a bare CR as the empty line": (400, b"GET /a HTTP/1.1\r\nHost: server\r\n\r\r\n\r\n"),
    "NUL in a value": (400, post("X: 1\0")),
    "a control in a value": (400, post("X: 1\x01")),
    "DEL in a value": (400, post("X: 1\x7f")),
    "white space before a colon": (400, post("Content-Length : 41")),
    "a tab before a colon": (400, post("Transfer-Encoding\t: chunked")),
    "white space within a name": (400, post("X Y: 1")),
    "a field without a colon": (400, post("Content-Length")),
    "a field without a name": (400, post(": 41")),
    "NUL in a name": (400, post("Content-Length\0: 41")),
    "a name that is not ASCII": (400, post("Content\xadLength: 41")),
    "a list of 5,000 in Connection": (400, post(f"Connection: {'a,' * 5_000}a")),
    "an underscore in a name": (400, post("Content_Length: 41")),
    "an underscore at the end of a name": (400, post("Transfer-Encoding_: chunked")),
    # Who it is for.
    "no Host": (400, get("GET /a HTTP/1.1")),
    "two Hosts": (400, post("Host: other")),
    "one Host twice": (400, post("Host: server")),
    "an empty Host": (400, get("GET /a HTTP/1.1", "Host:")),
    "a list of Hosts": (400, get("GET /a HTTP/1.1", "Host: server, other")),
    "a user in the Host": (400, get("GET /a HTTP/1.1", "Host: user@server")),
    "a path in the Host": (400, get("GET /a HTTP/1.1", "Host: server/x")),
    "no port in the Host": (400, get("GET /a HTTP/1.1", "Host: server:x")),
    "Host is not that of the target": (400, get("GET http://other/a HTTP/1.1", "Host: server")),
    "a user in the target": (400, get("GET http://u@server/a HTTP/1.1", "Host: server")),
    "no host in the target": (400, get("GET http:///a HTTP/1.1", "Host: server")),
    # The first line.
    "a method of 50,000 letters": (501, get(f"{'M' * 50_000} /a HTTP/1.1", "Host: server")),
    "an empty line before": (400, b"\r\n" + post()),
    "a blank before": (400, b" " + post()),
    "NUL before": (400, b"\0" + post()),
    "two blanks behind the method": (400, get("GET  /a HTTP/1.1", "Host: server")),
    "two blanks behind the target": (400, get("GET /a  HTTP/1.1", "Host: server")),
    "a blank behind the version": (400, get("GET /a HTTP/1.1 ", "Host: server")),
    "tabs for blanks": (400, get("GET\t/a\tHTTP/1.1", "Host: server")),
    "a blank in the target": (400, get("GET /a b HTTP/1.1", "Host: server")),
    "a small letter in the method": (400, get("Get /a HTTP/1.1", "Host: server")),
    "a colon in the method": (400, get("G:ET /a HTTP/1.1", "Host: server")),
    "a version in small letters": (400, get("GET /a http/1.1", "Host: server")),
    "a version of two digits": (400, get("GET /a HTTP/1.10", "Host: server")),
    "HTTP/0.9": (400, b"GET /a\r\n\r\n"),
    "HTTP/1.2": (505, get("GET /a HTTP/1.2", "Host: server")),
    "HTTP/2, as a connection of it begins": (505, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    "a fragment": (400, get("GET /a#/../denied HTTP/1.1", "Host: server")),
    "a target that is no path": (400, get("GET a HTTP/1.1", "Host: server")),
    "a target that begins with a backslash": (400, get("GET \\a HTTP/1.1", "Host: server")),
    "a target that is a query": (400, get("GET ?a HTTP/1.1", "Host: server")),
    "a target that is a host": (400, get("GET server:80 HTTP/1.1", "Host: server")),
    "a target of another scheme": (400, get("GET ftp://server/a HTTP/1.1", "Host: server")),
    "a target that is not ASCII": (400, get("GET /\xe9 HTTP/1.1", "Host: server")),
    "a control in the target": (400, get("GET /a\x01 HTTP/1.1", "Host: server")),
    "%00": (400, get("GET /a%00 HTTP/1.1", "Host: server")),
    "half an encoding": (400, get("GET /a%2 HTTP/1.1", "Host: server")),
    "an asterisk for GET": (400, get("GET * HTTP/1.1", "Host: server")),
    # What is behind the request, and whose it is.
    "CONNECT, and what is sent early": (405, get("CONNECT server:80 HTTP/1.1", "Host: server:80")),
    "CONNECT to a path": (405, get("CONNECT /a HTTP/1.1", "Host: server")),
    "more expected than 100": (417, post("Expect: 200-ok", "Content-Length: 41")),
    "two expectations": (400, post("Expect: 100-continue", "Expect: 100-continue")),
    # What would be taken out of the request on the way.
    "Connection names Host": (400, post("Connection: close, Host")),
    "Connection names the length": (400, post("Content-Length: 0", "Connection: content-length")),
    "Connection names Authorization": (400, post("Connection: Authorization")),
    "Connection is no list": (400, post("Connection: a b")),
    "a TLS handshake": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n"),
}


@each_parser
@pytest.mark.parametrize("case", HEADS)
def test_a_head_without_one_reading_is_refused_and_the_app_hears_nothing(
    mesh: HttpMesh, entry: Entry, case: str
) -> None:
    status, head = HEADS[case]
    wire = mesh.call(entry)
    wire.say(head + SMUGGLED)
    answer = wire.hear_answer()
    assert answer.status == status
    assert is_closed(wire, answer)
    assert mesh.app.untouched()


# Bodies of which it cannot be told where they end. What they begin with is as it must be.
CHUNKS: dict[str, bytes] = {
    "no size": b"\r\n",
    "a size with a sign": b"+29\r\n",
    "a negative size": b"-1\r\n",
    "a size with 0x": b"0x29\r\n",
    "a size with an underscore": b"2_9\r\n",
    "a blank before the size": b" 29\r\n",
    "a blank behind the size": b"0 \r\n\r\n",
    "a size of 16 digits": b"0000000000000029\r\n",
    "a size that overflows": b"10000000000000000\r\n",
    "a bare LF behind the size": b"0\n\r\n",
    "a bare LF behind all": b"0\n\n",
    "a bare CR behind the size": b"0\r0\r\n\r\n",
    "a bare LF in an extension": b"0;a\nb\r\n\r\n",
    "a bare CR in an extension": b"0;a\rb\r\n\r\n",
    "an extension with a blank": b"0; a\r\n\r\n",
    "an extension without a name": b"0;=1\r\n\r\n",
    "an extension that ends within quotes": b'0;a="\r\n\r\n',
    "an extension of 300 bytes": b"0;" + b"a" * 300 + b"\r\n\r\n",
    "more data than the size says": b"2\r\nabc\r\n0\r\n\r\n",
    "no CRLF behind the data": b"2\r\nab0\r\n\r\n",
    "a bare LF behind the data": b"2\r\nab\n0\r\n\r\n",
    "a folded trailer": b"0\r\nX: 1\r\n 2\r\n\r\n",
    "a bare LF behind a trailer": b"0\r\nX: 1\n\r\n\r\n",
    "a bare LF behind the last chunk, and a trailer": b"0\r\n\nX: 1\r\n\r\n",
    "white space before the colon of a trailer": b"0\r\nX : 1\r\n\r\n",
    "an underscore in the name of a trailer": b"0\r\nContent_Length: 41\r\n\r\n",
    "NUL in a trailer": b"0\r\nX: \0\r\n\r\n",
}


@each_parser
@pytest.mark.parametrize("case", CHUNKS)
def test_a_body_without_one_end_is_refused_and_nothing_behind_it_is_a_request(
    mesh: HttpMesh, entry: Entry, case: str
) -> None:
    wire = mesh.call(entry)
    wire.say(post("Transfer-Encoding: chunked", body=CHUNKS[case] + SMUGGLED))
    answer = wire.hear_answer()
    assert answer.status == 400
    assert is_closed(wire, answer)
    if not mesh.app.untouched():
        assert mesh.app.accept().hear_break() == b""


@each_parser
@pytest.mark.parametrize("case", CHUNKS)
def test_a_body_that_goes_wrong_is_broken_off_before_the_app_as_well(
    mesh: HttpMesh, entry: Entry, case: str
) -> None:
    wire = mesh.call(entry)
    wire.say(post(ID, "Transfer-Encoding: chunked", body=b"5\r\nbegun\r\n"))
    seen = mesh.seen(
        "POST /a HTTP/1.1",
        ID,
        entry=entry,
        behind=["Transfer-Encoding: chunked"],
        body=b"5\r\nbegun\r\n",
    )
    app = mesh.app.accept()
    assert app.hear(len(seen)) == seen
    wire.say(CHUNKS[case] + SMUGGLED)
    answer = wire.hear_answer()
    assert answer.status == 400
    assert is_closed(wire, answer)
    # What was a whole chunk may have come; an end of the body, or a request, has not.
    assert app.hear_break() in (b"", b"2\r\nab\r\n")
    assert mesh.app.untouched()


@each_entry
def test_chunks_and_extensions_and_trailers_come_to_the_app_in_one_spelling(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire = mesh.call(entry)
    wire.say(
        post(
            ID,
            "TE: gzip, trailers",
            "TRANSFER-ENCODING: Chunked",
            body=b'003;name="quoted \\" ;\x80";b;c=d\r\nabc\r\n'
            b"0;last\r\n"
            b"X-Checksum: 1\r\n"
            b"Host: other\r\n"
            b"Content-Length: 41\r\n"
            b"Transfer-Encoding: chunked\r\n"
            b"Authorization: Basic eDp5\r\n"
            b"Cookie: a=b\r\n"
            b"Connection: close\r\n"
            b"X-Forwarded-For: 10.0.0.1\r\n"
            b"X-Http-Method-Override: DELETE\r\n"
            b"x-checksum-2:2 \t\r\n"
            b"\r\n" + get("GET /b HTTP/1.1", "Host: server", ID),
        )
    )
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen(
        "POST /a HTTP/1.1",
        ID,
        "TE: trailers",
        entry=entry,
        behind=["Transfer-Encoding: chunked", "Connection: TE"],
        body=b"3\r\nabc\r\n0\r\nX-Checksum: 1\r\nx-checksum-2: 2\r\n\r\n",
    )
    app.say(OK)
    assert wire.hear_answer().body == b"ok"
    assert app.hear_request() == mesh.seen("GET /b HTTP/1.1", ID, entry=entry)
    app.say(OK)
    assert wire.hear_answer().body == b"ok"


@each_entry
def test_a_trailer_that_a_rule_would_have_looked_at_is_dropped(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire = mesh.call(entry)
    trailers = b"X-Denied: 1\r\nx.denied: 2\r\nX-Kept: 3\r\n"
    wire.say(post(ID, "Transfer-Encoding: chunked", body=b"0\r\n" + trailers + b"\r\n"))
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen(
        "POST /a HTTP/1.1",
        ID,
        entry=entry,
        behind=["Transfer-Encoding: chunked"],
        body=b"0\r\nX-Kept: 3\r\n\r\n",
    )
    app.say(OK)
    assert wire.hear_answer().body == b"ok"


@each_entry
def test_the_fields_of_a_connection_stay_on_it(mesh: HttpMesh, entry: Entry) -> None:
    wire = mesh.call(entry)
    wire.say(
        get(
            "GET /a HTTP/1.1",
            "Host: server",
            ID,
            "Connection: Keep-Alive, X-Mine, x-OTHER",
            "x-mine: 1",
            "X-Other: 2",
            "X-Kept: 3",
            "Keep-Alive: timeout=5",
            "Proxy-Connection: keep-alive",
            "TE: gzip",
            "Trailer: X-Checksum",
        )
    )
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen(
        "GET /a HTTP/1.1", ID, "X-Kept: 3", "Trailer: X-Checksum", entry=entry
    )
    app.say(OK)
    assert wire.hear_answer().body == b"ok"


# One request after another.


@each_entry
def test_requests_in_one_write_are_judged_one_by_one_and_answered_in_order(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire = mesh.call(entry)
    wire.say(
        get("GET /a HTTP/1.1", "Host: server", ID)
        + get("GET /denied HTTP/1.1", "Host: server", ID)
        + get("GET /x/../denied HTTP/1.1", "Host: server", ID)
        + get("GET /c HTTP/1.1", "Host: server", ID)
    )
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen("GET /a HTTP/1.1", ID, entry=entry)
    app.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\na")
    assert app.hear_request() == mesh.seen("GET /c HTTP/1.1", ID, entry=entry)
    app.say(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nc")
    answers = [wire.hear_answer() for _ in range(4)]
    assert [answer.status for answer in answers] == [200, 403, 403, 200]
    assert [answers[0].body, answers[3].body] == [b"a", b"c"]
    assert app.unheard == b""
    assert mesh.app.untouched()


@each_entry
def test_a_request_behind_one_that_is_refused_is_not_looked_at(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire = mesh.call(entry)
    wire.say(get("GET /a HTTP/1.1", "Host: server", ID) + get("GET /b HTTP/1.1") + SMUGGLED)
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen("GET /a HTTP/1.1", ID, entry=entry)
    app.say(OK)
    assert wire.hear_answer().status == 200
    answer = wire.hear_answer()
    assert answer.status == 400
    assert is_closed(wire, answer)
    assert app.unheard == b""


@each_entry
def test_a_request_behind_one_that_closes_is_not_looked_at(mesh: HttpMesh, entry: Entry) -> None:
    wire = mesh.call(entry)
    wire.say(get("GET /a HTTP/1.1", "Host: server", ID, "Connection: close") + SMUGGLED)
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen("GET /a HTTP/1.1", ID, entry=entry)
    app.say(OK)
    assert is_closed(wire, wire.hear_answer())
    assert app.unheard == b""
    assert mesh.app.untouched()


DENIED: dict[str, tuple[bytes, bytes]] = {
    "with a length": (
        post(f"Content-Length: {len(SMUGGLED)}", line="POST /denied HTTP/1.1"),
        SMUGGLED,
    ),
    "that never comes whole": (
        post("Content-Length: 500", line="POST /denied HTTP/1.1"),
        SMUGGLED,
    ),
    "in chunks": (
        post("Transfer-Encoding: chunked", line="POST /denied HTTP/1.1"),
        b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
    ),
    "in chunks that never end": (
        post("Transfer-Encoding: chunked", line="POST /denied HTTP/1.1"),
        b"%x\r\n%b\r\n" % (len(SMUGGLED), SMUGGLED),
    ),
    "though 100 was expected": (
        post("Content-Length: 500", "Expect: 100-continue", line="POST /denied HTTP/1.1"),
        SMUGGLED,
    ),
    "denied by a header": (post("Content-Length: 500", "X-Denied: 1"), SMUGGLED),
}


@each_entry
@pytest.mark.parametrize("case", DENIED)
@pytest.mark.parametrize("early", [True, False], ids=["sent at once", "sent after the answer"])
def test_the_body_of_a_denied_request_is_never_a_request(
    mesh: HttpMesh, entry: Entry, case: str, early: bool
) -> None:
    head, body = DENIED[case]
    wire = mesh.call(entry)
    wire.say(head + body if early else head)
    answer = wire.hear_answer()
    assert answer.status == 403
    if not early:
        wire.say(body)
    if answer.values("connection"):
        assert is_closed(wire, answer)
    else:  # the first sidecar has had it whole
        assert (entry, early) == ("app", True)
        wire.say(get("GET /b HTTP/1.1", "Host: server", ID))
        app = mesh.app.accept()
        assert app.hear_request() == mesh.seen("GET /b HTTP/1.1", ID, entry=entry)
        app.say(OK)
        assert wire.hear_answer().body == b"ok"
    assert mesh.app.untouched()


@each_entry
def test_a_denied_request_without_a_body_leaves_the_connection_for_the_next(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire = mesh.call(entry)
    for _ in range(3):
        wire.say(get("GET /denied HTTP/1.1", "Host: server"))
        answer = wire.hear_answer()
        assert (answer.status, answer.values("connection")) == (403, [])
    wire.say(post(ID, "Content-Length: 0"))
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen(
        "POST /a HTTP/1.1", ID, entry=entry, behind=["Content-Length: 0"]
    )
    app.say(OK)
    assert wire.hear_answer().body == b"ok"


@each_entry
def test_a_head_that_was_denied_is_answered_as_a_head(mesh: HttpMesh, entry: Entry) -> None:
    wire = mesh.call(entry)
    wire.say(get("HEAD /denied HTTP/1.1", "Host: server") * 2)
    for _ in range(2):
        answer = wire.hear_answer("HEAD")
        assert answer.status == 403
        assert int(answer.values("content-length")[0])
    assert wire.unheard == b""


# Expect: 100-continue.


@each_entry
def test_the_body_waits_for_the_100_of_the_app(mesh: HttpMesh, entry: Entry) -> None:
    wire = mesh.call(entry)
    wire.say(post(ID, "Expect: 100-Continue", "Content-Length: 4"))
    app = mesh.app.accept()
    seen = mesh.seen(
        "POST /a HTTP/1.1",
        ID,
        "Expect: 100-continue",
        entry=entry,
        behind=["Content-Length: 4"],
    )
    assert app.hear(len(seen)) == seen
    app.say(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert wire.hear_answer().raw == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.say(b"body")
    assert app.hear(4) == b"body"
    app.say(OK)
    assert wire.hear_answer().body == b"ok"
    wire.say(get("GET /b HTTP/1.1", "Host: server", ID))
    assert app.hear_request() == mesh.seen("GET /b HTTP/1.1", ID, entry=entry)
    app.say(OK)
    assert wire.hear_answer().body == b"ok"


@each_entry
@pytest.mark.parametrize("status", [200, 302, 401, 417])
def test_what_comes_instead_of_a_100_is_the_last_answer(
    mesh: HttpMesh, entry: Entry, status: int
) -> None:
    wire = mesh.call(entry)
    wire.say(post(ID, "Expect: 100-continue", f"Content-Length: {len(SMUGGLED)}"))
    app = mesh.app.accept()
    app.hear_head()
    app.say(b"HTTP/1.1 %d Said\r\nContent-Length: 2\r\n\r\nno" % status)
    answer = wire.hear_answer()
    assert (answer.status, answer.body) == (status, b"no")
    wire.say(SMUGGLED)
    assert is_closed(wire, answer)
    # The app still waits for a body: its connection is not used for anything else.
    assert app.hear_rest() == b""
    assert mesh.app.untouched()


# Limits.


@each_entry
@pytest.mark.parametrize("said", [ID, None])
def test_a_head_of_60_kib_is_taken_and_one_of_a_byte_more_is_not(
    mesh: HttpMesh, entry: Entry, said: str | None
) -> None:
    wire = mesh.call(entry)
    fields = ("Host: server", *([said] if said else []))
    # What a sidecar may have to add, a host and an id, counts with a fixed size.
    rest = HEAD_LIMIT_BYTES - LONGEST_NAME - len("GET/a") - len("X: \r\n")
    filled = "x" * (rest + (REQUEST_ID_BYTES + len(": \r\n") - len(f"{ID}\r\n") if said else 0))
    wire.say(get("GET /a HTTP/1.1", *fields, f"X: {filled}"))
    app = mesh.app.accept()
    assert f"X: {filled}\r\n".encode() in app.hear_request()
    app.say(OK)
    assert wire.hear_answer().status == 200
    wire.say(get("GET /a HTTP/1.1", *fields, f"X: {filled}x"))
    answer = wire.hear_answer()
    assert answer.status == 431
    assert is_closed(wire, answer)
    assert app.unheard == b""


@each_entry
def test_a_head_without_an_end_is_refused_at_the_limit(mesh: HttpMesh, entry: Entry) -> None:
    for begun, status in ((b"GET /a HTTP/1.1\r\nX: ", 431), (b"GET /", 414)):
        wire = mesh.call(entry)
        wire.say(begun.ljust(RAW_LIMIT_BYTES, b"x"))
        answer = wire.hear_answer()
        assert answer.status == status
        assert is_closed(wire, answer)
    assert mesh.app.untouched()


@each_entry
@pytest.mark.parametrize("added", [(ID,), (), ("Connection: upgrade, TE", "TE: trailers")])
def test_100_fields_are_taken_and_101_are_not(
    mesh: HttpMesh, entry: Entry, added: tuple[str, ...]
) -> None:
    fields = [f"X-{number}: 1" for number in range(FIELD_LIMIT)]
    wire = mesh.call(entry)
    wire.say(get("GET /a HTTP/1.1", "Host: server", *added, *fields))
    app = mesh.app.accept()
    assert "\r\n".join(fields).encode() in app.hear_request()
    app.say(OK)
    assert wire.hear_answer().status == 200
    wire.say(get("GET /a HTTP/1.1", "Host: server", *added, *fields, "X: 1"))
    answer = wire.hear_answer()
    assert answer.status == 431
    assert is_closed(wire, answer)
    assert app.unheard == b""


def drip(connection: socket.socket, data: bytes) -> None:
    """Send a byte at a time until an answer comes."""
    for byte in data:
        if select.select([connection], [], [], 0.02)[0]:
            return
        connection.sendall(bytes([byte]))
    raise AssertionError("all was taken without an answer")


@pytest.mark.parametrize("before", [b"", get("GET /denied HTTP/1.1", "Host: server")])
def test_a_head_that_drips_has_its_time_and_no_more(before: bytes) -> None:
    with HttpMesh(constants={HEAD_TIMEOUT: 0.3}) as mesh:
        with mesh.client.call("server") as connection:
            wire = Wire(connection)
            if before:
                wire.say(before)
                assert wire.hear_answer().status == 403
            drip(connection, b"GET /a HTTP/1.1\r\nX: ".ljust(1000, b"x"))
            answer = wire.hear_answer()
            assert answer.status == 408
            assert is_closed(wire, answer)
        wire = mesh.call("peer")
        wire.say(before + b"GET /a")
        if before:
            assert wire.hear_answer().status == 403
        answer = wire.hear_answer()
        assert answer.status == 408
        assert is_closed(wire, answer)
        assert mesh.app.untouched()
