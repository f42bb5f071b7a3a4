"""One reading of a head, or none."""

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.fields1 import (
    MOST_LINES,
    MOST_LOOKED_UP,
    MOST_MEMBERS,
    MOST_READ_SINGLY,
    write_fields,
)
from meshrun.proxy.http.fields2 import read_request
from meshrun.proxy.http.head1 import (
    find_head,
    forget_lines,
    has_odd_body,
    parse_request,
    parse_response,
    write_request,
    write_response,
)
from meshrun.proxy.http.heads import Framing, Request, Response
from meshrun.proxy.http.known_lines import KNOWN_LIMIT
from meshrun.proxy.http.semantics import (
    FIELD_LIMIT,
    HEAD_LIMIT_BYTES,
    METHOD_LIMIT_BYTES,
    RAW_LIMIT_BYTES,
)

CHUNKED = "Transfer-Encoding: chunked"
ASKED = partial(Request, method="GET", path="/", query="", authority="a")


def request(*fields: str, line: str = "GET /a HTTP/1.1", host: str = "Host: app") -> Request:
    return parse_request(head(line, *([host] if host else []), *fields))


def response(*fields: str, line: str = "HTTP/1.1 200 OK", method: str = "GET") -> Response:
    return parse_response(head(line, *fields), method)


def head(*lines: str) -> bytes:
    return "".join(f"{line}\r\n" for line in (*lines, "")).encode("latin-1")


def status_of(*fields: str, line: str = "GET /a HTTP/1.1", host: str = "Host: app") -> int:
    """Return with what status a request is refused."""
    with pytest.raises(HttpError) as refused:
        request(*fields, line=line, host=host)
    return refused.value.status


# Where a head ends.


def test_a_head_ends_behind_its_empty_line() -> None:
    assert find_head(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET") == 27
    assert find_head(b"GET / HTTP/1.1\r\n\r\n\r\n\r\n") == 18


@pytest.mark.parametrize("whole", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"HTTP/1.1 200\r\n\r\n"])
def test_a_head_is_found_however_it_is_fragmented(whole: bytes) -> None:
    data = bytearray()
    for byte in whole:
        start = max(0, len(data) - 3)
        data.append(byte)
        assert find_head(data, start) == (len(whole) if len(data) == len(whole) else -1)


@pytest.mark.parametrize(
    "data",
    [
        b"\r\nGET / HTTP/1.1\r\n",
        b"\nGET",
        b" GET",
        b"\tGET",
        b"\r",
        b"\0",
        b"\x16\x03\x01\x02\x00\x01\x00",  # a TLS ClientHello
        b"\xff",
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nHost: a\n",
        b"GET / HTTP/1.1\r\nHost: a\r\n\n",
    ],
)
def test_a_hostile_start_is_refused_before_its_end_comes(data: bytes) -> None:
    with pytest.raises(HttpError, match="cannot take the head") as refused:
        find_head(data)
    assert refused.value.status == 400


def test_a_bare_lf_behind_what_was_looked_through_is_seen() -> None:
    data = b"GET / HTTP/1.1\r\nHost: a\n"
    assert find_head(data[:-1]) == -1
    with pytest.raises(HttpError):
        find_head(data, len(data) - 4)


def test_a_head_may_be_as_long_as_the_limit() -> None:
    start = b"GET / HTTP/1.1\r\nA: "
    whole = start + b"x" * (RAW_LIMIT_BYTES - len(start) - 4) + b"\r\n\r\n"
    assert find_head(whole) == RAW_LIMIT_BYTES == len(whole)
    assert find_head(whole[:-1]) == -1
    with pytest.raises(HttpError, match="cannot take a head of more"):
        find_head(whole[:-4] + b"xxxx")


@pytest.mark.parametrize(
    ("start", "status"), [(b"GET / HTTP/1.1\r\nA: ", 431), (b"GET /", 414), (b"X", 414)]
)
@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"])
def test_a_longer_head_is_refused_whether_or_not_its_end_came(
    start: bytes, status: int, end: bytes
) -> None:
    with pytest.raises(HttpError, match=str(HEAD_LIMIT_BYTES)) as refused:
        find_head(start + b"x" * RAW_LIMIT_BYTES + end)
    assert refused.value.status == status


# The request line.


@pytest.mark.parametrize(
    ("line", "method", "path", "query"),
    [
        ("GET / HTTP/1.1", "GET", "/", ""),
        ("DELETE /a/../b//c?d=e HTTP/1.1", "DELETE", "/b/c", "?d=e"),
        ("M-SEARCH /%2e%2E/a HTTP/1.1", "M-SEARCH", "/a", ""),
        ("OPTIONS * HTTP/1.1", "OPTIONS", "*", ""),
        (f"{'M' * METHOD_LIMIT_BYTES} / HTTP/1.1", "M" * METHOD_LIMIT_BYTES, "/", ""),
        ("GET http://app/a?b HTTP/1.1", "GET", "/a", "?b"),
        ("GET http://APP:80/a HTTP/1.1", "GET", "/a", ""),
        ("HEAD HTTP://app HTTP/1.1", "HEAD", "/", ""),
    ],
)
def test_a_request_line_has_method_path_and_query(
    line: str, method: str, path: str, query: str
) -> None:
    found = request(line=line)
    assert (found.method, found.path, found.query) == (method, path, query)
    assert (found.authority, found.minor_version) == ("app", 1)


