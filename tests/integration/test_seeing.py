"""Access log, tap and metrics of a mesh of real processes, over tcp."""

import signal
from collections.abc import Iterator
from contextlib import ExitStack, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import pytest
from support.exposition import read
from support.mesh import PATIENCE_S, Mesh
from support.seeing import access_log, await_entry, metrics, tap, tap_command, tapping
from support.traffic import ask, connect, reaches, wait_until

from meshrun.supervisor.access import Entry
from meshrun.supervisor.cli.client import ApiError
from meshrun.supervisor.errors import MeshrunError

CONFIG = """
[mesh]
name = "shop"
access_log = true

[apps.server]
command = "${PYTHON} ${APPS}/serve.py"
workers = 2

[apps.quiet]
command = "${PYTHON} ${APPS}/serve.py"

[apps.absent]
command = "${PYTHON} ${APPS}/idle.py"

[apps.client]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["server", "quiet", { service = "absent", connect_timeout = "100ms" }]

[apps.intruder]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["server"]

[[intentions]]
from = "client"
to = "*"
"""
PAIR = {"source": "client", "destination": "server", "instance": "server.1"}
DENIED = {"source": "intruder", "destination": "server", "dry_run": "false"}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A client that may call the server, and an intruder that may not."""
    with Mesh(tmp_path_factory.mktemp("mesh"), CONFIG) as running:
        running.up()
        yield running


def upstream(mesh: Mesh, app: str, name: str = "server") -> int:
    """Return where an app reaches one of its upstreams."""
    return mesh.upstream(f"{app}.1", name)[1]


def converse(port: int, sizes: list[int]) -> None:
    """Send messages of these sizes over one connection, each echoed, and end it in order."""
    with connect(port) as connection:
        for size in sizes:
            connection.sendall(b"x" * size)
            left = size
            while left:
                left -= len(connection.recv(left))
        connection.shutdown(2)


def open_connections(mesh: Mesh) -> float:
    return metrics(mesh)["meshrun_connections_open"].value(**PAIR)


def test_a_connection_is_logged_when_it_is_over_with_who_called_and_every_byte(mesh: Mesh) -> None:
    before = datetime.now(UTC)
    converse(upstream(mesh, "client"), [1000, 70_000, 13])
    entry = await_entry(mesh, lambda e: e.received_bytes == 71_013, "71,013 bytes")
    assert entry.kind == "connection"
    assert (entry.source, entry.destination, entry.instance) == ("client", "server", "server.1")
    assert entry.identity == "spiffe://shop.mesh/ns/default/dc/local/svc/client"
    assert (entry.sent_bytes, entry.protocol, entry.reporter) == (71_013, "tcp", "destination")
    assert not entry.denied
    assert before - timedelta(milliseconds=5) <= entry.at <= datetime.now(UTC)
    assert 0 < entry.duration_s < PATIENCE_S
    assert entry.at.utcoffset() == timedelta(0)


def test_a_refused_call_is_logged(mesh: Mesh) -> None:
    assert not reaches(upstream(mesh, "intruder"))
    entry = await_entry(mesh, lambda e: e.source == "intruder", "the intruder")
    assert (entry.denied, entry.destination, entry.received_bytes) == (True, "server", 0)


def test_the_command_prints_the_log_of_those_who_are_named(mesh: Mesh) -> None:
    ask(upstream(mesh, "client"))
    assert not reaches(upstream(mesh, "intruder"))
    await_entry(mesh, lambda e: e.source == "client", "the client")
    await_entry(mesh, lambda e: e.source == "intruder", "the intruder")
    found = mesh.cli("logs", "--access", "--json", "-n", "3", "intruder", check=True).stdout
    entries = [msgspec.json.decode(line, type=Entry) for line in found.splitlines()]
    assert {entry.source for entry in entries} == {"intruder"}
    heading, row = mesh.cli("logs", "--access", "-n", "1", "client", check=True).stdout.splitlines()
    assert heading.split()[:2] == ["TIME", "SOURCE"]
    assert row.split()[2:5] == ["client", "server.1", "tcp"]
    refused = mesh.cli("logs", "--access", "clint")
    assert refused.returncode == 1
    assert "clint" in refused.stderr


def test_a_followed_access_log_goes_on(mesh: Mesh) -> None:
    with closing(mesh.client.access(["quiet"], 0, follow=True)) as lines:
        ask(upstream(mesh, "client", "quiet"), b"quiet")
        entry = msgspec.json.decode(next(lines), type=Entry)
    assert (entry.destination, entry.received_bytes) == ("quiet", 5)


def test_connections_and_bytes_are_counted_once_also_while_they_are_open(mesh: Mesh) -> None:
    port = upstream(mesh, "client")

    def counted() -> list[float]:
        page = metrics(mesh)
        names = ("connections", "received_bytes", "sent_bytes")
        return [page[f"meshrun_{name}_total"].value(**PAIR) for name in names]

    ask(port)
    wait_until(lambda: open_connections(mesh) == 0, "no connection open")
    before = counted()
    with ExitStack() as stack:
        # Over both workers of the server's sidecar.
        held = [stack.enter_context(connect(port)) for _ in range(20)]
        for connection in held:
            connection.sendall(b"hello")
            assert connection.recv(100) == b"hello"
        assert open_connections(mesh) == 20
        assert [a - b for a, b in zip(counted(), before, strict=True)] == [20, 100, 100]
    wait_until(lambda: open_connections(mesh) == 0, "no connection open")
    assert [a - b for a, b in zip(counted(), before, strict=True)] == [20, 100, 100]


def test_a_reset_connection_is_logged_with_why(mesh: Mesh) -> None:
    with connect(upstream(mesh, "client", "quiet")) as connection:
        connection.sendall(b"123456789")
        assert connection.recv(100) == b"123456789"
        connection.setsockopt(1, 13, b"\1\0\0\0\0\0\0\0")  # SO_LINGER: a reset
    entry = await_entry(mesh, lambda e: e.received_bytes == 9, "9 bytes")
    assert entry.failure
    assert entry.sent_bytes == 9


def test_decisions_are_counted_by_pair(mesh: Mesh) -> None:
    def counted() -> tuple[float, float]:
        page = metrics(mesh)
        allowed = page["meshrun_intentions_allowed_total"]
        return allowed.value(**PAIR), page["meshrun_intentions_denied_total"].total(**DENIED)

    ask(upstream(mesh, "client"))
    assert not reaches(upstream(mesh, "intruder"))
    before = counted()
    for _ in range(3):
        ask(upstream(mesh, "client"))
        assert not reaches(upstream(mesh, "intruder"))
    assert counted() == (before[0] + 3, before[1] + 3)


def test_certificates_and_readiness_are_told_of_every_instance(mesh: Mesh) -> None:
    page = metrics(mesh)
    expiry = page["meshrun_certificate_expiry_timestamp_seconds"]
    for name in ("server", "quiet", "client", "intruder"):
        leaves = [leaf for leaf in mesh.client.certs() if leaf.service == name]
        first = min(leaf.not_after for leaf in leaves)
        assert expiry.value(service=name, instance=f"{name}.1") == first
        assert page["meshrun_instance_ready"].value(instance=f"{name}.1") == 1
        assert page["meshrun_sidecar_answered"].value(instance=f"{name}.1") == 1
    assert page["meshrun_up"].value(mesh="shop") == 1


def test_the_command_prints_what_a_scraper_gets(mesh: Mesh) -> None:
    printed = read(mesh.cli("metrics", check=True).stdout)
    assert set(printed) == set(metrics(mesh))


def test_restarts_are_counted_and_no_counter_falls_with_them(mesh: Mesh) -> None:
    ask(upstream(mesh, "client"))
    wait_until(lambda: open_connections(mesh) == 0, "no connection open")
    before = metrics(mesh)
    restarts = {"instance": "server.1", "app": "server"}
    row = mesh.instance("server.1")
    for pid in (*row.sidecar_pids, row.pid):
        mesh.kill(pid)
    old = {*row.sidecar_pids, row.pid}
    mesh.wait_for(
        lambda rows: (
            rows["server.1"].ready
            and len(rows["server.1"].sidecar_pids) == 2
            and not old & {*rows["server.1"].sidecar_pids, rows["server.1"].pid}
        )
    )
    after = metrics(mesh)
    for process, number in (("app", 1), ("sidecar", 2)):
        counted = [
            page["meshrun_restarts_total"].value(**restarts, process=process)
            for page in (before, after)
        ]
        assert counted[1] == counted[0] + number
    for name, family in before.items():
        if family.kind == "counter":
            assert all(after[name].samples[s] >= value for s, value in family.samples.items())
    total = after["meshrun_connections_total"].value(**PAIR)
    ask(upstream(mesh, "client"))
    assert metrics(mesh)["meshrun_connections_total"].value(**PAIR) == total + 1


def test_a_sidecar_that_does_not_answer_is_left_out_and_that_is_said(mesh: Mesh) -> None:
    pid = mesh.instance("quiet.1").sidecar_pid
    mesh.kill(pid, signal.SIGSTOP)
    try:
        page = metrics(mesh)
        assert page["meshrun_sidecar_answered"].value(instance="quiet.1") == 0
        assert page["meshrun_sidecar_answered"].value(instance="server.1") == 1
        lost = page["meshrun_records_lost_total"]
        assert "quiet.1" not in {dict(labels)["instance"] for _, labels in lost.samples}
    finally:
        mesh.kill(pid, signal.SIGCONT)
    wait_until(
        lambda: metrics(mesh)["meshrun_sidecar_answered"].value(instance="quiet.1") == 1,
        "it answers again",
    )


def test_the_log_of_a_run_that_is_over_is_read_from_its_file(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        ask(upstream(mesh, "client"))
        # Cut by the end of the run, and told all the same.
        with connect(upstream(mesh, "client")) as held:
            held.sendall(b"still here")
            assert held.recv(100) == b"still here"
            mesh.down()
        entries = access_log(mesh)
        assert sorted(entry.received_bytes for entry in entries) == [5, 10]
        printed = mesh.cli("logs", "--access", "--json", "server", check=True).stdout
        assert len(printed.splitlines()) == 2


UNLOGGED = CONFIG.replace("access_log = true", "access_log = false")


@pytest.fixture(scope="module")
def unlogged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """The same without an access log."""
    with Mesh(tmp_path_factory.mktemp("unlogged"), UNLOGGED) as running:
        running.up()
        yield running


def test_a_tap_shows_what_goes_from_one_to_another_and_nothing_else(unlogged: Mesh) -> None:
    with tapping(unlogged, "client", "server") as tapped:
        assert not reaches(upstream(unlogged, "intruder"))
        ask(upstream(unlogged, "client", "quiet"))
        ask(upstream(unlogged, "client"), b"seen")
        entry = tapped()
    assert (entry.source, entry.destination, entry.received_bytes) == ("client", "server", 4)
    assert entry.identity == "spiffe://shop.mesh/ns/default/dc/local/svc/client"


def test_a_tap_of_all_callers_shows_those_that_are_refused(unlogged: Mesh) -> None:
    with tapping(unlogged, "*", "server") as tapped:
        assert not reaches(upstream(unlogged, "intruder"))
        refused = tapped()
        ask(upstream(unlogged, "client"))
        served = tapped()
    assert (refused.source, refused.denied) == ("intruder", True)
    assert (served.source, served.denied) == ("client", False)


def test_a_connection_that_reaches_nobody_is_told_by_the_callers_sidecar(unlogged: Mesh) -> None:
    unlogged.cli("stop", "absent", check=True)
    with tapping(unlogged, "*", "absent") as tapped:
        assert not reaches(upstream(unlogged, "client", "absent"))
        entry = tapped()
    assert (entry.source, entry.destination, entry.instance) == ("client", "absent", "client.1")
    assert (entry.reporter, entry.denied) == ("source", False)
    assert "no instance of absent is ready" in entry.failure
    assert entry.identity == "spiffe://shop.mesh/ns/default/dc/local/svc/client"
    assert entry.duration_s >= 0.1


def test_a_tap_leaves_no_log_behind(unlogged: Mesh) -> None:
    with tapping(unlogged, "*", "server") as tapped:
        ask(upstream(unlogged, "client"))
        tapped()
    assert not access_log(unlogged)
    refused = unlogged.cli("logs", "--access")
    assert refused.returncode == 1
    assert "mesh.access_log = true" in refused.stderr


def test_a_tap_is_waited_for_as_long_as_was_said(unlogged: Mesh) -> None:
    with (
        pytest.raises(MeshrunError, match="does not answer in time"),
        closing(unlogged.client.tap("*", "server", quiet_s=0.1)) as lines,
    ):
        next(lines)


def test_the_command_prints_a_line_each_and_a_killed_one_ends_the_recording(
    unlogged: Mesh,
) -> None:
    before = len(unlogged.events("untapped", "server"))
    with tap_command(unlogged, "*", "server") as next_line:
        assert next_line().split()[:2] == ["TIME", "SOURCE"]
        ask(upstream(unlogged, "client"))
        assert next_line().split()[1:5] == ["client", "server.1", "tcp", "ok"]
    unlogged.await_event("untapped", "server", number=before + 1)


@pytest.mark.parametrize(
    ("source", "destination", "status", "words"),
    [
        ("clint", "server", 404, 'did you mean "client"?'),
        ("*", "sever", 404, 'did you mean "server"?'),
        ("server", "client", 400, "client takes no calls"),
        ("client", "*", 404, 'no service "*"'),
    ],
)
def test_a_tap_of_what_is_not_there_is_an_error(
    unlogged: Mesh, source: str, destination: str, status: int, words: str
) -> None:
    with pytest.raises(ApiError) as refused:
        tap(unlogged, source, destination)
    assert refused.value.status == status
    assert words in str(refused.value)
