"""Readiness, asked at the app itself: who is ill gets no calls, and is back when it is well."""

import urllib.request
from pathlib import Path

from support.mesh import PATIENCE_S, Mesh
from support.traffic import wait_until

MOODY = """
[apps.server]
command = "${PYTHON} -S ${APPS}/moody.py"
instances = 2
ready = { http = "/", interval = "100ms", failures = 2, deadline = "20s" }
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
upstreams = ["server"]
[[intentions]]
from = "client"
to = "server"
"""


def get(address: tuple[str, int]) -> str:
    """Return the body of an answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(f"http://{address[0]}:{address[1]}/", timeout=PATIENCE_S) as response:
        body: bytes = response.read()
    return body.decode()


def test_one_that_is_ill_gets_no_calls_until_it_is_well(tmp_path: Path) -> None:
    with Mesh(tmp_path, MOODY) as mesh:
        mesh.up()
        server = mesh.upstream("client.1", "server")
        (tmp_path / "ill-server.1").touch()
        ill = mesh.await_event("not-ready", "server.1")
        assert "answered 500" in ill.message
        rows = {row.instance: row for row in mesh.ps()}
        assert (rows["server.1"].ready, rows["server.1"].state) == (False, "running")
        assert rows["server.2"].ready
        assert {get(server) for _ in range(6)} == {"server.2"}
        (tmp_path / "ill-server.1").unlink()
        mesh.await_event("ready", "server.1", number=2)
        # Chosen by chance: it has its turn, but nobody can say which.
        wait_until(lambda: get(server) == "server.1", "calls go to the one that is well again")
        assert mesh.instance("server.1").restarts == 0


def test_one_that_is_not_ready_in_time_is_killed_and_tried_again(tmp_path: Path) -> None:
    (tmp_path / "ill").touch()
    config = MOODY.replace('deadline = "20s"', 'deadline = "1s"').replace("instances = 2", "")
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        killed = mesh.await_event("killing", "server.1")
        assert "not ready within 1 s" in killed.message
        assert "answered 500" in killed.message
        mesh.await_event("started", "server.1", number=2)
        (tmp_path / "ill").unlink()
        mesh.wait_for(lambda rows: rows["server.1"].ready)
