"""Each kind of probe on a real app: what makes it ready, what ends it, and what is said of that."""

import shutil
import signal
import socket
from pathlib import Path

import pytest
from support.mesh import Mesh
from support.traffic import connect, wait_until

from meshrun.supervisor import processes
from meshrun.supervisor.cli.records import Explanation

NOTIFIER = """
[apps.web]
command = "${PYTHON} -S ${APPS}/notifier.py"
ready = { notify = true, deadline = "60s" }
stop = { timeout = "20s" }
"""


def asked_by(command: str, key: str = "ready", more: str = "") -> str:
    """A mesh of one app that a command of a shell is asked about."""
    return f"""
[apps.web]
command = "${{PYTHON}} -S ${{APPS}}/idle.py"
port = 0
{key} = {{ exec = ["sh", "-c", '''{command}'''], interval = "100ms", timeout = "20s"{more} }}
"""


def why(mesh: Mesh, instance: str = "web.1") -> Explanation:
    """Return what explains the state of an instance."""
    (found,) = mesh.client.why(instance)
    return found


def reason(mesh: Mesh) -> str:
    """Return why an app is not ready."""
    return why(mesh).reason or ""


def tell(mesh: Mesh, line: str, instance: str = "web.1") -> None:
    """Have the notifier do something, and wait until it has."""
    port = mesh.instance(instance).port
    assert port is not None
    with connect(port) as connection:
        connection.sendall(f"{line}\n".encode())
        assert connection.recv(16) == b"done\n"


def listening(mesh: Mesh, instance: str = "web.1") -> None:
    """Wait until the notifier can be told something."""
    wait_until(lambda: "listening" in mesh.output(instance), "it listens")


# By a command.


def test_a_command_runs_as_the_app_does_and_its_last_line_is_the_reason(tmp_path: Path) -> None:
    command = "echo first; echo $MESHRUN_INSTANCE in $(pwd); echo; test -e well"
    with Mesh(tmp_path, asked_by(command)) as mesh:
        mesh.up(wait=False)
        expected = f"exit code 1: web.1 in {tmp_path.resolve()}"
        wait_until(lambda: reason(mesh) == expected, "the command says where it runs")
        assert not mesh.instance("web.1").ready
        (tmp_path / "well").touch()
        mesh.await_event("ready", "web.1")
        (tmp_path / "well").unlink()
        assert expected in mesh.await_event("not-ready", "web.1").message
        (tmp_path / "well").touch()
        mesh.await_event("ready", "web.1", number=2)
        assert mesh.instance("web.1").restarts == 0


def test_a_command_that_takes_too_long_is_killed_with_its_whole_session(tmp_path: Path) -> None:
    config = asked_by("sleep 600 & echo $!; sleep 600").replace('"20s"', '"300ms"')
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        seen: list[str] = []

        def too_long() -> bool:
            seen.append(reason(mesh))
            return "not ended within 0.3 s: " in seen[-1]

        wait_until(too_long, "it takes too long")
        child = int(seen[-1].rpartition(" ")[2])
        wait_until(lambda: processes.identify(child) is None, "its child is gone")


def test_a_command_that_hangs_is_killed_when_the_app_is_stopped(tmp_path: Path) -> None:
    with Mesh(tmp_path, asked_by("echo $$$$ > asking; exec sleep 600")) as mesh:
        mesh.up(wait=False)
        asking = tmp_path / "asking"
        wait_until(lambda: asking.exists() and asking.read_text().endswith("\n"), "it is asked")
        command = int(asking.read_text())
        assert processes.identify(command) is not None
        mesh.cli("stop", "web", check=True)
        wait_until(lambda: processes.identify(command) is None, "the command is gone")


def test_what_a_command_leaves_behind_is_killed_though_it_succeeded(tmp_path: Path) -> None:
    with Mesh(tmp_path, asked_by("sleep 600 & echo $! >> left")) as mesh:
        mesh.up()
        left = [int(line) for line in (tmp_path / "left").read_text().split()]
        wait_until(lambda: not any(map(processes.identify, left)), "nothing is left of it")


def test_a_command_that_cannot_be_run_says_why(tmp_path: Path) -> None:
    config = asked_by("").replace("[\"sh\", \"-c\", '''''']", '"no-such-command --now"')
    with Mesh(tmp_path, config.replace('"20s"', '"20s", deadline = "300ms"')) as mesh:
        mesh.up(wait=False)
        killed = mesh.await_event("killing", "web.1")
        assert "not ready within 0.3 s: cannot run no-such-command: no such" in killed.message


