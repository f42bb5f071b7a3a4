"""Starting a mesh: order, calls that come early, where it may run, and what stands in its way."""

import json
import os
import shutil
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.mesh import PATIENCE_S, Mesh

ROOT = Path(__file__).parents[2]
CLIENT = """
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
upstreams = ["server"]
[[intentions]]
from = "client"
to = "server"
"""


def say(address: tuple[str, int], what: bytes) -> bytes:
    """Say something, then that this was all, and return the answer."""
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        connection.sendall(what)
        connection.shutdown(socket.SHUT_WR)
        answer = bytearray()
        while data := connection.recv(65536):
            answer += data
        return bytes(answer)


def test_one_starts_when_what_it_depends_on_is_ready(tmp_path: Path) -> None:
    config = """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --listen-after 0.5"
ready = { tcp = true }
[apps.task]
command = "${PYTHON} -S ${APPS}/idle.py --exit-after 0.2"
port = 0
depends_on = { server = "started" }
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
depends_on = { server = "ready", task = "succeeded" }
"""
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        order = [(e.kind, e.subject) for e in mesh.events()]
        assert order.index(("started", "server.1")) < order.index(("started", "task.1"))
        assert order.index(("ready", "server.1")) < order.index(("started", "client.1"))
        assert order.index(("completed", "task.1")) < order.index(("started", "client.1"))


def test_what_depends_on_a_failed_one_fails_and_says_so(tmp_path: Path) -> None:
    config = """
[apps.task]
command = "${PYTHON} -S ${APPS}/idle.py --exit-after 0 --code 3"
port = 0
restart = "never"
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
depends_on = { task = "succeeded" }
"""
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.starting()
        assert foreground.wait() == 1
        assert (
            "client.1 failed: task will never be succeeded: task.1 failed: exit code 3"
            in foreground.text
        )


def test_one_that_waits_says_for_what_and_commands_do_not_wait_with_it(tmp_path: Path) -> None:
    config = """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --listen-after 60"
ready = { tcp = true }
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
depends_on = ["server"]
"""
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        mesh.await_event("started", "server.1")
        assert mesh.instance("client.1").state == "waiting"
        assert "server to be ready" in mesh.cli("why", "client", check=True).stdout
        # There is nothing to restart or to wait for either.
        assert "client.1  waiting" in mesh.cli("restart", "client", check=True).stdout
        assert "client.1  stopped" in mesh.cli("stop", "client", check=True).stdout
        assert "client.1  waiting" in mesh.cli("start", "client", check=True).stdout


def test_up_wait_gives_up_after_its_time_and_says_on_whom(tmp_path: Path) -> None:
    config = """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --listen-after 60"
ready = { tcp = true }
"""
    with Mesh(tmp_path, config) as mesh:
        done = mesh.cli("up", "--wait", "--timeout", "500ms")
        assert done.returncode == 1
        assert "server.1 is starting after 0.5 s: cannot connect to 127.0.0.1" in done.stderr
        mesh.remember()


def test_a_call_made_before_the_app_listens_is_parked_and_answered(tmp_path: Path) -> None:
    config = (
        """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --listen-after 1.5"
"""
        + CLIENT
    )
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        assert mesh.output("server.1") == []
        assert say(mesh.upstream("client.1", "server"), b"early") == b"early"


def test_a_server_may_speak_first_and_answer_after_the_end_of_the_question(
    tmp_path: Path,
) -> None:
    config = (
        """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --mode after-end --first welcome:"
ready = { tcp = true }
"""
        + CLIENT
    )
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        assert say(mesh.upstream("client.1", "server"), b"abc") == b"welcome:cba"


def test_apps_that_are_each_others_upstreams_start_and_call_each_other(tmp_path: Path) -> None:
    config = """
[mesh]
default_intention = "allow"
[apps.a]
command = "${PYTHON} -S ${APPS}/serve.py --listen-after 0.3"
upstreams = ["b"]
[apps.b]
command = "${PYTHON} -S ${APPS}/serve.py --listen-after 0.3"
upstreams = ["a"]
"""
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        with ThreadPoolExecutor() as pool:
            calls = [(mesh.upstream("a.1", "b"), b"to b"), (mesh.upstream("b.1", "a"), b"to a")]
            assert list(pool.map(lambda c: say(*c), calls)) == [b"to b", b"to a"]


@pytest.mark.slow
def test_a_second_up_says_who_runs_already(tmp_path: Path) -> None:
    config = '[apps.a]\ncommand = "${PYTHON} -S ${APPS}/idle.py"\nport = 0\n'
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        pid = mesh.supervisor_pid
        for how in ((), ("-d",), ("--wait",)):
            again = mesh.cli("up", *how)
            assert again.returncode == 1
            assert f"a mesh runs already in {mesh.state_path}" in again.stderr
            assert f"supervisor pid {pid}" in again.stderr
        assert mesh.instance("a.1").ready


