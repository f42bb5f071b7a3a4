"""A changed mesh.toml under a running mesh: what changed is touched, and nothing else."""

import json
from pathlib import Path

from support.mesh import Mesh

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
[[intentions]]
from = "client"
to = "server"
"""
EXTRA = """
[apps.extra]
command = "${PYTHON} -S ${APPS}/serve.py --mode name"
"""


def rewrite(mesh: Mesh, config: str) -> None:
    (mesh.folder / "mesh.toml").write_text(config)


def pids(mesh: Mesh) -> dict[str, tuple[int | None, int | None]]:
    """Return the process of each instance, and that of its sidecar."""
    return {row.instance: (row.pid, row.sidecar_pid) for row in mesh.ps()}


def test_an_app_that_is_new_is_started_and_one_that_is_gone_is_stopped(tmp_path: Path) -> None:
    with Mesh(tmp_path, BASE) as mesh:
        mesh.up()
        before = pids(mesh)
        rewrite(mesh, BASE + EXTRA)
        said = mesh.cli("reload", check=True).stdout
        assert said == "added extra.1: running, ready\n"
        there = pids(mesh)
        extra = there.pop("extra.1")
        assert there == before
        rewrite(mesh, BASE)
        mesh.remember()
        assert mesh.cli("reload", check=True).stdout == "removed extra.1\n"
        assert pids(mesh) == before
        assert all(mesh.session_size(pid) == 0 for pid in extra if pid is not None)
        assert mesh.cli("reload", check=True).stdout == "nothing has changed\n"
