"""However a run ends, nothing of it is left, and the exit code says how it ended."""

import random
import signal
import time
from pathlib import Path

import pytest
from support.mesh import Foreground, Mesh, await_any_exit
from support.sampling import sample

from meshrun.supervisor import processes

# The requirement on an idle machine is a second; these tests share theirs.
SOON_S = 4.0
# Within 2 s nothing is left; the rest is for a machine that is busy with other tests.
GONE_S = 2.0 + 1.5

QUIET = """
[apps.one]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
[apps.two]
command = "${PYTHON} -S ${APPS}/idle.py --child"
port = 0
depends_on = ["one"]
"""

# Everything that gets away from process managers.
BAD_HABITS = """
[apps.deaf]
command = "${PYTHON} -S ${APPS}/idle.py --ignore-term --deaf-child"
port = 0
stop = { timeout = "300ms" }
[apps.runaway]
command = "${PYTHON} -S ${APPS}/idle.py --session --fork-twice --wiped"
port = 0
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --ignore-term"
ready = { tcp = true }
stop = { timeout = "300ms" }
"""


def all_ready(mesh: Mesh, *instances: str) -> None:
    """Wait until the apps have said that they have taken on their habits."""
    mesh.wait_for(lambda _: all("ready" in mesh.output(name) for name in instances))


def ended(foreground: Foreground, within_s: float = SOON_S) -> int:
    """Wait for the end of a run that must come soon, and return its exit code."""
    begun = time.monotonic()
    code = foreground.wait()
    assert time.monotonic() - begun < within_s
    return code


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 0), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)],
)
def test_a_signal_ends_everything_soon_and_the_exit_code_says_which(
    tmp_path: Path, number: int, code: int
) -> None:
    with Mesh(tmp_path, QUIET) as mesh:
        foreground = mesh.foreground()
        all_ready(mesh, "one.1", "two.1")
        foreground.signal(number)
        assert ended(foreground) == code
        assert mesh.left() == []
        assert not (mesh.state_path / "run.json").exists()
        assert not (mesh.state_path / "control.sock").exists()


def test_a_terminal_that_closes_says_so_twice_and_still_lets_everything_end_in_order(
    tmp_path: Path,
) -> None:
    config = '[apps.slow]\ncommand = "${PYTHON} -S ${APPS}/idle.py --ignore-term"\nport = 0\n'
    config += 'stop = { timeout = "1s" }\n'
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        all_ready(mesh, "slow.1")
        foreground.signal(signal.SIGHUP)
        foreground.signal(signal.SIGHUP)
        assert foreground.wait() == 129
        assert "killing everything" not in foreground.text
        assert "not ended within 1 s" in foreground.text


def test_what_depends_on_others_is_stopped_first(tmp_path: Path) -> None:
    with Mesh(tmp_path, QUIET) as mesh:
        foreground = mesh.foreground()
        all_ready(mesh, "one.1", "two.1")
        foreground.signal(signal.SIGINT)
        foreground.wait()
        lines = foreground.text
        assert lines.index("two.1 stopped") < lines.index("one.1 stopped")


def test_a_second_interrupt_kills_what_ignores_the_first(tmp_path: Path) -> None:
    config = """
[apps.deaf]
command = "${PYTHON} -S ${APPS}/idle.py --ignore-term --deaf-child"
port = 0
stop = { timeout = "60s" }
"""
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        all_ready(mesh, "deaf.1")
        foreground.signal(signal.SIGINT)
        assert "deaf.1" in foreground.await_line("waiting for")
        foreground.signal(signal.SIGINT)
        assert ended(foreground) == 130
        assert mesh.left() == []


def test_what_ran_away_is_ended_too(tmp_path: Path) -> None:
    with Mesh(tmp_path, BAD_HABITS.replace("--ignore-term", "").replace("--deaf-", "--")) as mesh:
        foreground = mesh.foreground()
        all_ready(mesh, "runaway.1", "deaf.1")
        foreground.signal(signal.SIGINT)
        assert ended(foreground) == 130
        assert mesh.left() == []


def test_a_run_whose_apps_have_all_completed_ends_by_itself_with_0(tmp_path: Path) -> None:
    config = QUIET.replace("idle.py", "idle.py --exit-after 0.1")
    with Mesh(tmp_path, config) as mesh:
        assert mesh.starting().wait() == 0


def test_a_run_that_ended_by_itself_has_failed_if_an_app_had(tmp_path: Path) -> None:
    config = """
[apps.good]
command = "${PYTHON} -S ${APPS}/idle.py --exit-after 0"
port = 0
[apps.bad]
command = "${PYTHON} -S ${APPS}/idle.py --exit-after 0 --code 3"
port = 0
restart = "never"
"""
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.starting()
        assert foreground.wait() == 1
        assert "bad.1 failed: exit code 3" in foreground.text


