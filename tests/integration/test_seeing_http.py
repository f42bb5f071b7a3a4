"""Access log, tap and metrics of a mesh of real processes, over HTTP/1, HTTP/2 and gRPC."""

import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from http.client import HTTPConnection, HTTPException
from pathlib import Path

import grpc
import httpx
import msgspec
import pytest
from support.apps import reset
from support.exposition import Family
from support.mesh import PATIENCE_S, Mesh
from support.seeing import access_log, await_entry, tap, tap_command, tapping, whole_metrics
from support.traffic import connect, wait_until

from meshrun.supervisor.access import Entry

CONFIG = """
[mesh]
name = "shop"
access_log = true

[apps.web]
command = "${PYTHON} ${APPS}/web.py"
protocol = "http"
ready = { tcp = true }

[apps.double]
command = "${PYTHON} ${APPS}/web.py"
protocol = "http"
workers = 2
ready = { tcp = true }

[apps.greeter]
command = "${PYTHON} ${APPS}/greeter.py"
protocol = "grpc"
ready = { tcp = true }

[apps.multiplexed]
command = "${PYTHON} ${APPS}/greeter.py"
protocol = "http2"
ready = { tcp = true }

[apps.deaf]
command = "${PYTHON} ${APPS}/idle.py"
protocol = "http"
connect_timeout = "100ms"

[apps.absent]
command = "${PYTHON} ${APPS}/idle.py"
protocol = "http"

[apps.client]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = [
    "web", "double", "greeter", "multiplexed", { service = "deaf", retries = 0 },
    { service = "absent", connect_timeout = "100ms" },
]

[apps.intruder]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["web", "greeter"]

[apps.trial]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["web"]

[[intentions]]
from = "client"
to = "*"

[[intentions]]
from = "client"
to = "web"
permissions = [
    { action = "deny", path_prefix = "/admin" },
    { action = "allow", path_prefix = "/" },
]

[[intentions]]
from = "client"
to = "multiplexed"
permissions = [
    { action = "deny", path_prefix = "/admin" },
    { action = "allow", path_prefix = "/" },
]

[[intentions]]
from = "trial"
to = "web"
action = "deny"
dry_run = true
"""
SERVICES = frozenset(
    {"web", "double", "greeter", "multiplexed", "deaf", "absent", "client", "intruder", "trial"}
)
CLIENT = "spiffe://shop.mesh/ns/default/dc/local/svc/client"

Series = tuple[str, ...]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Apps that speak HTTP, and who calls them."""
    with Mesh(tmp_path_factory.mktemp("mesh"), CONFIG) as running:
        running.up()
        running.cli("stop", "absent", check=True)
        yield running


def upstream(mesh: Mesh, app: str, name: str = "web") -> int:
    """Return where an app reaches one of its upstreams."""
    return mesh.upstream(f"{app}.1", name)[1]


def ask(
    port: int,
    target: str = "/",
    *,
    method: str = "GET",
    headers: Mapping[str, str] = {},
    body: bytes | None = None,
) -> tuple[int, bytes]:
    """Make a request over a new connection; returns status and body."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        connection.request(method, target, body, dict(headers))
        response = connection.getresponse()
        return response.status, response.read()


def say(port: int, request: bytes) -> bytes:
    """Send bytes over a new connection, and return all that comes back."""
    with connect(port) as connection:
        connection.sendall(request)
        answer = b""
        while data := connection.recv(65536):
            answer += data
        return answer


def call(port: int, method: str, message: bytes = b"hello") -> bytes:
    """Make a call of gRPC; raises grpc.RpcError."""
    with grpc.insecure_channel(
        f"127.0.0.1:{port}", options=[("grpc.primary_user_agent", "greeted")]
    ) as channel:
        unary: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/test.Echo/{method}"
        )
        answer = unary(message, timeout=PATIENCE_S)
        assert isinstance(answer, bytes)
        return answer


# Counted.


def requests(mesh: Mesh) -> Counter[Series]:
    """Return how many requests were counted, by source, destination, reporter and class."""
    counted: Counter[Series] = Counter()
    for (_, labels), value in whole_metrics(mesh)["meshrun_requests_total"].samples.items():
        found = dict(labels)
        del found["instance"]
        series = ("source", "destination", "reporter", "status_class")
        assert {*found} == {*series}
        counted[tuple(found[name] for name in series)] += int(value)
    return counted


