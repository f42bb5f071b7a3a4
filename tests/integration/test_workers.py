"""Sidecars of several workers: all serve, all obey, and one that dies is missed by nobody."""

import json
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from support.mesh import PATIENCE_S, Mesh
from support.traffic import connect, count_descriptors, reaches, wait_until

CONFIG = """
[mesh]
name = "shop"

[apps.server]
command = "${PYTHON} ${APPS}/serve.py"
workers = 2

[apps.client]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["server"]
workers = 2

[[intentions]]
from = "client"
to = "server"
"""
SIDECARS = ("client.1", "server.1")

# How long a worker may take to acknowledge, and a second for what is done about it.
ENFORCED_WITHIN_S = 3.0
# More than this many connections and none for some worker is no chance any more.
MANY = 1000


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A client and a server whose sidecars have two workers each."""
    with Mesh(tmp_path_factory.mktemp("mesh"), CONFIG) as mesh:
        mesh.up()
        yield mesh


@pytest.fixture
def mesh(running: Mesh) -> Iterator[Mesh]:
    """The running mesh with all of its workers; what a test says at run time is unsaid."""
    running.wait_for(
        lambda rows: all(rows[i].ready and len(rows[i].sidecar_pids) == 2 for i in SIDECARS)
    )
    yield running
    for intention in running.client.intentions():
        if intention.origin == "runtime":
            running.client.delete_intention(intention.source_name, intention.destination_name)


def upstream(mesh: Mesh, name: str = "server") -> int:
    """Return where the client reaches one of its upstreams."""
    return mesh.upstream("client.1", name)[1]


def workers(mesh: Mesh, instance: str) -> list[int]:
    """Return the processes of a sidecar."""
    return mesh.instance(instance).sidecar_pids


def carries(connection: socket.socket) -> bool:
    """Tell whether a connection carries a message there and back."""
    try:
        connection.sendall(b"still there?")
        return connection.recv(100) == b"still there?"
    except ConnectionError:
        return False


@contextmanager
def connections_in_every_worker(mesh: Mesh) -> Iterator[list[socket.socket]]:
    """Hold so many connections of the client to the server that every worker has some."""
    pids = [pid for name in SIDECARS for pid in workers(mesh, name)]
    idle = {pid: count_descriptors(pid) for pid in pids}
    held: list[socket.socket] = []
    with ExitStack() as stack:
        # A spare tunnel takes a descriptor, too: two connections take more than that.
        while any(count_descriptors(pid) < idle[pid] + 4 for pid in pids):
            assert len(held) < MANY, "a worker gets no connection"
            held.append(stack.enter_context(connect(upstream(mesh))))
            assert carries(held[-1])
        yield held


def test_every_worker_of_a_sidecar_serves(mesh: Mesh) -> None:
    with connections_in_every_worker(mesh) as held:
        assert all(carries(connection) for connection in held)


def test_a_sidecar_of_several_workers_is_one_row_with_all_of_their_pids(mesh: Mesh) -> None:
    rows = json.loads(mesh.cli("ps", "--json", check=True).stdout)
    recorded = {entry.name: entry.pid for entry in mesh.recorded().processes}
    for row in rows:
        pids = row["sidecar_pids"]
        assert len(set(pids)) == 2
        assert pids == [recorded[f"sidecar {row['instance']}/{number}"] for number in (1, 2)]
        assert (row["sidecar_pid"], row["sidecar_state"]) == (pids[0], "running")
    server = next(row["sidecar_pid"] for row in rows if row["instance"] == "server.1")
    assert str(server) in mesh.cli("ps", check=True).stdout


def test_each_worker_has_a_certificate_of_its_own_and_a_rotation_replaces_them_all(
    mesh: Mesh,
) -> None:
    before = mesh.client.certs()
    named = [(leaf.instance, leaf.worker) for leaf in before]
    assert sorted(named) == [(name, number) for name in SIDECARS for number in (1, 2)]
    with connections_in_every_worker(mesh) as held:
        after = mesh.client.rotate([])
        assert all(carries(connection) for connection in held)
    assert len({leaf.serial for leaf in (*before, *after)}) == 8
    assert reaches(upstream(mesh))


def test_a_deny_is_enforced_by_every_worker_when_the_command_returns(mesh: Mesh) -> None:
    port = upstream(mesh)
    with connections_in_every_worker(mesh) as held:
        mesh.cli("intentions", "create", "-deny", "-replace", "client", "server", check=True)
        assert not any(reaches(port) for _ in range(20))
        assert not any(carries(connection) for connection in held)
    mesh.cli("intentions", "delete", "client", "server", check=True)
    assert all(reaches(port) for _ in range(20))


def test_a_worker_that_does_not_answer_is_replaced_and_the_other_goes_on(mesh: Mesh) -> None:
    first, second = workers(mesh, "server.1")
    starts = len(mesh.events("sidecar-started", "server.1"))
    mesh.kill(second, signal.SIGSTOP)
    begun = time.monotonic()
    mesh.cli("intentions", "create", "-deny", "-replace", "client", "server", check=True)
    assert time.monotonic() - begun < ENFORCED_WITHIN_S
    assert not any(reaches(upstream(mesh)) for _ in range(20))
    mesh.await_event("sidecar-started", "server.1", number=starts + 1)
    now = workers(mesh, "server.1")
    assert (now[0], len(now)) == (first, 2)
    assert second not in now


@pytest.mark.parametrize("instance", SIDECARS)
@pytest.mark.parametrize("number", [1, 2])
def test_a_killed_worker_is_started_again_alone_and_no_new_call_fails(
    mesh: Mesh, instance: str, number: int
) -> None:
    port = upstream(mesh)
    before = workers(mesh, instance)
    starts = len(mesh.events("sidecar-started", instance))
    mesh.kill(before[number - 1])
    started = False
    while not started:
        assert reaches(port)
        started = len(mesh.events("sidecar-started", instance)) > starts
    assert all(reaches(port) for _ in range(20))
    ended = mesh.events("sidecar-exited", instance)[-1]
    assert ended.message.startswith(f"worker {number} of the sidecar of {instance} ended")
    rows = mesh.wait_for(lambda rows: rows[instance].ready)
    after = rows[instance].sidecar_pids
    assert len(after) == 2
    assert after[2 - number] == before[2 - number]
    assert after[number - 1] != before[number - 1]


@pytest.mark.slow
def test_all_workers_end_with_the_run_also_when_it_was_killed(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        assert len([name for name in SIDECARS for _ in workers(mesh, name)]) == 4
        mesh.down()
        assert mesh.left() == []
        mesh.up()
        mesh.kill(mesh.supervisor_pid)
        mesh.await_gone(PATIENCE_S)


LIMITED = """
[mesh]
name = "shop"
default_intention = "allow"

