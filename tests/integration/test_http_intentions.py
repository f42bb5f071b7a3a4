"""Intentions about requests, and what a change of them does to those that are under way."""

from collections.abc import Iterator

import msgspec
import pytest
from h2.errors import ErrorCodes
from h2.events import DataReceived, ResponseReceived
from support.httpmesh import ENTRIES, ID, Entry, HttpMesh, permit
from support.sidecars import allow, deny, listen, port_of
from support.wire import Wire, call_as_peer
from support.wire2 import Wire2

from meshrun.proxy.intentions import HeaderMatch, Intention, Permission
from meshrun.proxy.messages import Denied

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
BEGUN = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun"
DENIAL = (
    b"HTTP/1.1 403 Forbidden\r\n"
    b"content-type: text/plain; charset=utf-8\r\n"
    b"Content-Length: 30\r\n\r\n"
    b"this call is not allowed here\n"
)
SWITCHING = b"HTTP/1.1 101 Switching\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
UPGRADE = ("Connection: Upgrade", "Upgrade: websocket")

ALLOW = allow("client", "server")
DENY = deny("client", "server")
ONLY_B = permit(Permission(action="allow", path_exact="/b"))

each_entry = pytest.mark.parametrize("entry", ENTRIES)


@pytest.fixture(scope="module")
def running() -> Iterator[HttpMesh]:
    with HttpMesh(ALLOW) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def running2() -> Iterator[HttpMesh]:
    with HttpMesh(ALLOW, protocol="http2") as mesh:
        yield mesh


@pytest.fixture(scope="module")
def running_grpc() -> Iterator[HttpMesh]:
    with HttpMesh(ALLOW, protocol="grpc") as mesh:
        yield mesh


def tidied(mesh: HttpMesh) -> Iterator[HttpMesh]:
    yield mesh
    mesh.tidy()
    mesh.server.intend(ALLOW)


@pytest.fixture
def mesh(running: HttpMesh) -> Iterator[HttpMesh]:
    """A client that may call its server, until a test says otherwise."""
    yield from tidied(running)


@pytest.fixture
def mesh2(running2: HttpMesh) -> Iterator[HttpMesh]:
    """The same over HTTP/2."""
    yield from tidied(running2)


@pytest.fixture
def mesh_grpc(running_grpc: HttpMesh) -> Iterator[HttpMesh]:
    """The same for gRPC."""
    yield from tidied(running_grpc)


def ask(wire: Wire, line: str, *fields: str, body: bytes = b"") -> None:
    """Send a request."""
    wire.say("\r\n".join([f"{line} HTTP/1.1", "Host: server", ID, *fields, "", ""]).encode() + body)


def asked(mesh: HttpMesh, entry: Entry, line: str, *fields: str) -> tuple[Wire, Wire]:
    """Send a request, and return the ends of the caller and of the app, which has heard it."""
    wire = mesh.call(entry)
    ask(wire, line, *fields)
    app = mesh.app.accept()
    app.hear_head()
    return wire, app


def status(wire: Wire, line: str, *fields: str) -> int:
    """Send a request that the app does not hear, and return what is answered."""
    ask(wire, line, *fields)
    return wire.hear_answer().status


def converses(mesh: HttpMesh, entry: Entry, wire: Wire, app: Wire, path: str) -> None:
    """Send a request over connections that stand, and answer it."""
    ask(wire, f"GET {path}")
    assert app.hear_request() == mesh.seen(f"GET {path} HTTP/1.1", ID, entry=entry)
    app.say(OK)
    assert wire.hear_answer().raw == OK


# What is denied, and what is said of it.


@each_entry
@pytest.mark.parametrize(
    "intentions",
    [(DENY,), (deny("*", "*"),), (ONLY_B,), ()],
    ids=["the pair", "everybody", "by its path", "by default"],
)
def test_a_denial_is_a_403_that_names_neither_rule_nor_identity(
    mesh: HttpMesh, entry: Entry, intentions: tuple[Intention, ...]
) -> None:
    mesh.server.intend(*intentions)
    wire = mesh.call(entry)
    for _ in range(2):
        ask(wire, "GET /a")
        assert wire.hear_answer().raw == DENIAL
    assert mesh.app.untouched()