def await_counted(mesh: Mesh, before: Counter[Series], expected: Mapping[Series, int]) -> None:
    """Wait until just these were counted since `before`."""
    wait_until(lambda: requests(mesh) - before == Counter(expected), f"counted {expected}")


def test_requests_are_counted_by_pair_and_class_of_status_once_each(mesh: Mesh) -> None:
    port = upstream(mesh, "client")
    before = requests(mesh)
    for target, status in (
        *(("/", 200), ("/status/299", 299), ("/status/301", 301)),
        *(("/status/404", 404), ("/admin", 403), ("/admin/x?y", 403)),
        *(("/status/500", 500), ("/status/503", 503)),
    ):
        assert ask(port, target)[0] == status
    assert ask(upstream(mesh, "intruder"))[0] == 403
    await_counted(
        mesh,
        before,
        {
            ("client", "web", "destination", "2xx"): 2,
            ("client", "web", "destination", "3xx"): 1,
            ("client", "web", "destination", "4xx"): 3,
            ("client", "web", "destination", "5xx"): 2,
            ("intruder", "web", "destination", "4xx"): 1,
        },
    )


def test_what_no_app_answered_is_counted_once_where_it_was_answered(mesh: Mesh) -> None:
    before = requests(mesh)
    # The sidecar of the called answers for an app that does not listen, that of the caller where
    # there is no instance.
    assert ask(upstream(mesh, "client", "deaf"))[0] == 503
    assert ask(upstream(mesh, "client", "absent"))[0] == 503
    await_counted(
        mesh,
        before,
        {
            ("client", "deaf", "destination", "5xx"): 1,
            ("client", "absent", "source", "5xx"): 1,
        },
    )
    refused = await_entry(mesh, lambda e: e.destination == "deaf", "the deaf one")
    assert (refused.status, refused.reporter, refused.instance) == (503, "destination", "deaf.1")
    assert "refused" in refused.failure
    unsent = await_entry(mesh, lambda e: e.destination == "absent", "the absent one")
    assert (unsent.status, unsent.reporter, unsent.instance) == (503, "source", "client.1")
    assert "absent" in unsent.failure


def begin_to_wait(mesh: Mesh, name: str) -> socket.socket:
    """Make a request that waits for a file, and return its connection once the app has it."""
    connection = connect(upstream(mesh, "client"))
    connection.sendall(f"GET /wait/{name} HTTP/1.1\r\nHost: web\r\n\r\n".encode())
    wait_until((mesh.folder / f"{name}.begun").exists, "the app has the request")
    return connection


def test_a_request_whose_caller_is_gone_has_no_status(mesh: Mesh) -> None:
    before = requests(mesh)
    # Its end alone does not say so: it may have said all that it has to say, and still read.
    reset(begin_to_wait(mesh, "for-nobody"))
    await_counted(mesh, before, {("client", "web", "destination", "none"): 1})
    (mesh.folder / "for-nobody").touch()
    entry = await_entry(mesh, lambda e: e.path == "/wait/for-nobody", "who was gone")
    assert (entry.status, entry.reporter, entry.denied) == (0, "destination", False)
    assert entry.failure


def test_a_histogram_tells_a_slow_request_from_quick_ones(mesh: Mesh) -> None:
    slowest_s = 0.3

    def shape() -> tuple[float, float, float]:
        family = whole_metrics(mesh)["meshrun_request_duration_seconds"]
        pair = {"source": "client", "destination": "web", "status_class": "2xx"}
        found = {
            part: family.value(part, **pair, **more)
            for part, more in (("_bucket", {"le": "0.25"}), ("_sum", {}), ("_count", {}))
        }
        return found["_bucket"], found["_sum"], found["_count"]

    port = upstream(mesh, "client")
    assert ask(port)[0] == 200
    before = shape()
    assert ask(port, f"/sleep/{slowest_s}")[0] == 200
    wait_until(lambda: shape()[2] == before[2] + 1, "counted")
    after = shape()
    assert after[0] == before[0]
    assert slowest_s <= after[1] - before[1] < PATIENCE_S
    entry = await_entry(mesh, lambda e: e.path == f"/sleep/{slowest_s}", "the slow one")
    assert slowest_s <= entry.duration_s < PATIENCE_S