@pytest.mark.parametrize(
    ("line", "status"),
    [
        ("get /a HTTP/1.1", 400),
        ("Get /a HTTP/1.1", 400),
        ("GET  /a HTTP/1.1", 400),
        ("GET /a  HTTP/1.1", 400),
        ("GET /a HTTP/1.1 ", 400),
        ("GET\t/a HTTP/1.1", 400),
        ("GET /a\tHTTP/1.1", 400),
        ("GET /a\x0bHTTP/1.1", 400),
        ("GET /a\xa0HTTP/1.1", 400),
        (" GET /a HTTP/1.1", 400),
        ("GET /a b HTTP/1.1", 400),
        ("GET /a", 400),
        ("GET", 400),
        ("", 400),
        ("GET HTTP/1.1", 400),
        ("/a HTTP/1.1", 400),
        ("G(T /a HTTP/1.1", 400),
        ("GET: /a HTTP/1.1", 400),
        ("G\xc9T /a HTTP/1.1", 400),
        ("GET /\xe9 HTTP/1.1", 400),
        ("GET /a\0 HTTP/1.1", 400),
        ("GET /a\rb HTTP/1.1", 400),
        ("GET /a\nb HTTP/1.1", 400),
        ("GET /a#b HTTP/1.1", 400),
        ("GET /%00 HTTP/1.1", 400),
        ("GET /%zz HTTP/1.1", 400),
        ("GET a HTTP/1.1", 400),
        ("GET * HTTP/1.1", 400),
        ("OPTIONS ** HTTP/1.1", 400),
        ("GET http://u@app/ HTTP/1.1", 400),
        ("GET http://other/a HTTP/1.1", 400),
        ("GET http://app:81/a HTTP/1.1", 400),
        ("GET app:80 HTTP/1.1", 400),
        ("GET /a http/1.1", 400),
        ("GET /a HTTP/1", 400),
        ("GET /a HTTP/1.1.1", 400),
        ("GET /a HTTP/01.1", 400),
        ("GET /a HTTP/1.10", 400),
        ("GET /a HTTP/11", 400),
        ("GET /a HTTPS/1.1", 400),
        ("GET /a HTTP/1,1", 400),
        ("GET /a HTTP/1.2", 505),
        ("GET /a HTTP/0.9", 505),
        ("GET /a HTTP/2.0", 505),
        ("PRI * HTTP/2.0", 505),
        ("GET /a HTTP/3.0", 505),
        ("CONNECT app:443 HTTP/1.1", 405),
        ("CONNECT /a HTTP/1.1", 405),
        (f"{'M' * (METHOD_LIMIT_BYTES + 1)} /a HTTP/1.1", 501),
        (f"{'M' * 50_000} /a HTTP/1.1", 501),
    ],
)
def test_any_other_request_line_is_refused(line: str, status: int) -> None:
    assert status_of(line=line) == status


# Fields.


def test_fields_keep_their_order_spelling_and_repetitions() -> None:
    found = request("B: 1", "a: 2", "B: 3", "X-Y-z:4", "C:", "D: \t ", "E: \t5 6,\t7 \t")
    assert found.fields == [
        *(("B", "1"), ("a", "2"), ("B", "3"), ("X-Y-z", "4")),
        *(("C", ""), ("D", ""), ("E", "5 6,\t7")),
    ]


def test_values_may_have_octets_beyond_ascii_untouched() -> None:
    value = "".join(map(chr, range(0x80, 0x100)))
    assert request(f"A: {value}").fields == [("A", value)]
    assert response(f"A: {value}").fields == [("A", value)]
    assert f"A: {value}\r\n".encode("latin-1") in write_request(request(f"A: {value}"))


@pytest.mark.parametrize(
    ("field", "why"),
    [
        (" a: b", "begins with white space"),
        ("\ta: b", "begins with white space"),
        ("a: b\r\n c", "folded"),
        ("a: b\r\n\tc", "folded"),
        ("a : b", "white space is before a colon"),
        ("a\t: b", "white space is before a colon"),
        ("Transfer-Encoding : chunked", "white space is before a colon"),
        ("a b: c", "no token"),
        (": b", "no token"),
        ("a\0: b", "no token"),
        ("a(: b", "no token"),
        ("a\xe9: b", "no token"),
        ("a", "has no colon"),
        ("a_b: c", "an underscore"),
        ("_: c", "an underscore"),
        ("a: b\0c", "a control"),
        ("a: b\x1bc", "a control"),
        ("a: b\x7f", "a control"),
        ("a: b\nc: d", "does not end in CRLF"),
        ("a: b\rc: d", "does not end in CRLF"),
        ("a: b\r", "does not end in CRLF"),
        ("a: b\n", "does not end in CRLF"),
        ("a: b\r\r", "does not end in CRLF"),
        ("a: \x01\nb: c", "does not end in CRLF"),
        ("\na: b", "does not end in CRLF"),
        ("a: b\r\n", "has no colon"),  # an empty line within
    ],
)
@pytest.mark.parametrize("around", [(), ("x: y",)])
def test_what_is_no_field_line_is_refused(field: str, why: str, around: tuple[str, ...]) -> None:
    with pytest.raises(HttpError, match=why) as refused:
        request(*around, field, *around)
    assert refused.value.status == 400
    if "_" not in field:
        with pytest.raises(HttpError, match=why) as refused:
            response(*around, field, *around)
        assert refused.value.status == 502


