"""What real apps find in their environment, in this run and in the next."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mesh import Mesh
from support.traffic import wait_until

CONFIG = """
[apps.web]
command = "${PYTHON} ${APPS}/environment.py ${MESHRUN_INSTANCE}.json"
instances = 2
upstreams = ["api", { service = "database", as = "main-db" }]
env_file = "web.env"
env = { GREETING = "hi from ${FROM_FILE} at ${UPSTREAM_API_HOST}", COST = "$$5" }

[apps.api]
command = "${PYTHON} ${APPS}/environment.py ${MESHRUN_INSTANCE}.json"
protocol = "http"

[apps.batch]
command = "${PYTHON} ${APPS}/environment.py ${MESHRUN_INSTANCE}.json"
port = 0

[services.database]
address = "127.0.0.1:5432"
"""

# It comes before the others, and wants ports of every kind.
NEWCOMER = """
[apps.admin]
command = "${PYTHON} ${APPS}/idle.py"
upstreams = ["api", "database"]
"""

# Ranges of its own: between two runs the mesh of another test might take a remembered port.
MESH = '[mesh]\nname = "shop"\nports = "28200-28299"\napp_ports = "28300-28399"\n'

# What stands there is not for the apps of this mesh, but for FROM_CALLER.
CALLER = {"PORT": "1", "MESHRUN_RUN_ID": "an outer mesh's", "FROM_CALLER": "caller"}

FILES = {"web.env": "FROM_FILE=file\nGREETING=overruled\n"}

Environment = dict[str, str]


def found(mesh: Mesh, instance: str) -> Environment:
    """Return what an app has found, once it has written it."""
    path = mesh.folder / f"{instance}.json"
    wait_until(path.exists, f"the environment of {instance}")
    environment: Environment = json.loads(path.read_text())
    return environment


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """Two instances with upstreams, an app that speaks HTTP, and one that takes no calls."""
    folder = tmp_path_factory.mktemp("mesh")
    with Mesh(folder, MESH + CONFIG, files=FILES, environment=CALLER) as started:
        started.up()
        yield started


@pytest.mark.parametrize("instance", ["web.1", "web.2", "api.1"])
def test_an_app_is_told_where_to_listen(mesh: Mesh, instance: str) -> None:
    assert found(mesh, instance)["PORT"] == str(mesh.instance(instance).port)


def test_each_instance_has_its_own_port(mesh: Mesh) -> None:
    assert int(found(mesh, "web.2")["PORT"]) == int(found(mesh, "web.1")["PORT"]) + 1


def test_an_app_that_takes_no_calls_has_no_port_not_even_its_callers(mesh: Mesh) -> None:
    assert "PORT" not in found(mesh, "batch.1")


def test_an_app_is_told_who_it_is(mesh: Mesh) -> None:
    environment = found(mesh, "web.2")
    assert environment["MESHRUN_APP"] == "web"
    assert environment["MESHRUN_INSTANCE"] == "web.2"
    assert environment["MESHRUN_IDENTITY"] == "spiffe://shop.mesh/ns/default/dc/local/svc/web"
    assert environment["MESHRUN_RUN_ID"] == mesh.recorded().run_id


def test_an_app_is_told_where_its_upstreams_are(mesh: Mesh) -> None:
    environment = found(mesh, "web.1")
    for name in ("API", "MAIN_DB"):
        port = int(environment[f"UPSTREAM_{name}_PORT"])
        assert environment[f"UPSTREAM_{name}_HOST"] == "127.0.0.1"
        assert environment[f"UPSTREAM_{name}_ADDR"] == f"127.0.0.1:{port}"
    assert environment["UPSTREAM_API_URL"] == f"http://{environment['UPSTREAM_API_ADDR']}"
    assert "UPSTREAM_MAIN_DB_URL" not in environment


def test_no_two_instances_share_an_upstream_address(mesh: Mesh) -> None:
    addresses = [
        value
        for instance in ("web.1", "web.2")
        for name, value in found(mesh, instance).items()
        if name.startswith("UPSTREAM_") and name.endswith("_ADDR")
    ]
    assert len(addresses) == len(set(addresses)) == 4


def test_the_callers_environment_the_file_and_env_come_together_the_last_one_wins(
    mesh: Mesh,
) -> None:
    environment = found(mesh, "web.1")
    names = ("FROM_CALLER", "FROM_FILE", "GREETING", "COST", "PYTHONUNBUFFERED")
    assert [environment[name] for name in names] == [
        "caller",
        "file",
        "hi from file at 127.0.0.1",
        "$5",
        "1",
    ]


def test_the_command_env_shows_what_the_app_got_but_for_the_marker(mesh: Mesh) -> None:
    shown = json.loads(mesh.cli("env", "web.2", "--json", check=True).stdout)
    got = found(mesh, "web.2")
    del got["MESHRUN_RUN_ID"]
    assert shown == got


@pytest.mark.slow
def test_addresses_are_the_same_in_the_next_run_also_beside_a_newcomer(tmp_path: Path) -> None:
    def addresses(mesh: Mesh) -> dict[str, Environment]:
        rows = {row.instance: {"sidecar": str(row.sidecar_port)} for row in mesh.ps()}
        for instance in ("web.1", "web.2", "api.1"):
            for name, value in mesh.env(instance).items():
                if name == "PORT" or name.startswith("UPSTREAM_"):
                    rows[instance][name] = value
        return rows

    with Mesh(tmp_path, MESH + CONFIG, files=FILES) as mesh:
        mesh.up()
        first = addresses(mesh)
        mesh.down()
        (tmp_path / "mesh.toml").write_text(MESH + NEWCOMER + CONFIG)
        mesh.up()
        second = addresses(mesh)
    del second["admin.1"]
    assert second == first
