"""Instances that come, go and are restarted under traffic: no call fails for it."""

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.mesh import PATIENCE_S, Mesh
from support.repeated import Repeated, ask_over_http, ask_over_tcp
from support.traffic import count_descriptors, wait_until

Ask = Callable[[tuple[str, int]], str]

CONFIG = """
[apps.server]
command = "${PYTHON} -S ${APPS}/%s"
protocol = "%s"
instances = %d
%s
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
upstreams = ["server"]
[[intentions]]
from = "client"
to = "server"
"""
READY = "ready = { tcp = true }"
TCP = ("serve.py --mode name", "tcp")
HTTP = ("web.py", "http")

both = pytest.mark.parametrize(
    ("kind", "ask"),
    [
        pytest.param(TCP, ask_over_tcp, id="tcp"),
        pytest.param(HTTP, ask_over_http, id="http", marks=pytest.mark.slow),
    ],
)


def config(kind: tuple[str, str], instances: int, more: str = READY) -> str:
    return CONFIG % (*kind, instances, more)


def repeated(mesh: Mesh, ask: Ask) -> Repeated:
    """Call the server without pause, as the client does."""
    address = mesh.upstream("client.1", "server")
    return Repeated(lambda: ask(address))


@both
def test_no_call_fails_while_instances_come_and_go(
    tmp_path: Path, kind: tuple[str, str], ask: Ask
) -> None:
    with Mesh(tmp_path, config(kind, 2)) as mesh:
        mesh.up()
        before = {row.instance: row.pid for row in mesh.ps()}
        with repeated(mesh, ask) as calls:
            calls.wait_for(10)
            said = mesh.cli("scale", "server=4", check=True).stdout
            assert said == "added server.3: running, ready\nadded server.4: running, ready\n"
            calls.wait_for(30)
            mesh.remember()
            said = mesh.cli("scale", "server=1", check=True).stdout
            assert sorted(said.splitlines()) == [f"removed server.{n}" for n in (2, 3, 4)]
            calls.wait_for(30)
        assert calls.failures == []
        after = {row.instance: row.pid for row in mesh.ps()}
        assert after == {name: before[name] for name in ("server.1", "client.1")}
        if kind == TCP:
            assert set(calls.answers) == {f"server.{n}" for n in (1, 2, 3, 4)}


@both
def test_no_call_fails_while_all_instances_are_restarted(
    tmp_path: Path, kind: tuple[str, str], ask: Ask
) -> None:
    with Mesh(tmp_path, config(kind, 2)) as mesh:
        mesh.up()
        before = {row.instance: row.pid for row in mesh.ps()}
        with repeated(mesh, ask) as calls:
            calls.wait_for(10)
            for _ in range(2):
                mesh.cli("restart", "server", check=True)
                calls.wait_for(10)
        assert calls.failures == []
        after = {row.instance: row for row in mesh.ps()}
        for name in ("server.1", "server.2"):
            assert after[name].pid != before[name]
            assert (after[name].restarts, after[name].ready) == (2, True)
        times = [
            [event.at for event in mesh.events(kind, name)][-1]
            for name, kind in (("server.1", "ready"), ("server.2", "exited"))
        ]
        assert times == sorted(times), "the second was stopped before the first was ready again"


@both
def test_calls_to_a_single_instance_wait_while_it_is_restarted(
    tmp_path: Path, kind: tuple[str, str], ask: Ask
) -> None:
    with Mesh(tmp_path, config(kind, 1)) as mesh:
        mesh.up()
        with repeated(mesh, ask) as calls:
            calls.wait_for(10)
            mesh.cli("restart", "server", check=True)
            calls.wait_for(10)
        assert calls.failures == []


@both
def test_no_call_fails_while_a_changed_file_restarts_all_instances(
    tmp_path: Path, kind: tuple[str, str], ask: Ask
) -> None:
    with Mesh(tmp_path, config(kind, 2)) as mesh:
        mesh.up()
        with repeated(mesh, ask) as calls:
            calls.wait_for(10)
            changed = config(kind, 3, f'{READY}\nenv = {{ A = "1" }}\nworkers = 2')
            (tmp_path / "mesh.toml").write_text(changed)
            said = mesh.cli("reload", check=True).stdout
            assert "added server.3: running, ready\n" in said
            assert "restarted server.1 (env, workers): running, ready\n" in said
            calls.wait_for(10)
        assert calls.failures == []
        assert mesh.env("server.2")["A"] == "1"


@pytest.mark.slow
def test_a_request_that_takes_its_time_is_answered_before_the_instance_is_stopped(
    tmp_path: Path,
) -> None:
    with Mesh(tmp_path, config(HTTP, 2)) as mesh:
        mesh.up()
        address = mesh.upstream("client.1", "server")
        answers: list[bytes] = []

        def ask() -> None:
            with socket.create_connection(address, timeout=PATIENCE_S) as connection:
                connection.sendall(
                    b"GET /sleep/1.5 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"
                )
                answers.append(connection.makefile("rb").read())

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        mesh.cli("restart", "server", check=True)
        for thread in threads:
            thread.join(PATIENCE_S)
        assert [answer.endswith(b"slow") for answer in answers] == [True] * 4
        assert not mesh.events("not-drained")


