"""What an app is told of its caller: by the sidecars, and never by the caller."""

import re
from collections.abc import Iterator

import pytest
from support.httpmesh import ENTRIES, ID, Entry, HttpMesh
from support.sidecars import allow
from support.wire import call_as_peer
from support.wire2 import Fields, Wire2

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
ADMIN = "spiffe://test.mesh/ns/default/dc/local/svc/admin"
UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

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


@pytest.fixture(scope="module", params=["http2", "grpc"])
def multiplexed(request: pytest.FixtureRequest) -> Iterator[HttpMesh]:
    """A mesh whose app speaks HTTP/2."""
    with HttpMesh(protocol=request.param) as mesh:
        yield mesh


def exchange(
    mesh: HttpMesh, entry: Entry, *fields: str, line: str = "GET /a HTTP/1.1", body: bytes = b""
) -> bytes:
    """Send a request with these fields, answer it, and return what the app saw."""
    with mesh.call(entry) as wire:
        wire.say("\r\n".join([line, "Host: server", *fields, "", ""]).encode() + body)
        app = mesh.app.accept()
        seen = app.hear_request()
        app.say(OK)
        assert wire.hear_answer().body == b"ok"
    mesh.tidy()
    return seen


FORGED: dict[str, tuple[str, ...]] = {
    "an identity": (f"X-Mesh-Client-Id: {ADMIN}",),
    "a certificate": (f"X-Forwarded-Client-Cert: URI={ADMIN}",),
    "in small letters": (f"x-mesh-client-id: {ADMIN}", f"x-forwarded-client-cert: URI={ADMIN}"),
    "in capitals": (f"X-MESH-CLIENT-ID: {ADMIN}", f"X-FORWARDED-CLIENT-CERT: URI={ADMIN}"),
    "in both": (f"x-MESH-client-ID: {ADMIN}", f"X-forwarded-CLIENT-cert: URI={ADMIN}"),
    "twice": (f"X-Mesh-Client-Id: {ADMIN}", "X-Mesh-Client-Id: x", "x-mesh-client-id:") * 2,
    "and named in Connection": (
        "Connection: X-Mesh-Client-Id, x-forwarded-client-cert",
        f"X-Mesh-Client-Id: {ADMIN}",
        f"X-Forwarded-Client-Cert: URI={ADMIN}",
    ),
    "or only named in Connection": ("Connection: x-mesh-client-id, X-Forwarded-Client-Cert",),
    "with dots": (f"X.Mesh.Client.Id: {ADMIN}", f"X-Forwarded-Client.Cert: URI={ADMIN}"),
    "with other separators": (f"X~Mesh+Client`Id: {ADMIN}", f"X-.Forwarded-ClientCert|: {ADMIN}"),
    "with dots, and named in Connection": (
        "Connection: X.Mesh.Client.Id, X-Mesh-Client-Id",
        f"X.Mesh.Client.Id: {ADMIN}",
    ),
    "with nothing in it": ("X-Mesh-Client-Id:", "X-Forwarded-Client-Cert: "),
    "with a list in it": (f"X-Forwarded-Client-Cert: By=a;URI={ADMIN},By=b;URI={ADMIN}",),
}


@each_entry
@pytest.mark.parametrize("case", FORGED)
def test_what_a_caller_says_of_itself_is_replaced(mesh: HttpMesh, entry: Entry, case: str) -> None:
    seen = exchange(mesh, entry, "X-Before: 1", *FORGED[case], "X-Behind: 2", ID)
    assert seen == mesh.seen("GET /a HTTP/1.1", "X-Before: 1", "X-Behind: 2", ID, entry=entry)


@each_entry
def test_what_a_caller_says_of_itself_behind_a_body_is_dropped(
    mesh: HttpMesh, entry: Entry
) -> None:
    seen = exchange(
        mesh,
        entry,
        ID,
        "Trailer: X-Mesh-Client-Id",
        "Transfer-Encoding: chunked",
        line="POST /a HTTP/1.1",
        body=b"1\r\na\r\n0\r\n"
        + f"X-Mesh-Client-Id: {ADMIN}\r\nx-FORWARDED-client-cert: URI={ADMIN}\r\n".encode()
        + f"X.Mesh.Client.Id: {ADMIN}\r\n".encode()
        + b"X-Request-Id: 2\r\nX-Kept: 1\r\n\r\n",
    )
    assert seen == mesh.seen(
        "POST /a HTTP/1.1",
        ID,
        "Trailer: X-Mesh-Client-Id",
        entry=entry,
        behind=["Transfer-Encoding: chunked"],
        body=b"1\r\na\r\n0\r\nX-Kept: 1\r\n\r\n",
    )


