"""Lists of fields of HTTP/2 as heads and trailers, and back."""

import pytest
from hpack.struct import HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http import fields2, semantics
from meshrun.proxy.http.fields2 import (
    Field,
    Secret,
    read_request,
    read_response,
    read_trailers,
    write_request,
    write_response,
)
from meshrun.proxy.http.heads import COUNTED, NO_BODY, STREAMED, Request, Response

PSEUDO: list[Field] = [
    (b":method", b"POST"),
    (b":scheme", b"https"),
    (b":authority", b"app:80"),
    (b":path", b"/a/../b?c=%2e"),
]


def request(*extra: Field, ended: bool = False, underscores: bool = False) -> Request:
    return read_request([*PSEUDO, *extra], ended=ended, underscores=underscores)


def without(name: bytes, *instead: Field) -> list[Field]:
    return [*[field for field in PSEUDO if field[0] != name], *instead]


def status(fields: list[Field], *, underscores: bool = False) -> int:
    """Return with what a request is refused."""
    with pytest.raises(HttpError) as refused:
        read_request(fields, ended=False, underscores=underscores)
    return refused.value.status


def test_request_is_read_and_its_path_normalised() -> None:
    read = request((b"accept", b"*/*"), (b"x-a", b"\xe9"))
    assert (read.method, read.path, read.query) == ("POST", "/b", "?c=%2e")
    assert read.authority == "app:80"
    assert read.fields == [("accept", "*/*"), ("x-a", "é")]
    assert read.framing is STREAMED


def test_framing_of_a_request() -> None:
    assert request(ended=True).framing is NO_BODY
    assert request((b"content-length", b"0"), ended=True).framing is NO_BODY
    counted = request((b"content-length", b"12"))
    assert (counted.framing, counted.length) == (COUNTED, 12)
    assert counted.fields == []


@pytest.mark.parametrize("name", [b":method", b":scheme", b":path", b":authority"])
def test_pseudo_header_field_that_is_missing_twice_or_late(name: bytes) -> None:
    value = dict(PSEUDO)[name]
    assert status(without(name)) == 400
    assert status([(name, value), *PSEUDO]) == 400
    assert status(without(name, (b"a", b"1"), (name, value))) == 400


@pytest.mark.parametrize(
    "field", [(b":status", b"200"), (b":protocol", b"websocket"), (b":x", b"1"), (b":", b"1")]
)
def test_pseudo_header_field_that_a_request_has_not(field: Field) -> None:
    assert status([field, *PSEUDO]) == 400


@pytest.mark.parametrize(
    "method", [b"", b"get", b"Get", b"G ET", b"GET\r\nx: y", b"GET\0", b"G\xc9T", b"GET/"]
)
def test_method_that_is_none(method: bytes) -> None:
    assert status(without(b":method", (b":method", method))) == 400


@pytest.mark.parametrize(
    "path", [b"", b"a", b"*", b"http://app/", b"/a b", b"/a#b", b"/%00", b"/%", b"/\xe9", b"/a\r\n"]
)
def test_path_that_is_none(path: bytes) -> None:
    assert status(without(b":path", (b":path", path))) == 400


def test_path_of_options_may_be_an_asterisk() -> None:
    fields: list[Field] = [(b":method", b"OPTIONS"), (b":path", b"*"), *PSEUDO[1:3]]
    assert read_request(fields, ended=True, underscores=False).path == "*"


def test_method_that_is_too_long_is_not_implemented() -> None:
    method = b"M" * semantics.METHOD_LIMIT_BYTES
    read = read_request(without(b":method", (b":method", method)), ended=True, underscores=False)
    assert read.method == method.decode()
    assert status(without(b":method", (b":method", method + b"M"))) == 501


@pytest.mark.parametrize("method", [b"CONNECT"])
def test_connect_is_not_for_this_proxy(method: bytes) -> None:
    assert status([(b":method", method), (b":authority", b"app:80")]) == 405
    assert status([(b":method", method), (b":protocol", b"websocket"), *PSEUDO[1:]]) == 400


@pytest.mark.parametrize(
    "authority", [b"", b"a b", b"a@b", b"a,b", b"a/b", b"a:99999", b"a\r\nb: c"]
)
def test_authority_that_is_none(authority: bytes) -> None:
    assert status(without(b":authority", (b":authority", authority))) == 400


def test_host_must_be_the_authority() -> None:
    assert request((b"host", b"APP")).authority == "app:80"  # port 80 is that of http
    assert request((b"host", b"APP")).fields == []
    assert status([*PSEUDO, (b"host", b"other")]) == 400
    assert status([*PSEUDO, (b"host", b"app:80"), (b"host", b"app:80")]) == 400
    alone = read_request(without(b":authority", (b"host", b"app")), ended=True, underscores=False)
    assert alone.authority == "app"


