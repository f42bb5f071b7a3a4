"""A whole sidecar process: how it begins, renews itself, and ends."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest
from support.apps import App, echo
from support.sidecars import Mesh

from meshrun.proxy.messages import ConnectionFailed, Enforced, Logged, Renew, Serving


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


@pytest.mark.parametrize("last", ["hang up", "terminate"])
def test_it_ends_at_once_and_orderly_and_resets_its_connections(mesh: Mesh, last: str) -> None:
    with App(echo) as app:
        server = mesh.sidecar("server", app=app.port, default="allow")
        client = mesh.sidecar("client", upstreams=[server])
        with client.call("server") as connection:
            connection.sendall(b"ping")
            assert connection.recv(4) == b"ping"
            began = time.monotonic()
            assert (client.hang_up() if last == "hang up" else client.terminate()) == 0
            assert time.monotonic() - began < 1.0
            with pytest.raises(ConnectionResetError):
                connection.recv(1)


def test_calls_wait_until_it_serves(mesh: Mesh) -> None:
    with App(echo) as app:
        server = mesh.sidecar("server", app=app.port, default="allow")
        client = mesh.sidecar("client", upstreams=[server], serving=False)
        with client.call("server") as connection:
            connection.sendall(b"early")
            assert connection.recv(100) == b"early"


def test_it_says_which_version_it_enforces_even_before_it_has_a_leaf(mesh: Mesh) -> None:
    client = mesh.sidecar("client", signs=False, serving=False)
    client.expect(Enforced, lambda message: message.version == 1)
    client.intend()
    assert "cannot get a leaf" in client.expect(Logged).message
    client.signs = True
    client.expect(Serving)


def test_no_call_fails_during_rotations(mesh: Mesh) -> None:
    with App(echo) as app:
        server = mesh.sidecar("server", app=app.port, default="allow")
        client = mesh.sidecar("client", upstreams=[server])
        stop = threading.Event()
        calls: list[bool] = []

        def call_without_pause() -> None:
            with client.call("server") as kept:
                while not stop.is_set():
                    with client.call("server") as fresh:
                        for connection in (kept, fresh):
                            connection.sendall(b"ping")
                            calls.append(connection.recv(4) == b"ping")

        caller = threading.Thread(target=call_without_pause)
        caller.start()
        serials = set()
        for _ in range(10):
            for sidecar in (client, server):
                sidecar.send(Renew())
                serials.add(sidecar.expect(Serving).serial)
        stop.set()
        caller.join()
        assert len(serials) == 20
        assert calls
        assert all(calls)


def test_it_renews_by_itself_in_time(mesh: Mesh) -> None:
    with App(echo) as app:
        server = mesh.sidecar("server", app=app.port, default="allow", leaf_ttl_s=2.0)
        client = mesh.sidecar("client", upstreams=[server], leaf_ttl_s=2.0)
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            with client.call("server") as connection:
                connection.sendall(b"ping")
                assert connection.recv(4) == b"ping"
        client.expect(Serving)
        client.expect(Serving)


def test_without_a_control_plane_that_signs_it_fails_closed_at_the_end_of_its_leaf(
    mesh: Mesh,
) -> None:
    with App(echo) as app:
        server = mesh.sidecar("server", app=app.port, default="allow")
        client = mesh.sidecar("client", upstreams=[server], leaf_ttl_s=1.5, timeout_s=0.5)
        client.signs = False
        assert "cannot get a leaf" in client.expect(Logged).message
        with client.call("server") as live:
            live.sendall(b"still here")
            assert live.recv(100) == b"still here"
            time.sleep(1.5)  # the leaf's life, by the wall clock
            with client.call("server") as late, pytest.raises(ConnectionResetError):
                late.recv(1)
            assert "leaf has expired" in client.expect(ConnectionFailed).reason
            live.sendall(b"live connections go on")
            assert live.recv(100) == b"live connections go on"
        client.signs = True
        client.send(Renew())
        client.expect(Serving)
        with client.call("server") as connection:
            connection.sendall(b"ping")
            assert connection.recv(4) == b"ping"


def test_idle_it_does_not_wake_up(mesh: Mesh) -> None:
    with App(echo) as app:
        server = mesh.sidecar("server", app=app.port, default="allow")
        client = mesh.sidecar("client", upstreams=[server])
        with client.call("server") as connection:
            connection.sendall(b"ping")
            assert connection.recv(4) == b"ping"
            before = [client.switches(), server.switches()]
            time.sleep(1.5)
            after = [client.switches(), server.switches()]
            # One for going to sleep after the last answer.
            assert all(late - early <= 1 for early, late in zip(before, after, strict=True))


FORKS_AFTER_WARM_UP = """
import os
from meshrun.proxy import leaf, sidecar
sidecar.warm_up()
for _ in range(3):
    if os.fork() == 0:
        print(leaf.new_key().private_numbers().private_value, flush=True)
        os._exit(0)
    os.wait()
"""


def test_sidecars_forked_from_one_launcher_make_different_keys() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FORKS_AFTER_WARM_UP], capture_output=True, check=True
    )
    assert len(set(done.stdout.splitlines())) == 3


def test_an_unreadable_channel_ends_it(mesh: Mesh) -> None:
    client = mesh.sidecar("client")
    client.control.sendall(b"\xff" * 64)
    assert client.wait() == 0
