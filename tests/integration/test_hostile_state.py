"""What a state folder may hold that meshrun did not write, and an environment that is not text."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest
from support.mesh import PATIENCE_S, Mesh

from meshrun.supervisor import processes

pytestmark = pytest.mark.slow

CONFIG = '[apps.a]\ncommand = "sleep 600"\n'


def run_file(victim: subprocess.Popen[bytes], **changes: object) -> bytes:
    """Return a run.json that claims somebody else's process, with a start time that is not its."""
    entry = {"name": "x", "pid": victim.pid, "start_time": 1}
    run: dict[str, object] = {
        "run_id": "0123456789abcdef",
        "boot_id": processes.boot_id(),
        "supervisor": {"name": "supervisor", "pid": 4_000_000, "start_time": 1},
        "launcher": {"name": "launcher", "pid": 4_000_001, "start_time": 1},
        "processes": [entry],
        "written_at": 1 << 60,
    }
    return json.dumps({**run, **changes}).encode()


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe", b'{"run_id": 1}', b"[]"])
def test_a_run_file_that_is_none_is_as_if_there_were_none(tmp_path: Path, content: bytes) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.state_path.mkdir(mode=0o700)
        (mesh.state_path / "run.json").write_bytes(content)
        mesh.up()
        assert mesh.instance("a.1").state == "running"


def test_a_run_file_that_claims_another_s_process_ends_nobody(tmp_path: Path) -> None:
    victim = subprocess.Popen(["sleep", "600"], start_new_session=True)
    try:
        with Mesh(tmp_path, CONFIG) as mesh:
            mesh.state_path.mkdir(mode=0o700)
            (mesh.state_path / "run.json").write_bytes(run_file(victim))
            mesh.up()
        assert victim.poll() is None
    finally:
        victim.kill()
        victim.wait()


def test_an_environment_that_is_not_text_reaches_the_app_as_it_is(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.environment["LATIN"] = os.fsdecode(b"\xe9t\xe9")
        mesh.up()
        environment = Path(f"/proc/{mesh.instance('a.1').pid}/environ").read_bytes()
    assert b"LATIN=\xe9t\xe9" in environment.split(b"\0")


@pytest.mark.slow
def test_a_launcher_that_was_stopped_does_not_hold_up_the_end(tmp_path: Path) -> None:
    config = '[apps.a]\ncommand = "sleep 600"\nstop = { timeout = "200ms" }\n'
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        mesh.wait_for(lambda rows: rows["a.1"].state == "running")
        mesh.kill(mesh.launcher_pid, signal.SIGSTOP)
        foreground.signal(signal.SIGINT)
        foreground.await_line("waiting for")
        foreground.signal(signal.SIGINT)
        assert foreground.wait(PATIENCE_S) == 1
