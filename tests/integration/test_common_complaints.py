"""What people suffer most with process managers when something ends.

Each is named after what must happen instead; the table of all of them is docs/complaints.md.
"""

import os
import signal
import socket
import time
from pathlib import Path

import pytest
from support.fugitives import Terminal
from support.mesh import PATIENCE_S, Mesh, await_any_exit

from meshrun.supervisor import processes

# What a test that is about waiting waits for, and well under what it must not wait for.
SOON_S = 4.0

SHELL_CHILD = """
[apps.web]
command = "${PYTHON} -S ${APPS}/idle.py --say grandchild; true"
shell = true
port = 0
"""
HOLDER = """
[apps.web]
command = "${PYTHON} -S ${APPS}/idle.py --session --fork-twice"
port = 0
restart = "never"
"""


def grandchild(mesh: Mesh) -> processes.ProcessId:
    """Return what the shell of `web` has started."""
    (found,) = processes.descendants(mesh.instance("web.1").pid or 0)
    return found


def test_ctrl_c_ends_the_children_of_the_apps_too(tmp_path: Path) -> None:
    with Mesh(tmp_path, SHELL_CHILD) as mesh:
        foreground = mesh.foreground()
        mesh.wait_for(lambda _: "ready" in mesh.output("web.1"))
        child = grandchild(mesh)
        foreground.signal(signal.SIGINT)
        assert foreground.wait(SOON_S) == 130
        assert processes.identify(child.pid) != child


def test_a_stop_that_something_blocks_says_what_it_is_and_still_comes_to_an_end(
    tmp_path: Path,
) -> None:
    config = """
[apps.web]
command = "${PYTHON} -S ${APPS}/idle.py --deaf-child --ignore-term; true"
shell = true
port = 0
stop = { timeout = "3s" }
"""
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        mesh.wait_for(lambda _: "ready" in mesh.output("web.1"))
        python = processes.descendants(mesh.instance("web.1").pid or 0)[0]
        foreground.signal(signal.SIGINT)
        line = foreground.await_line("waiting for web.1: TERM sent ")
        assert f"{python.pid} " in line
        assert " -S " in line
        assert "KILL in " in line
        assert "└ " in line
        assert foreground.wait(2 * SOON_S) == 130
        assert foreground.text.count("waiting for web.1") <= 2


def test_the_grandchildren_of_a_shell_that_waits_are_no_orphans(tmp_path: Path) -> None:
    with Mesh(tmp_path, SHELL_CHILD) as mesh:
        mesh.up()
        mesh.wait_for(lambda _: "ready" in mesh.output("web.1"))
        child = grandchild(mesh)
        mesh.cli("stop", "web", check=True)
        assert processes.identify(child.pid) != child


def test_kill_9_of_the_supervisor_leaves_no_program_and_no_port_taken(tmp_path: Path) -> None:
    # Ranges of its own: between the runs the mesh of another test might take a port.
    config = '[mesh]\nports = "28400-28409"\napp_ports = "28410-28419"\n'
    config += '[apps.web]\ncommand = "${PYTHON} -S ${APPS}/serve.py"\nready = { tcp = true }\n'
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        port = mesh.instance("web.1").port
        assert port is not None
        mesh.kill(mesh.supervisor_pid)
        mesh.await_gone(SOON_S)
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S).close()
        mesh.up()
        assert mesh.instance("web.1").port == port


def test_a_signal_reaches_what_a_shell_has_started_and_not_the_shell_alone(
    tmp_path: Path,
) -> None:
    script = (
        "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: print('asked to end',"
    )
    script += " flush=True) or os._exit(0)); print('ready', flush=True); time.sleep(600)"
    config = f"""
[apps.web]
shell = true
command = '''$PYTHON -S -c "{script}"; true'''
port = 0
stop = {{ timeout = "20s" }}
"""
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        mesh.wait_for(lambda _: "ready" in mesh.output("web.1"))
        foreground.signal(signal.SIGTERM)
        assert foreground.wait(SOON_S) == 0
        assert "web.1   | asked to end" in foreground.text


def test_a_worker_that_left_the_session_does_not_keep_the_port_from_the_next_start(
    tmp_path: Path,
) -> None:
    worker = "import os, sys; os.fork() and os._exit(0); os.setsid();"
    worker += "os.execv(sys.executable, [sys.executable, '-S', *sys.argv[1:]])"
    config = f"""
[apps.web]
shell = true
command = '''$PYTHON -S -c "{worker}" $APPS/serve.py; exec sleep 600'''
ready = {{ tcp = true }}
"""
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        for _ in range(3):
            before = mesh.instance("web.1").pid
            mesh.cli("restart", "web", check=True)
            row = mesh.instance("web.1")
            assert row.ready
            assert row.pid != before
            owners = [
                pid
                for pid in processes.all_pids()
                if "serve.py" in processes.command_line(pid)
                and processes.environment_value(pid, "PORT") == str(row.port)
            ]
            assert len(owners) == 1


def test_a_server_behind_a_script_runner_ends_with_it_and_at_once(tmp_path: Path) -> None:
    config = """
[apps.web]
command = ["sh", "-c", "sh -c '${PYTHON} -S ${APPS}/idle.py --child; true'; true"]
port = 0
"""
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        mesh.wait_for(lambda _: "ready" in mesh.output("web.1"))
        below = processes.descendants(mesh.instance("web.1").pid or 0)
        assert len(below) == 3
        foreground.signal(signal.SIGINT)
        assert foreground.wait(SOON_S) == 130
        assert [p for p in below if processes.identify(p.pid) == p] == []


@pytest.mark.parametrize("by_shell", [False, True], ids=["its own", "a shell's"])
def test_after_a_terminal_has_closed_nothing_is_stale(tmp_path: Path, by_shell: bool) -> None:
    with Mesh(tmp_path, SHELL_CHILD) as mesh:
        terminal = Terminal(mesh, by_shell=by_shell)
        mesh.await_answer()
        mesh.wait_for(lambda _: "ready" in mesh.output("web.1"))
        mesh.remember()
        supervisor = processes.identify(mesh.supervisor_pid)
        assert supervisor is not None
        terminal.close()
        terminal.wait()
        await_any_exit([supervisor], PATIENCE_S)
        mesh.await_gone(SOON_S)
        assert not (mesh.state_path / "control.sock").exists()
        assert "no mesh runs" in mesh.cli("ps").stderr
        mesh.up()
        assert mesh.instance("web.1").ready


def test_what_has_crashed_is_not_shown_as_running_though_others_hold_its_output(
    tmp_path: Path,
) -> None:
    with Mesh(tmp_path, HOLDER) as mesh:
        foreground = mesh.foreground()
        mesh.wait_for(lambda _: "ready" in mesh.output("web.1"))
        pid = mesh.instance("web.1").pid
        assert pid is not None
        begun = time.monotonic()
        os.kill(pid, signal.SIGSEGV)
        mesh.await_event("failed", "web.1", deadline_s=SOON_S)
        assert time.monotonic() - begun < SOON_S
        assert foreground.wait(SOON_S) == 1
        assert "web.1 failed: signal SEGV" in foreground.text