def test_a_denial_is_reported_with_who_asked_for_what(mesh: HttpMesh) -> None:
    leaf = mesh.mesh.leaf("stranger")
    with call_as_peer(mesh.mesh, mesh.server, leaf) as wire:
        for _ in range(3):
            ask(wire, "GET /a/../secret?token=x")
            assert wire.hear_answer().status == 403
    first = mesh.server.expect(Denied, lambda d: d.source == "stranger")
    assert first == Denied(
        kind="intention",
        source="stranger",
        reason=first.reason,
        by_default=True,
        request="GET /secret",
    )
    more = mesh.server.expect(Denied, lambda d: d.source == "stranger")
    assert more.count == 2


# Of a request, what rules can be about; and whether it may be made.
PERMISSIONS = permit(
    Permission(action="deny", headers=(HeaderMatch(name="x-debug", present=True),)),
    Permission(
        action="deny",
        path_prefix="/staff",
        headers=(HeaderMatch(name="x-role", exact="staff", invert=True),),
    ),
    Permission(action="allow", methods=("GET", "HEAD"), path_prefix="/read"),
    Permission(action="allow", methods=("POST",), path_exact="/write"),
    Permission(action="allow", path_regex="/v[0-9]+/items"),
    Permission(action="allow", path_prefix="/staff"),
    Permission(
        action="allow",
        path_exact="/tenant",
        headers=(
            HeaderMatch(name="X-Tenant", prefix="acme-"),
            HeaderMatch(name="x-mode", contains="SAFE", ignore_case=True),
        ),
    ),
)
ASKED: list[tuple[bool, str, tuple[str, ...]]] = [
    (True, "GET /read", ()),
    (True, "HEAD /reader", ()),
    (False, "POST /read", ()),
    (False, "DELETE /read", ()),
    (False, "GET /write", ()),
    (True, "POST /write", ("Content-Length: 0",)),
    (True, "POST /write?x=1", ("Content-Length: 0",)),
    (False, "POST /write/", ("Content-Length: 0",)),
    (True, "PUT /v12/items", ("Content-Length: 0",)),
    (False, "GET /v12/items/3", ()),
    (False, "GET /x/v12/items", ()),
    (False, "GET /", ()),
    (False, "GET /read", ("X-Debug: 0",)),
    (False, "GET /read", ("x-DEBUG:",)),
    (True, "GET /read", ("Connection: x-debug", "X-Debug: 1")),  # of the connection: not the app's
    (True, "GET /staff", ("X-Role: staff",)),
    (False, "GET /staff", ("X-Role: guest",)),
    (False, "GET /staff", ()),
    (False, "GET /staff", ("X-Role: staff, guest",)),
    (False, "GET /staff", ("X-Role: staff", "X-Role: guest")),
    (False, "GET /staff", ("Connection: X-Role", "X-Role: staff")),
    (True, "GET /tenant", ("x-tenant: acme-1", "X-Mode: Unsafe")),
    (False, "GET /tenant", ("x-tenant: acme-1",)),
    (False, "GET /tenant", ("x-tenant: other", "X-Mode: safe")),
]


@each_entry
def test_permissions_are_about_methods_paths_and_headers(mesh: HttpMesh, entry: Entry) -> None:
    mesh.server.intend(PERMISSIONS)
    wire, app = mesh.call(entry), None
    for allowed, line, fields in ASKED:
        ask(wire, line, *fields)
        if allowed:
            app = app or mesh.app.accept()
            app.hear_request()
            app.say(b"HTTP/1.1 204 No Content\r\n\r\n")
        answer = wire.hear_answer(line.split()[0])
        assert answer.status == (204 if allowed else 403), (line, fields)
        assert app is None or app.unheard == b""
    assert mesh.app.untouched()


@each_entry
def test_a_rule_on_trial_lets_through_and_is_reported(mesh: HttpMesh, entry: Entry) -> None:
    mesh.server.intend(permit(Permission(action="deny", path_prefix=f"/{entry}"), dry_run=True))
    wire, app = asked(mesh, entry, f"GET /{entry}/x")
    app.say(OK)
    assert wire.hear_answer().raw == OK
    report = mesh.server.expect(Denied, lambda d: d.dry_run)
    assert (report.source, report.live) == ("client", False)
    assert report.request.startswith("GET /")


# A change, and the next request.


