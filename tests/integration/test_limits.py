"""What an app may use: set before it runs, kept, and said where it ended an app."""

import os
from pathlib import Path

from support.mesh import Mesh

from meshrun.supervisor import cgroup

APP = 'command = "${PYTHON} -S ${APPS}/limited.py'
NICE = os.getpriority(os.PRIO_PROCESS, 0)


def config(limits: str, *arguments: str) -> str:
    return f"""
[apps.app]
{APP} {" ".join(arguments)}"
port = 0
restart = "never"
limits = {{ {limits} }}
"""


def test_limits_are_those_of_the_program_and_leave_no_descriptor_open(tmp_path: Path) -> None:
    text = config(f'nofile = 20, core = "0B", cpu_nice = {min(NICE + 3, 19)}')
    with Mesh(tmp_path, text) as mesh:
        foreground = mesh.starting()
        assert foreground.wait() == 0
        for said in ("NOFILE 20 20", "CORE 0 0", f"nice {min(NICE + 3, 19)}", "descriptors 0"):
            assert f"app.1   | {said}" in foreground.text


def test_who_asks_for_more_memory_than_the_limit_does_not_get_it(tmp_path: Path) -> None:
    with Mesh(tmp_path, config('memory = "64MiB"', "128")) as mesh:
        foreground = mesh.starting()
        assert foreground.wait() == 1
        refused = "no more memory" in foreground.text and "exit code 3" in foreground.text
        killed = "signal KILL: over its memory limit of 64 MiB" in foreground.text
        assert refused or killed


def test_within_the_limit_memory_is_had(tmp_path: Path) -> None:
    with Mesh(tmp_path, config('memory = "256MiB"', "64")) as mesh:
        foreground = mesh.starting()
        assert foreground.wait() == 0
        assert str(64 << 20) in foreground.text


def test_the_number_of_processes_is_limited_by_the_cgroup_or_for_the_user(tmp_path: Path) -> None:
    with Mesh(tmp_path, config("processes = 3000")) as mesh:
        foreground = mesh.starting()
        assert foreground.wait() == 0
        by_user = "NPROC 3000 3000" in foreground.text
        # The folder is gone by now: that there was one with the limit is told by what is not there.
        assert by_user or "app-app.1" in foreground.text


def test_a_folder_of_the_run_is_gone_with_it_also_when_it_was_killed(tmp_path: Path) -> None:
    text = '[apps.app]\ncommand = "${PYTHON} -S ${APPS}/idle.py"\nport = 0\n'
    with Mesh(tmp_path, text) as mesh:
        mesh.up()
        folder = mesh.recorded().cgroup
        mesh.kill(mesh.supervisor_pid)
        mesh.await_gone(10.0)
        if folder is not None:
            assert not cgroup.members(Path(folder))
            assert not Path(folder).exists()