def test_a_head_without_its_empty_line_is_refused() -> None:
    for line in (b"a: b\r\n", b"", b"a\r\n", b"\r"):
        with pytest.raises(HttpError):
            parse_request(b"GET / HTTP/1.1\r\nHost: a\r\n" + line)


def test_a_response_may_have_underscores() -> None:
    assert response("a_b: c").fields == [("a_b", "c")]


def test_there_is_a_limit_to_fields() -> None:
    fields = [f"a: {number}" for number in range(FIELD_LIMIT)]
    assert len(request(*fields).fields) == FIELD_LIMIT
    assert status_of(*fields, "a: b") == 431
    assert len(response(*fields).fields) == FIELD_LIMIT
    with pytest.raises(HttpError, match="cannot take more than 100 fields") as refused:
        response(*fields, "a: b")
    assert refused.value.status == 502


# What the first sidecar takes, the second must not refuse for what the first has written into it.


@pytest.mark.parametrize(
    ("line", "added"),
    [
        ("GET / HTTP/1.1", ("Connection: TE, Upgrade", "TE: trailers", "Upgrade: websocket")),
        ("GET / HTTP/1.0", ()),
        ("POST / HTTP/1.1", ()),
        ("POST / HTTP/1.1", (CHUNKED, "Expect: 100-continue", "X-Mesh-Client-Id: forged")),
        ("GET http://app/ HTTP/1.1", ("X-Request-Id: mine",)),
    ],
)
@pytest.mark.parametrize("by_size", [False, True], ids=["fields", "bytes"])
def test_a_request_at_the_limit_is_taken_by_the_second_sidecar_too(
    line: str, added: tuple[str, ...], by_size: bool
) -> None:
    host = "Host:app" if line.endswith("1.1") else ""
    fields = [f"a{number}:" for number in range(FIELD_LIMIT - 1)]
    found = request(*added, *fields, "b:1", line=line, host=host)
    if by_size:
        # As much as is taken; whoever writes no blanks behind colons has room for some.
        less, more = 50_000, HEAD_LIMIT_BYTES
        while more - less > 1:
            middle = (less + more) // 2
            try:
                found = request(*added, *fields, f"b:{middle * 'x'}", line=line, host=host)
                less = middle
            except HttpError:
                more = middle
        assert less > HEAD_LIMIT_BYTES - 1000
    identified = any(name == "X-Request-Id" for name, _ in found.fields)
    found.authority = found.authority or "upstream"
    if not identified:
        found.fields.append(("X-Request-Id", "12345678-1234-4234-8234-123456789012"))
    written = write_request(found)
    assert find_head(written) == len(written)
    again = parse_request(written)
    assert sorted(again.fields) == sorted(found.fields)


def test_a_response_at_the_limit_is_taken_by_the_second_sidecar_too() -> None:
    fields = [f"a{number}:" for number in range(FIELD_LIMIT - 1)]
    rest = HEAD_LIMIT_BYTES - sum(len(field) + 3 for field in fields) - len("b: \r\n")
    found = response(*fields, f"b:{'x' * rest}", line="HTTP/1.1 200")
    with pytest.raises(HttpError, match=str(HEAD_LIMIT_BYTES)) as refused:
        response(*fields, f"b:{'x' * (rest + 1)}", line="HTTP/1.1 200")
    assert refused.value.status == 502
    written = write_response(found, chunked=True, close=True)
    assert find_head(written, of_response=True) == len(written)
    assert parse_response(written, "GET").fields == found.fields


def test_a_path_that_becomes_longer_than_the_limit_is_refused_at_once() -> None:
    quotes = HEAD_LIMIT_BYTES // 3
    assert request(line=f"GET /{(quotes - 30) * chr(34)} HTTP/1.1").path.endswith("%22")
    assert status_of(line=f"GET /{quotes * chr(34)} HTTP/1.1") == 431


def test_fields_that_do_not_count_are_limited_as_well() -> None:
    fields = ["Keep-Alive: 1"] * (MOST_LINES - 1)
    assert request(*fields).fields == []
    assert status_of(*fields, "Keep-Alive: 1") == 431


# Host.


@pytest.mark.parametrize("host", ["app", "APP.mesh.:80", "127.0.0.1:21000", "[::1]:8080", "a_b"])
def test_the_host_is_kept_as_it_was_sent(host: str) -> None:
    found = request(host=f"hOsT:{host}")
    assert found.authority == host
    assert found.fields == []
    assert write_request(found).startswith(f"GET /a HTTP/1.1\r\nHost: {host}\r\n".encode())


@pytest.mark.parametrize(
    "fields",
    [
        (),
        ("Host:",),
        ("Host: a", "Host: a"),
        ("Host: a", "host: b"),
        ("Host: a b",),
        ("Host: a, b",),
        ("Host: u@a",),
        ("Host: a/b",),
        ("Host: a:b",),
        ("Host: http://a",),
        ("Host: \xe9",),
    ],
)
def test_there_is_exactly_one_good_host(fields: tuple[str, ...]) -> None:
    assert status_of(*fields, host="") == 400
    assert status_of(*fields, host="", line="GET http://a/ HTTP/1.1") == 400
    if fields:
        assert status_of(*fields, host="", line="GET / HTTP/1.0") == 400


def test_http_1_0_can_do_without_a_host() -> None:
    assert request(host="", line="GET / HTTP/1.0").authority == ""
    assert request(host="", line="GET http://b/ HTTP/1.0").authority == "b"
    assert request(line="GET / HTTP/1.0").authority == "app"


# The body of a request.