@each_entry
def test_the_next_request_of_a_connection_is_decided_by_the_new_intentions(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire, app = asked(mesh, entry, "GET /b")
    app.say(OK)
    assert wire.hear_answer().raw == OK
    for rule, denied in ((DENY, True), (ONLY_B, False), (deny("*", "*"), True), (ALLOW, False)):
        mesh.server.intend(rule)
        if denied:
            assert status(wire, "GET /b") == 403
        else:
            converses(mesh, entry, wire, app, "/b")
    assert mesh.app.untouched()


@each_entry
def test_a_request_that_waits_behind_another_is_decided_when_its_turn_comes(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire, app = asked(mesh, entry, "GET /b")
    ask(wire, "GET /a")
    mesh.server.intend(ONLY_B)
    app.say(OK)
    assert wire.hear_answer().raw == OK
    assert wire.hear_answer().raw == DENIAL
    assert app.unheard == b""


# A change, and what is under way.


@each_entry
def test_a_deny_breaks_off_a_response(mesh: HttpMesh, entry: Entry) -> None:
    wire, app = asked(mesh, entry, "GET /a")
    app.say(BEGUN)
    wire.hear_head()
    assert wire.hear(5) == b"begun"
    mesh.server.intend(ONLY_B)
    assert wire.hear_break() == b""
    assert app.hear_break() == b""


def test_what_a_deny_breaks_off_is_reported(mesh: HttpMesh) -> None:
    with asked(mesh, "app", "GET /a?token=x")[1] as app:
        app.say(BEGUN)
        mesh.server.snapshot = msgspec.structs.replace(
            mesh.server.snapshot, intentions=(DENY,), version=mesh.server.snapshot.version + 1
        )
        mesh.server.send(mesh.server.snapshot)
        report = mesh.server.expect(Denied, lambda d: d.live and not d.by_default)
        assert (report.kind, report.source, report.dry_run) == ("intention", "client", False)
        assert app.hear_break() == b""


@each_entry
def test_a_deny_breaks_off_a_request_half_sent(mesh: HttpMesh, entry: Entry) -> None:
    wire, app = asked(mesh, entry, "POST /a", "Content-Length: 100")
    wire.say(b"half")
    assert app.hear(4) == b"half"
    mesh.server.intend(DENY)
    assert app.hear_break() == b""
    if entry == "app":  # what may not be made twice is not asked again
        assert wire.hear_answer().status == 503
    else:
        assert wire.hear_break() == b""
    assert mesh.app.untouched()


@each_entry
def test_a_deny_breaks_off_a_request_without_an_answer(mesh: HttpMesh, entry: Entry) -> None:
    wire, app = asked(mesh, entry, "GET /a")
    mesh.server.intend(DENY)
    assert app.hear_break() == b""
    if entry == "app":  # asked again, it is answered
        assert wire.hear_answer().raw == DENIAL
    else:
        assert wire.hear_break() == b""
    assert mesh.app.untouched()


@each_entry
def test_a_deny_ends_a_request_that_waits_for_its_app(mesh: HttpMesh, entry: Entry) -> None:
    with listen() as sock:
        absent = port_of(sock)
    mesh.serve_on(absent)
    try:
        wire = mesh.call(entry)
        ask(wire, "POST /a", "Content-Length: 0")
        with call_as_peer(mesh.mesh, mesh.server, mesh.leaf) as other:  # behind it
            assert status(other, "GET /a", "Expect: nonsense") == 417
        mesh.server.intend(DENY)
        if entry == "app":
            assert wire.hear_answer().status in (403, 503)
        else:
            assert wire.hear_break() == b""
    finally:
        mesh.serve_on(mesh.app.port)
    assert mesh.app.untouched()


@each_entry
def test_a_deny_breaks_off_an_upgraded_connection(mesh: HttpMesh, entry: Entry) -> None:
    wire, app = asked(mesh, entry, "GET /a", *UPGRADE)
    app.say(SWITCHING)
    wire.hear_head()
    wire.say(b"\x81\x00")
    assert app.hear(2) == b"\x81\x00"
    mesh.server.intend(ONLY_B)
    assert wire.hear_break() == b""
    assert app.hear_break() == b""


@pytest.mark.parametrize("app_first", [True, False])
def test_a_deny_breaks_off_an_upgraded_connection_half_ended(
    mesh: HttpMesh, app_first: bool
) -> None:
    wire, app = asked(mesh, "app", "GET /a", *UPGRADE)
    app.say(SWITCHING)
    wire.hear_head()
    first, other = (app, wire) if app_first else (wire, app)
    first.end()
    assert other.hear_rest() == b""
    mesh.server.intend(DENY)
    assert first.hear_break() == b""
    with pytest.raises(OSError, match=r"reset|Broken pipe"):
        say_for_ever(other)


def say_for_ever(wire: Wire) -> None:
    """Send until it fails."""
    while True:
        wire.say(b"x" * 1000)


@each_entry
def test_a_deny_breaks_off_those_that_it_forbids_alone(mesh: HttpMesh, entry: Entry) -> None:
    kept = [asked(mesh, entry, "GET /b"), asked(mesh, entry, "GET /a", "X-Role: staff")]
    cut = [asked(mesh, entry, "GET /a"), asked(mesh, entry, "GET /a", "X-Role: guest")]
    for wire, app in kept + cut:
        app.say(BEGUN)
        wire.hear_head()
        assert wire.hear(5) == b"begun"
    mesh.server.intend(
        permit(
            Permission(action="allow", path_exact="/b"),
            Permission(action="allow", headers=(HeaderMatch(name="x-role", exact="staff"),)),
        )
    )
    for wire, app in cut:
        assert wire.hear_break() == b""
        assert app.hear_break() == b""
    for wire, app in kept:
        app.say(b"x" * 95)
        assert wire.hear(95) == b"x" * 95
        converses(mesh, entry, wire, app, "/b")


@each_entry
def test_an_allow_that_stays_one_breaks_nothing(mesh: HttpMesh, entry: Entry) -> None:
    idle, idle_app = asked(mesh, entry, "GET /b")
    idle_app.say(OK)
    assert idle.hear_answer().raw == OK
    slow, slow_app = asked(mesh, entry, "GET /b") if entry != "app" else (idle, idle_app)
    if entry == "app":  # a request takes the way that is idle
        ask(slow, "GET /b")
        slow_app.hear_head()
    slow_app.say(BEGUN)
    slow.hear_head()
    assert slow.hear(5) == b"begun"
    upgraded, upgraded_app = asked(mesh, entry, "GET /b", *UPGRADE)
    upgraded_app.say(SWITCHING)
    upgraded.hear_head()
    trial = permit(Permission(action="deny", path_prefix="/b"), dry_run=True)
    for rule in (ONLY_B, allow("*", "server"), trial, ALLOW):
        mesh.server.intend(rule)
        slow_app.say(b"x")
        assert slow.hear(1) == b"x"
        upgraded.say(b"y")
        assert upgraded_app.hear(1) == b"y"
        upgraded_app.say(b"z")
        assert upgraded.hear(1) == b"z"
    slow_app.say(b"x" * 91)
    assert slow.hear(91) == b"x" * 91
    converses(mesh, entry, idle, idle_app, "/b")
    assert mesh.app.untouched()


# HTTP/2: a stream, and not its connection.


def begin(caller: Wire2, app: Wire2, path: str, *fields: tuple[str, str]) -> tuple[int, int]:
    """Have a stream answered to its half; return its number to the caller and to the app."""
    number = caller.ask(path, *fields)
    heard, _ = app.hear_request()
    app.head(heard, [(":status", "200")])
    app.say(heard, b"begun")
    caller.hear(ResponseReceived, number)
    assert caller.hear(DataReceived, number).data == b"begun"
    return number, heard


def meet(mesh: HttpMesh, entry: Entry) -> tuple[Wire2, Wire2]:
    """Return both ends of connections over which a request has gone."""
    caller = Wire2(mesh.call(entry), client=True)
    number = caller.ask("/b")
    app = Wire2(mesh.app.accept(), client=False)
    heard, _ = app.hear_request()
    app.answer(heard)
    assert caller.hear_answer(number).body == b"ok"
    return caller, app


@each_entry
def test_a_deny_resets_the_streams_that_it_forbids_alone(mesh2: HttpMesh, entry: Entry) -> None:
    caller, app = meet(mesh2, entry)
    staff = ("x-role", "staff")
    kept = [begin(caller, app, "/b"), begin(caller, app, "/a", staff)]
    cut = [begin(caller, app, "/a"), begin(caller, app, "/a", ("x-role", "guest"))]
    mesh2.server.intend(
        permit(
            Permission(action="allow", path_exact="/b"),
            Permission(action="allow", headers=(HeaderMatch(name="x-role", exact="staff"),)),
        )
    )
    for number, heard in cut:
        assert caller.hear_reset(number) == ErrorCodes.INTERNAL_ERROR
        assert app.hear_reset(heard) == ErrorCodes.CANCEL
    for number, heard in kept:
        app.say(heard, b" and ended", end=True)
        assert caller.hear_body(number) == b" and ended"
    refused = caller.ask("/a")
    assert caller.hear_answer(refused).status == 403
    number, heard = begin(caller, app, "/b")
    app.say(heard, b"", end=True)
    assert caller.hear_body(number) == b""
    assert mesh2.app.untouched()


@each_entry
def test_streams_are_judged_one_by_one(mesh2: HttpMesh, entry: Entry) -> None:
    mesh2.server.intend(PERMISSIONS)
    caller = Wire2(mesh2.call(entry), client=True)
    app: Wire2 | None = None
    for allowed, line, fields in ASKED:
        if any(field.startswith("Connection") for field in fields):
            continue
        method, path = line.split()
        pairs = [field.lower().split(":", 1) for field in fields if "Content" not in field]
        number = caller.ask(path, *((n, v.strip()) for n, v in pairs), method=method)
        if allowed:
            app = app or Wire2(mesh2.app.accept(), client=False)
            heard, _ = app.hear_request()
            app.head(heard, [(":status", "204")], end=True)
        assert caller.hear_answer(number).status == (204 if allowed else 403), (line, fields)
    assert mesh2.app.untouched()


@each_entry
def test_a_stream_that_is_denied_is_told_no_more_than_a_request(
    mesh2: HttpMesh, entry: Entry
) -> None:
    mesh2.server.intend(DENY)
    caller = Wire2(mesh2.call(entry), client=True)
    bare = caller.ask("/a")
    answer = caller.hear_answer(bare)
    assert (answer.status, answer.body) == (403, b"this call is not allowed here\n")
    assert answer.fields == [
        ("content-type", "text/plain; charset=utf-8"),
        ("content-length", "30"),
    ]
    # With a body that nobody waits for, too.
    half = caller.ask("/a", method="POST", end=False)
    assert caller.hear_answer(half).status == 403
    assert caller.hear_reset(half) == ErrorCodes.NO_ERROR
    assert caller.hear_answer(caller.ask("/a", method="HEAD")).body == b""
    assert mesh2.app.untouched()


@each_entry
def test_a_call_of_grpc_that_is_denied_ends_with_permission_denied(
    mesh_grpc: HttpMesh, entry: Entry
) -> None:
    mesh_grpc.server.intend(permit(Permission(action="allow", path_prefix="/shop.Cart/")))
    caller = Wire2(mesh_grpc.call(entry), client=True)
    number = caller.ask(
        "/shop.Admin/Drop",
        ("content-type", "application/grpc"),
        ("te", "trailers"),
        method="POST",
        end=False,
    )
    answer = caller.hear_answer(number)
    assert (answer.status, answer.body) == (200, b"")
    assert answer.fields == [
        ("content-type", "application/grpc"),
        ("grpc-status", "7"),
        ("grpc-message", "this call is not allowed here"),
    ]
    assert caller.hear_reset(number) == ErrorCodes.NO_ERROR
    assert mesh_grpc.app.untouched()


@each_entry
def test_a_stream_of_grpc_is_reset_by_a_deny_and_others_go_on(
    mesh_grpc: HttpMesh, entry: Entry
) -> None:
    caller, app = meet(mesh_grpc, entry)
    cut = begin(caller, app, "/shop.Admin/Watch")
    kept = begin(caller, app, "/shop.Cart/Watch")
    mesh_grpc.server.intend(permit(Permission(action="allow", path_prefix="/shop.Cart/")))
    assert caller.hear_reset(cut[0]) == ErrorCodes.INTERNAL_ERROR
    assert app.hear_reset(cut[1]) == ErrorCodes.CANCEL
    app.say(kept[1], b"more")
    assert caller.hear(DataReceived, kept[0]).data == b"more"
    app.head(kept[1], [("grpc-status", "0")], end=True)
    assert caller.hear_trailers(kept[0]) == [("grpc-status", "0")]
