"""A Procfile and its `.env` as foreman reads them, with the ports that foreman gives."""

import random
from pathlib import Path

from support.mesh import Mesh

from meshrun.supervisor.listeners import is_free

PROCFILE = """\
# foreman has no comments; here they are passed over
web: echo web $PORT "$GREETING" $KEPT; exec sleep 600

worker:echo worker $PORT; exec sleep 600
"""


def free_base() -> int:
    """Return a port that is free with those that follow from it, where nobody dials out."""
    while True:
        base = random.randrange(25000, 31000)
        if all(is_free(port) for port in (base, base + 100, base + 101)):
            return base


def environment_file(base: int) -> str:
    return f'PORT={base}\nGREETING="it\'s \\"quoted\\""\nKEPT=\'$HOME\'\n'


def said(mesh: Mesh, name: str) -> str:
    """Wait for the first line of an instance."""
    mesh.wait_for(lambda _: bool(mesh.output(name)))
    return mesh.output(name)[0]


def test_processes_get_the_ports_and_variables_that_foreman_gives_them(tmp_path: Path) -> None:
    base = free_base()
    files = {"Procfile": PROCFILE, ".env": environment_file(base)}
    with Mesh(tmp_path, files=files, environment={"PORT": "1", "KEPT": "not this"}) as mesh:
        mesh.up("--procfile", "Procfile", "--scale", "worker=2")
        assert said(mesh, "web.1") == f'web {base} it\'s "quoted" $HOME'
        assert said(mesh, "worker.1") == f"worker {base + 100}"
        assert said(mesh, "worker.2") == f"worker {base + 101}"
        assert [row.port for row in mesh.ps()] == [base, base + 100, base + 101]


def test_one_that_is_started_alone_keeps_its_port(tmp_path: Path) -> None:
    base = free_base()
    files = {"Procfile": PROCFILE}
    with Mesh(tmp_path, files=files, environment={"PORT": str(base)}) as mesh:
        mesh.up("--procfile", "Procfile", "worker")
        assert said(mesh, "worker.1") == f"worker {base + 100}"


def test_what_is_no_process_is_reported_and_nothing_is_started(tmp_path: Path) -> None:
    files = {"Procfile": "web: true\nworker true\n", ".env": "export A=secret\n"}
    with Mesh(tmp_path, files=files) as mesh:
        done = mesh.cli("up", "--procfile", "Procfile")
        assert done.returncode == 2
        assert 'Procfile:2:1: not "name: command"' in done.stderr
        assert '.env:1:1: not NAME=value: leave "export" out' in done.stderr
        assert "secret" not in done.stderr
        assert not mesh.state_path.exists()
