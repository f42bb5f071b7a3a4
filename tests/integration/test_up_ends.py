"""Runs that end with one of their apps: `--exit-code-from` and `--abort-on-exit`."""

from pathlib import Path

import pytest
from support.mesh import Mesh

SUITE = """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py"
ready = { tcp = true }
[apps.tests]
command = ["sh", "-c", "%s"]
port = 0
depends_on = ["server"]
restart = "always"
"""


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$$$", 137)])
def test_the_run_ends_with_the_app_that_is_named_and_with_its_code(
    tmp_path: Path, script: str, code: int
) -> None:
    with Mesh(tmp_path, SUITE % script) as mesh:
        foreground = mesh.starting("--exit-code-from", "tests")
        assert foreground.wait() == code
        assert "tests.1 has ended, and so does the mesh" in foreground.text
        # The server was asked to stop, in order.
        assert "server.1 stopped" in foreground.text
        assert mesh.left() == []


def test_ctrl_c_before_the_named_app_has_ended_is_ctrl_c(tmp_path: Path) -> None:
    with Mesh(tmp_path, SUITE % "sleep 600") as mesh:
        foreground = mesh.foreground("--exit-code-from=tests")
        foreground.await_line("tests.1 started")
        foreground.signal(2)
        assert foreground.wait() == 130


def test_the_end_of_any_app_ends_the_run_but_of_one_that_was_expected_to(tmp_path: Path) -> None:
    config = """
[apps.migrate]
command = "true"
port = 0
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py"
[apps.worker]
command = "${PYTHON} -S ${APPS}/idle.py --exit-after 0.2 --code 3"
port = 0
depends_on = { migrate = "succeeded" }
"""
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.starting("--abort-on-exit")
        assert foreground.wait() == 1
        assert "migrate.1 completed" in foreground.text
        assert "worker.1 failed: exit code 3" in foreground.text
        assert "worker.1 has ended, and so does the mesh" in foreground.text


def test_what_makes_no_sense_is_refused_before_anything_starts(tmp_path: Path) -> None:
    with Mesh(tmp_path, SUITE % "true") as mesh:
        for words, said in (
            (("-d", "--abort-on-exit"), "--abort-on-exit is about how this command ends"),
            (("--wait", "--exit-code-from=tests"), "--exit-code-from is about how this command"),
            (("--exit-code-from=test",), 'no app "test" is started (did you mean "tests"?)'),
            (("server", "--exit-code-from=tests"), 'no app "tests" is started'),
            (("--exit-code-from=tests.2",), 'no app "tests.2" is started'),
        ):
            done = mesh.cli("up", *words)
            assert done.returncode == 2, done.stderr
            assert said in " ".join(done.stderr.split())
        assert not mesh.state_path.exists()
