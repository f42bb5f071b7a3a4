"""Files change, and the apps that have them watched are restarted, or get a signal."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from support.mesh import PATIENCE_S, Mesh
from support.repeated import Repeated, ask_over_tcp

from meshrun.supervisor.backoff import CRASH_LOOP_EXITS

# The app says which text stood in its file when it started; `broken` ends, `hanging` never listens,
# `slow` takes its time.
PROGRAM = """
import os, socket, sys, time
said = open("src/said.txt").read().strip()
print("started with", said, flush=True)
if said == "broken":
    sys.exit(3)
if said == "hanging":
    time.sleep(600)
if said == "slow":
    time.sleep(2)
server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=128)
while True:
    connection, _ = server.accept()
    connection.recv(65536)
    connection.sendall(said.encode() + b"\\n")
    connection.close()
"""
CONFIG = """
[apps.web]
command = "${PYTHON} -S program.py"
cwd = "web"
%s
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
upstreams = ["web"]
[[intentions]]
from = "client"
to = "web"
"""
WATCHED = 'watch = { debounce = "50ms" }'
READY = "ready = { tcp = true }"


def written(folder: Path, said: str = "first") -> Path:
    """Write the app's files, and return what it says at its start."""
    source = folder / "web/src"
    source.mkdir(parents=True)
    (folder / "web/program.py").write_text(PROGRAM)
    (source / "said.txt").write_text(said)
    return source / "said.txt"


def watched(mesh: Mesh, *args: str, wait: bool = True, number: int = 1) -> None:
    """Start a mesh whose app is watched, and wait until it is."""
    mesh.up(*args, wait=wait)
    mesh.await_event("watching", "web", number=number)


def changes(mesh: Mesh) -> list[str]:
    return [event.message for event in mesh.events("files-changed")]


def test_a_changed_file_restarts_its_app_and_the_timeline_says_which(tmp_path: Path) -> None:
    said = written(tmp_path)
    with Mesh(tmp_path, CONFIG % f"{WATCHED}\n{READY}") as mesh:
        watched(mesh)
        before = {row.instance: row.pid for row in mesh.ps()}
        said.write_text("second")
        mesh.await_event("ready", "web.1", number=2)
        assert changes(mesh) == ["web is restarted: src/said.txt changed"]
        assert ask_over_tcp(mesh.upstream("client.1", "web")) == "second"
        after = {row.instance: row for row in mesh.ps()}
        assert after["web.1"].pid != before["web.1"]
        assert after["web.1"].restarts == 1
        assert after["client.1"].pid == before["client.1"]
        assert "web is restarted: src/said.txt changed" in mesh.cli("why", "web", check=True).stdout


def test_a_burst_of_changes_is_one_restart_and_what_is_ignored_is_none(tmp_path: Path) -> None:
    said = written(tmp_path)
    # Long enough for a machine that is busy with other things to write all of it within.
    watch = 'watch = { ignore = ["*.log"], debounce = "1s" }'
    with Mesh(tmp_path, CONFIG % f"{watch}\n{READY}", state_dir="web/state") as mesh:
        mesh.environment["MESHRUN_STATE_DIR"] = str(mesh.state_path)
        watched(mesh)
        for name in (".git/index", "node_modules/a/b.js", "src/.said.txt.swp", "debug.log"):
            path = tmp_path / "web" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("")
        for number in range(50):
            (said.parent / f"new{number}.py").write_text("")
        said.write_text("second")
        mesh.await_event("ready", "web.1", number=2)
        (message,) = changes(mesh)
        assert message == "web is restarted: src/new0.py, src/new1.py and 49 more changed"
        mesh.cli("restart", "client", check=True)  # meshrun writes into its logs and run.json
        said.write_text("third")
        mesh.await_event("ready", "web.1", number=3)
        assert changes(mesh)[1:] == ["web is restarted: src/said.txt changed"]
        assert len(mesh.events("started", "web.1")) == 3


def test_one_that_was_stopped_by_hand_is_not_started_by_a_change(tmp_path: Path) -> None:
    said = written(tmp_path)
    other = '[apps.other]\ncommand = "sleep 600"\ncwd = "web"\nport = 0\n' + WATCHED
    with Mesh(tmp_path, CONFIG % f"{WATCHED}\n{READY}" + other) as mesh:
        watched(mesh)
        mesh.await_event("watching", "other")
        mesh.cli("stop", "web", check=True)
        said.write_text("second")
        mesh.await_event("started", "other.1", number=2)
        assert mesh.instance("web.1").state == "stopped"
        assert changes(mesh) == ["other is restarted: src/said.txt changed"]


@pytest.mark.parametrize(
    ("policy", "state"),
    [('restart = "never"', "failed"), ("", "crash-loop")],
    ids=["never", "loop"],
)
def test_one_that_has_failed_is_started_anew_when_its_file_is_mended(
    tmp_path: Path, policy: str, state: str
) -> None:
    said = written(tmp_path, "broken")
    with Mesh(tmp_path, CONFIG % f"{WATCHED}\n{READY}\n{policy}") as mesh:
        watched(mesh, wait=False)
        mesh.await_event(state, "web.1")
        said.write_text("mended")
        mesh.wait_for(lambda rows: rows["web.1"].ready)
        assert ask_over_tcp(mesh.upstream("client.1", "web")) == "mended"


