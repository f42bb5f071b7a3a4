"""One spelling of a path and of a host: what rules see is what the app gets, and what it obeys."""

import socket
from collections.abc import Iterator
from pathlib import Path
from random import Random

import pytest
from support.httpmesh import ID, Entry, HttpMesh, permit
from support.routers import ROUTERS, SECRET, installed
from support.sidecars import PATIENCE_S
from support.wire import Wire

from meshrun.proxy.intentions import HeaderMatch, Permission

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"

# What is behind /admin is for nobody, nor is what is asked of admin.test.
RULES = permit(
    Permission(action="deny", path_prefix="/admin"),
    Permission(action="deny", headers=(HeaderMatch(name="host", exact="admin.test"),)),
    Permission(action="allow", path_prefix="/"),
    Permission(action="allow", path_exact="*"),
)

each_parser = pytest.mark.parametrize("entry", ["app", "peer"])


@pytest.fixture(scope="module")
def running() -> Iterator[HttpMesh]:
    with HttpMesh(RULES) as mesh:
        yield mesh


@pytest.fixture
def mesh(running: HttpMesh) -> Iterator[HttpMesh]:
    """The mesh of this module, without connections; what a test has asked, it must answer."""
    yield running
    running.tidy()


def request(target: str, *fields: str, method: str = "GET", host: str = "server") -> bytes:
    """Return a request for a target, byte for byte."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", ID, *fields, "", ""]
    return "\r\n".join(lines).encode("latin-1")


# RFC 3986 5.2.4 takes an empty segment off before, and so does Envoy, but for nginx this is /admin.
# It gets /a/admin.
MERGED_LATE = "/a//../admin"

# What is sent, and what the app gets for it: None is a 400, "" a 403.
TARGETS: dict[str, str | None] = {
    # Dot segments.
    "/a/../b": "/b",
    "/a/./b": "/a/b",
    "/a/b/..": "/a/",
    "/a/b/.": "/a/b/",
    "/../../a": "/a",
    "/..": "/",
    "/a/...": "/a/...",
    "/a/.b/..c": "/a/.b/..c",
    "/a/../admin": "",
    "/admin/../a": "/a",
    "/a/.././admin/x": "",
    "/a/..;/admin": None,
    "/a/.;/admin": None,
    # Encoded once, and only once.
    "/%61": "/a",
    "/%61%64%6D%69%6e": "",
    "/%7e%2D%5F%2E%2e": "/~-_..",
    "/a/%2e%2e/b": "/b",
    "/a/.%2E/admin": "",
    "/%2561dmin": "/%2561dmin",
    "/a/%252e%252e/admin": "/a/%252e%252e/admin",
    "/a/%252fadmin": "/a/%252fadmin",
    "/%c3%a9": "/%C3%A9",
    "/a%20b": "/a%20b",
    "/a%0d%0aX:1": "/a%0D%0AX:1",
    "/a%3fb": "/a%3Fb",
    "/a%23b": "/a%23b",
    "/%00": None,
    "/a%00/../admin": None,
    "/%": None,
    "/%6": None,
    "/%6x": None,
    "/%u0061": None,
    "/%c0%ae%c0%ae/a": "/%C0%AE%C0%AE/a",
    # Slashes.
    "//a": "/a",
    "///a//b///": "/a/b/",
    "//admin": "",
    MERGED_LATE: "/a/admin",
    "//server/admin": "/server/admin",
    "/a%2fb": "/a/b",
    "/a%2Fb": "/a/b",
    "/%2fadmin": "",
    "/a%2f..%2fadmin": "",
    "/a%5cb": "/a/b",
    "/a\\b": "/a/b",
    "/\\admin": "",
    "/a\\..\\admin": "",
    "/a%5C..%5Cadmin": "",
    # The query is nobody's business, but must be visible.
    "/a?b=/../admin": "/a?b=/../admin",
    "/a?%2e%2e//\\|{}": "/a?%2e%2e//\\|{}",
    "/a?": "/a?",
    "/a??b?": "/a??b?",
    "/admin?": "",
    "/a?b#c": None,
    "/a?\x80": None,
    # A fragment is for whoever asks.
    "/a#": None,
    "/admin#x": None,
    # Absolute.
    "http://server/a": "/a",
    "HTTP://SERVER:80/a": "/a",
    "http://server./a": "/a",
    "http://server": "/",
    "http://server?b": "/?b",
    "https://server/a": "/a",
    "http://server//admin": "",
    "http://server/x/%2e%2e/admin": "",
    "http://server:81/a": None,
    "http://other/a": None,
    "http://server@other/a": None,
    "http://server\\@other/a": None,
    "http:/a": None,
    "http:///admin": None,
    "//[::1]/a": "/%5B::1%5D/a",
    "admin": None,
    "./admin": None,
    "/\xe9": None,
}


@each_parser
def test_each_spelling_of_a_path_is_judged_and_forwarded_as_one(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire, app = mesh.call(entry), None
    for target, seen in TARGETS.items():
        wire.say(request(target))
        if seen:
            app = app or mesh.app.accept()
            assert app.hear_request() == mesh.seen(f"GET {seen} HTTP/1.1", ID, entry=entry), target
            app.say(OK)
            assert wire.hear_answer().status == 200, target
            continue
        answer = wire.hear_answer()
        assert answer.status == (403 if seen == "" else 400), target
        if answer.status == 400:
            assert wire.hear_rest() == b""
            wire, app = mesh.call(entry), app if entry == "app" else None
    assert mesh.app.untouched()


# The host that Host, or the target, names; whether it is admin.test; what is not given is Host's.
HOSTS: dict[tuple[str, str], bool] = {
    ("", "server"): False,
    ("", "SERVER:8080"): False,
    ("", "server."): False,
    ("", "a_b.test"): False,
    ("", "127.0.0.1:80"): False,
    ("", "[::1]:8080"): False,
    ("", "badmin.test"): False,
    ("", "admin.test.example"): False,
    ("", "admin.test"): True,
    ("", "Admin.TEST"): True,
    ("", "admin.test."): True,
    ("", "admin.test:80"): True,
    ("", "admin.test:8080"): True,
    ("", "ADMIN.test.:80"): True,
    ("http://admin.test", "admin.test"): True,
    ("http://ADMIN.test:80", "admin.test."): True,
    ("http://server", "SERVER.:80"): False,
}


@each_parser
def test_a_host_is_judged_in_one_spelling_and_forwarded_in_its_own(
    mesh: HttpMesh, entry: Entry
) -> None:
    wire, app = mesh.call(entry), None
    for (origin, host), is_admin in HOSTS.items():
        wire.say(request(f"{origin}/a", host=host))
        if is_admin:
            assert wire.hear_answer().status == 403, host
            continue
        app = app or mesh.app.accept()
        assert app.hear_request() == mesh.seen("GET /a HTTP/1.1", ID, entry=entry, host=host)
        app.say(OK)
        assert wire.hear_answer().status == 200
    assert mesh.app.untouched()


@pytest.mark.parametrize(("entry", "host"), [("app", "server"), ("peer", "")])
def test_http_1_0_may_name_no_host(mesh: HttpMesh, entry: Entry, host: str) -> None:
    wire = mesh.call(entry)
    wire.say(f"GET /a/../b HTTP/1.0\r\n{ID}\r\n\r\n".encode())
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen("GET /b HTTP/1.1", ID, entry=entry, host=host)
    app.say(OK)
    assert wire.hear_rest().endswith(b"\r\n\r\nok")


@each_parser
def test_options_may_be_asked_of_the_server_as_a_whole(mesh: HttpMesh, entry: Entry) -> None:
    wire = mesh.call(entry)
    wire.say(request("*", method="OPTIONS"))
    app = mesh.app.accept()
    assert app.hear_request() == mesh.seen("OPTIONS * HTTP/1.1", ID, entry=entry)
    app.say(OK)
    assert wire.hear_answer().status == 200


# Before real servers. Whatever one of them takes for /admin is decided like /admin.

LETTERS = {letter: [letter, f"%{ord(letter):02x}", f"%{ord(letter):02X}"] for letter in "admin"}
SLASHES = ["/", "//", "/./", "/%2e/", "%2f", "%2F", "\\", "%5c", "/x/../", "/x/%2E./", "/x%2f..%2f"]
TAILS = ["", "/", "//", "/.", "?", "?x", "#x", "%2f", ";x", "/..", "/../admin", "%20", "\\", "%00"]
ORIGINS = ["", "", "", "http://server", "HTTP://server:80", "http://other"]


def spelled(rng: Random) -> str:
    """Return something that may be a spelling of /admin, and is none of many others."""
    word = "".join(
        rng.choice(LETTERS[letter]) if rng.random() < 0.4 else letter for letter in "admin"
    )
    path = rng.choice(SLASHES) + word + (rng.choice(TAILS) if rng.random() < 0.5 else "")
    return rng.choice(ORIGINS) + path


def ask_directly(port: int, target: str) -> bytes:
    """Send a request straight to a server, and return all that it says."""
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as sock:
        wire = Wire(sock)
        wire.say(request(target, "Connection: close"))
        try:
            return wire.hear_rest()
        except ConnectionResetError:
            return bytes(wire.heard)


@pytest.mark.parametrize("name", ROUTERS)
def test_what_a_server_takes_for_admin_is_decided_like_admin(
    mesh: HttpMesh, tmp_path: Path, name: str
) -> None:
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    rng = Random(2024)
    found = 0
    with ROUTERS[name][0](tmp_path) as port:
        mesh.serve_on(port)
        try:
            wire = mesh.call("peer")
            for target in [*TARGETS, *(spelled(rng) for _ in range(300))]:
                is_admin = SECRET in ask_directly(port, target)
                wire.say(request(target))
                answer = wire.hear_answer()
                assert SECRET not in answer.raw, target
                if is_admin and target != MERGED_LATE:
                    found += 1
                    assert answer.status in (400, 403), target
                if answer.values("connection") == ["close"]:
                    wire = mesh.call("peer")
        finally:
            mesh.serve_on(mesh.app.port)
    assert found > 5