@each_entry
@pytest.mark.parametrize(
    "name", ["X_Mesh_Client_Id", "X-Mesh-Client_Id", "x_forwarded-client-cert", "HTTP_X"]
)
def test_an_underscore_that_some_apps_take_for_a_hyphen_is_refused(
    mesh: HttpMesh, entry: Entry, name: str
) -> None:
    wire = mesh.call(entry)
    wire.say(f"GET /a HTTP/1.1\r\nHost: server\r\n{name}: {ADMIN}\r\n\r\n".encode())
    assert wire.hear_answer().status == 400
    assert wire.hear_rest() == b""
    wire = mesh.call(entry)
    trailer = f"0\r\n{name}: {ADMIN}\r\n\r\n"
    wire.say(
        f"POST /a HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n{trailer}".encode()
    )
    assert wire.hear_answer().status == 400
    assert wire.hear_rest() == b""


def test_each_caller_is_told_apart_on_a_connection_of_its_own(mesh: HttpMesh) -> None:
    mesh.server.intend(allow("*", "server"))
    try:
        for service in ("client", "admin", "client"):
            leaf = mesh.mesh.leaf(service)
            with call_as_peer(mesh.mesh, mesh.server, leaf) as wire:
                wire.say(b"GET /a HTTP/1.1\r\nHost: server\r\n\r\n")
                app = mesh.app.accept()
                said = f"X-Mesh-Client-Id: {ADMIN.replace('admin', service)}\r\n".encode()
                assert said in app.hear_request()
                app.say(OK)
                assert wire.hear_answer().body == b"ok"
            assert app.hear_rest() == b""  # nobody else comes over it
    finally:
        mesh.server.intend(*mesh.rules)


# What is passed through, or made where it is missing.


@each_entry
def test_a_request_without_an_id_gets_one_of_its_own(mesh: HttpMesh, entry: Entry) -> None:
    ids = set()
    for _ in range(3):
        seen = exchange(mesh, entry).decode()
        (made,) = re.findall(r"^x-request-id: (.*)\r$", seen, re.IGNORECASE | re.MULTILINE)
        assert UUID.fullmatch(made)
        assert seen.encode() == mesh.seen("GET /a HTTP/1.1", f"X-Request-Id: {made}", entry=entry)
        ids.add(made)
    assert len(ids) == 3


@each_entry
@pytest.mark.parametrize(
    "fields",
    [
        ("x-request-ID: anything, 1",),
        ("X-Request-Id:",),
        ("X-Request-Id: 1", "X-Request-Id: 2"),
    ],
)
def test_an_id_that_is_there_is_kept(mesh: HttpMesh, entry: Entry, fields: tuple[str, ...]) -> None:
    written = [field if field[-1] != ":" else f"{field} " for field in fields]
    seen = exchange(mesh, entry, *fields)
    assert seen == mesh.seen("GET /a HTTP/1.1", *written, entry=entry)


@each_entry
def test_traces_pass_untouched(mesh: HttpMesh, entry: Entry) -> None:
    fields = (
        ID,
        "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        "tracestate: rojo=00f067aa0ba902b7,congo=t61rcWkgMzE",
        "TraceState: other=1",
        "b3: 80f198ee56343ba864fe8b2a57d3eff7-e457b5a2e4d86bd1-1-05e3ac9a4f6e3b90",
        "X-B3-TraceId: 80f198ee56343ba864fe8b2a57d3eff7",
        "X-B3-SpanId: e457b5a2e4d86bd1",
        "x-b3-parentspanid: 05e3ac9a4f6e3b90",
        "X-B3-Sampled: 1",
        "X-B3-Flags: 1",
        "baggage: a=b;c, d=e",
        "X-Forwarded-For: 10.0.0.1",
        "Forwarded: for=10.0.0.1",
    )
    seen = exchange(mesh, entry, *fields)
    assert seen == mesh.seen("GET /a HTTP/1.1", *fields, entry=entry)


# The same over HTTP/2 and for gRPC.


def seen2(mesh: HttpMesh, entry: Entry, *fields: tuple[str, str], method: str = "GET") -> Fields:
    """Return the head that the app must see: all of it."""
    told = [tuple(field.split(": ", 1)) for field in mesh.identity(entry)]
    return [
        (":method", method),
        (":scheme", "http"),
        (":path", "/a"),
        (":authority", "server"),
        *fields,
        *((name.lower(), value) for name, value in told),
    ]


@pytest.fixture
def mesh2(multiplexed: HttpMesh) -> Iterator[HttpMesh]:
    """The mesh of HTTP/2, without connections."""
    yield multiplexed
    multiplexed.tidy()


HIDDEN = [
    "x_mesh_client_id",
    "x-mesh-client_id",
    "x_forwarded_client_cert",
    "x_forwarded-client-cert",
]
REQUEST_ID = ("x-request-id", "1")


