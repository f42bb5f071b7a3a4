"""What people suffer with process managers before and between the ends of programs.

As in `test_common_complaints`: each is named after what must happen instead. The table of all of
them is docs/complaints.md.
"""

import socket
from pathlib import Path

import pytest
from support.mesh import PATIENCE_S, Mesh
from support.traffic import ask

pytestmark = pytest.mark.slow

# As in `test_common_complaints`: far less than what must not be waited for.
SOON_S = 4.0

# Starts to listen once there is a file `go`.
GATED = """
[apps.server]
command = "until test -e go; do sleep 0.05; done; exec $PYTHON -S $APPS/serve.py"
shell = true
ready = { tcp = true }
"""
DEPENDANT = """
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
depends_on = ["server"]
upstreams = ["server"]
[[intentions]]
from = "client"
to = "server"
"""


def times(mesh: Mesh, kind: str, subject: str) -> list[float]:
    return [event.at for event in mesh.events(kind, subject)]


@pytest.mark.parametrize(("command", "restart"), [("false", "on-failure"), ("true", "always")])
def test_one_that_ends_at_once_is_started_ever_more_rarely(
    tmp_path: Path, command: str, restart: str
) -> None:
    config = f'[apps.web]\ncommand = "{command}"\nport = 0\nrestart = "{restart}"\n'
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        mesh.await_event("started", "web.1", number=6)
        started, ended = (times(mesh, kind, "web.1") for kind in ("started", "exited"))
        waits = [start - end for start, end in zip(started[1:], ended, strict=False)]
        # The first is at once, the next after 0.1 s, then twice that, less a fifth for chance.
        for number, wait_s in enumerate(waits[1:5]):
            assert wait_s > 0.8 * 0.1 * 2**number - 0.01, waits
        assert mesh.await_event("crash-loop", "web.1").message.count("next try in")


def test_one_that_fails_in_its_first_second_is_tried_again(tmp_path: Path) -> None:
    config = """
[apps.web]
command = "test -e once || { touch once; exit 1; }; exec sleep 600"
shell = true
port = 0
"""
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        row = mesh.instance("web.1")
        assert (row.state, row.ready, row.restarts) == ("running", True, 1)


def test_what_prepares_has_ended_before_the_app_starts_however_long_it_takes(
    tmp_path: Path,
) -> None:
    config = """
[apps.migrate]
command = "until test -e go; do sleep 0.05; done"
shell = true
port = 0
[apps.web]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
depends_on = { migrate = "succeeded" }
"""
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        mesh.await_event("started", "migrate.1")
        # Commands pass the time: no start may come of that.
        assert "migrate to be succeeded" in mesh.cli("why", "web", check=True).stdout
        assert not mesh.events("started", "web.1")
        (tmp_path / "go").touch()
        started = mesh.await_event("started", "web.1")
        assert times(mesh, "completed", "migrate.1") <= [started.at]


def test_a_restart_of_one_that_waits_neither_wedges_it_nor_starts_it_twice(tmp_path: Path) -> None:
    with Mesh(tmp_path, GATED + DEPENDANT) as mesh:
        mesh.up(wait=False)
        mesh.await_event("started", "server.1")
        for command in ("restart", "stop", "start", "restart"):
            mesh.cli(command, "client", check=True)
        assert mesh.instance("client.1").state == "waiting"
        (tmp_path / "go").touch()
        rows = mesh.wait_for(lambda rows: rows["client.1"].ready)
        assert rows["client.1"].restarts == 0
        assert len(mesh.events("started", "client.1")) == 1


def test_one_that_is_not_ready_at_first_is_waited_for(tmp_path: Path) -> None:
    (tmp_path / "ill").touch()
    server = """
[apps.server]
command = "${PYTHON} -S ${APPS}/moody.py"
ready = { http = "/", failures = 1 }
"""
    with Mesh(tmp_path, server + DEPENDANT) as mesh:
        mesh.up(wait=False)
        mesh.wait_for(lambda _: mesh.output("server.1").count("asked") >= 3)
        assert mesh.instance("client.1").state == "waiting"
        (tmp_path / "ill").unlink()
        started = mesh.await_event("started", "client.1")
        assert times(mesh, "ready", "server.1") <= [started.at]