@pytest.mark.slow
def test_a_connection_that_does_not_end_is_cut_after_the_stop_timeout_and_that_is_said(
    tmp_path: Path,
) -> None:
    more = f'{READY}\nstop = {{ timeout = "300ms" }}'
    with Mesh(tmp_path, config(TCP, 2, more)) as mesh:
        mesh.up()
        address = mesh.upstream("client.1", "server")
        with socket.create_connection(address, timeout=PATIENCE_S) as connection:
            connection.sendall(b"who?")
            name = connection.makefile().readline().strip()
            begun = time.monotonic()
            mesh.cli("restart", "server", check=True)
            assert time.monotonic() - begun < 10
            assert connection.recv(100) == b""
        (event,) = mesh.events("not-drained")
        assert event.subject == name
        assert "still has calls after 0.3 s" in event.message


def test_where_the_first_does_not_come_back_the_others_are_left_alone(tmp_path: Path) -> None:
    more = READY.replace("true", "true, deadline = '1s'") + '\nrestart = "never"'
    with Mesh(tmp_path, config(TCP, 2, more)) as mesh:
        mesh.up()
        kept = mesh.instance("server.2").pid
        (tmp_path / "mesh.toml").write_text(config(("serve.py --no-such-flag", "tcp"), 2, more))
        done = mesh.cli("reload")
        assert done.returncode == 1
        assert "restarted server.1 (command): failed: exit code 2\n" in done.stdout
        assert "kept server.2 (server.1 did not come back)" in done.stdout
        assert mesh.instance("server.2").pid == kept
        address = mesh.upstream("client.1", "server")
        assert {ask_over_tcp(address) for _ in range(4)} == {"server.2"}
        (tmp_path / "mesh.toml").write_text(config(("serve.py --mode  name", "tcp"), 2, more))
        done = mesh.cli("reload", check=True)
        assert done.stdout == "restarted server.1 (command): running, ready\n"
        assert mesh.instance("server.2").pid == kept


def test_an_app_may_have_no_instance_and_get_some_again(tmp_path: Path) -> None:
    # Ranges of its own: meanwhile the mesh of another test might take a port.
    ranges = '[mesh]\nports = "28420-28429"\napp_ports = "28430-28439"\n'
    with Mesh(tmp_path, ranges + config(TCP, 2)) as mesh:
        mesh.up()
        mesh.remember()
        ports = {row.instance: (row.port, row.sidecar_port) for row in mesh.ps()}
        mesh.cli("scale", "server=0", check=True)
        assert [row.instance for row in mesh.ps()] == ["client.1"]
        address = mesh.upstream("client.1", "server")
        answers: list[str] = []
        call = threading.Thread(target=lambda: answers.append(ask_over_tcp(address)))
        call.start()
        mesh.cli("scale", "server=2", check=True)
        call.join(PATIENCE_S)
        assert answers[0].startswith("server.")
        assert {row.instance: (row.port, row.sidecar_port) for row in mesh.ps()} == ports


def test_who_cannot_be_scaled_is_said_and_nothing_is_changed(tmp_path: Path) -> None:
    external = '\n[services.pg]\naddress = "127.0.0.1:1"\n'
    with Mesh(tmp_path, config(TCP, 1) + external) as mesh:
        mesh.up()
        for word, reason in (
            ("serve=2", 'cannot scale "serve": no such app runs here (did you mean "server"?)'),
            ("pg=2", "cannot scale pg: it is external"),
        ):
            done = mesh.cli("scale", "server=3", word)
            assert done.returncode == 1
            assert reason in done.stderr
        assert mesh.cli("scale", "server=101").returncode == 2
        assert mesh.cli("scale", "server").returncode == 2
        assert len(mesh.ps()) == 3


def test_a_number_that_was_chosen_at_run_time_stays_until_the_file_has_another_one(
    tmp_path: Path,
) -> None:
    def instances() -> int:
        return sum(row.app == "server" for row in mesh.ps())

    with Mesh(tmp_path, config(TCP, 2)) as mesh:
        mesh.up("--scale", "server=1")
        assert instances() == 1
        mesh.remember()
        mesh.cli("scale", "server=3", check=True)
        (tmp_path / "mesh.toml").write_text(config(TCP, 2, f'{READY}\nrestart = "always"'))
        mesh.cli("reload", check=True)
        assert instances() == 3
        mesh.remember()
        (tmp_path / "mesh.toml").write_text(config(TCP, 4, f'{READY}\nrestart = "always"'))
        mesh.cli("reload", check=True)
        assert instances() == 4


@pytest.mark.slow
def test_instances_that_come_and_go_leave_nothing_behind(tmp_path: Path) -> None:
    with Mesh(tmp_path, config(TCP, 1)) as mesh:
        mesh.up()

        def up_and_down() -> None:
            mesh.cli("scale", "server=4", check=True)
            mesh.remember()
            mesh.cli("scale", "server=1", check=True)

        up_and_down()
        before = count_descriptors(mesh.supervisor_pid)
        for _ in range(2):
            up_and_down()
        # The end of some output is waited for a little longer than the end of its process.
        wait_until(
            lambda: count_descriptors(mesh.supervisor_pid) <= before, "descriptors to be closed"
        )
        assert len(mesh.recorded().processes) == 4