@pytest.mark.parametrize(
    "name",
    [
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    ],
)
def test_fields_of_a_connection_of_http1_are_refused(name: bytes) -> None:
    assert status([*PSEUDO, (name, b"x")]) == 400
    with pytest.raises(HttpError):
        read_response([(b":status", b"200"), (name, b"x")], ended=True, method="GET")
    with pytest.raises(HttpError):
        read_trailers([(name, b"x")], underscores=True)


@pytest.mark.parametrize(
    "name", [b"", b"A", b"a b", b"a:", b"a\r", b"\xe9", b"a\0", b"a\x7f", b"(a)"]
)
def test_name_that_is_none(name: bytes) -> None:
    for underscores in (False, True):
        assert status([*PSEUDO, (name, b"1")], underscores=underscores) == 400


@pytest.mark.parametrize(
    "value", [b" a", b"a ", b"\ta", b"a\t", b"a\r\nb", b"a\nb", b"a\0b", b"\x7f"]
)
def test_value_that_is_none(value: bytes) -> None:
    assert status([*PSEUDO, (b"a", value)]) == 400


@pytest.mark.parametrize("value", [b"", b"a", b"a b", b"a\tb", b"\xe9", b"a \xff"])
def test_value_that_is_one(value: bytes) -> None:
    assert request((b"a", value)).fields == [("a", value.decode("latin-1"))]


def test_underscores_only_where_they_may_be() -> None:
    assert status([*PSEUDO, (b"a_b", b"1")]) == 400
    assert request((b"a_b", b"1"), underscores=True).fields == [("a_b", "1")]


def test_te_may_be_trailers_only() -> None:
    assert request((b"te", b"Trailers")).fields == [("te", "trailers")]
    assert status([*PSEUDO, (b"te", b"trailers, gzip")]) == 400


def test_pieces_of_a_cookie_are_joined_where_the_first_was() -> None:
    read = request((b"cookie", b"a=1"), (b"x", b"y"), (b"cookie", b"b=2"), (b"cookie", b"c=3"))
    assert read.fields == [("cookie", "a=1; b=2; c=3"), ("x", "y")]


def test_very_many_pieces_of_a_cookie_are_one_field() -> None:
    read = request(*[(b"cookie", b"a=%d" % number) for number in range(200)])
    assert len(read.fields) == 1


@pytest.mark.parametrize("length", [b"", b"-1", b"+1", b"1 ", b"0x1", b"1,1", b"9" * 19, b"\xb2"])
def test_length_that_is_none(length: bytes) -> None:
    assert status([*PSEUDO, (b"content-length", length)]) == 400


def test_length_that_cannot_be() -> None:
    assert status([*PSEUDO, (b"content-length", b"1"), (b"content-length", b"1")]) == 400
    with pytest.raises(HttpError):
        request((b"content-length", b"1"), ended=True)


def test_expectation() -> None:
    read = request((b"expect", b"100-Continue"))
    assert read.expects_continue
    assert read.fields == [("expect", "100-continue")]
    assert not request((b"expect", b"100-continue"), ended=True).expects_continue
    assert status([*PSEUDO, (b"expect", b"x")]) == 417


@pytest.mark.parametrize("field", [None, (b"x-request-id", b"1"), (b"content-length", b"5")])
def test_limits_of_a_head(field: Field | None) -> None:
    more = [] if field is None else [field]
    hundred = [(b"a%d" % at, b"1") for at in range(100)]
    assert len(request(*hundred, *more).fields) in (100, 101)
    assert status([*PSEUDO, *hundred, *more, (b"a", b"1")]) == 431
    # RFC 9113 6.5.2: each field counts for 32 bytes more.
    rest = semantics.HEAD_LIMIT_BYTES - 33 - len(b"POST/b?c=%2e") - semantics.LONGEST_NAME
    if field and field[0] == b"x-request-id":
        rest += 35  # of a UUID
    longest = request((b"a", b"x" * rest), *more)
    assert status([*PSEUDO, *more, (b"a", b"x" * (rest + 1))]) == 431
    # What the first sidecar takes, the second must not refuse for what the first has added.
    if not more:
        longest.fields.append(("x-request-id", "12345678-1234-4234-8234-123456789012"))
    again = read_request(write_request(longest), ended=longest.length == 0, underscores=False)
    assert again.fields == longest.fields


# Responses.