[apps.server]
command = "${PYTHON} ${APPS}/serve.py"

[apps.narrow]
command = "${PYTHON} ${APPS}/serve.py"
max_connections = 1

[apps.client]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = [
    { service = "server", as = "few", max_connections = 2 },
    { service = "narrow", connect_timeout = "200ms" },
    "server",
]

[apps.pair]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = [{ service = "server", max_connections = 2 }]
workers = 2
"""


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Apps that may have or get few connections."""
    with Mesh(tmp_path_factory.mktemp("mesh"), LIMITED) as mesh:
        mesh.up()
        yield mesh


def await_refusal(mesh: Mesh, instance: str, reason: str) -> None:
    """Wait until the timeline says why a connection was refused."""
    wait_until(
        lambda: any(reason in e.message for e in mesh.events("connection-failed", instance)),
        f"{reason} in the timeline",
    )


def test_a_connection_more_than_an_upstream_may_have_is_refused_and_the_reason_is_said(
    limited: Mesh,
) -> None:
    port = upstream(limited, "few")
    with connect(port) as first, connect(port) as second:
        assert carries(first)
        assert carries(second)
        assert not reaches(port)
        assert reaches(upstream(limited))
        assert carries(first)
    await_refusal(
        limited,
        "client.1",
        "a connection of client.1 to few failed: 2 connections are open, "
        "and no more are allowed (max_connections)",
    )
    wait_until(lambda: reaches(port), "room again")


def test_a_connection_more_than_an_app_may_get_is_refused_and_the_reason_is_said(
    limited: Mesh,
) -> None:
    port = upstream(limited, "narrow")
    with connect(port) as only:
        assert carries(only)
        assert not reaches(port)
        assert carries(only)
    await_refusal(
        limited,
        "narrow.1",
        "a connection to narrow.1 failed: 1 connections are open, "
        "and no more are allowed (max_connections)",
    )
    wait_until(lambda: reaches(port), "room again")


def test_workers_together_have_no_more_connections_than_the_limit(limited: Mesh) -> None:
    port = limited.upstream("pair.1", "server")[1]
    with ExitStack() as stack:
        held = []
        for _ in range(20):
            with suppress(ConnectionResetError):  # refused before connect(2) has returned
                held.append(stack.enter_context(connect(port)))
        assert 1 <= sum(carries(connection) for connection in held) <= 2
    await_refusal(limited, "pair.1", "1 connections are open")
    refusals = limited.events("connection-failed", "pair.1")
    assert {e.message.partition(":")[0] for e in refusals} <= {
        f"a connection of pair.1 to server failed in worker {number}" for number in (1, 2)
    }