def test_a_command_that_writes_without_end_costs_no_memory_and_ends_in_time(tmp_path: Path) -> None:
    config = asked_by("yes the same line").replace('"20s"', '"500ms"')
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        wait_until(
            lambda: reason(mesh) == "not ended within 0.5 s: the same line", "it was cut off"
        )


# By a line of the log.


def test_a_line_of_the_log_makes_it_ready_however_soon_it_comes(tmp_path: Path) -> None:
    config = """
[apps.soon]
command = ["sh", "-c", "echo listening on port $PORT; exec sleep 600"]
ready = { log = "listening on .*${PORT}$" }
[apps.last]
command = ["sh", "-c", "printf unended; exec sleep 600"]
port = 0
ready = { log = "unended", deadline = "300ms" }
"""
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        mesh.await_event("ready", "soon.1")
        killed = mesh.await_event("killing", "last.1")
        assert "not ready within 0.3 s: no line that matches unended yet" in killed.message


@pytest.mark.slow
def test_one_whose_log_falls_silent_is_started_again(tmp_path: Path) -> None:
    program = "while test ! -e quiet; do echo tick; sleep 0.05; done; exec sleep 600"
    config = f"""
[apps.web]
command = ["sh", "-c", "{program}"]
port = 0
alive = {{ log = "^tick$", interval = "1s", failures = 2 }}
"""
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        wait_until(lambda: "tick" in mesh.output("web.1"), "it ticks")
        assert mesh.events("not-alive") == []
        (tmp_path / "quiet").touch()
        ended = mesh.await_event("not-alive", "web.1")
        assert "not alive: no line that matches ^tick$ within 2 s" in ended.message
        (tmp_path / "quiet").unlink()
        mesh.await_event("started", "web.1", number=2)


# Alive.

MOODY = """
[apps.web]
command = "${PYTHON} -S ${APPS}/moody.py"
ready = { http = "/" }
alive = { http = "/", interval = "50ms", failures = 2 }
"""


def alive(mesh: Mesh) -> None:
    """Wait until the moody one has been found to be alive: it is asked once for `ready`."""
    wait_until(lambda: mesh.output("web.1").count("asked") >= 3, "it is asked again")


def test_one_that_is_not_alive_is_started_again_with_the_reason_and_counts_as_crashed(
    tmp_path: Path,
) -> None:
    with Mesh(tmp_path, MOODY) as mesh:
        mesh.up()
        alive(mesh)
        (tmp_path / "ill").touch()
        ended = mesh.await_event("not-alive", "web.1")
        assert "web.1 is ended: not alive: GET http://127.0.0.1" in ended.message
        assert "answered 500 (2 times in a row)" in ended.message
        restarting = mesh.await_event("restarting", "web.1")
        assert "not alive" in restarting.message
        (tmp_path / "ill").unlink()
        mesh.wait_for(lambda rows: rows["web.1"].ready)
        assert mesh.instance("web.1").restarts == 1


def test_one_that_is_never_alive_for_long_is_in_a_crash_loop(tmp_path: Path) -> None:
    config = asked_by("echo not well; false", "alive", ', failures = 1, deadline = "1ms"')
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        loop = mesh.await_event("crash-loop", "web.1")
        assert "not alive: not once within 0.001 s: exit code 1: not well" in loop.message


def test_one_that_is_not_alive_and_not_to_start_again_has_failed(tmp_path: Path) -> None:
    config = MOODY + 'restart = "never"\n'
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        mesh.await_event("ready", "web.1")
        alive(mesh)
        (tmp_path / "ill").touch()
        assert foreground.wait() == 1
        assert "web.1 failed: not alive: " in foreground.text


# By notifications.


def test_an_app_that_notifies_is_ready_when_it_says_so_and_its_status_is_shown(
    tmp_path: Path,
) -> None:
    with Mesh(tmp_path, NOTIFIER) as mesh:
        mesh.up(wait=False)
        listening(mesh)
        assert reason(mesh) == "no READY=1 yet"
        tell(mesh, "say STATUS=loading 40 %")
        wait_until(lambda: why(mesh).said == "loading 40 %", "its status is known")
        assert not mesh.instance("web.1").ready
        assert "it says: loading 40 %" in mesh.cli("why", "web", check=True).stdout
        tell(mesh, "say READY=1|STATUS=serving")
        mesh.await_event("ready", "web.1")
        assert why(mesh).said == "serving"
        tell(mesh, "say RELOADING=1")
        wait_until(lambda: why(mesh).said == "reloading", "it reloads")
        assert mesh.instance("web.1").ready
        tell(mesh, "say READY=1")
        wait_until(lambda: not why(mesh).said, "it has reloaded")