def test_bytes_are_those_of_the_bodies(mesh: Mesh) -> None:
    def carried() -> tuple[float, float]:
        page = whole_metrics(mesh)
        pair = {"source": "client", "destination": "web"}
        return (
            page["meshrun_received_bytes_total"].total(**pair),
            page["meshrun_sent_bytes_total"].total(**pair),
        )

    port = upstream(mesh, "client")
    assert ask(port)[0] == 200
    before = carried()
    status, body = ask(port, "/bytes/300000", method="POST", body=bytes(100_001))
    assert (status, len(body)) == (200, 300_000)
    wait_until(lambda: carried() == (before[0] + 100_001, before[1] + 300_000), "bytes counted")
    entry = await_entry(mesh, lambda e: e.path == "/bytes/300000", "the bytes")
    assert (entry.method, entry.received_bytes, entry.sent_bytes) == ("POST", 100_001, 300_000)


def test_each_request_is_decided_about_and_counted_as_that(mesh: Mesh) -> None:
    def decided(source: str, destination: str = "web") -> tuple[float, float, float]:
        page = whole_metrics(mesh)
        pair = {"source": source, "destination": destination}
        denied = page["meshrun_intentions_denied_total"]
        return (
            page["meshrun_intentions_allowed_total"].total(**pair),
            denied.total(**pair, dry_run="false"),
            denied.total(**pair, dry_run="true"),
        )

    before = {name: decided(name) for name in ("client", "intruder", "trial")}
    port = upstream(mesh, "client")
    # Over one connection: it is not what is decided about.
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        for target in ("/", "/admin", "/", "/", "/admin/x"):
            connection.request("GET", target)
            connection.getresponse().read()
    assert ask(upstream(mesh, "intruder"))[0] == 403
    assert ask(upstream(mesh, "trial"))[0] == 200
    changes = {
        name: tuple(new - old for new, old in zip(decided(name), old, strict=True))
        for name, old in before.items()
    }
    assert changes == {"client": (3, 2, 0), "intruder": (0, 1, 0), "trial": (1, 0, 1)}


def series(mesh: Mesh) -> set[tuple[str, frozenset[tuple[str, str]]]]:
    """Return every series on the page."""
    return {found for family in whole_metrics(mesh).values() for found in family.samples}


def test_nothing_that_a_caller_chooses_is_a_label(mesh: Mesh) -> None:
    port = upstream(mesh, "client")
    for target, status in (("/", 200), ("/status/404", 404), ("/status/500", 500)):
        assert ask(port, target)[0] == status
    assert say(port, b"no request\r\n\r\n")
    chosen = "chosen-by-a-caller"

    def strange(number: int) -> None:
        mark = f"{chosen}-{number}"
        headers = {
            "Host": f"{mark}.example",
            "User-Agent": mark,
            "X-Request-Id": mark,
            "X-Mesh-Client-Id": f"spiffe://shop.mesh/ns/default/dc/local/svc/{mark}",
            "X-Forwarded-Client-Cert": f"URI=spiffe://shop.mesh/{mark}",
            mark: mark,
        }
        assert ask(port, f"/{mark}?{mark}", headers=headers)[0] == 200
        assert ask(port, "/", method=mark.upper(), headers=headers)[0] == 501
        assert b" 400 " in say(port, f"{mark} / HTTP/1.1\r\n\r\n".encode())
        assert ask(port, f"/status/{400 + number}")[0] == 400 + number

    strange(0)
    known = series(mesh)
    for number in range(1, 20):
        strange(number)
    assert series(mesh) == known
    assert chosen not in mesh.client.metrics()
    words = {value for _, labels in known for name, value in labels if name == "source"}
    assert words <= SERVICES


# Told of one by one.


def entry_of(mesh: Mesh, request_id: str) -> Entry:
    """Return the entry of a request, which must be the only one."""
    await_entry(mesh, lambda e: e.request_id == request_id, request_id)
    (entry,) = [e for e in access_log(mesh) if e.request_id == request_id]
    return entry


