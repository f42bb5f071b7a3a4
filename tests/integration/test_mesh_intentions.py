"""Who may call whom, changed by commands while programs call: enforced when the command returns."""

import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
from support.apps import PATIENCE_S
from support.mesh import Mesh
from support.sampling import WHOLE
from support.traffic import connect, reaches, wait_until

from meshrun.supervisor.cli.client import ApiError
from meshrun.supervisor.cli.request_options import Asking
from meshrun.supervisor.cli.transport import exchange

CONFIG = """
[mesh]
name = "shop"

[apps.server]
command = "${PYTHON} ${APPS}/serve.py"

[apps.client]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["server"]

[apps.intruder]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["server"]

[apps.flooder]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["server"]

[apps.api]
command = "${PYTHON} ${APPS}/serve.py"
protocol = "http"

[[intentions]]
from = "client"
to = "server"

[[intentions]]
from = "client"
to = "api"
permissions = [
    { action = "deny", path_prefix = "/admin" },
    { action = "allow", methods = ["GET"], headers = [{ name = "x-role", exact = "admin" }] },
]
"""

# How long a sidecar may take to acknowledge, and a second for what is done about it.
ENFORCED_WITHIN_S = 3.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A client that mesh.toml lets call the server, and two others."""
    with Mesh(tmp_path_factory.mktemp("mesh"), CONFIG) as mesh:
        mesh.up()
        yield mesh


@pytest.fixture
def mesh(running: Mesh) -> Iterator[Mesh]:
    """The running mesh; what a test says at run time is unsaid at its end."""
    yield running
    for intention in running.client.intentions():
        if intention.origin == "runtime":
            running.client.delete_intention(intention.source_name, intention.destination_name)


def upstream(mesh: Mesh, app: str) -> int:
    """Return where an app reaches the server."""
    return mesh.upstream(f"{app}.1", "server")[1]


def may_call(mesh: Mesh, app: str) -> bool:
    """Call the server as an app does; the answer must be what `intentions check` says."""
    reached = reaches(upstream(mesh, app))
    said = mesh.cli("intentions", "check", app, "server")
    assert (said.returncode, said.stdout.strip()) == ((0, "Allowed") if reached else (1, "Denied"))
    return reached


def intend(mesh: Mesh, *arguments: str) -> None:
    """Change the intentions by a command that must succeed."""
    mesh.cli("intentions", *arguments, check=True)


class Live:
    """A connection of an app to the server that has carried something."""

    def __init__(self, mesh: Mesh, app: str) -> None:
        self.connection = connect(upstream(mesh, app))
        assert self.works()

    def works(self) -> bool:
        """Tell whether it carries a message there and back."""
        self.connection.sendall(b"still there?")
        return self.connection.recv(100) == b"still there?"

    def is_cut(self) -> bool:
        """Tell whether it was reset, or becomes so without anything being sent."""
        try:
            self.connection.recv(100)
        except ConnectionResetError:
            return True
        return False


@contextmanager
def live(mesh: Mesh, app: str) -> Iterator[Live]:
    """Hold a connection of an app to the server."""
    held = Live(mesh, app)
    with held.connection:
        yield held


def test_without_an_intention_a_call_is_denied_and_it_is_said_who_and_why(mesh: Mesh) -> None:
    assert may_call(mesh, "client")
    assert not may_call(mesh, "intruder")
    reason = "no intention matches intruder => server; the default is deny"
    wait_until(
        lambda: any(
            (e.source, e.destination) == ("intruder", "server") and reason in e.message
            for e in mesh.events("denied", "server")
        ),
        "told in the timeline",
    )
    assert reason in mesh.cli("events", "--json", check=True).stdout
    log = mesh.state_path / "logs" / "meshrun.log"
    wait_until(lambda: reason in log.read_text(), "said in meshrun's log")


def test_a_created_intention_works_for_the_very_next_call_and_a_deleted_one_no_more(
    mesh: Mesh,
) -> None:
    port = upstream(mesh, "intruder")
    for _ in range(3):
        intend(mesh, "create", "intruder", "server")
        assert reaches(port)
        intend(mesh, "delete", "intruder", "server")
        assert not reaches(port)


def test_a_deleted_intention_cuts_live_connections_and_only_those_it_carried(mesh: Mesh) -> None:
    intend(mesh, "create", "intruder", "server")
    with live(mesh, "intruder") as forbidden, live(mesh, "client") as allowed:
        intend(mesh, "delete", "intruder", "server")
        assert forbidden.is_cut()
        assert allowed.works()
    wait_until(
        lambda: any("live connection cut" in e.message for e in mesh.events("denied", "server")),
        "told in the timeline",
    )


def test_an_intention_that_changes_nothing_for_a_live_connection_leaves_it(mesh: Mesh) -> None:
    with live(mesh, "client") as allowed:
        intend(mesh, "create", "intruder", "server")
        intend(mesh, "create", "-deny", "*", "server")
        intend(mesh, "create", "-replace", "client", "server")
        intend(mesh, "delete", "client", "server")
        assert allowed.works()


def test_of_all_that_match_the_most_exact_intention_decides(mesh: Mesh) -> None:
    intend(mesh, "create", "*", "*")
    assert may_call(mesh, "intruder")
    intend(mesh, "create", "-deny", "intruder", "*")
    assert not may_call(mesh, "intruder")
    intend(mesh, "create", "*", "server")
    assert may_call(mesh, "intruder")
    intend(mesh, "create", "-deny", "intruder", "server")
    assert not may_call(mesh, "intruder")
    assert may_call(mesh, "client")
    intend(mesh, "delete", "intruder", "server")
    assert may_call(mesh, "intruder")


def test_a_runtime_intention_lies_over_that_of_the_file(mesh: Mesh) -> None:
    refused = mesh.cli("intentions", "create", "-deny", "client", "server")
    assert refused.returncode == 1
    assert "mesh.toml:" in refused.stderr
    with live(mesh, "client") as held:
        intend(mesh, "create", "-deny", "-replace", "client", "server")
        assert held.is_cut()
    assert not may_call(mesh, "client")
    intend(mesh, "delete", "client", "server")
    assert may_call(mesh, "client")


def test_what_stands_in_the_file_is_not_deleted_by_a_command(mesh: Mesh) -> None:
    refused = mesh.cli("intentions", "delete", "client", "server")
    assert refused.returncode == 1
    assert "mesh.toml:" in refused.stderr
    assert may_call(mesh, "client")


def test_a_sidecar_that_does_not_answer_is_replaced_by_one_that_enforces(mesh: Mesh) -> None:
    before = mesh.instance("server.1")
    with live(mesh, "client") as held:
        mesh.kill(before.sidecar_pid, signal.SIGSTOP)
        began = time.monotonic()
        mesh.client.put_intention("client", "server", "deny", description="", meta={}, replace=True)
        assert time.monotonic() - began < ENFORCED_WITHIN_S
        assert held.is_cut()
    assert not may_call(mesh, "client")
    intend(mesh, "delete", "client", "server")
    assert may_call(mesh, "client")
    after = mesh.instance("server.1")
    assert after.sidecar_pid != before.sidecar_pid
    assert after.pid == before.pid


@pytest.mark.slow
def test_intentions_made_at_run_time_outlive_the_run(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        intend(mesh, "create", "intruder", "server")
        mesh.down()
        mesh.up()
        assert may_call(mesh, "intruder")


def test_where_the_default_is_to_allow_a_deny_stops_a_call(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG.replace("[mesh]", '[mesh]\ndefault_intention = "allow"')) as mesh:
        mesh.up()
        with live(mesh, "intruder") as held:
            intend(mesh, "create", "-deny", "intruder", "server")
            assert held.is_cut()
        assert not may_call(mesh, "intruder")
        assert may_call(mesh, "flooder")


@pytest.mark.long
def test_many_denials_are_told_in_a_few_events(mesh: Mesh) -> None:
    calls = 1000 if WHOLE else 300
    port = upstream(mesh, "flooder")

    def counts() -> list[int]:
        return [e.count for e in mesh.events("denied", "server") if e.source == "flooder"]

    began = time.monotonic()
    for _ in range(calls):
        assert not reaches(port)
    wait_until(lambda: sum(counts()) >= calls, f"a sum of {calls}")
    took_s = time.monotonic() - began
    assert sum(counts()) == calls
    assert len(counts()) <= 2 * took_s + 2
    assert may_call(mesh, "client")


def test_of_two_who_create_the_same_pair_at_once_one_is_told_that_it_exists(mesh: Mesh) -> None:
    def create(action: str) -> str:
        try:
            mesh.client.put_intention(
                "intruder", "server", action, description="", meta={}, replace=False
            )
        except ApiError as error:
            return str(error.status)
        return action

    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(create, ["allow", "deny"] * 4))
    made = [outcome for outcome in outcomes if outcome != "409"]
    assert len(made) == 1
    found = next(i for i in mesh.client.intentions() if i.source_name == "intruder")
    assert found.action == made[0]
    intend(mesh, "delete", "intruder", "server")


def test_requests_are_checked_as_a_sidecar_would_decide(mesh: Mesh) -> None:
    def verdict(*words: str) -> tuple[int, str]:
        said = mesh.cli("intentions", "check", "client", "api", *words)
        return said.returncode, said.stdout.strip()

    assert verdict() == (1, "Denied")
    assert verdict("--path", "/", "-H", "X-Role: admin") == (0, "Allowed")
    assert verdict("--path", "/x/..//%61dmin?a=b", "-H", "x-role=admin") == (1, "Denied")
    assert verdict("-H", "x-role=user")[0] == 1
    assert verdict("--method", "get")[0] == 2
    found = mesh.client.check_intention("client", "api", Asking(path="/admin"))
    assert (found.allowed, found.permission, found.dry_run) == (False, 1, False)
    assert "client => api (2 permissions), mesh.toml:" in found.reason
    assert found.reason.endswith(": permission 1 denies")
    said = mesh.cli("why", "client", "api", "--method", "PUT").stdout
    assert "no permission matches; the default is deny" in said


def test_an_intention_about_requests_is_made_shown_and_deleted(mesh: Mesh) -> None:
    said = mesh.cli("intentions", "create", "-from", "intruder", "-to", "api", "-verb", "GET,HEAD")
    assert (said.returncode, said.stdout) == (0, "Created: intruder => api (1 permission)\n")
    assert "intruder => api (1 permission)" in mesh.cli("intentions", "match", "api").stdout
    assert '"Methods": [' in mesh.cli("intentions", "get", "intruder", "api").stdout
    get, put = Asking(method="GET"), Asking(method="PUT")
    assert mesh.client.check_intention("intruder", "api", get).allowed
    assert not mesh.client.check_intention("intruder", "api", put).allowed
    intend(mesh, "create", "-replace", "-dry-run", "-deny", "intruder", "api")
    found = mesh.client.check_intention("intruder", "api", put)
    assert (found.allowed, found.dry_run) == (True, True)
    intend(mesh, "delete", "intruder", "api")
    assert not mesh.client.check_intention("intruder", "api", get).allowed


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"Permissions": [{"Action": "deny"}]}, "Sources[0].Permissions[0].HTTP is required"),
        ({"Permissions": [], "Action": "permit"}, "Action must be set to 'allow' or 'deny'"),
        ({"Action": "allow", "DryRun": True}, "DryRun would deny nothing"),
        ({"Action": "allow", "JWT": {}}, "JWT is not supported"),
        ({"Permissions": [{"Action": "deny", "HTTP": {"Path": "/"}}]}, "unknown field `Path`"),
    ],
)
def test_the_api_refuses_what_is_no_intention(
    mesh: Mesh, body: dict[str, object], said: str
) -> None:
    with mesh.state.connect(PATIENCE_S) as connection:
        target = "/v1/connect/intentions/exact?source=intruder&destination=api"
        response = exchange(connection, "PUT", target, msgspec.json.encode(body))
        assert response.status == 400
        assert said in response.body().decode()