@pytest.mark.slow
def test_isolated_copies_run_side_by_side_with_ports_of_their_own(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    config = (
        f"""
[apps.server]
command = "${{PYTHON}} -S ${{APPS}}/serve.py --mode name"
port = {port}
ready = {{ tcp = true }}
"""
        + CLIENT
    )
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        copies = [mesh.starting("--isolated") for _ in range(2)]
        for copy in copies:
            copy.await_line("server.1 is ready")
            assert f"port={port}" not in copy.await_line("server.1 started")
        folders = set(tmp_path.glob(".meshrun-*"))
        assert len(folders) == 2
        assert mesh.instance("server.1").ready
        for copy in copies:
            copy.signal(2)
            assert copy.wait() == 130
        assert not set(tmp_path.glob(".meshrun-*"))
        assert mesh.instance("server.1").ready


def test_a_folder_with_a_path_of_200_characters_will_do(tmp_path: Path) -> None:
    folder = tmp_path / ("d" * max(1, 199 - len(str(tmp_path))))
    assert len(str(folder)) >= 200
    config = '[apps.server]\ncommand = "${PYTHON} -S ${APPS}/serve.py"\nready = { tcp = true }\n'
    with Mesh(folder, config + CLIENT) as mesh:
        mesh.up()
        assert say(mesh.upstream("client.1", "server"), b"far") == b"far"


def test_the_example_procfile_runs_without_a_mesh_toml(tmp_path: Path) -> None:
    shutil.copy(ROOT / "Procfile.example", tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    with socket.create_server(("127.0.0.1", 0)) as probe:
        base = probe.getsockname()[1]
    with Mesh(tmp_path, environment={"PORT": str(base)}) as mesh:
        foreground = mesh.foreground("--procfile", "Procfile.example")
        assert f"web.1   | listening on port {base}" in foreground.await_line("listening on port")
        rows = {row.instance: row.port for row in mesh.ps()}
        assert rows == {"web.1": base, "clock.1": base + 100}


@pytest.mark.parametrize("holder", ["app", "upstream"])
def test_a_port_in_use_is_refused_and_its_owner_named(tmp_path: Path, holder: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        fixed = f"port = {port}" if holder == "app" else ""
        upstream = f'{{ service = "server", port = {port} }}' if holder == "upstream" else ""
        config = f"""
[apps.server]
command = "true"
{fixed}
[apps.client]
command = "true"
port = 0
upstreams = [{upstream}]
"""
        with Mesh(tmp_path, config) as mesh:
            done = mesh.cli("up")
            assert done.returncode == 1
            assert f"cannot give port {port} to" in done.stderr
            assert f"pid {os.getpid()} (" in done.stderr
            assert "--isolated" in done.stderr


@pytest.mark.slow
def test_a_port_that_another_mesh_has_promised_to_its_app_is_refused(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    # The app that has the port does not listen on it yet, or any more.
    config = f'[apps.a]\ncommand = "${{PYTHON}} -S ${{APPS}}/idle.py"\nport = {port}\n'
    with Mesh(tmp_path / "one", config) as one, Mesh(tmp_path / "two", config) as two:
        one.up()
        done = two.cli("up")
        assert done.returncode == 1
        assert f"cannot give port {port} to a.1: another mesh" in done.stderr
        one.down()
        two.up()
        assert two.instance("a.1").port == port


@pytest.mark.slow
def test_ports_are_the_same_in_the_next_run(tmp_path: Path) -> None:
    # Ranges of its own: between the runs the mesh of another test might take a port.
    config = '[mesh]\nports = "28000-28099"\napp_ports = "28100-28199"\n'
    config += '[apps.server]\ncommand = "${PYTHON} -S ${APPS}/serve.py"\nready = { tcp = true }\n'
    with Mesh(tmp_path, config + CLIENT) as mesh:
        mesh.up()
        first = (mesh.upstream("client.1", "server"), mesh.instance("server.1").sidecar_port)
        mesh.down()
        mesh.up()
        assert first == (
            mesh.upstream("client.1", "server"),
            mesh.instance("server.1").sidecar_port,
        )


def test_a_detached_run_survives_whoever_started_it_and_down_ends_it(tmp_path: Path) -> None:
    config = '[apps.a]\ncommand = "${PYTHON} -S ${APPS}/idle.py"\nport = 0\n'
    with Mesh(tmp_path, config) as mesh:
        said = mesh.up(wait=False).stdout
        assert f"pid {mesh.supervisor_pid}" in said
        assert mesh.down().stdout == "the mesh has stopped\n"
        assert mesh.left() == []
        assert mesh.cli("ps").returncode == 1


def test_logs_that_cannot_be_written_do_not_end_the_run(tmp_path: Path) -> None:
    config = """
[apps.a]
command = "${PYTHON} -S ${APPS}/idle.py --say hello"
port = 0
"""
    with Mesh(tmp_path, config) as mesh:
        # Nobody can open a folder for writing, whoever they are.
        logs = mesh.state_path / "logs"
        mesh.state_path.mkdir(mode=0o700)
        (logs / "a.1.log").mkdir(parents=True)
        logs.chmod(0o700)
        foreground = mesh.foreground()
        assert foreground.await_line("hello")
        assert "cannot write the logs" in foreground.await_line("cannot write")
        assert mesh.instance("a.1").ready
        assert foreground.text.count("cannot write the logs") == 1


@pytest.mark.slow
def test_instances_and_names_are_chosen_on_the_command_line(tmp_path: Path) -> None:
    config = (
        '[apps.server]\ncommand = "${PYTHON} -S ${APPS}/serve.py"\n'
        + CLIENT
        + """
[apps.other]
command = "false"
port = 0
"""
    )
    with Mesh(tmp_path, config) as mesh:
        mesh.up("client", "--scale", "server=3")
        assert [row.instance for row in mesh.ps()] == [
            "server.1",
            "server.2",
            "server.3",
            "client.1",
        ]
        mesh.down()
        mesh.up("client", "--no-deps")
        assert [row.instance for row in mesh.ps()] == ["client.1"]


def test_a_configuration_that_is_wrong_starts_nothing(tmp_path: Path) -> None:
    with Mesh(tmp_path, '[apps.a]\ncomand = "true"\n') as mesh:
        for how in ((), ("-d",), ("--wait",)):
            done = mesh.cli("up", *how)
            assert done.returncode == 2
            assert "mesh.toml:2:1" in done.stderr
        assert not mesh.state_path.exists()


def test_an_app_of_a_mesh_can_run_a_mesh_of_its_own(tmp_path: Path) -> None:
    inner = '[apps.b]\ncommand = "${PYTHON} -S ${APPS}/idle.py --say inside"\nport = 0\n'
    outer = """
[apps.a]
command = "${PYTHON} -P -m meshrun -f inner/mesh.toml up"
port = 0
"""
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "mesh.toml").write_text(inner)
    with Mesh(tmp_path, outer) as mesh:
        foreground = mesh.foreground()
        foreground.await_line("inside")
        foreground.signal(2)
        assert foreground.wait() == 130
        assert mesh.left() == []


@pytest.mark.parametrize(
    ("many", "what"),
    [
        ("instances = 100", "cannot run 100 instances: "),
        ("instances = 4\nworkers = 64", "cannot run 4 instances with 256 workers: "),
    ],
)
def test_more_instances_than_there_can_be_open_files_for_are_refused_whole(
    tmp_path: Path, many: str, what: str
) -> None:
    config = f'[apps.many]\ncommand = "sleep 60"\nport = 0\n{many}\n'
    with Mesh(tmp_path, config) as mesh:
        limited = ["sh", "-c", 'ulimit -n 1000; exec "$@"', "sh"]
        command = [*limited, sys.executable, "-P", "-m", "meshrun", "up"]
        refused = subprocess.run(
            command, cwd=tmp_path, env=mesh.environment, capture_output=True, text=True, check=False
        )
    assert refused.returncode == 1
    assert what in refused.stderr
    assert "ulimit -Hn" in refused.stderr


def test_a_soft_limit_on_open_files_does_not_stop_a_large_mesh(tmp_path: Path) -> None:
    config = '[apps.many]\ncommand = "sleep 60"\nport = 0\ninstances = 40\n'
    with Mesh(tmp_path, config) as mesh:
        limited = ["sh", "-c", 'ulimit -Sn 128; exec "$@"', "sh"]
        command = [*limited, sys.executable, "-P", "-m", "meshrun", "up", "--wait"]
        up = subprocess.run(
            command, cwd=tmp_path, env=mesh.environment, capture_output=True, text=True, check=False
        )
        assert up.returncode == 0, up.stderr
        mesh.follow()
        limits = Path(f"/proc/{mesh.instance('many.1').pid}/limits").read_text()
        assert "Max open files            128" in limits


def test_events_are_followed_as_json_until_the_mesh_ends(tmp_path: Path) -> None:
    config = '[apps.web]\ncommand = "${PYTHON} -S ${APPS}/idle.py"\nport = 0\n'
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        following = subprocess.Popen(
            [*mesh.command, "events", "-f", "--json"],
            cwd=mesh.folder,
            env=mesh.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert following.stdout is not None
        first = json.loads(following.stdout.readline())
        assert (first["kind"], first["subject"]) == ("up", "mesh")
        mesh.cli("stop", "web", check=True)
        mesh.down()
        lines, _ = following.communicate(timeout=PATIENCE_S)
        found = [json.loads(line) for line in lines.splitlines()]
        assert [event["kind"] for event in found][-3:] == ["exited", "stopped", "down"]
        keys = {"at", "kind", "subject", "message", "source", "destination", "count"}
        assert all(event.keys() == keys for event in found)