def test_a_request_is_logged_as_it_was_without_what_may_be_secret(mesh: Mesh) -> None:
    _, body = ask(
        upstream(mesh, "client"),
        "/a/../orders/%7e1?token=hidden",
        headers={"User-Agent": "teller/1.0", "Host": "Shop.Example:80", "Cookie": "hidden"},
    )
    saw = dict(json.loads(body)["headers"])
    entry = entry_of(mesh, saw["X-Request-Id"])
    assert entry == Entry(
        at=entry.at,
        kind="request",
        source="client",
        identity=CLIENT,
        destination="web",
        instance="web.1",
        reporter="destination",
        duration_s=entry.duration_s,
        received_bytes=0,
        sent_bytes=len(body),
        method="GET",
        path="/orders/~1",
        protocol="HTTP/1.1",
        status=200,
        request_id=saw["X-Request-Id"],
        authority="Shop.Example:80",
        user_agent="teller/1.0",
    )
    assert saw["X-Mesh-Client-Id"] == CLIENT
    assert 0 < entry.duration_s < PATIENCE_S
    assert "hidden" not in (mesh.state_path / "logs" / "access.log").read_text()


def test_an_identifier_that_a_request_has_is_the_apps_and_the_logs(mesh: Mesh) -> None:
    _, body = ask(upstream(mesh, "client"), headers={"x-request-id": "mine"})
    assert ["x-request-id", "mine"] in json.loads(body)["headers"]
    assert entry_of(mesh, "mine").status == 200


def test_a_denied_request_is_logged_with_what_it_asked_for(mesh: Mesh) -> None:
    assert ask(upstream(mesh, "client"), "/admin/x?y", headers={"X-Request-Id": "denied"})[0] == 403
    entry = entry_of(mesh, "denied")
    assert (entry.status, entry.denied, entry.path) == (403, True, "/admin/x")
    assert (entry.source, entry.reporter, entry.failure) == ("client", "destination", "")


def test_a_request_that_is_cut_by_a_new_intention_is_logged_as_denied(mesh: Mesh) -> None:
    with begin_to_wait(mesh, "for-the-end") as connection:
        mesh.cli("intentions", "create", "-deny", "-replace", "client", "web", check=True)
        try:
            # Its own sidecar asks once more, since a GET may be sent again.
            assert connection.recv(100).startswith(b"HTTP/1.1 403 ")
        finally:
            mesh.cli("intentions", "delete", "client", "web", check=True)
            (mesh.folder / "for-the-end").touch()
    entry = await_entry(
        mesh,
        lambda e: e.path == "/wait/for-the-end" and not e.status,
        "what was cut",
    )
    assert (entry.denied, entry.reporter) == (True, "destination")
    assert "client => web (deny)" in entry.failure


def test_a_call_of_grpc_is_logged_as_the_request_that_it_is(mesh: Mesh) -> None:
    for name in ("greeter", "multiplexed"):
        said, _, request_id = call(upstream(mesh, "client", name), "Say").partition(b" ")
        assert said == b"hello"
        entry = entry_of(mesh, request_id.decode())
        assert (entry.method, entry.path) == ("POST", "/test.Echo/Say")
        assert (entry.protocol, entry.status) == ("HTTP/2", 200)
        assert (entry.source, entry.identity, entry.instance) == ("client", CLIENT, f"{name}.1")
        assert entry.user_agent.startswith("greeted grpc-python/")
        assert entry.received_bytes == 5 + len(b"hello")
        assert not entry.failure


def test_a_denied_call_of_grpc_has_the_status_of_http_that_it_means(mesh: Mesh) -> None:
    before = requests(mesh)
    with pytest.raises(grpc.RpcError) as failed:
        call(upstream(mesh, "intruder", "greeter"), "Say")
    assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED
    await_counted(mesh, before, {("intruder", "greeter", "destination", "4xx"): 1})
    entry = await_entry(
        mesh, lambda e: (e.source, e.destination) == ("intruder", "greeter"), "the intruder"
    )
    assert (entry.status, entry.denied, entry.path) == (403, True, "/test.Echo/Say")


def test_a_denied_request_of_http_2_is_logged(mesh: Mesh) -> None:
    url = f"http://127.0.0.1:{upstream(mesh, 'client', 'multiplexed')}/admin?y"
    with httpx.Client(http1=False, http2=True, timeout=PATIENCE_S) as client:
        headers = {"x-request-id": "denied-2", "user-agent": "teller/2.0"}
        assert client.get(url, headers=headers).status_code == 403
    entry = entry_of(mesh, "denied-2")
    assert (entry.status, entry.denied, entry.path) == (403, True, "/admin")
    assert (entry.protocol, entry.user_agent) == ("HTTP/2", "teller/2.0")
    assert entry.authority == url.removeprefix("http://").removesuffix("/admin?y")


