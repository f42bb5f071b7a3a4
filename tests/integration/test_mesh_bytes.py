"""Bytes from one program to another through both sidecars: all of them, in little memory."""

import hashlib
import socket
import threading
from collections.abc import Iterator

import pytest
from support.apps import read_all, reset
from support.mesh import Mesh
from support.sampling import WHOLE
from support.traffic import (
    MIB,
    connect,
    count_descriptors,
    peak_memory_bytes,
    pseudo_random,
    wait_until,
)

MOST_MEMORY_BYTES = 60 * MIB

CONFIG = """
[mesh]
name = "bytes"

[apps.caller]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["digest", "echo", "pour", "after-end", "speaks-first", "break-off"]

[[intentions]]
from = "caller"
to = "*"
"""

SERVER = """
[apps.%s]
command = "${PYTHON} ${APPS}/serve.py %s"
ready = { tcp = true }
"""

SERVERS = {
    "digest": "--mode digest",
    "echo": "",
    "pour": "--mode pour",
    "after-end": "--mode after-end",
    "speaks-first": "--first welcome",
    "break-off": "--mode break-off",
}


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A server of each kind, and their caller; the test calls through the caller's sidecar."""
    config = CONFIG + "".join(SERVER % each for each in SERVERS.items())
    with Mesh(tmp_path_factory.mktemp("mesh"), config) as started:
        started.up()
        yield started


def call(mesh: Mesh, service: str) -> socket.socket:
    """Connect as the caller does."""
    return connect(mesh.upstream("caller.1", service.replace("-", "_"))[1])


def sidecars(mesh: Mesh, service: str) -> tuple[int, int]:
    """Return the processes of the two sidecars between the caller and a service."""
    pids = [mesh.instance(name).sidecar_pid for name in ("caller.1", f"{service}.1")]
    assert pids[0] is not None
    assert pids[1] is not None
    return pids[0], pids[1]


def send(connection: socket.socket, total_bytes: int) -> str:
    """Send so many bytes and the end, and return their SHA-256."""
    seen = hashlib.sha256()
    for chunk in pseudo_random(total_bytes, seed=1):
        seen.update(chunk)
        connection.sendall(chunk)
    connection.shutdown(socket.SHUT_WR)
    return seen.hexdigest()


@pytest.mark.long
def test_many_bytes_one_way_arrive_whole_in_little_memory(mesh: Mesh) -> None:
    total_bytes = 1024 * MIB if WHOLE else 128 * MIB
    with call(mesh, "digest") as connection:
        sent = send(connection, total_bytes)
        assert read_all(connection).decode() == sent
    for pid in sidecars(mesh, "digest"):
        assert peak_memory_bytes(pid) < MOST_MEMORY_BYTES


def test_bytes_both_ways_at_once_arrive_whole_in_little_memory(mesh: Mesh) -> None:
    sent: list[str] = []
    with call(mesh, "echo") as connection:
        sender = threading.Thread(target=lambda: sent.append(send(connection, 64 * MIB)))
        sender.start()
        received = hashlib.sha256()
        while data := connection.recv(MIB):
            received.update(data)
        sender.join()
    assert [received.hexdigest()] == sent
    for pid in sidecars(mesh, "echo"):
        assert peak_memory_bytes(pid) < MOST_MEMORY_BYTES


def test_a_reader_that_stops_reading_holds_up_its_sender_and_fills_no_memory(mesh: Mesh) -> None:
    before = [peak_memory_bytes(pid) for pid in sidecars(mesh, "echo")]
    with call(mesh, "echo") as connection:
        connection.settimeout(0.5)
        with pytest.raises(TimeoutError):
            connection.sendall(bytes(256 * MIB))
        after = [peak_memory_bytes(pid) for pid in sidecars(mesh, "echo")]
        reset(connection)
    assert all(now - then < 4 * MIB for then, now in zip(before, after, strict=True))


def test_a_caller_that_has_finished_writing_still_gets_a_late_answer(mesh: Mesh) -> None:
    with call(mesh, "after-end") as connection:
        connection.sendall(b"ping")
        connection.shutdown(socket.SHUT_WR)
        assert read_all(connection) == b"gnip"


def test_a_server_may_speak_first(mesh: Mesh) -> None:
    with call(mesh, "speaks-first") as connection:
        assert connection.recv(100) == b"welcome"
        connection.sendall(b"thanks")
        assert connection.recv(100) == b"thanks"


def test_a_reset_by_the_server_is_a_reset_for_the_caller(mesh: Mesh) -> None:
    with call(mesh, "break-off") as connection:
        connection.sendall(b"ping")
        with pytest.raises(ConnectionResetError):
            connection.recv(100)


def close_idle_tunnels(mesh: Mesh) -> None:
    mesh.cli("certs", "rotate", check=True)


def test_resets_in_the_middle_leave_no_descriptor_behind(mesh: Mesh) -> None:
    pids = sidecars(mesh, "pour")
    close_idle_tunnels(mesh)
    before = [count_descriptors(pid) for pid in pids]
    for _ in range(10):
        connection = call(mesh, "pour")
        assert connection.recv(65536)
        reset(connection)
    close_idle_tunnels(mesh)
    for pid, count in zip(pids, before, strict=True):
        wait_until(lambda: count_descriptors(pid) <= count, "as many descriptors as before")  # noqa: B023


def test_a_caller_that_resets_in_the_middle_of_sending_leaves_no_descriptor_behind(
    mesh: Mesh,
) -> None:
    pids = sidecars(mesh, "digest")
    close_idle_tunnels(mesh)
    before = [count_descriptors(pid) for pid in pids]
    for _ in range(10):
        connection = call(mesh, "digest")
        connection.sendall(bytes(MIB))
        reset(connection)
    close_idle_tunnels(mesh)
    for pid, count in zip(pids, before, strict=True):
        wait_until(lambda: count_descriptors(pid) <= count, "as many descriptors as before")  # noqa: B023