def test_a_stranger_cannot_say_that_an_app_is_ready_and_a_descendant_can(tmp_path: Path) -> None:
    with Mesh(tmp_path, NOTIFIER) as mesh:
        mesh.up(wait=False)
        listening(mesh)
        pid = mesh.instance("web.1").pid
        assert pid is not None
        address = processes.environment_value(pid, "NOTIFY_SOCKET")
        assert address == str(tmp_path.resolve() / ".meshrun" / "web.1.notify")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as stranger:
            stranger.sendto(b"READY=1\nSTATUS=forged", address)
        wait_until(lambda: "counts for nothing" in reason(mesh), "the stranger was seen")
        assert not why(mesh).said
        assert not mesh.instance("web.1").ready
        tell(mesh, "child READY=1")
        mesh.await_event("ready", "web.1")


@pytest.mark.skipif(shutil.which("systemd-notify") is None, reason="needs systemd-notify")
def test_a_script_can_say_it_with_systemd_notify(tmp_path: Path) -> None:
    config = """
[apps.web]
command = ["sh", "-c", "systemd-notify --ready --status=scripted; exec sleep 600"]
port = 0
ready = { notify = true }
"""
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        assert why(mesh).said == "scripted"


def test_a_folder_whose_path_is_too_long_for_a_socket_will_do(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 30)
    with Mesh(folder, NOTIFIER.replace("notifier.py", "notifier.py --say READY=1")) as mesh:
        mesh.up()
        pid = mesh.instance("web.1").pid
        assert pid is not None
        assert (processes.environment_value(pid, "NOTIFY_SOCKET") or "").startswith("@meshrun/")


def test_one_that_says_it_is_stopping_gets_no_calls_and_may_take_its_time(tmp_path: Path) -> None:
    with Mesh(tmp_path, NOTIFIER.replace("notifier.py", "notifier.py --say READY=1")) as mesh:
        mesh.up()
        tell(mesh, "say STOPPING=1")
        mesh.await_event("stopping", "web.1")
        row = mesh.instance("web.1")
        assert (row.state, row.ready) == ("stopping", False)
        tell(mesh, "exit 0")
        mesh.await_event("completed", "web.1")


def test_one_that_says_it_is_stopping_and_is_not_is_killed(tmp_path: Path) -> None:
    config = NOTIFIER.replace("notifier.py", "notifier.py --say READY=1").replace("20s", "300ms")
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        tell(mesh, "say STOPPING=1")
        assert "not ended within 0.3 s" in mesh.await_event("killing", "web.1").message
        mesh.await_event("ready", "web.1", number=2)


@pytest.mark.slow
def test_one_that_asks_for_more_time_to_stop_is_not_killed_before(tmp_path: Path) -> None:
    config = NOTIFIER.replace("notifier.py", "notifier.py --say READY=1 --linger 2")
    with Mesh(tmp_path, config.replace("20s", "1s")) as mesh:
        mesh.up()
        mesh.cli("stop", "web", check=True)
        assert mesh.events("killing") == []
        assert mesh.await_event("exited", "web.1").message == "web.1 ended: exit code 0"


@pytest.mark.slow
def test_one_that_asks_for_more_time_to_start_is_not_killed_before(tmp_path: Path) -> None:
    config = NOTIFIER.replace("60s", "2s").replace(
        "notifier.py", "notifier.py --say EXTEND_TIMEOUT_USEC=4000000"
    )
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        killed = mesh.await_event("killing", "web.1")
        started = mesh.await_event("started", "web.1")
        assert killed.at - started.at > 3.5
        assert "no READY=1 yet" in killed.message


WATCHED = """
[apps.web]
command = "${PYTHON} -S ${APPS}/notifier.py --say WATCHDOG=1"
alive = { notify = true, interval = "200ms", failures = 3 }
"""


def test_one_that_keeps_silent_after_its_first_keep_alive_is_started_again(tmp_path: Path) -> None:
    with Mesh(tmp_path, WATCHED) as mesh:
        mesh.up()
        pid = mesh.instance("web.1").pid
        assert pid is not None
        assert processes.environment_value(pid, "WATCHDOG_USEC") == "200000"
        ended = mesh.await_event("not-alive", "web.1")
        assert "not alive: no WATCHDOG=1 within 0.6 s" in ended.message
        mesh.await_event("started", "web.1", number=2)