@pytest.mark.parametrize(
    ("path", "request_id", "status", "sent_bytes"),
    [("/break-off", "broken", 200, 10), ("/say-nothing", "silent", 503, 23)],
)
def test_an_app_that_breaks_off_is_logged_with_what_went_wrong(
    mesh: Mesh, path: str, request_id: str, status: int, sent_bytes: int
) -> None:
    port = upstream(mesh, "client")
    headers = {"X-Request-Id": request_id}
    before = requests(mesh)
    # POST, since others are sent again where nothing was heard.
    try:
        assert ask(port, path, method="POST", headers=headers, body=b"x")[0] == 503 == status
    except (ConnectionError, HTTPException):
        assert status == 200
    entry = entry_of(mesh, request_id)
    assert (entry.status, entry.reporter) == (status, "destination")
    assert "reset" in entry.failure
    assert entry.sent_bytes == sent_bytes
    await_counted(mesh, before, {("client", "web", "destination", f"{status // 100}xx"): 1})


def test_a_websocket_is_one_line_when_it_has_ended(mesh: Mesh) -> None:
    def told() -> bool:
        return any(e.request_id == "websocket" for e in access_log(mesh))

    with connect(upstream(mesh, "client")) as connection:
        connection.sendall(
            b"GET /chat HTTP/1.1\r\nHost: web\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nX-Request-Id: websocket\r\n\r\n"
        )
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 101 ")
        for _ in range(3):
            connection.sendall(b"x" * 1000)
            left = 1000
            while left:
                left -= len(connection.recv(left))
        # Others are told of meanwhile, so it would have been, too.
        ask(upstream(mesh, "client"), headers={"X-Request-Id": "meanwhile"})
        entry_of(mesh, "meanwhile")
        assert not told()
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
    entry = entry_of(mesh, "websocket")
    assert (entry.status, entry.path, entry.failure) == (101, "/chat", "")
    assert (entry.received_bytes, entry.sent_bytes) == (3000, 3000)