@pytest.mark.parametrize(
    ("fields", "framing", "length"),
    [
        ((), Framing.NONE, 0),
        (("Content-Length: 0",), Framing.NONE, 0),
        (("Content-Length: 17",), Framing.LENGTH, 17),
        (("content-length:\t 007",), Framing.LENGTH, 7),
        (("Content-Length: 999999999999999999",), Framing.LENGTH, 10**18 - 1),
        (("Transfer-Encoding: chunked",), Framing.STREAM, 0),
        (("transfer-encoding:CHUNKED",), Framing.STREAM, 0),
    ],
)
def test_the_framing_of_a_body(fields: tuple[str, ...], framing: Framing, length: int) -> None:
    for line in ("POST /a HTTP/1.1", "GET /a HTTP/1.1"):
        found = request(*fields, line=line)
        assert (found.framing, found.length, found.fields) == (framing, length, [])


BAD_FRAMING = [
    ("Content-Length: 5", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked", "Content-Length: 5"),
    ("Transfer-Encoding: chunked", "Content-Length: 0"),
    ("Content-Length: 5", "Content-Length: 6"),
    ("Content-Length: 5", "Content-Length: 5"),
    ("Content-Length: 5, 5",),
    ("Content-Length: +5",),
    ("Content-Length: -5",),
    ("Content-Length: 0x5",),
    ("Content-Length: 5 5",),
    ("Content-Length: 5.0",),
    ("Content-Length: 5_0",),
    ("Content-Length: \xb2",),
    ("Content-Length: ",),
    ("Content-Length: 1000000000000000000",),
    ("Content-Length: " + "9" * 400,),
    ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: gzip", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked, chunked",),
    ("Transfer-Encoding: chunked, gzip",),
    ("Transfer-Encoding: gzip",),
    ("Transfer-Encoding: identity",),
    ("Transfer-Encoding: xchunked",),
    ("Transfer-Encoding: chunked;a=b",),
    ('Transfer-Encoding: "chunked"',),
    ("Transfer-Encoding: chunked,",),
    ("Transfer-Encoding: \x0bchunked",),
    ("Transfer-Encoding: chunked\xa0",),
    ("Transfer-Encoding:",),
    ("Transfer-Encoding: chunked\t",),
    ("Transfer-Encoding: chunked ",),
    ("Content-Length: 5 ",),
]


@pytest.mark.parametrize("fields", BAD_FRAMING)
def test_framing_that_could_be_read_otherwise_is_refused(fields: tuple[str, ...]) -> None:
    assert status_of(*fields, line="POST /a HTTP/1.1") == 400
    for method in ("GET", "HEAD"):
        with pytest.raises(HttpError) as refused:
            response(*fields, method=method)
        assert refused.value.status == 502


def test_a_coding_that_is_unknown_is_not_implemented() -> None:
    assert status_of("Transfer-Encoding: gzip, chunked") == 501
    with pytest.raises(HttpError) as refused:
        response("Transfer-Encoding: gzip, chunked")
    assert refused.value.status == 502


def test_http_1_0_has_no_chunks() -> None:
    assert status_of("Transfer-Encoding: chunked", line="POST / HTTP/1.0") == 400
    with pytest.raises(HttpError, match=r"HTTP/1\.0"):
        response("Transfer-Encoding: chunked", line="HTTP/1.0 200 OK")


@pytest.mark.parametrize("body", ["Content-Length: 1", "Transfer-Encoding: chunked"])
def test_who_waits_for_100_continue_is_known(body: str) -> None:
    found = request("Expect: 100-Continue", body)
    assert found.expects_continue
    assert found.fields == [("Expect", "100-continue")]


def test_nobody_waits_for_100_continue_without_a_body_or_on_http_1_0() -> None:
    for found in (
        request("Expect: 100-continue"),
        request("Expect: 100-continue", "Content-Length: 0"),
        request("Expect: 100-continue", "Content-Length: 1", line="POST / HTTP/1.0"),
    ):
        assert not found.expects_continue
        assert found.fields == []


def test_other_expectations_are_not_met() -> None:
    assert status_of("Expect: a") == 417
    assert status_of("Expect: 100-continue, a") == 417
    assert status_of("Expect: 100-continue", "Expect: 100-continue") == 400


# The connection.


@pytest.mark.parametrize(
    ("line", "connection", "kept"),
    [
        ("GET / HTTP/1.1", None, True),
        ("GET / HTTP/1.1", "close", False),
        ("GET / HTTP/1.1", "x, CLOSE", False),
        ("GET / HTTP/1.1", "keep-alive", True),
        ("GET / HTTP/1.1", "keep-alive, close", False),
        ("GET / HTTP/1.0", None, False),
        ("GET / HTTP/1.0", "Keep-Alive", True),
        ("GET / HTTP/1.0", "keep-alive,close", False),
        ("GET / HTTP/1.0", "x", False),
    ],
)
def test_version_and_connection_say_whether_it_is_kept(
    line: str, connection: str | None, kept: bool
) -> None:
    fields = [] if connection is None else [f"Connection: {connection}"]
    assert request(*fields, line=line).keeps_alive is kept
    version = line[-8:]
    found = response(*fields, "Content-Length: 0", line=f"{version} 200 OK")
    assert found.keeps_alive is kept


