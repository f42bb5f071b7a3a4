"""The Go pair under examples/echo-go: built, run, ended."""

import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest
from support.mesh import Mesh

EXAMPLE = Path(__file__).parents[2] / "examples" / "echo-go"
CTRL_C = 130

pytestmark = [
    pytest.mark.skipif(shutil.which("go") is None, reason="needs the Go toolchain: no go in PATH"),
    # The first build on a machine compiles the standard library's net/http.
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example with its programs built, without a network."""
    folder = tmp_path_factory.mktemp("go") / "echo-go"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("bin", ".meshrun"))
    environment = {**os.environ, "GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    if "GOCACHE" not in os.environ and not os.access(os.environ.get("HOME", ""), os.W_OK):
        environment["GOCACHE"] = str(tmp_path_factory.mktemp("gocache"))
    done = subprocess.run(
        ["make", "build"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return folder


def test_the_client_receives_the_greeting_and_ctrl_c_ends_both_programs(built: Path) -> None:
    with Mesh(built) as mesh:
        up = mesh.foreground("--isolated")
        up.await_line("Client received: Hello from echo-server on port ")
        up.signal(signal.SIGINT)
        assert up.wait() == CTRL_C
        assert mesh.left() == []


def test_each_program_says_what_it_misses_when_started_by_hand(built: Path) -> None:
    for program, variable in (("server", "PORT"), ("client", "BACKEND_ADDR")):
        environment = {k: v for k, v in os.environ.items() if k != variable}
        done = subprocess.run(
            [built / "bin" / program], env=environment, capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (
            1,
            f"{variable} is not set: start me with meshrun up\n",
        )