def test_one_that_fails_at_once_lets_nobody_start_who_needs_it(tmp_path: Path) -> None:
    server = """
[apps.server]
command = "exit 3"
shell = true
restart = "never"
ready = { tcp = true }
"""
    with Mesh(tmp_path, server + DEPENDANT) as mesh:
        foreground = mesh.starting()
        assert foreground.wait() == 1
        assert "client.1 failed: server will never be ready" in foreground.text
        assert "client.1 started" not in foreground.text


def test_one_is_ready_soon_though_its_probe_is_asked_rarely(tmp_path: Path) -> None:
    config = """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --listen-after 0.3"
ready = { tcp = true, interval = "60s" }
"""
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        (started,), (ready,) = (times(mesh, kind, "server.1") for kind in ("started", "ready"))
        assert ready - started < SOON_S


def test_one_without_a_probe_is_ready_when_it_runs_and_nobody_waits_for_ever(
    tmp_path: Path,
) -> None:
    server = '[apps.server]\ncommand = "${PYTHON} -S ${APPS}/serve.py"\n'
    with Mesh(tmp_path, server + DEPENDANT) as mesh:
        mesh.up()
        assert mesh.instance("client.1").ready


def test_a_restart_of_all_goes_along_the_graph_and_waits_for_who_is_not_ready(
    tmp_path: Path,
) -> None:
    server = """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --listen-after 0.3"
ready = { tcp = true }
"""
    with Mesh(tmp_path, server + DEPENDANT) as mesh:
        mesh.up()
        mesh.cli("restart", check=True)
        again = mesh.await_event("started", "client.1", number=2)
        assert times(mesh, "ready", "server.1")[1] <= again.at
        # The dependant was not left without what it needs for longer than that takes.
        assert mesh.events("exited", "server.1")[0].at <= mesh.events("exited", "client.1")[0].at


def test_two_checkouts_run_at_the_same_time_and_the_end_of_one_is_not_that_of_the_other(
    tmp_path: Path,
) -> None:
    server = """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --mode name"
ready = { tcp = true }
"""
    config = server + DEPENDANT
    with Mesh(tmp_path / "one", config) as one, Mesh(tmp_path / "other", config) as other:
        for mesh in (one, other):
            mesh.up()
        ports = [mesh.upstream("client.1", "server")[1] for mesh in (one, other)]
        assert len(set(ports)) == 2
        assert [ask(port) for port in ports] == [b"server.1\n"] * 2
        one.down()
        with pytest.raises(ConnectionRefusedError):
            ask(ports[0])
        assert ask(ports[1]) == b"server.1\n"


def test_what_a_python_program_prints_is_seen_at_once(tmp_path: Path) -> None:
    config = """
[apps.web]
command = ["${PYTHON}", "-S", "-c", "print('here I am'); import time; time.sleep(600)"]
port = 0
"""
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        assert "web.1" in foreground.await_line("here I am")


def test_ready_means_that_the_app_listens_and_not_its_sidecar(tmp_path: Path) -> None:
    config = GATED + DEPENDANT.replace('depends_on = ["server"]\n', "")
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        mesh.await_event("started", "server.1")
        # The port at which it is called is open all the time; that says nothing.
        with socket.create_connection(mesh.upstream("client.1", "server"), PATIENCE_S):
            assert not mesh.instance("server.1").ready
            assert not mesh.client.wait(0.5).ready
        (tmp_path / "go").touch()
        mesh.await_event("ready", "server.1")


def test_a_line_of_the_log_is_found_however_many_come_before_it(tmp_path: Path) -> None:
    config = """
[apps.web]
command = "seq 20000; echo serving; exec sleep 600"
shell = true
port = 0
ready = { log = "^serving$" }
"""
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        assert mesh.instance("web.1").ready