def test_fields_of_the_connection_go_no_further() -> None:
    found = request(
        *("A: 1", "Connection: keep-alive, X-Mine", "Keep-Alive: 5", "Proxy-Connection: x"),
        *("TE: gzip", "Upgrade: a", "HTTP2-Settings: b", "x-mine: c", "B: 2", "X-MINE: d"),
    )
    assert found.fields == [("A", "1"), ("B", "2")]
    assert found.upgrade == ""
    answer = response(
        *("A: 1", "Connection: X-Mine", "Keep-Alive: 5", "X-Mine: c", "Content-Length: 0"),
        *("Upgrade: h3", "Proxy-Connection: x"),
    )
    assert answer.fields == [("A", "1")]


def test_connection_may_come_in_several_lines_with_empty_members() -> None:
    found = request("Connection: ,a,", "connection:", "CONNECTION: b , close", "a: 1", "b: 2")
    assert found.fields == []
    assert not found.keeps_alive


@pytest.mark.parametrize(
    "connection",
    [
        *("host", "Content-Length", "transfer-encoding", "Content-Type", "Authorization"),
        *("cookie", "x, set-cookie", "expect", "a b", "a;b", '"a"', "a:b", "\xe9", "a=b"),
    ],
)
def test_connection_names_no_field_that_others_decide_by(connection: str) -> None:
    assert status_of(f"Connection: {connection}") == 400
    with pytest.raises(HttpError) as refused:
        response(f"Connection: {connection}")
    assert refused.value.status == 502


@pytest.mark.parametrize(
    ("list_of", "others"),
    [
        ("Connection: {}", ()),
        ("Upgrade: {}", ("Connection: upgrade",)),
        ("TE: {}", ()),
        ("Transfer-Encoding: {},chunked", ()),
    ],
)
@pytest.mark.parametrize("member", ["a", ""])
def test_a_list_has_a_few_members(list_of: str, others: tuple[str, ...], member: str) -> None:
    def refused(members: int) -> HttpError | None:
        try:
            request(list_of.format(",".join([member] * members)), *others)
        except HttpError as error:
            return error
        return None

    allowed = refused(MOST_MEMBERS - list_of.count(","))
    assert allowed is None or "members" not in str(allowed)
    for count in (MOST_MEMBERS + 1, 5000):
        error = refused(count)
        assert error is not None
        assert error.status == 400
        assert f"over {MOST_MEMBERS} members" in str(error)


@pytest.mark.parametrize("te", ["trailers", "gzip, Trailers", "trailers , deflate;q=0.5"])
def test_that_trailers_are_taken_stays(te: str) -> None:
    found = request(f"tE: {te}", "Connection: TE")
    assert found.fields == [("TE", "trailers")]
    assert b"\r\nTE: trailers\r\nConnection: TE\r\n" in write_request(found)


def test_that_trailers_are_taken_is_written_for_requests_of_http_2_too() -> None:
    pseudo = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")]
    read = read_request([*pseudo, (b"te", b"trailers")], ended=True, underscores=False)
    assert write_request(read).endswith(b"\r\nte: trailers\r\nConnection: TE\r\n\r\n")


@pytest.mark.parametrize(
    ("fields", "upgrade"),
    [
        (("Upgrade: websocket", "Connection: Upgrade"), "websocket"),
        (("Upgrade: websocket", "Connection: keep-alive, upgrade"), "websocket"),
        (("Upgrade: a/1, b", "Connection: upgrade"), "a/1, b"),
        (("Upgrade: a", "Upgrade: b", "Connection: upgrade"), "a, b"),
        (("Upgrade: websocket",), ""),
        (("Upgrade: websocket", "Connection: close"), ""),
        (("Connection: Upgrade",), ""),
        (("Upgrade: h2c", "Connection: Upgrade, HTTP2-Settings", "HTTP2-Settings: AA"), ""),
        (("Upgrade: H2C, websocket", "Connection: Upgrade"), "websocket"),
        (("Upgrade: TLS/1.0, HTTP/2.0, h2", "Connection: Upgrade"), ""),
    ],
)
def test_an_upgrade_is_asked_for_by_connection_and_not_to_more_requests(
    fields: tuple[str, ...], upgrade: str
) -> None:
    found = request(*fields)
    assert (found.upgrade, found.fields) == (upgrade, [])
    assert request(*fields, line="GET / HTTP/1.0").upgrade == ""
    if upgrade:
        assert f"\r\nConnection: Upgrade\r\nUpgrade: {upgrade}\r\n".encode() in write_request(found)


@pytest.mark.parametrize("body", ["Content-Length: 1", CHUNKED])
def test_there_is_no_upgrade_behind_a_body(body: str) -> None:
    found = request("Upgrade: websocket", "Connection: Upgrade", body)
    assert (found.upgrade, found.fields) == ("", [])


def test_an_upgrade_to_what_is_no_protocol_is_refused() -> None:
    for upgrade in ("a b", "a/", "/a", "a/b/c", "\xe9"):
        assert status_of(f"Upgrade: {upgrade}", "Connection: upgrade") == 400


# Responses.


@pytest.mark.parametrize(
    ("line", "status", "reason"),
    [
        ("HTTP/1.1 200 OK", 200, "OK"),
        ("HTTP/1.0 404 Not  here ", 404, "Not  here"),
        ("HTTP/1.1 200", 200, ""),
        ("HTTP/1.1 200 ", 200, ""),
        ("HTTP/1.1 503 \xe9", 503, "\xe9"),
        ("HTTP/1.1 999 x", 999, "x"),
    ],
)
def test_a_status_line_has_a_status_and_maybe_a_reason(line: str, status: int, reason: str) -> None:
    found = response(line=line)
    assert (found.status, found.reason) == (status, reason)