@pytest.mark.parametrize(
    ("method", "code", "fields", "ended", "framing", "length"),
    [
        ("GET", b"200", [], True, NO_BODY, None),
        ("GET", b"200", [], False, STREAMED, None),
        ("GET", b"200", [(b"content-length", b"5")], False, COUNTED, 5),
        ("GET", b"200", [(b"content-length", b"0")], True, NO_BODY, 0),
        ("HEAD", b"200", [(b"content-length", b"5")], True, NO_BODY, 5),
        ("HEAD", b"200", [(b"content-length", b"5")], False, NO_BODY, 5),
        ("GET", b"304", [(b"content-length", b"5")], True, NO_BODY, 5),
        ("GET", b"204", [], True, NO_BODY, None),
        ("GET", b"204", [(b"content-length", b"0")], True, NO_BODY, None),
        ("GET", b"103", [], False, NO_BODY, None),
        ("GET", b"599", [], False, STREAMED, None),
    ],
)
def test_framing_of_a_response(
    method: str,
    code: bytes,
    fields: list[Field],
    ended: bool,
    framing: object,
    length: int | None,
) -> None:
    read = read_response([(b":status", code), *fields], ended=ended, method=method)
    assert read.status == int(code)
    assert read.framing is framing
    assert read.length == length


@pytest.mark.parametrize(
    ("fields", "ended"),
    [
        ([(b"a", b"1"), (b":status", b"200")], True),
        ([(b":status", b"200"), (b":status", b"200")], True),
        ([(b":status", b"099")], True),
        ([(b":status", b"2000")], True),
        ([(b":status", b"100")], True),
        ([(b":status", b"200"), (b"content-length", b"1")], True),
        ([(b":status", b"200"), (b"content-length", b"x")], False),
        ([(b":status", b"200"), (b"a", b"\n")], False),
        ([(b":status", b"200"), *[(b"a", b"1")] * 101], False),
        ([(b":status", b"200"), (b"a", b"x" * 61_440)], False),
    ],
)
def test_response_that_is_none(fields: list[Field], ended: bool) -> None:
    with pytest.raises(HttpError) as refused:
        read_response(fields, ended=ended, method="GET")
    assert refused.value.status == 502


# Trailers.


def test_trailers() -> None:
    assert read_trailers([(b"grpc-status", b"0")], underscores=False) == [("grpc-status", "0")]
    # Where it was decided already without them (RFC 9110 6.5.1).
    assert read_trailers([(b"host", b"x"), (b"x-mesh-client-id", b"x")], underscores=False) == []
    for fields in ([(b":path", b"/")], [(b"a_b", b"1")], [(b"A", b"1")], [(b"a", b"1")] * 101):
        with pytest.raises(HttpError):
            read_trailers(fields, underscores=False)
    assert read_trailers([(b"a_b", b"1")], underscores=True) == [("a_b", "1")]


# Writing.


def test_what_must_not_be_indexed_stays_so() -> None:
    read = request(HeaderTuple(b"a", b"1"), NeverIndexedHeaderTuple(b"b", b"2"))
    assert [type(value) for _, value in read.fields] == [str, Secret]
    written = {bytes(field[0]): field for field in write_request(read, [("Authorization", "x")])}
    assert not isinstance(written[b"a"], NeverIndexedHeaderTuple)
    assert isinstance(written[b"b"], NeverIndexedHeaderTuple)
    assert isinstance(written[b"authorization"], NeverIndexedHeaderTuple)


def test_response_is_written_with_its_length() -> None:
    head = Response(status=200, fields=[("Date", "now"), ("Transfer-Encoding", "x")], length=4)
    assert write_response(head) == [
        (b":status", b"200"),
        (b"date", b"now"),
        (b"content-length", b"4"),
    ]


def test_request_of_http1_0_may_have_no_authority() -> None:
    written = write_request(Request("GET", "/", "", ""), [])
    assert [name for name, _ in written] == [b":method", b":scheme", b":path"]


TOKENS = st.text("!#$%&'*+-.^`|~abcz019", min_size=1, max_size=8).filter(
    lambda name: name not in fields2._REQUEST_SPECIAL
)
VALUES = st.binary(max_size=8).filter(lambda value: fields2._value.fullmatch(value) is not None)


@given(st.lists(st.tuples(TOKENS, VALUES), max_size=20), st.booleans())
def test_what_is_read_is_written_alike(fields: list[tuple[str, bytes]], ended: bool) -> None:
    sent: list[Field] = [(name.encode(), value) for name, value in fields]
    read = request(*sent, ended=ended)
    written = [(bytes(name), bytes(value)) for name, value in write_request(read, [])]
    assert written[4:] == sent
    assert read_request(written, ended=ended, underscores=False).fields == read.fields


@given(st.lists(st.tuples(st.binary(max_size=12), st.binary(max_size=12)), max_size=8))
def test_any_fields_are_read_or_refused(fields: list[Field]) -> None:
    refusals: set[int] = set()
    for read in (
        lambda: read_request([*PSEUDO, *fields], ended=False, underscores=False),
        lambda: read_request(fields, ended=False, underscores=True),
        lambda: read_response([(b":status", b"200"), *fields], ended=False, method="GET"),
        lambda: read_trailers(fields, underscores=False),
    ):
        try:
            read()
        except HttpError as refused:
            refusals.add(refused.status)
    assert refusals <= {400, 405, 417, 431, 502}
