"""A changed mesh.toml under a running mesh: what changed is touched, and nothing else."""

import json
import socket
import subprocess
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest
from support.mesh import PATIENCE_S, Mesh
from support.repeated import ask_over_tcp
from support.traffic import count_descriptors, wait_until

from meshrun.supervisor.listeners import Leases, is_free

BASE = """
[mesh]
name = "shop"
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --mode name"
ready = { tcp = true }
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
upstreams = ["server"]
"""
ALLOW = """
[[intentions]]
from = "client"
to = "server"
"""
EXTRA = """
[apps.extra]
command = "${PYTHON} -S ${APPS}/serve.py --mode name"
"""
READY = "ready = { tcp = true }"

Processes = dict[str, tuple[int | None, int | None]]


def rewrite(mesh: Mesh, config: str) -> None:
    (mesh.folder / "mesh.toml").write_text(config)


def reload(mesh: Mesh, config: str) -> list[str]:
    """Write another configuration, have it applied, and return what was said."""
    rewrite(mesh, config)
    mesh.remember()
    return mesh.cli("reload", check=True).stdout.splitlines()


def processes(mesh: Mesh) -> Processes:
    """Return the process of each instance, and that of its sidecar."""
    return {row.instance: (row.pid, row.sidecar_pid) for row in mesh.ps()}


def new(before: Processes, after: Processes) -> set[str]:
    """Return whose processes are other ones: `server.1`, `sidecar server.1`."""
    apps = {name for name in after if after[name][0] != before[name][0]}
    return apps | {f"sidecar {name}" for name in after if after[name][1] != before[name][1]}


