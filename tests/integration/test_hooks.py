"""Hooks on real apps: when they run, what they are told, and that they end with their instance."""

import signal
import time
from pathlib import Path

import pytest
from support.mesh import Mesh
from support.traffic import wait_until

from meshrun.supervisor import processes

TELL = (
    "echo $MESHRUN_HOOK code=$MESHRUN_EXIT_CODE signal=$MESHRUN_EXIT_SIGNAL "
    "again=$MESHRUN_WILL_RESTART"
)


def hooked(hooks: str, *flags: str, more: str = "") -> str:
    """A mesh of one app with hooks; each is a script of a shell."""
    return f"""
[apps.web]
command = "${{PYTHON}} -S ${{APPS}}/idle.py {" ".join(flags)}"
port = 0
hooks = {{ {hooks} }}
{more}
"""


def shell(script: str) -> str:
    """A script as a hook; what begins with `$` is the shell's to expand."""
    return f"""["sh", "-c", '''{script.replace("$", "$$")}''']"""


def said(mesh: Mesh, hook: str) -> list[str]:
    """Return the lines of a hook in the log of its app."""
    mark = f"[{hook}] "
    lines = mesh.output("web.1")
    return [line.removeprefix(mark) for line in lines if line.startswith(mark)]


def hook_pid(mesh: Mesh, hook: str) -> int:
    """Return the process id that a hook has written as its first line."""
    wait_until(lambda: bool(said(mesh, hook)), f"{hook} runs")
    return int(said(mesh, hook)[0])


def test_a_hook_runs_as_the_app_does_and_its_output_is_in_the_apps_log(tmp_path: Path) -> None:
    config = hooked(
        f"on_ready = {shell('echo $PWD $GREETING $MESHRUN_HOOK; echo oh >&2; sed s/a/b/')}",
        more='cwd = "sub"\nenv = { GREETING = "hi" }',
    )
    (tmp_path / "sub").mkdir()
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        done = mesh.await_event("hook", "web.1")
        assert done.message == "hook on_ready of web.1 succeeded"
        assert said(mesh, "on_ready") == [f"{tmp_path}/sub hi on_ready", "oh"]


@pytest.mark.parametrize(
    ("number", "told"),
    [
        (signal.SIGKILL, "on_exit code= signal=KILL again=yes"),
        (signal.SIGTERM, "on_exit code= signal=TERM again=yes"),
    ],
)
def test_the_hook_of_an_exit_is_told_how_and_ends_before_the_next_start(
    tmp_path: Path, number: int, told: str
) -> None:
    with Mesh(tmp_path, hooked(f"on_exit = {shell(f'{TELL}; sleep 0.2; echo done')}")) as mesh:
        mesh.up()
        mesh.kill(mesh.instance("web.1").pid, number)
        mesh.await_event("started", "web.1", number=2)
        assert said(mesh, "on_exit") == [told, "done"]


def test_a_hook_runs_at_a_stop_too_and_before_the_run_ends(tmp_path: Path) -> None:
    hook = shell(f"{TELL}; sleep 0.2; echo done > done")
    with Mesh(tmp_path, hooked(f"on_exit = {hook}", "--code=0")) as mesh:
        mesh.up()
        mesh.down()
        mesh.await_gone(5)
        assert (tmp_path / "done").read_text() == "done\n"
        assert mesh.events("hook", "web.1")
        kinds = [event.kind for event in mesh.events()]
        assert kinds.index("hook") < kinds.index("stopped") < kinds.index("down")


def test_a_hook_that_fails_is_an_event_and_the_app_runs_on(tmp_path: Path) -> None:
    with Mesh(tmp_path, hooked(f"on_ready = {shell('exit 3')}")) as mesh:
        mesh.up()
        failed = mesh.await_event("hook-failed", "web.1")
        assert failed.message == "hook on_ready of web.1 failed: exit code 3"
        row = mesh.instance("web.1")
        assert (row.state, row.ready, row.restarts) == ("running", True, 0)


def test_a_hook_that_cannot_be_run_says_why_and_the_app_is_started_again(tmp_path: Path) -> None:
    with Mesh(tmp_path, hooked('on_exit = "./missing"')) as mesh:
        mesh.up()
        mesh.kill(mesh.instance("web.1").pid)
        failed = mesh.await_event("hook-failed", "web.1")
        assert "./missing" in failed.message
        mesh.await_event("started", "web.1", number=2)


def test_a_hook_that_takes_too_long_is_killed_with_its_whole_session(tmp_path: Path) -> None:
    script = shell("echo $$; sleep 600 & sleep 600")
    with Mesh(tmp_path, hooked(f'on_ready = {script}, timeout = "500ms"')) as mesh:
        mesh.up()
        pid = hook_pid(mesh, "on_ready")
        failed = mesh.await_event("hook-failed", "web.1")
        assert failed.message.endswith("not ended within 0.5 s")
        wait_until(lambda: not processes.session_members(pid), "nothing is left of the hook")
        assert mesh.instance("web.1").ready