@each_entry
def test_what_a_stream_says_of_its_caller_is_replaced(mesh2: HttpMesh, entry: Entry) -> None:
    caller = Wire2(mesh2.call(entry), client=True)
    forged = [("x-mesh-client-id", ADMIN), ("x-forwarded-client-cert", f"URI={ADMIN}")]
    app = None
    dotted = [(name.replace("-", "."), value) for name, value in forged]
    for fields in (forged, forged * 2, [(name, "") for name, _ in forged], dotted):
        number = caller.ask("/a", ("x-before", "1"), *fields, REQUEST_ID)
        app = app or Wire2(mesh2.app.accept(), client=False)
        heard, head = app.hear_request()
        assert head == seen2(mesh2, entry, ("x-before", "1"), REQUEST_ID)
        app.answer(heard)
        assert caller.hear_answer(number).body == b"ok"


@each_entry
def test_what_a_stream_says_of_its_caller_behind_a_body_is_dropped(
    mesh2: HttpMesh, entry: Entry
) -> None:
    caller = Wire2(mesh2.call(entry), client=True)
    number = caller.ask("/a", REQUEST_ID, method="POST", end=False)
    caller.say(number, b"body")
    caller.head(
        number,
        [
            ("x-kept", "1"),
            ("x-mesh-client-id", ADMIN),
            ("x-forwarded-client-cert", f"URI={ADMIN}"),
            ("x.mesh.client.id", ADMIN),
            ("x-denied", "a rule looks at it"),
            *((name, ADMIN) for name in HIDDEN if mesh2.protocol == "grpc"),
        ],
        end=True,
    )
    app = Wire2(mesh2.app.accept(), client=False)
    heard, head = app.hear_request()
    assert head == seen2(mesh2, entry, REQUEST_ID, method="POST")
    assert app.hear_trailers(heard) == [("x-kept", "1")]
    app.answer(heard)
    assert caller.hear_answer(number).body == b"ok"


@each_entry
@pytest.mark.parametrize("name", HIDDEN)
def test_an_underscore_hides_no_caller(mesh2: HttpMesh, entry: Entry, name: str) -> None:
    caller = Wire2(mesh2.call(entry), client=True)
    number = caller.ask("/a", (name, ADMIN), ("x_other", "1"), REQUEST_ID)
    if mesh2.protocol == "http2":
        assert caller.hear_answer(number).status == 400
        assert mesh2.app.untouched()
        return
    # To gRPC such names are of metadata like others; these are not.
    app = Wire2(mesh2.app.accept(), client=False)
    heard, head = app.hear_request()
    assert head == seen2(mesh2, entry, ("x_other", "1"), REQUEST_ID)
    app.answer(heard)
    assert caller.hear_answer(number).body == b"ok"


@each_entry
def test_streams_have_ids_and_keep_theirs(mesh2: HttpMesh, entry: Entry) -> None:
    caller = Wire2(mesh2.call(entry), client=True)
    trace = ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")
    number = caller.ask("/a", trace, ("b3", "0"))
    app = Wire2(mesh2.app.accept(), client=False)
    heard, head = app.hear_request()
    made = dict(head)["x-request-id"]
    assert UUID.fullmatch(made)
    assert head == seen2(mesh2, entry, trace, ("b3", "0"), ("x-request-id", made))
    app.answer(heard)
    assert caller.hear_answer(number).body == b"ok"


@each_entry
@pytest.mark.parametrize(
    "field",
    [
        ("connection", "x-mesh-client-id"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("keep-alive", "1"),
        ("proxy-connection", "close"),
        ("te", "gzip"),
        ("host", "other"),
        ("x", "1\r\nx-mesh-client-id: x"),
        ("x", "1\n2"),
        ("x", "1\0"),
        ("x", " 1"),
        ("x: y", "1"),
        ("x\r\ny", "1"),
        ("X-Capital", "1"),
        ("", "1"),
        (":path", "/b"),
        (":status", "200"),
        ("content-length", "5"),
    ],
)
def test_a_stream_that_would_be_another_message_on_http_1_is_refused_alone(
    mesh2: HttpMesh, entry: Entry, field: tuple[str, str]
) -> None:
    caller = Wire2(mesh2.call(entry), client=True)
    refused = caller.ask("/a", field, REQUEST_ID)
    answer = caller.hear_answer(refused)
    if answer.status == 200:  # trailers-only: INTERNAL
        assert answer.values("grpc-status") == ["13"]
    else:
        assert answer.status == 400
    assert mesh2.app.untouched()
    number = caller.ask("/a", REQUEST_ID)
    app = Wire2(mesh2.app.accept(), client=False)
    heard, head = app.hear_request()
    assert head == seen2(mesh2, entry, REQUEST_ID)
    app.answer(heard)
    assert caller.hear_answer(number).body == b"ok"
