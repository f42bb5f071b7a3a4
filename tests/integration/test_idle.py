"""What a mesh costs while nothing happens, and what restarts leave behind: nothing."""

import os
import time
from pathlib import Path

import pytest
from support.mesh import Mesh
from support.seeing import metrics, tapping
from support.traffic import ask

CONFIG = """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py"
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py --child"
port = 0
upstreams = ["server"]
"""
ALLOWED = """
[[intentions]]
from = "client"
to = "server"
"""
WINDOW_S = 1.0
WINDOWS = 10


def switches(pid: int) -> int:
    """Return how often a process has gone to sleep, and so has been woken."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("voluntary")).split()[1])


def assert_silence(mesh: Mesh) -> None:
    """See supervisor, launcher and a sidecar sleep for a while, all at the same time."""
    row = mesh.wait_for(lambda _: "ready" in mesh.output("client.1"))["server.1"]
    assert row.sidecar_pid is not None
    pids = (mesh.supervisor_pid, mesh.launcher_pid, row.sidecar_pid)
    seen = []
    for _ in range(WINDOWS):
        before = [switches(pid) for pid in pids]
        time.sleep(WINDOW_S)  # the silence that is measured
        seen.append([switches(pid) - b for pid, b in zip(pids, before, strict=True)])
        # Start-up may still be settling, and the leaf's renewal may fall into a window.
        if not any(seen[-1]):
            return
    raise AssertionError(f"woken each second: supervisor, launcher, sidecar {seen}")


def test_nobody_wakes_up_while_nothing_happens(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        assert_silence(mesh)


@pytest.mark.slow
def test_nobody_wakes_up_for_a_log_and_a_tap_of_nothing(tmp_path: Path) -> None:
    with Mesh(tmp_path, f"[mesh]\naccess_log = true\n{ALLOWED}{CONFIG}") as mesh:
        mesh.up()
        with tapping(mesh, "client", "server") as tapped:
            ask(mesh.upstream("client.1", "server")[1])
            tapped()
            metrics(mesh)
            assert_silence(mesh)


def test_nobody_wakes_up_while_files_are_watched_and_none_changes(tmp_path: Path) -> None:
    for number in range(50):
        (tmp_path / f"src/{number}").mkdir(parents=True)
    config = CONFIG.replace("port = 0", "port = 0\nwatch = true")
    with Mesh(tmp_path, config) as mesh:
        mesh.up()
        mesh.await_event("watching", "client")
        assert_silence(mesh)


@pytest.mark.slow
def test_restarts_leave_no_descriptor_open(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        pids = (mesh.supervisor_pid, mesh.launcher_pid)

        def descriptors() -> list[int]:
            return [len(os.listdir(f"/proc/{pid}/fd")) for pid in pids]

        # Once before counting: some things are opened at their first use.
        mesh.cli("restart", check=True)
        before = descriptors()
        for number in range(1, 4):
            mesh.cli("restart", check=True)
            rows = mesh.wait_for(lambda rows: all(row.ready for row in rows.values()))
            mesh.kill(rows["client.1"].sidecar_pid)
            mesh.await_event("sidecar-started", "client.1", number=number)
            mesh.wait_for(lambda rows: all(row.ready for row in rows.values()))
        # The pipes of the last app to end stay open for a moment, for what it may still say.
        mesh.wait_for(lambda _: all(n <= b for n, b in zip(descriptors(), before, strict=True)))


def test_an_app_gets_its_three_descriptors_and_nothing_else(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        row = mesh.wait_for(lambda _: "ready" in mesh.output("client.1"))["client.1"]
        folder = Path(f"/proc/{row.pid}/fd")
        assert sorted(path.name for path in folder.iterdir()) == ["0", "1", "2"]
        assert str((folder / "0").readlink()) == "/dev/null"
        status = Path(f"/proc/{row.pid}/status").read_text()
        assert "SigBlk:\t0000000000000000" in status
        assert os.getsid(row.pid or 0) == row.pid