@pytest.mark.parametrize(
    ("command", "more", "message"),
    [
        ("no-such-command", "", "cannot run no-such-command: no such command in PATH"),
        ("./none", "", "cannot run ./none: there is no such file, or its interpreter"),
        ("./mesh.toml", "", "cannot run ./mesh.toml: Permission denied"),
        ("true", 'cwd = "nowhere"', "cannot enter the folder"),
    ],
)
def test_what_cannot_be_executed_fails_at_once_and_says_why(
    tmp_path: Path, command: str, more: str, message: str
) -> None:
    config = f'[apps.app]\ncommand = "{command}"\nport = 0\n{more}\n'
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.starting()
        assert foreground.wait() == 1
        assert f"app.1 failed: {message}" in foreground.text
        assert foreground.text.count("started") == 0


def test_nothing_is_left_after_the_supervisor_was_killed(tmp_path: Path) -> None:
    with Mesh(tmp_path, BAD_HABITS) as mesh:
        mesh.up()
        all_ready(mesh, "runaway.1", "deaf.1")
        assert len(mesh.left()) > 10
        mesh.kill(mesh.supervisor_pid)
        mesh.await_gone(GONE_S)


def test_the_run_is_over_when_the_launcher_was_killed(tmp_path: Path) -> None:
    with Mesh(tmp_path, BAD_HABITS) as mesh:
        foreground = mesh.foreground()
        all_ready(mesh, "runaway.1", "deaf.1")
        mesh.kill(mesh.launcher_pid)
        assert ended(foreground, 5.0) == 1
        assert "the launcher has ended" in foreground.text
        assert mesh.left() == []


@pytest.mark.slow
def test_the_next_up_ends_what_is_left_when_both_were_killed(tmp_path: Path) -> None:
    with Mesh(tmp_path, BAD_HABITS.replace("--wiped", "")) as mesh:
        mesh.up()
        all_ready(mesh, "runaway.1", "deaf.1")
        run = mesh.recorded()
        mesh.kill(run.supervisor.pid, signal.SIGSTOP)
        mesh.kill(mesh.launcher_pid)
        mesh.kill(run.supervisor.pid)
        await_any_exit([run.supervisor.process], 5.0)
        before = set(mesh.left())
        assert before, "nothing was left to end"
        mesh.up()
        assert not before & set(mesh.left())


def test_down_ends_what_is_left_when_both_were_killed(tmp_path: Path) -> None:
    with Mesh(tmp_path, BAD_HABITS.replace("--wiped", "")) as mesh:
        mesh.up()
        all_ready(mesh, "runaway.1", "deaf.1")
        run = mesh.recorded()
        mesh.kill(run.supervisor.pid, signal.SIGSTOP)
        mesh.kill(mesh.launcher_pid)
        mesh.kill(run.supervisor.pid)
        await_any_exit([run.supervisor.process], 5.0)
        assert "ended what a killed run had left" in mesh.down().stdout
        assert mesh.left() == []
        assert mesh.down().stdout == "nothing runs here\n"


MOMENTS = [round(random.Random(number).uniform(0.0, 1.5), 3) for number in range(50)]


@pytest.mark.long
@pytest.mark.parametrize("moment_s", sample(MOMENTS, 2))
def test_after_a_kill_at_any_moment_of_a_start_the_next_up_works(
    tmp_path: Path, moment_s: float
) -> None:
    with Mesh(tmp_path, BAD_HABITS) as mesh:
        foreground = mesh.starting()
        supervisor = processes.identify(foreground.pid)
        assert supervisor is not None
        # Not a wait for something: the moment is what this test is about.
        await_any_exit([supervisor], moment_s)
        foreground.signal(signal.SIGKILL)
        foreground.process.wait()
        mesh.up()
        assert all(row.ready for row in mesh.ps())


@pytest.mark.long
@pytest.mark.parametrize("moment_s", sample(MOMENTS, 2))
def test_an_interrupt_at_any_moment_of_a_start_leaves_nothing(
    tmp_path: Path, moment_s: float
) -> None:
    with Mesh(tmp_path, BAD_HABITS) as mesh:
        foreground = mesh.starting()
        supervisor = processes.identify(foreground.pid)
        assert supervisor is not None
        await_any_exit([supervisor], moment_s)
        foreground.signal(signal.SIGINT)
        code = ended(foreground, 5.0)
        # Before it is meshrun, Python itself says how an interrupt ends it.
        assert code == 130 or "calls without an intention" not in foreground.text
        assert mesh.left() == []