def test_instances_are_restarted_one_after_the_other_and_no_call_fails(tmp_path: Path) -> None:
    said = written(tmp_path)
    with Mesh(tmp_path, CONFIG % f"{WATCHED}\n{READY}\ninstances = 2") as mesh:
        watched(mesh)
        address = mesh.upstream("client.1", "web")
        with Repeated(lambda: ask_over_tcp(address)) as calls:
            calls.wait_for(10)
            said.write_text("second")
            mesh.await_event("ready", "web.2", number=2)
            calls.wait_for(10)
        assert calls.failures == []
        assert set(calls.answers) == {"first", "second"}
        times = [
            mesh.events(kind, name)[-1].at
            for name, kind in (("web.1", "ready"), ("web.2", "exited"))
        ]
        assert times == sorted(times), "the second was stopped before the first was ready again"


@pytest.mark.slow
def test_one_that_is_stopped_while_others_are_restarted_before_it_stays_stopped(
    tmp_path: Path,
) -> None:
    said = written(tmp_path)
    with Mesh(tmp_path, CONFIG % f"{WATCHED}\n{READY}\ninstances = 2") as mesh:
        watched(mesh)
        said.write_text("slow")
        mesh.await_event("started", "web.1", number=2)
        mesh.cli("stop", "web.2", check=True)
        mesh.await_event("ready", "web.1", number=2)
        mesh.cli("restart", "client", check=True)  # has its turn after the others
        assert mesh.instance("web.2").state == "stopped"


@pytest.mark.parametrize("mistake", ["broken", "hanging"])
def test_a_mistake_stops_at_the_first_instance_and_is_mended_at_once(
    tmp_path: Path, mistake: str
) -> None:
    said = written(tmp_path)
    config = CONFIG % f'{WATCHED}\n{READY}\ninstances = 2\nrestart = "never"'
    with Mesh(tmp_path, config) as mesh:
        watched(mesh)
        said.write_text(mistake)
        mesh.await_event("started", "web.1", number=2)
        if mistake == "broken":
            kept = mesh.await_event("kept", "web.2")
            assert kept.message == "web.2 is left as it was: web.1 did not come back"
        mesh.wait_for(lambda _: f"started with {mistake}" in mesh.output("web.1"))
        assert ask_over_tcp(mesh.upstream("client.1", "web")) == "first"
        begun = time.monotonic()
        said.write_text("mended")
        mesh.await_event("ready", "web.2", number=2)
        # Nobody has waited for the deadline of the one that hangs.
        assert time.monotonic() - begun < PATIENCE_S
        assert ask_over_tcp(mesh.upstream("client.1", "web")) == "mended"


def test_with_a_signal_for_an_action_the_main_process_gets_it_and_goes_on(tmp_path: Path) -> None:
    script = "trap 'echo heard' HUP; echo trapped; while :; do sleep 600 & wait; done"
    config = f"""
[apps.web]
command = "{script}"
shell = true
port = 0
cwd = "web"
watch = {{ paths = ["src/*.txt"], debounce = "50ms", action = "HUP" }}
"""
    said = written(tmp_path)
    with Mesh(tmp_path, config) as mesh:
        watched(mesh)
        mesh.wait_for(lambda _: "trapped" in mesh.output("web.1"))
        before = mesh.instance("web.1").pid
        said.write_text("second")
        mesh.wait_for(lambda _: "heard" in mesh.output("web.1"))
        assert changes(mesh) == ["web gets HUP: src/said.txt changed"]
        assert mesh.instance("web.1").pid == before
        mesh.cli("stop", "web", check=True)


def test_what_is_watched_changes_by_a_reload_that_restarts_nothing(tmp_path: Path) -> None:
    said = written(tmp_path)
    with Mesh(tmp_path, CONFIG % READY) as mesh:
        mesh.up()
        before = mesh.instance("web.1").pid

        def reload(more: str) -> None:
            (tmp_path / "mesh.toml").write_text(CONFIG % f"{READY}\n{more}")
            done = mesh.cli("reload", check=True).stdout
            assert done == "changed web.1 (watch): running, ready\n"

        reload('watch = { ignore = ["said.txt"], debounce = "50ms" }')
        mesh.await_event("watching", "web")
        said.write_text("nobody looks")
        (said.parent / "other").write_text("")
        mesh.await_event("ready", "web.1", number=2)
        assert changes(mesh) == ["web is restarted: src/other changed"]
        assert mesh.instance("web.1").pid != before
        reload(WATCHED)
        mesh.await_event("watching", "web", number=2)
        said.write_text("somebody looks")
        mesh.await_event("ready", "web.1", number=3)
        reload("")
        assert len(mesh.events("started", "web.1")) == 3
        done = mesh.cli("scale", "web=2", check=True).stdout
        assert done == "added web.2: running, ready\n"