@pytest.mark.parametrize(
    "line",
    [
        *("HTTP/1.1  200 OK", "HTTP/1.1 20 OK", "HTTP/1.1 2000 OK", "HTTP/1.1 099 OK", "HTTP/1.1"),
        *("HTTP/1.1 200OK", "HTTP/1.1 +20 OK", "HTTP/1.1\t200 OK", "HTTP/1.1 200\tOK", "ICY 200"),
        *("http/1.1 200 OK", "HTTP/2.0 200 OK", "HTTP/1.2 200 OK", "HTTP/1 200 OK", "", " HTTP"),
        *("HTTP/1.1 200 O\0K", "HTTP/1.1 200 O\nK", "HTTP/1.1 200 O\rK", "GET / HTTP/1.1"),
        *("HTTP/1.1 \xb200 OK",),
    ],
)
def test_any_other_status_line_is_refused(line: str) -> None:
    with pytest.raises(HttpError) as refused:
        response(line=line)
    assert refused.value.status == 502


@pytest.mark.parametrize(
    ("method", "status", "field", "framing", "length", "until_close"),
    [
        ("GET", 200, "Content-Length: 5", Framing.LENGTH, 5, False),
        ("GET", 200, "Content-Length: 0", Framing.NONE, 0, False),
        ("GET", 200, CHUNKED, Framing.STREAM, None, False),
        ("GET", 200, "", Framing.STREAM, None, True),
        ("POST", 500, "", Framing.STREAM, None, True),
        ("HEAD", 200, "Content-Length: 5", Framing.NONE, 5, False),
        ("HEAD", 200, CHUNKED, Framing.NONE, None, False),
        ("HEAD", 200, "", Framing.NONE, None, False),
        ("GET", 304, "Content-Length: 5", Framing.NONE, 5, False),
        ("GET", 304, CHUNKED, Framing.NONE, None, False),
        ("GET", 304, "", Framing.NONE, None, False),
        ("GET", 204, "", Framing.NONE, None, False),
        ("GET", 204, "Content-Length: 0", Framing.NONE, None, False),
        ("GET", 100, "", Framing.NONE, None, False),
        ("GET", 103, "Link: a", Framing.NONE, None, False),
    ],
)
def test_the_body_of_a_response_ends_where_method_status_and_fields_say(
    method: str, status: int, field: str, framing: Framing, length: int | None, until_close: bool
) -> None:
    fields = [field] if field else []
    found = response(*fields, line=f"HTTP/1.1 {status} x", method=method)
    assert (found.framing, found.length, found.until_close) == (framing, length, until_close)
    assert found.keeps_alive is not until_close
    assert found.interim is (status < 200)


@pytest.mark.parametrize("status", [100, 101, 103, 204])
@pytest.mark.parametrize("field", ["Content-Length: 5", CHUNKED])
def test_a_body_where_there_is_none_is_refused(status: int, field: str) -> None:
    with pytest.raises(HttpError, match="cannot take the response: a body") as refused:
        response(field, "Upgrade: a", "Connection: upgrade", line=f"HTTP/1.1 {status} x")
    assert refused.value.status == 502


def test_101_says_what_follows() -> None:
    line = "HTTP/1.1 101 Switching Protocols"
    found = response("Upgrade: websocket", "Connection: Upgrade", "A: b", line=line)
    assert (found.upgrade, found.fields, found.framing) == (
        "websocket",
        [("A", "b")],
        Framing.NONE,
    )
    assert not found.interim
    for fields in (
        (),
        ("Upgrade: websocket",),
        ("Connection: upgrade",),
        ("Upgrade: h2c", "Connection: upgrade"),
    ):
        with pytest.raises(HttpError, match="101 without") as refused:
            response(*fields, line=line)
        assert refused.value.status == 502


def test_426_says_what_is_required_and_others_advertise_nothing() -> None:
    fields = ("Upgrade: a/2", "Connection: upgrade", "Content-Length: 0")
    assert response(*fields, line="HTTP/1.1 426 x").upgrade == "a/2"
    assert response(*fields).upgrade == ""


# Writing.


def test_a_request_is_written_with_its_host_first() -> None:
    found = request("A: b", "c: d", line="GET /x/../y?z HTTP/1.1")
    assert write_request(found, [("E", "f")]) == (
        b"GET /y?z HTTP/1.1\r\nHost: app\r\nA: b\r\nc: d\r\nE: f\r\n\r\n"
    )


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
def test_a_request_says_how_its_body_is_framed(method: str) -> None:
    wanted = ASKED(method=method)
    start = f"{method} / HTTP/1.1\r\nHost: a\r\n".encode()
    has_one = method in ("POST", "PUT", "PATCH")
    zero = b"Content-Length: 0\r\n" if has_one else b""
    assert write_request(wanted) == start + zero + b"\r\n"
    end = b"\r\n" if has_one else b"Connection: close\r\n\r\n"
    wanted.framing, wanted.length = Framing.LENGTH, 17
    assert write_request(wanted) == start + b"Content-Length: 17\r\n" + end
    wanted.framing = Framing.STREAM
    assert write_request(wanted) == start + b"Transfer-Encoding: chunked\r\n" + end