def test_what_is_no_request_is_logged_by_the_sidecar_of_the_caller(mesh: Mesh) -> None:
    before = requests(mesh)
    answer = say(upstream(mesh, "client"), b"GET / HTTP/1.1\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    await_counted(mesh, before, {("client", "web", "source", "4xx"): 1})
    entry = await_entry(mesh, lambda e: "no Host" in e.failure, "what has no Host")
    assert (entry.status, entry.method, entry.path) == (400, "", "")
    assert (entry.source, entry.destination, entry.instance) == ("client", "web", "client.1")
    assert (entry.reporter, entry.protocol, entry.identity) == ("source", "HTTP/1", CLIENT)
    assert not entry.denied


def test_a_request_whose_body_is_none_is_counted_once(mesh: Mesh) -> None:
    before = requests(mesh)
    head = b"POST /x HTTP/1.1\r\nHost: web\r\nX-Request-Id: bad-body\r\n"
    answer = say(upstream(mesh, "client"), head + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
    assert answer.startswith(b"HTTP/1.1 400 ")
    told = await_entry(
        mesh, lambda e: e.request_id == "bad-body" and e.reporter == "source", "the bad body"
    )
    assert (told.status, told.path) == (400, "/x")
    assert "chunk size" in told.failure
    assert requests(mesh)["client", "web", "source", "4xx"] == (
        before["client", "web", "source", "4xx"] + 1
    )


ESCAPES = b"\x9b2J\xc2\x9b31m\xe2\x80\xae evil"


def test_nothing_that_a_terminal_obeys_is_shown(mesh: Mesh) -> None:
    head = b"GET /%1b%5b2J/%c2%9b HTTP/1.1\r\nHost: web\r\nConnection: close\r\n"
    request = head + b"X-Request-Id: escape\r\nUser-Agent: " + ESCAPES + b"\r\n\r\n"
    with tap_command(mesh, "client", "web") as next_line:
        assert next_line().split()[:2] == ["TIME", "SOURCE"]
        assert say(upstream(mesh, "client"), request).startswith(b"HTTP/1.1 200 ")
        row = next_line()
    assert row.isprintable()
    assert row.split()[1:5] == ["client", "web.1", "GET", "200"]
    assert row.split()[6:] == ["/%1B%5B2J/%C2%9B", CLIENT]
    entry = entry_of(mesh, "escape")
    assert entry.user_agent == r"\x9b2J\x9b31m\u202e evil"
    for options in ((), ("--json",)):
        printed = mesh.cli("logs", "--access", "-n", "5", *options, "client", check=True).stdout
        assert all(line.isprintable() for line in printed.splitlines())


def test_a_tap_shows_requests_as_they_are_answered(mesh: Mesh) -> None:
    with tapping(mesh, "client", "web") as tapped:
        assert ask(upstream(mesh, "trial"))[0] == 200
        assert ask(upstream(mesh, "client"), "/status/418", method="DELETE")[0] == 418
        seen = tapped()
        assert ask(upstream(mesh, "client"), "/admin")[0] == 403
        denied = tapped()
    assert (seen.source, seen.method, seen.path, seen.status) == (
        *("client", "DELETE", "/status/418", 418),
    )
    assert (denied.status, denied.denied) == (403, True)


def test_the_command_prints_requests_of_the_log(mesh: Mesh) -> None:
    headers = {"X-Request-Id": "printed"}
    assert ask(upstream(mesh, "trial"), "/printed?x", headers=headers)[0] == 200
    entry_of(mesh, "printed")
    printed = mesh.cli("logs", "--access", "-n", "1", "trial", check=True).stdout.splitlines()
    heading, row = printed
    assert heading.split()[3:] == ["METHOD", "STATUS", "LATENCY", "PATH", "IDENTITY"]
    assert row.split()[2:6] == ["trial", "web.1", "GET", "200"]
    assert row.split()[7] == "/printed"
    assert row.endswith("(would be denied (dry run))")
    as_json = mesh.cli("logs", "--access", "--json", "-n", "1", "trial", check=True).stdout
    entry = msgspec.json.decode(as_json, type=Entry)
    assert (entry.request_id, entry.dry_run, entry.denied) == ("printed", True, False)


CALLERS = 8
EACH = 250


def keep_asking(port: int, name: str, count: int, path: str = "/") -> None:
    """Make requests over one connection, numbered."""
    with closing(HTTPConnection("127.0.0.1", port, timeout=PATIENCE_S)) as connection:
        for number in range(count):
            connection.request("GET", path, headers={"X-Request-Id": f"{name}-{number}"})
            response = connection.getresponse()
            response.read()
            assert response.status == 200


def all_of(threads: int, work: Callable[[int], None]) -> None:
    """Do work in threads, and fail if one of them does."""
    failures: list[BaseException] = []

    def run(number: int) -> None:
        try:
            work(number)
        except BaseException as error:
            failures.append(error)
            raise

    started = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join(4 * PATIENCE_S)
        assert not thread.is_alive()
    assert not failures


@pytest.mark.parametrize("destination", ["web", "double"])
def test_of_two_thousand_requests_none_is_missing_twice_there_or_out_of_order(
    mesh: Mesh, destination: str
) -> None:
    port = upstream(mesh, "client", destination)
    before = requests(mesh)
    lost = whole_metrics(mesh)["meshrun_records_lost_total"].total()
    all_of(CALLERS, lambda number: keep_asking(port, f"{destination}-{number}", EACH))
    series = ("client", destination, "destination", "2xx")
    await_counted(mesh, before, {series: CALLERS * EACH})

    def told() -> list[Entry]:
        return [e for e in access_log(mesh) if e.request_id.startswith(f"{destination}-")]

    wait_until(lambda: len(told()) >= CALLERS * EACH, "all in the log")
    assert whole_metrics(mesh)["meshrun_records_lost_total"].total() == lost
    entries = told()
    if destination == "double":  # what two processes tell comes in batches of each
        entries.sort(key=lambda entry: entry.at)
    for number in range(CALLERS):
        name = f"{destination}-{number}-"
        mine = [e.request_id for e in entries if e.request_id.startswith(name)]
        assert mine == [f"{name}{each}" for each in range(EACH)]


def test_a_tap_that_nobody_reads_is_given_up_and_no_request_waits_for_it(mesh: Mesh) -> None:
    path = "/" + "x" * 2000
    before = len(mesh.events("untapped", "web"))
    with closing(tap(mesh, "client", "web")) as unread:
        all_of(4, lambda number: keep_asking(upstream(mesh, "client"), f"u{number}", 600, path))
        mesh.await_event("untapped", "web", number=before + 1)
        assert len(list(unread)) < 4 * 600


# On trial.


@pytest.mark.slow
def test_a_dry_run_lets_through_and_says_what_it_would_do_until_it_is_enforced(
    tmp_path: Path,
) -> None:
    config = """
    [mesh]
    name = "shop"
    access_log = true
    [apps.web]
    command = "${PYTHON} ${APPS}/web.py"
    protocol = "http"
    ready = { tcp = true }
    [apps.echo]
    command = "${PYTHON} ${APPS}/serve.py"
    [apps.trial]
    command = "${PYTHON} ${APPS}/idle.py"
    port = 0
    upstreams = ["web", "echo"]
    [[intentions]]
    from = "trial"
    to = "web"
    permissions = [
        { action = "deny", path_prefix = "/admin" },
        { action = "allow", path_prefix = "/" },
    ]
    dry_run = true
    [[intentions]]
    from = "trial"
    to = "echo"
    action = "deny"
    dry_run = true
    """
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        web, echo = upstream(mesh, "trial", "web"), upstream(mesh, "trial", "echo")

        # Over HTTP.
        assert ask(web)[0] == 200
        assert ask(web, "/admin?x")[0] == 200
        event = mesh.await_event("would-deny", "web")
        assert event.message.startswith("trial would be denied at web (GET /admin): intention ")
        assert "permission 1 denies" in event.message
        assert (event.source, event.destination) == ("trial", "web")
        tried = await_entry(mesh, lambda e: e.path == "/admin", "what was tried")
        assert (tried.status, tried.dry_run, tried.denied) == (200, True, False)
        (other,) = [e for e in access_log(mesh) if e.path == "/"]
        assert (other.status, other.dry_run) == (200, False)

        # Over tcp.
        assert say_and_hear(echo) == b"hello"
        assert mesh.await_event("would-deny", "echo").message.startswith(
            "trial would be denied at echo: intention "
        )
        connection = await_entry(mesh, lambda e: e.destination == "echo", "the connection")
        assert (connection.kind, connection.dry_run, connection.denied) == (
            *("connection", True, False),
        )
        assert (connection.received_bytes, connection.sent_bytes) == (5, 5)

        denied = whole_metrics(mesh)["meshrun_intentions_denied_total"]
        assert decisions(denied) == {
            ("web", "false"): 0,
            ("web", "true"): 1,
            ("echo", "false"): 0,
            ("echo", "true"): 1,
        }
        assert not mesh.events("denied")
        check = mesh.cli("intentions", "check", "--json", "trial", "echo", check=True)
        assert json.loads(check.stdout)["DryRun"] is True

        # In earnest: also for what is open.
        with connect(echo) as live:
            live.sendall(b"hello")
            assert live.recv(100) == b"hello"
            for name in ("web", "echo"):
                mesh.cli("intentions", "create", "-replace", "-deny", "trial", name, check=True)
            with pytest.raises(ConnectionResetError):
                live.recv(100)
        assert ask(web)[0] == 403
        with pytest.raises(ConnectionError):
            assert say_and_hear(echo) == b"hello", "the connection is reset or ends at once"
        mesh.await_event("denied", "web")
        mesh.await_event("denied", "echo")
        refused = await_entry(mesh, lambda e: e.status == 403, "what was refused")
        assert (refused.denied, refused.dry_run) == (True, False)
        denied = whole_metrics(mesh)["meshrun_intentions_denied_total"]
        assert decisions(denied)["web", "true"] == decisions(denied)["web", "false"] == 1


def decisions(family: Family) -> dict[tuple[str, str], float]:
    """Return how often was denied, by destination and whether that was a dry run."""
    found = [(dict(labels), value) for (_, labels), value in family.samples.items()]
    return {(labels["destination"], labels["dry_run"]): value for labels, value in found}


def say_and_hear(port: int) -> bytes:
    """Say hello over a connection that ends in order; raises ConnectionError."""
    with connect(port) as connection:
        connection.sendall(b"hello")
        answer = connection.recv(100)
        if not answer:
            raise ConnectionAbortedError("the connection ended without an answer")
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""
        return answer