@pytest.mark.slow
def test_new_instances_are_watched_too(tmp_path: Path) -> None:
    said = written(tmp_path)
    with Mesh(tmp_path, CONFIG % f"{WATCHED}\n{READY}") as mesh:
        watched(mesh)
        mesh.cli("scale", "web=2", check=True)
        said.write_text("second")
        mesh.await_event("ready", "web.2", number=2)
        assert changes(mesh) == ["web is restarted: src/said.txt changed"]
        assert len(mesh.events("ready", "web.1")) == 2


def test_one_that_completes_is_run_again_for_a_change_and_so_the_mesh_stays(tmp_path: Path) -> None:
    written(tmp_path)
    config = f'[apps.web]\ncommand = "cat src/said.txt"\nport = 0\ncwd = "web"\n{WATCHED}\n'
    with Mesh(tmp_path, config) as mesh:
        watched(mesh, wait=False)
        mesh.await_event("completed", "web.1")
        (tmp_path / "web/src/said.txt").write_text("second\n")
        mesh.await_event("completed", "web.1", number=2)
        mesh.wait_for(lambda _: "second" in mesh.output("web.1"))


def test_one_that_changes_what_it_watches_is_not_restarted_without_end(tmp_path: Path) -> None:
    written(tmp_path)
    config = """
[apps.web]
command = "echo x > data.db; exec sleep 600"
shell = true
port = 0
cwd = "web"
watch = { debounce = "50ms" }
"""
    with Mesh(tmp_path, config) as mesh:
        watched(mesh, wait=False)
        # Whether its first start is seen depends on who is faster.
        (tmp_path / "web/src/said.txt").write_text("second")
        storming = mesh.await_event("files-storming", "web")
        assert "data.db changed" in storming.message
        assert "name it in watch.ignore; the next change waits 10 s" in storming.message
        assert len(changes(mesh)) == CRASH_LOOP_EXITS


@pytest.mark.slow
def test_where_there_are_too_many_folders_the_app_runs_without_being_watched(
    tmp_path: Path,
) -> None:
    written(tmp_path)
    for number in range(8200):
        os.mkdir(tmp_path / f"web/src/{number}")
    with Mesh(tmp_path, CONFIG % f"{WATCHED}\n{READY}") as mesh:
        mesh.up()
        event = mesh.await_event("not-watching", "web")
        assert event.message.startswith("cannot watch files for web, it runs without: that is more")
        assert mesh.instance("web.1").ready
        config = CONFIG % f'{READY}\nwatch = {{ ignore = ["/src/[0-9]*"], debounce = "50ms" }}'
        (tmp_path / "mesh.toml").write_text(config)
        mesh.cli("reload", check=True)
        mesh.await_event("watching", "web")
        (tmp_path / "web/src/said.txt").write_text("second")
        mesh.await_event("ready", "web.1", number=2)


def test_a_folder_that_is_not_there_is_refused_before_anything_starts(tmp_path: Path) -> None:
    written(tmp_path)
    with Mesh(tmp_path, CONFIG % 'watch = ["src", "sorce"]') as mesh:
        done = mesh.cli("check")
        assert done.returncode == 2
        assert "mesh.toml:5:17: cannot watch web/sorce for web: no such file" in done.stderr


def test_a_command_does_not_wait_for_an_app_that_a_change_has_broken(tmp_path: Path) -> None:
    said = written(tmp_path)
    with Mesh(tmp_path, CONFIG % f"{WATCHED}\n{READY}") as mesh:
        watched(mesh)
        said.write_text("hanging")
        mesh.wait_for(lambda _: "started with hanging" in mesh.output("web.1"))
        begun = time.monotonic()
        mesh.cli("restart", "client", check=True)
        assert time.monotonic() - begun < PATIENCE_S  # and not its deadline of 60 s


# In a user namespace of its own, where the kernel grants but one watched folder.
SET = 'echo 1 > /proc/sys/user/max_inotify_watches; exec "$@"'
FEW = ["unshare", "-Ur", "sh", "-c", SET, "sh"]


def is_granted(command: list[str]) -> bool:
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.skipif(not is_granted([*FEW, "true"]), reason="there are no user namespaces here")
def test_where_the_kernel_grants_no_more_the_limit_is_named_and_the_app_runs(
    tmp_path: Path,
) -> None:
    written(tmp_path)
    with Mesh(tmp_path, CONFIG % f"{WATCHED}\n{READY}") as mesh:
        foreground = mesh.starting(by=FEW)
        line = foreground.await_line("cannot watch files for web, it runs without")
        assert "the limit fs.inotify.max_user_watches = " in line
        assert "raise it with `sysctl fs.inotify.max_user_watches=" in line
        foreground.await_line("web.1 is ready")
        foreground.signal(signal.SIGTERM)
        assert foreground.wait() == 0
