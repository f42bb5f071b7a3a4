"""Services that meshrun does not start: reached through a sidecar in front of them, if allowed."""

import json
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.apps import App, echo
from support.mesh import Mesh
from support.traffic import ask, reaches

CONFIG = """
[mesh]
name = "shop"

[services.database]
address = "127.0.0.1:%d"

[apps.client]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["database"]
depends_on = ["database"]

[apps.intruder]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["database"]

[[intentions]]
from = "client"
to = "database"
"""


@pytest.fixture(scope="module")
def database() -> Iterator[App]:
    """A server that meshrun knows nothing of."""
    with App(echo) as app:
        yield app


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory, database: App) -> Iterator[Mesh]:
    """Two apps that have it as an upstream, one of which may call it."""
    with Mesh(tmp_path_factory.mktemp("mesh"), CONFIG % database.port) as started:
        started.up()
        yield started


def upstream(mesh: Mesh, app: str) -> int:
    return mesh.upstream(f"{app}.1", "database")[1]


def test_an_external_service_is_reached_where_an_intention_allows_it(
    mesh: Mesh, database: App
) -> None:
    before = database.accepted
    assert ask(upstream(mesh, "client"), b"select 1") == b"select 1"
    assert database.accepted == before + 1


def test_an_external_service_hears_nothing_of_a_call_that_is_denied(
    mesh: Mesh, database: App
) -> None:
    before = database.accepted
    assert not reaches(upstream(mesh, "intruder"))
    assert reaches(upstream(mesh, "client"))
    assert database.accepted == before + 1


def test_an_external_service_has_a_row_of_its_own(mesh: Mesh) -> None:
    rows = json.loads(mesh.cli("ps", "--json", check=True).stdout)
    row = next(row for row in rows if row["app"] == "database")
    shown = {key: row[key] for key in ("instance", "state", "ready", "pid", "restarts")}
    assert shown == {
        "instance": "database.1",
        "state": "external",
        "ready": True,
        "pid": None,
        "restarts": 0,
    }
    assert isinstance(row["sidecar_pid"], int)
    assert isinstance(row["sidecar_port"], int)


def test_an_external_service_has_an_identity(mesh: Mesh) -> None:
    leaves = {leaf.instance: leaf.identity for leaf in mesh.client.certs()}
    assert leaves["database.1"] == "spiffe://shop.mesh/ns/default/dc/local/svc/database"


PROBED = """
[mesh]
name = "shop"

[services.database]
address = "localhost:%d"
ready = { tcp = true, interval = "200ms" }

[apps.client]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["database"]
depends_on = ["database"]

[[intentions]]
from = "client"
to = "database"
"""


@pytest.mark.slow
def test_an_external_service_with_a_probe_is_ready_while_it_answers(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    with Mesh(tmp_path, PROBED % port) as mesh:
        mesh.up(wait=False)
        waiting = mesh.wait_for(lambda rows: bool(rows["database.1"].reason))
        assert not waiting["database.1"].ready
        assert "Connection refused" in str(waiting["database.1"].reason)
        assert waiting["client.1"].state == "waiting"
        assert "database to be ready" in str(waiting["client.1"].reason)
        with socket.create_server(("127.0.0.1", port)):
            mesh.wait_for(lambda rows: rows["database.1"].ready)
            mesh.wait_for(lambda rows: rows["client.1"].state == "running")
        mesh.await_event("not-ready", "database.1")
        assert not mesh.instance("database.1").ready