def test_a_hook_of_one_that_is_ready_ends_with_it_and_runs_again_for_the_next(
    tmp_path: Path,
) -> None:
    deaf = shell('trap "" TERM; echo $$; sleep 600')
    with Mesh(tmp_path, hooked(f'on_ready = {deaf}, timeout = "5m"')) as mesh:
        mesh.up()
        first = hook_pid(mesh, "on_ready")
        mesh.kill(mesh.instance("web.1").pid)
        failed = mesh.await_event("hook-failed", "web.1")
        assert failed.message.endswith("ended with its instance")
        wait_until(lambda: len(said(mesh, "on_ready")) == 2, "it runs again")
        assert not processes.session_members(first)


def test_one_that_does_not_get_ready_again_by_a_restart_alone_runs_its_hook_once(
    tmp_path: Path,
) -> None:
    config = hooked(
        f"on_ready = {shell('echo run')}",
        more='ready = { exec = ["test", "-e", "well"], interval = "50ms", failures = 1 }',
    )
    (tmp_path / "well").touch()
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        mesh.await_event("hook", "web.1")
        (tmp_path / "well").unlink()
        mesh.await_event("not-ready", "web.1")
        (tmp_path / "well").touch()
        mesh.await_event("ready", "web.1", number=2)
        mesh.down()
        mesh.await_gone(5)
        assert len(mesh.events("hook", "web.1")) == 1


@pytest.mark.slow
def test_at_a_stop_a_hook_that_hangs_has_the_stop_timeout_and_is_named(tmp_path: Path) -> None:
    config = hooked(
        f'on_exit = {shell("echo $$; sleep 600")}, timeout = "5m"', more='stop = { timeout = "3s" }'
    )
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        mesh.wait_for(lambda rows: rows["web.1"].ready)
        begun = time.monotonic()
        foreground.signal(signal.SIGTERM)
        named = foreground.await_line("waiting for web.1")
        assert "sleep 600" in named
        assert foreground.wait() == 0
        assert 3.0 <= time.monotonic() - begun < 8.0
        assert "hook on_exit of web.1 failed: not ended within 3 s" in foreground.text


def test_who_insists_on_the_end_gets_no_hook(tmp_path: Path) -> None:
    config = hooked(
        f"on_exit = {shell('echo late > late')}", "--ignore-term", more='stop = { timeout = "1m" }'
    )
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        wait_until(lambda: "ready" in mesh.output("web.1"), "it ignores TERM")
        foreground.signal(signal.SIGINT)
        mesh.wait_for(lambda rows: rows["web.1"].state == "stopping")
        foreground.signal(signal.SIGINT)
        assert foreground.wait() == 130
        assert not (tmp_path / "late").exists()


def test_why_says_that_the_hook_of_its_end_runs(tmp_path: Path) -> None:
    script = shell("while [ ! -e go ]; do sleep 0.05; done")
    with Mesh(tmp_path, hooked(f"on_exit = {script}")) as mesh:
        mesh.up()
        mesh.kill(mesh.instance("web.1").pid)
        rows = mesh.wait_for(lambda rows: rows["web.1"].pid is None)
        assert rows["web.1"].state == "stopping"
        (explanation,) = mesh.client.why("web.1")
        assert explanation.reason == "has ended (signal KILL), its on_exit hook runs"
        (tmp_path / "go").touch()
        mesh.await_event("started", "web.1", number=2)


def test_a_changed_hook_is_taken_up_without_a_restart(tmp_path: Path) -> None:
    with Mesh(tmp_path, hooked(f"on_exit = {shell('echo old')}")) as mesh:
        mesh.up()
        pid = mesh.instance("web.1").pid
        (tmp_path / "mesh.toml").write_text(hooked(f"on_exit = {shell('echo new')}"))
        assert "changed web.1 (hooks)" in mesh.cli("reload", check=True).stdout
        assert mesh.instance("web.1").pid == pid
        mesh.kill(pid)
        mesh.await_event("started", "web.1", number=2)
        assert said(mesh, "on_exit") == ["new"]


def test_nothing_is_left_of_hooks_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    deaf = shell('trap "" TERM; echo $$; sleep 600 & sleep 600')
    with Mesh(tmp_path, hooked(f'on_ready = {deaf}, timeout = "5m"')) as mesh:
        mesh.up()
        pid = hook_pid(mesh, "on_ready")
        mesh.kill(mesh.supervisor_pid)
        mesh.await_gone(4)
        assert not processes.session_members(pid)