def test_an_upgrade_of_who_takes_trailers_names_both_in_one_connection() -> None:
    found = request("TE: trailers", "Upgrade: a", "Connection: TE, Upgrade")
    assert write_request(found).endswith(b"Connection: TE, Upgrade\r\nUpgrade: a\r\n\r\n")


def test_a_response_is_written_with_its_reason_or_the_usual_one() -> None:
    def line(status: int, reason: str) -> bytes:
        return write_response(Response(status=status, reason=reason), chunked=False, close=False)

    assert line(200, "Fine") == b"HTTP/1.1 200 Fine\r\n\r\n"
    assert line(403, "") == b"HTTP/1.1 403 Forbidden\r\n\r\n"
    assert line(299, "") == b"HTTP/1.1 299 \r\n\r\n"


@pytest.mark.parametrize(
    ("wanted", "chunked", "close", "end"),
    [
        (Response(status=200), True, False, b"Transfer-Encoding: chunked\r\n"),
        (Response(status=200), False, True, b"Connection: close\r\n"),
        (Response(status=200, length=0), False, False, b"Content-Length: 0\r\n"),
        (
            Response(status=200, length=5),
            False,
            True,
            b"Content-Length: 5\r\nConnection: close\r\n",
        ),
        (Response(status=304, length=5), False, False, b"Content-Length: 5\r\n"),
        (Response(status=204, length=0), False, False, b"\r\n"),
        (Response(status=100, length=0), False, False, b"\r\n"),
        (
            Response(status=101, upgrade="websocket"),
            False,
            False,
            b"Connection: Upgrade\r\nUpgrade: websocket\r\n",
        ),
        (
            Response(status=426, upgrade="a", length=0),
            False,
            True,
            b"Content-Length: 0\r\nConnection: close, Upgrade\r\nUpgrade: a\r\n",
        ),
    ],
)
def test_a_response_says_how_its_body_is_framed(
    wanted: Response, chunked: bool, close: bool, end: bytes
) -> None:
    written = write_response(wanted, chunked=chunked, close=close)
    assert written.partition(b"\r\n")[2] == end.removeprefix(b"\r\n") + b"\r\n"


@pytest.mark.parametrize(
    "hostile", ["a\r\nb: c", "a\nb: c", "a\rb: c", "a\0", "a\r\n\r\nGET / HTTP/1.1"]
)
def test_nothing_is_written_that_is_more_than_it_says(hostile: str) -> None:
    pairs = [("a", hostile)], [(hostile, "a")]
    for asked in (
        *(ASKED(method=hostile), ASKED(path=hostile), ASKED(query=hostile)),
        *(ASKED(authority=hostile), ASKED(upgrade=hostile)),
        *(ASKED(fields=fields) for fields in pairs),
    ):
        with pytest.raises(HttpError, match="cannot write the") as refused:
            write_request(asked)
        assert refused.value.status == 400
    for answer in (
        *(Response(status=200, reason=hostile), Response(status=101, upgrade=hostile)),
        *(Response(status=200, fields=fields) for fields in pairs),
    ):
        with pytest.raises(HttpError, match="cannot write the") as refused:
            write_response(answer, chunked=False, close=False)
        assert refused.value.status == 502
    for fields in pairs:
        with pytest.raises(HttpError):
            write_request(ASKED(), fields)
        with pytest.raises(HttpError):
            write_fields(fields)


@pytest.mark.parametrize("method", ["GET /admin", "get", "", "G\tT"])
def test_no_request_line_is_written_that_would_not_be_read(method: str) -> None:
    with pytest.raises(HttpError, match="cannot write the request") as refused:
        write_request(ASKED(method=method))
    assert refused.value.status == 400


def test_no_fields_are_no_bytes() -> None:
    assert write_fields([]) == b""
    assert write_fields([("A", "b"), ("c", "")]) == b"A: b\r\nc: \r\n"


# What was read, written and read again.

names = st.text("ABCabc019-!#$%&'*+.^`|~", min_size=1, max_size=8)
values = st.text(
    st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=10
)
some_fields = st.lists(
    st.one_of(
        st.builds("{}: {}".format, names, values),
        st.sampled_from(
            [
                *("Content-Length: 7", "Content-Length: 0", CHUNKED, "Expect: 100-continue"),
                *("Connection: close", "Connection: upgrade, a", "Upgrade: websocket, h2c"),
                *("TE: trailers", "Connection: TE", "Keep-Alive: 5", "Host: a", "X_y: z"),
            ]
        ),
    ),
    max_size=7,
)
some_lines = st.sampled_from(
    [
        *("GET / HTTP/1.1", "POST /a/../%2e%41?b=%2e HTTP/1.1", "PUT http://APP/%7e HTTP/1.1"),
        *("OPTIONS * HTTP/1.1", "GET / HTTP/1.0", "M-SEARCH /[] HTTP/1.1"),
    ]
)


@given(some_lines, some_fields)
def test_a_request_that_is_written_and_read_is_the_same(line: str, fields: list[str]) -> None:
    try:
        first = request(*fields, line=line)
    except HttpError:
        return
    second = parse_request(write_request(first))
    for attribute in (
        *("method", "path", "query", "authority", "fields", "framing", "length", "upgrade"),
        *("expects_continue",),
    ):
        assert getattr(second, attribute) == getattr(first, attribute), attribute
    assert second.keeps_alive is not has_odd_body(first)
    assert second.minor_version == 1