def test_an_app_that_is_new_is_started_and_one_that_is_gone_is_stopped(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        before = processes(mesh)
        assert reload(mesh, BASE + EXTRA) == ["added extra.1: running, ready"]
        there = processes(mesh)
        extra = there.pop("extra.1")
        assert there == before
        assert reload(mesh, BASE) == ["removed extra.1"]
        assert processes(mesh) == before
        assert all(mesh.session_size(pid) == 0 for pid in extra if pid is not None)
        assert reload(mesh, BASE) == ["nothing has changed"]
        assert [event.message for event in mesh.events("reloaded")] == [
            "mesh.toml was read again: added extra.1",
            "mesh.toml was read again: removed extra.1",
            "mesh.toml was read again: nothing has changed",
        ]


def test_only_what_would_run_differently_is_restarted(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        before = processes(mesh)
        changed = BASE.replace(READY, f'{READY}\nenv = {{ A = "1" }}')
        assert reload(mesh, changed) == ["restarted server.1 (env): running, ready"]
        assert new(before, processes(mesh)) == {"server.1"}
        assert mesh.env("server.1")["A"] == "1"


def test_how_an_app_is_kept_changes_while_it_runs(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        before = processes(mesh)
        asks = 'ready = { exec = "test -e well", interval = "50ms", failures = 1 }'
        changed = BASE.replace(READY, f'{asks}\nrestart = "never"\nstop = {{ signal = "KILL" }}')
        (said,) = reload(mesh, changed)
        assert said.startswith("changed server.1 (restart, stop, ready): running")
        mesh.await_event("not-ready", "server.1")
        (tmp_path / "well").touch()
        mesh.await_event("ready", "server.1", number=2)
        assert new(before, processes(mesh)) == set()
        assert reload(mesh, BASE.replace(READY, "restart = 'never'\nstop = { signal = 'KILL' }"))
        (tmp_path / "well").unlink()
        mesh.kill(mesh.instance("server.1").pid)
        mesh.await_event("failed", "server.1")


def test_what_a_sidecar_is_told_changes_without_a_restart(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE + ALLOW) as mesh:
        mesh.up()
        address = mesh.upstream("client.1", "server")
        before = processes(mesh)
        changed = BASE.replace('["server"]', '[{ service = "server", connect_timeout = "100ms" }]')
        (said,) = reload(mesh, changed + ALLOW)
        assert said == "changed client.1 (upstreams): running, ready"
        assert new(before, processes(mesh)) == set()
        mesh.cli("stop", "server", check=True)
        with pytest.raises(ConnectionError):
            ask_over_tcp(address)
        event = mesh.await_event("connection-failed", "client.1")
        assert "waited 0.1 s" in event.message


def test_a_new_upstream_restarts_app_and_sidecar_and_the_others_keep_their_addresses(
    tmp_path: Path,
) -> None:
    allow = ALLOW.replace('to = "server"', 'to = "*"')
    with Mesh(tmp_path, BASE + allow) as mesh:
        mesh.up()
        address = mesh.upstream("client.1", "server")
        before = processes(mesh)
        config = BASE.replace('["server"]', '["server", "extra"]') + EXTRA + allow
        assert (
            reload(mesh, config)
            == [
                "changed mesh (intentions)",
                "added extra.1: running, ready",
                "restarted client.1 (upstreams): running, ready",
            ][1:]
        )
        there = processes(mesh)
        del there["extra.1"]
        assert new(before, there) == {"client.1", "sidecar client.1"}
        assert mesh.upstream("client.1", "server") == address
        assert ask_over_tcp(mesh.upstream("client.1", "extra")) == "extra.1"
        assert ask_over_tcp(address) == "server.1"


def test_intentions_are_in_force_when_the_command_returns(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        before = processes(mesh)
        address = mesh.upstream("client.1", "server")
        with pytest.raises(ConnectionError):
            ask_over_tcp(address)
        assert reload(mesh, BASE + ALLOW) == ["changed mesh (intentions)"]
        assert ask_over_tcp(address) == "server.1"
        with socket.create_connection(address, timeout=PATIENCE_S) as live:
            live.sendall(b"who?")
            assert live.recv(100) == b"server.1\n"
            deny = ALLOW + 'action = "deny"\n'
            assert reload(mesh, BASE + deny) == ["changed mesh (intentions)"]
            with pytest.raises(ConnectionError):
                live.recv(100)
        mesh.cli("intentions", "create", "-replace", "client", "server", check=True)
        assert reload(mesh, BASE) == ["changed mesh (intentions)"]
        assert ask_over_tcp(address) == "server.1", "what was made at run time lies over the file"
        assert new(before, processes(mesh)) == set()


def test_a_default_and_an_access_log_change_for_all(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        before = processes(mesh)
        mine = 'name = "shop"\ndefault_intention = "allow"\naccess_log = true'
        (said,) = reload(mesh, BASE.replace('name = "shop"', mine))
        assert said == "changed mesh (default_intention, access_log)"
        assert ask_over_tcp(mesh.upstream("client.1", "server")) == "server.1"
        wait_until(lambda: "client" in mesh.cli("logs", "--access", check=True).stdout, "a record")
        assert new(before, processes(mesh)) == set()


def test_a_file_that_is_wrong_changes_nothing_and_says_what_check_says(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        before = processes(mesh)
        rewrite(mesh, BASE.replace("ready =", "raedy =") + EXTRA + 'upstreams = ["nobody"]\n')
        done = mesh.cli("reload")
        assert done.returncode == 2
        assert done.stderr == mesh.cli("check").stderr
        assert "mesh.toml:6:1: " in done.stderr
        assert done.stdout == ""
        assert processes(mesh) == before
        (event,) = mesh.events("reload-failed")
        assert event.message.startswith("mesh.toml is not applied: mesh.toml:6:1: ")
        assert "(and 1 more, see `meshrun check`)" in event.message
        rewrite(mesh, "[apps")
        assert mesh.cli("reload").returncode == 2
        (tmp_path / "mesh.toml").unlink()
        assert mesh.cli("reload", "--state-dir", ".meshrun").returncode == 2
        assert processes(mesh) == before


def test_what_cannot_change_under_a_running_mesh_is_named_with_the_way_out(
    tmp_path: Path,
) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        before = processes(mesh)
        mine = 'name = "store"\nports = "22000-22100"\napp_ports = "23000-23100"'
        rewrite(mesh, BASE.replace('name = "shop"', mine))
        done = mesh.cli("reload")
        assert done.returncode == 2
        assert [line.split(" ")[:2] for line in done.stderr.splitlines()] == [
            ["mesh.toml:3:8:", "mesh.name"],
            ["mesh.toml:4:9:", "mesh.ports"],
            ["mesh.toml:5:13:", "mesh.app_ports"],
        ]
        assert "from shop to store" in done.stderr
        assert "`meshrun down`" in done.stderr
        assert processes(mesh) == before


def test_a_dry_run_says_what_would_be_done_and_does_nothing(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        before = processes(mesh)
        rewrite(mesh, BASE.replace(READY, 'env = { A = "1" }') + EXTRA)
        said = mesh.cli("reload", "--dry-run", check=True).stdout.splitlines()
        assert said == ["would have added extra.1", "would have restarted server.1 (env, ready)"]
        answer = json.loads(mesh.cli("reload", "--dry-run", "--json", check=True).stdout)
        assert [(step["action"], step["subject"], step["reasons"]) for step in answer] == [
            ("added", "extra.1", []),
            ("restarted", "server.1", ["env", "ready"]),
        ]
        assert processes(mesh) == before
        assert not mesh.events("reloaded")
        rewrite(mesh, "[apps")
        assert mesh.cli("reload", "--dry-run").returncode == 2
        assert not mesh.events("reload-failed")


def test_a_port_that_somebody_else_has_changes_nothing(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh, socket.create_server(("127.0.0.1", 0)) as other:
        mesh.up()
        before = processes(mesh)
        descriptors = count_descriptors(mesh.supervisor_pid)
        port = other.getsockname()[1]
        changed = BASE.replace(READY, f'{READY}\nenv = {{ A = "1" }}')
        rewrite(mesh, changed + EXTRA + EXTRA.replace("extra", "more") + f"port = {port}\n")
        done = mesh.cli("reload")
        assert done.returncode == 1
        assert f"cannot give port {port} to more.1: pid " in done.stderr
        assert processes(mesh) == before
        wait_until(
            lambda: count_descriptors(mesh.supervisor_pid) <= descriptors, "ports to be given back"
        )


@pytest.mark.slow
def test_a_port_goes_from_an_app_to_the_one_that_takes_its_place(tmp_path: Path) -> None:
    port = _free_ports(1)[0]
    extra = EXTRA + f"port = {port}\n{READY}\n"
    with Mesh(tmp_path, BASE + extra) as mesh:
        mesh.up()
        said = reload(mesh, BASE + extra.replace("extra", "other"))
        assert said == ["removed extra.1", "added other.1: running, ready"]
        assert mesh.instance("other.1").port == port
        assert reload(mesh, BASE) == ["removed other.1"]
        with closing(Leases()) as leases:
            assert leases.claim(port), "the port is still promised to an app"


@pytest.mark.slow
def test_two_apps_exchange_their_ports(tmp_path: Path) -> None:
    first, second = _free_ports(2)
    extra = (
        EXTRA + f"port = %d\n{READY}\n" + EXTRA.replace("extra", "more") + f"port = %d\n{READY}\n"
    )
    with Mesh(tmp_path, BASE + extra % (first, second)) as mesh:
        mesh.up()
        said = reload(mesh, BASE + extra % (second, first))
        assert said == [f"restarted {name}.1 (port): running, ready" for name in ("extra", "more")]
        assert (mesh.instance("extra.1").port, mesh.instance("more.1").port) == (second, first)
        assert [row.restarts for row in mesh.ps()] == [0, 0, 0, 0], "one started before its time"


def test_what_somebody_has_stopped_stays_so_and_starts_as_the_file_says_now(
    tmp_path: Path,
) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        mesh.cli("stop", "server", check=True)
        changed = BASE.replace(READY, f'{READY}\nenv = {{ A = "1" }}')
        assert reload(mesh, changed) == ["restarted server.1 (env): stopped"]
        mesh.cli("start", "server", check=True)
        rows = mesh.wait_for(lambda rows: rows["server.1"].ready)
        environ = Path(f"/proc/{rows['server.1'].pid}/environ").read_bytes()
        assert b"A=1" in environ.split(b"\0")


def test_who_failed_because_another_had_failed_gets_a_try_when_that_is_mended(
    tmp_path: Path,
) -> None:
    broken = BASE.replace("--mode name", "--no-such-flag").replace(
        READY, f'{READY}\nrestart = "never"'
    )
    waits = "depends_on = ['server']"
    with Mesh(tmp_path, broken + waits + EXTRA) as mesh:
        mesh.up(wait=False)
        mesh.await_event("failed", "client.1")
        mended = broken.replace("--no-such-flag", "--mode name")
        said = reload(mesh, mended + waits + EXTRA)
        assert said == ["restarted server.1 (command): running, ready"]
        mesh.wait_for(lambda rows: rows["client.1"].ready)


@pytest.mark.slow
def test_who_failed_because_another_had_failed_is_left_alone_while_that_is_so(
    tmp_path: Path,
) -> None:
    broken = BASE.replace("--mode name", "--no-such-flag").replace(
        READY, f'{READY}\nrestart = "never"'
    )
    first = "depends_on = ['server']"
    last = EXTRA.replace("extra", "last") + "depends_on = ['client']\n"
    with Mesh(tmp_path, broken + first + last + EXTRA) as mesh:
        mesh.up(wait=False)
        mesh.await_event("failed", "last.1")
        reload(mesh, broken + first + last + EXTRA + "env = { A = '1' }\n")
        failed = [event.subject for event in mesh.events("failed")]
        assert sorted(failed) == ["client.1", "last.1", "server.1"]
        mended = broken.replace("--no-such-flag", "--mode name")
        reload(mesh, mended + first + last + EXTRA)
        mesh.wait_for(lambda rows: rows["last.1"].ready)


def test_new_apps_start_along_the_graph(tmp_path: Path) -> None:
    slow = EXTRA.replace("--mode name", "--listen-after 0.5") + READY + "\n"
    last = EXTRA.replace("extra", "last") + "depends_on = ['extra']\n"
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        assert set(reload(mesh, BASE + last + slow)) == {
            "added last.1: running, ready",
            "added extra.1: running, ready",
        }
        assert mesh.events("started", "last.1")[0].at > mesh.events("ready", "extra.1")[0].at


@pytest.mark.slow
def test_an_external_service_comes_changes_and_goes(tmp_path: Path) -> None:
    external = """
[services.pg]
address = "127.0.0.1:%d"
ready = { tcp = true, interval = "50ms" }
"""
    allow = ALLOW.replace('to = "server"', 'to = "*"')
    config = BASE.replace('["server"]', '["server", "pg"]') + external + allow
    with (
        Mesh(tmp_path, BASE + allow) as mesh,
        socket.create_server(("127.0.0.1", 0)) as first,
        socket.create_server(("127.0.0.1", 0)) as second,
    ):
        mesh.up()
        for number, server in enumerate((first, second), 1):
            said = reload(mesh, config % server.getsockname()[1])
            assert said[0] == ("added pg.1" if number == 1 else "changed pg.1 (address)")
            mesh.wait_for(lambda rows: rows["pg.1"].ready)
            with socket.create_connection(mesh.upstream("client.1", "pg"), PATIENCE_S) as caller:
                caller.sendall(b"to whom?")
                server.settimeout(PATIENCE_S)
                # The probe connects too, and says nothing.
                while True:
                    connection, _ = server.accept()
                    with connection:
                        if connection.recv(100) == b"to whom?":
                            break
        assert reload(mesh, BASE + allow)[0] == "removed pg.1"
        assert "pg.1" not in processes(mesh)


@pytest.mark.slow
def test_a_procfile_and_the_environment_beside_it_are_read_again(tmp_path: Path) -> None:
    # The second process of a Procfile has a port that is 100 higher (foreman).
    base = next(p for p in range(25000, 30000) if is_free(p) and is_free(p + 100))
    files = {
        "Procfile": "one: exec ${PYTHON} -S ${APPS}/idle.py\n",
        ".env": f"PORT={base}\nCOLOUR=red\n",
    }
    with Mesh(tmp_path, files=files) as mesh:
        mesh.up("--procfile", "Procfile")
        before = processes(mesh)
        with (tmp_path / "Procfile").open("a") as file:
            file.write("two: exec ${PYTHON} -S ${APPS}/idle.py\n")
        mesh.remember()
        assert mesh.cli("reload", check=True).stdout == "added two.1: running, ready\n"
        assert processes(mesh)["one.1"] == before["one.1"]
        (tmp_path / ".env").write_text(f"PORT={base}\nCOLOUR=blue\n")
        said = mesh.cli("reload", check=True).stdout
        assert "restarted one.1 (env): running, ready\n" in said
        assert mesh.env("one")["COLOUR"] == "blue"


@pytest.mark.slow
def test_what_up_was_called_with_still_holds(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE + EXTRA) as mesh:
        mesh.up("extra")
        more = EXTRA.replace("extra", "more")
        assert reload(mesh, BASE + EXTRA + more) == ["nothing has changed"]
        changed = EXTRA + "upstreams = ['server']\n"
        said = reload(mesh, BASE + changed + more)
        assert said == [
            "added server.1: running, ready",
            "restarted extra.1 (upstreams): running, ready",
        ]
        rewrite(mesh, BASE)
        done = mesh.cli("reload")
        assert done.returncode == 1
        assert "of the apps that `meshrun up` was called with (extra) none is in it" in done.stderr


@pytest.mark.slow
def test_reloads_at_the_same_time_are_done_one_after_the_other(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        rewrite(mesh, BASE + EXTRA)
        done: list[subprocess.CompletedProcess[str]] = []
        threads = [
            threading.Thread(target=lambda: done.append(mesh.cli("reload"))) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(2 * PATIENCE_S)
        assert [each.returncode for each in done] == [0, 0, 0]
        assert sorted(each.stdout for each in done) == [
            "added extra.1: running, ready\n",
            "nothing has changed\n",
            "nothing has changed\n",
        ]


@pytest.mark.slow
def test_the_mesh_can_be_ended_in_the_middle_of_a_reload(tmp_path: Path) -> None:
    never = EXTRA.replace("--mode name", "--listen-after 100") + READY + "\n"
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        rewrite(mesh, BASE + never)
        done: list[subprocess.CompletedProcess[str]] = []
        reloading = threading.Thread(target=lambda: done.append(mesh.cli("reload")))
        reloading.start()
        mesh.await_event("started", "extra.1")
        mesh.remember()
        begun = time.monotonic()
        mesh.down()
        assert time.monotonic() - begun < 10
        reloading.join(PATIENCE_S)
        assert done[0].returncode == 1
        mesh.await_gone(5)


def test_a_second_up_names_reload(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        assert "`meshrun reload`" in mesh.cli("up").stderr


def test_the_log_stays_aligned_when_a_longer_name_comes(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        foreground = mesh.foreground()
        mesh.wait_for(lambda rows: all(row.ready for row in rows.values()))
        rewrite(mesh, BASE + EXTRA.replace("extra", "a-much-longer-name"))
        mesh.cli("reload", check=True)
        foreground.await_line("a-much-longer-name.1 | listening")
        mesh.cli("reload", check=True)
        said = foreground.await_line("nothing has changed")
        assert said.startswith("meshrun              | ")


def _free_ports(count: int) -> list[int]:
    """Return ports that nobody has, outside those that a mesh gives away by itself."""
    with socket.socket() as first, socket.socket() as second:
        found = []
        for each in (first, second)[:count]:
            each.bind(("127.0.0.1", 0))
            found.append(each.getsockname()[1])
        return found
