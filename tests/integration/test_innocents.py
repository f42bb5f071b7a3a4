"""What is not the run's is left alone, however the run ended and whoever cleans up."""

import os
import pwd
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.mesh import PATIENCE_S, Mesh, await_any_exit

from meshrun.supervisor import processes
from meshrun.supervisor.processes import ProcessId

pytestmark = pytest.mark.slow

QUIET = '[apps.web]\ncommand = "${PYTHON} -S ${APPS}/idle.py --child"\n'


def kill_both(mesh: Mesh) -> None:
    """Kill supervisor and launcher before either can do anything."""
    run = mesh.recorded()
    mesh.kill(run.supervisor.pid, signal.SIGSTOP)
    mesh.kill(mesh.launcher_pid)
    mesh.kill(run.supervisor.pid)
    await_any_exit([run.supervisor.process], PATIENCE_S)


@contextmanager
def bystander(mesh: Mesh, script: str, *words: str) -> Iterator[ProcessId]:
    """Start a shell as a user does, in a session of its own; it says when it is ready."""
    with subprocess.Popen(
        ["sh", "-c", script, "sh", *words],
        cwd=mesh.folder,
        env={k: v for k, v in mesh.environment.items() if not k.startswith("MESHRUN_TEST")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        found = processes.identify(process.pid)
        assert found is not None
        try:
            yield found
        finally:
            for member in processes.session_members(process.pid):
                processes.send_signal(member, signal.SIGKILL)


def await_child(parent: ProcessId, name: str) -> ProcessId:
    """Wait for a child to have become the program of that name."""
    deadline = time.monotonic() + PATIENCE_S
    while True:
        for pid in processes.children(parent.pid):
            child = processes.identify(pid)
            if child is not None and processes.name(pid) == name:
                return child
        assert time.monotonic() < deadline, f"{parent} has no child {name}"
        os.sched_yield()


def lives(process: ProcessId) -> bool:
    return processes.identify(process.pid) == process


@pytest.mark.parametrize("end", ["killed", "launcher killed", "both killed"])
def test_a_shell_with_the_environment_of_an_app_and_what_it_started_live_on(
    tmp_path: Path, end: str
) -> None:
    with Mesh(tmp_path, QUIET) as mesh:
        mesh.up()
        meshrun = shlex.join(mesh.command)
        script = f'set -a; eval "$({meshrun} env web)"; unset MESHRUN_TEST_ID; '
        script += "sleep 600 & echo ready; read line"
        with bystander(mesh, script) as shell:
            editor = await_child(shell, "sleep")
            assert processes.environment_value(editor.pid, "MESHRUN_INSTANCE") == "web.1"
            if end == "killed":
                mesh.kill(mesh.supervisor_pid)
            elif end == "launcher killed":
                mesh.kill(mesh.launcher_pid)
            else:
                kill_both(mesh)
                assert "ended what a killed run had left" in mesh.down().stdout
            mesh.await_gone(PATIENCE_S)
            assert lives(shell)
            assert lives(editor)


def test_a_mesh_that_an_app_has_started_to_outlive_it_is_spared_by_who_cleans_up(
    tmp_path: Path,
) -> None:
    inner_folder = tmp_path / "inner"
    with Mesh(inner_folder, QUIET) as inner:
        meshrun = shlex.join(inner.command)
        outer_config = f"""
[apps.terminal]
shell = true
command = "cd {inner_folder} && MESHRUN_TEST_ID={inner.marker} {meshrun} up --wait; sleep 600"
port = 0
"""
        with Mesh(tmp_path / "outer", outer_config) as outer:
            outer.up(wait=False)
            outer.wait_for(lambda _: any("everything is ready" in line for line in said(outer)))
            kill_both(outer)
            outer.down()
            outer.await_gone(PATIENCE_S)
            assert all(row.ready for row in inner.ps())
        inner.down()


def said(mesh: Mesh) -> list[str]:
    return mesh.output("terminal.1")


@pytest.mark.slow
def test_a_mesh_in_the_foreground_of_an_app_ends_with_the_app(tmp_path: Path) -> None:
    with Mesh(tmp_path / "inner", QUIET) as inner:
        command = shlex.join([*inner.command, "up"])
        config = f'[apps.inner]\ncommand = "{command}"\ncwd = "{inner.folder}"\nport = 0\n'
        with Mesh(tmp_path / "outer", config) as outer:
            outer.up()
            inner.await_answer()
            web = processes.identify(inner.instance("web.1").pid or 0)
            assert web is not None
            inner.remember()
            outer.down()
            inner.await_gone(PATIENCE_S)
            assert not lives(web)


def test_the_children_that_whoever_became_the_supervisor_had_are_none_of_the_run_s(
    tmp_path: Path,
) -> None:
    with Mesh(tmp_path, QUIET) as mesh:
        script = 'sleep 600 & echo ready; exec "$@"'
        with bystander(mesh, script, *mesh.command, "up") as supervisor:
            mesh.await_answer()
            sleep = await_child(supervisor, "sleep")
            run = mesh.recorded()
            assert run.supervisor.process == supervisor
            mesh.kill(mesh.launcher_pid)
            await_any_exit([supervisor], PATIENCE_S)
            assert not lives(supervisor)
            assert lives(sleep)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can have processes of two users")
def test_who_is_not_root_leaves_processes_of_others_alone(tmp_path: Path) -> None:
    first, second = [e.pw_uid for e in pwd.getpwall() if e.pw_uid != 0][:2]
    script = "import os, sys; from meshrun.supervisor import leftovers\n"
    script += f"os.setuid({first})\n"
    script += "print(*(leftovers._may_end(int(pid)) for pid in sys.argv[1:]))"
    with (
        subprocess.Popen(["sleep", "600"], user=first, cwd="/") as mine,
        subprocess.Popen(["sleep", "600"], user=second, cwd="/") as theirs,
    ):
        try:
            pids = [str(mine.pid), str(theirs.pid), str(os.getpid())]
            done = subprocess.run(
                [sys.executable, "-c", script, *pids], capture_output=True, text=True, check=True
            )
        finally:
            mine.kill()
            theirs.kill()
    assert done.stdout.split() == ["True", "False", "False"]


def test_a_session_whose_number_another_has_by_now_has_no_members() -> None:
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        try:
            leader = processes.identify(process.pid)
            assert leader is not None
            earlier = ProcessId(leader.pid, leader.start_time - 1)
            assert processes.session_members(leader.pid, leader) == [leader]
            assert processes.session_members(leader.pid, earlier) == []
        finally:
            process.kill()


def test_the_kernel_is_to_choose_an_app_before_what_ends_the_others(tmp_path: Path) -> None:
    with Mesh(tmp_path, QUIET) as mesh:
        mesh.up()
        row = mesh.instance("web.1")
        pids = [mesh.supervisor_pid, mesh.launcher_pid, row.sidecar_pid, row.pid]
        supervisor, launcher, sidecar, app = (
            int(Path(f"/proc/{pid}/oom_score_adj").read_text()) for pid in pids
        )
        assert supervisor <= sidecar < app
        assert launcher <= sidecar


@pytest.mark.slow
def test_a_run_under_nohup_does_not_hear_the_terminal_close(tmp_path: Path) -> None:
    with Mesh(tmp_path, QUIET, wrapper=["nohup"]) as mesh:
        foreground = mesh.foreground()
        foreground.signal(signal.SIGHUP)
        begun = time.monotonic()
        mesh.cli("restart", "web", check=True)
        assert foreground.process.poll() is None, time.monotonic() - begun
        foreground.signal(signal.SIGTERM)
        assert foreground.wait() == 0