@given(
    st.integers(100, 999), st.sampled_from(["", " ", " OK", " \xe9 b"]), some_fields, st.booleans()
)
def test_a_response_that_is_written_and_read_is_the_same(
    status: int, reason: str, fields: list[str], asked_by_head: bool
) -> None:
    method = "HEAD" if asked_by_head else "GET"
    try:
        first = response(*fields, line=f"HTTP/1.1 {status}{reason}", method=method)
    except HttpError:
        return
    chunked = first.framing is Framing.STREAM and not first.until_close
    written = write_response(first, chunked=chunked, close=not first.keeps_alive)
    second = parse_response(written, method)
    first.reason = first.reason or second.reason
    for attribute in (
        *("status", "fields", "framing", "length", "reason", "upgrade"),
        *("until_close", "keeps_alive"),
    ):
        assert getattr(second, attribute) == getattr(first, attribute), attribute


# Lines that are known.

Parse = Callable[[bytes], Request | Response]
answer_of = partial(parse_response, method="GET")


def outcome(parse: Parse, wire: bytes) -> object:
    """Return what became of a head: all that was understood, and how it is passed on; or why not.

    Where several things are wrong, which is named may depend on what is known, but not the status.
    """
    try:
        found = parse(wire)
        attributes = [getattr(found, name) for name in found.__struct_fields__]
        if isinstance(found, Request):
            return attributes, write_request(found, [("E", "f")])
        return attributes, write_response(found, chunked=False, close=True)
    except HttpError as refused:
        return refused.status


def fill(parse: Parse, line: str) -> None:
    """Make as many lines known as can be, so that the next one pushes all out."""
    for number in range(0, KNOWN_LIMIT, MOST_READ_SINGLY):
        fields = (f"N: {number + more}" for more in range(MOST_READ_SINGLY))
        wire = head(line, "Host: a", *fields)
        for _ in range(2):
            parse(wire)


lines_of_heads = st.lists(
    st.one_of(
        st.builds("{}: {}".format, names, values),
        st.sampled_from(
            [
                *(
                    "A: 1",
                    "B: 2",
                    "a:\t3\t",
                    "C: 4",
                    "Host: a",
                    "Host: A:80",
                    "Host: b",
                    "host:a:1",
                ),
                *("Content-Length: 7", "Content-Length: 0", "Content-Length: x", CHUNKED),
                *("Transfer-Encoding: gzip, chunked", "Transfer-Encoding: chunked ", "Expect: x"),
                *("Expect: 100-continue", "Connection: close", "Connection: A", "Connection: a b"),
                *("Connection: upgrade, TE", "Connection: host", "Upgrade: a, h2c", "Upgrade: a b"),
                *(
                    "TE: trailers",
                    "Keep-Alive: 5",
                    "X_y: z",
                    "A : 1",
                    " B: 2",
                    "C",
                    "D: \0",
                    "E: \n",
                ),
                *("", "Cookie: a", "Authorization: b"),
            ]
        ),
    ),
    max_size=MOST_LOOKED_UP + 3,
)
first_lines = st.sampled_from(
    [
        *("GET / HTTP/1.1", "POST /a/../%2e%41?b=%2e HTTP/1.1", "PUT http://A/%7e HTTP/1.1"),
        *(
            "GET / HTTP/1.0",
            "get / HTTP/1.1",
            "GET / HTTP/1.2",
            "GET /%00 HTTP/1.1",
            "GET * HTTP/1.1",
        ),
        *("HTTP/1.1 200 OK", "HTTP/1.0 200 ", "HTTP/1.1 101 x", "HTTP/1.1 204", "HTTP/1.1 2000 x"),
    ]
)
ends = st.sampled_from(["\r\n\r\n"] * 4 + ["\r\n", "", "\n\n", "\r\n\r\n\r\n", "\r\n \r\n\r\n"])


@settings(deadline=None)
@given(first_lines, lines_of_heads, ends)
@example(
    "GET / HTTP/1.1", ["Host: a", "A: 1", "B: 2", "C: 3", "D: 4", "E: \t5\t", "A: 1"], "\r\n\r\n"
)
@example("GET / HTTP/1.1", ["Host: a", "A: 1", "B: 2", "C: 3", "D: 4", "Host: a"], "\r\n\r\n")
@example("GET / HTTP/1.1", ["Host: a"], "\r\nA: " + "b" * HEAD_LIMIT_BYTES + "\r\n\r\n")
def test_what_a_head_means_does_not_depend_on_which_lines_are_known(
    line: str, fields: list[str], end: str
) -> None:
    wire = ("\r\n".join([line, *fields]) + end).encode("latin-1")
    for parse, filler in ((parse_request, "GET / HTTP/1.1"), (answer_of, "HTTP/1.1 200 OK")):
        forget_lines()
        cold = outcome(parse, wire)
        # Some of the lines come by themselves, then the head comes until all are known.
        for one in fields[::2]:
            outcome(parse, head(filler, "Host: a", one))
        for _ in range(2 * len(fields) + 2):
            assert outcome(parse, wire) == cold
        fill(parse, filler)
        for _ in range(3):
            assert outcome(parse, wire) == cold


def test_what_a_caller_makes_of_fields_is_not_what_the_next_head_has() -> None:
    forget_lines()
    for _ in range(4):
        found = request("A: 1", "Connection: close, B", "B: 2")
        assert (found.fields, found.keeps_alive) == ([("A", "1")], False)
        found.fields.append(("C", "3"))
        answer = response("A: 1", "Content-Length: 2")
        assert (answer.fields, answer.length) == ([("A", "1")], 2)
        answer.fields.clear()