def test_one_that_says_it_is_ill_is_started_again_at_once(tmp_path: Path) -> None:
    with Mesh(tmp_path, WATCHED.replace("200ms", "60s")) as mesh:
        mesh.up()
        listening(mesh)
        tell(mesh, "say WATCHDOG=trigger")
        ended = mesh.await_event("not-alive", "web.1")
        assert "it says so (WATCHDOG=trigger)" in ended.message


def test_a_flood_of_notifications_costs_nobody_else_anything(tmp_path: Path) -> None:
    with Mesh(tmp_path, NOTIFIER) as mesh:
        mesh.up(wait=False)
        listening(mesh)
        tell(mesh, "flood")
        wait_until(lambda: (why(mesh).said or "").startswith("flood"), "it floods")
        tell(mesh, "say READY=1")
        mesh.await_event("ready", "web.1")


# Dependencies.


def test_an_app_that_waits_says_for_what_how_long_and_what_the_probe_said(tmp_path: Path) -> None:
    config = (
        asked_by("echo loading; false")
        + """
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
depends_on = ["web"]
"""
    )
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        wait_until(lambda: why(mesh).tries >= 2, "it is asked again")
        found = why(mesh, "client.1")
        assert found.waiting_for == ["web to be ready"]
        (unmet,) = found.unmet
        assert unmet.startswith("web.1 is starting for ")
        assert "s: exit code 1: loading (" in unmet
        said = mesh.cli("why", "client", check=True).stdout
        assert "client.1 is waiting, not ready, since " in said
        assert "waits for: web to be ready\n  where: web.1 is starting for " in said
        assert " tries)" in said


def test_a_chain_of_dependants_fails_at_once_and_names_what_failed_first(tmp_path: Path) -> None:
    config = """
[apps.db]
command = "${PYTHON} -S ${APPS}/idle.py --exit-after 0 --code 3"
port = 0
restart = "never"
ready = { log = "never" }
"""
    for name, needed in (("api", "db"), ("web", "api")):
        config += f"""
[apps.{name}]
command = "${{PYTHON}} -S ${{APPS}}/idle.py"
port = 0
depends_on = ["{needed}"]
"""
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.starting()
        assert foreground.wait() == 1
        for line in (
            "api.1 failed: db will never be ready: db.1 failed: exit code 3",
            "web.1 failed: api will never be ready: db.1 failed: exit code 3",
        ):
            assert line in foreground.text


FOLLOWING = """
[apps.db]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
ready = { log = "ready" }
[apps.follower]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
depends_on = { db = { on_restart = "restart" } }
[apps.last]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
depends_on = { follower = { condition = "started", on_restart = "restart" } }
[apps.other]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
depends_on = ["db"]
"""


@pytest.mark.parametrize("how", ["crash", "command"])
def test_a_restart_is_followed_once_by_those_who_ask_for_it(tmp_path: Path, how: str) -> None:
    with Mesh(tmp_path, FOLLOWING) as mesh:
        mesh.up()
        if how == "crash":
            mesh.kill(mesh.instance("db.1").pid, signal.SIGKILL)
        else:
            mesh.cli("restart", "db", check=True)
        mesh.await_event("started", "last.1", number=2)
        (restarting,) = mesh.events("restarting", "follower.1")
        assert "db.1 was started again" in restarting.message
        order = [(e.kind, e.subject) for e in mesh.events()][::-1]
        # The last of each: the follower is restarted when its dependency is ready again.
        assert order.index(("ready", "db.1")) > order.index(("started", "follower.1"))
        rows = {row.instance: row.restarts for row in mesh.ps()}
        assert rows == {"db.1": 1, "follower.1": 1, "last.1": 1, "other.1": 0}


@pytest.mark.slow
def test_all_share_one_grace_when_everything_is_stopped(tmp_path: Path) -> None:
    config = ""
    for name, needed in (("db", ""), ("api", '"db"'), ("web", '"api"')):
        config += f"""
[apps.{name}]
command = "${{PYTHON}} -S ${{APPS}}/idle.py --ignore-term"
port = 0
ready = {{ log = "ready" }}
stop = {{ timeout = "2s" }}
depends_on = [{needed}]
"""
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        mesh.await_event("ready", "web.1")
        foreground.signal(signal.SIGTERM)
        assert foreground.wait() == 0
        killed = {e.subject: e.at for e in mesh.events("killing")}
        # The first in order has its time alone; the others have theirs together, not added up.
        assert killed["web.1"] < killed["api.1"]
        assert abs(killed["db.1"] - killed["api.1"]) < 1.0
