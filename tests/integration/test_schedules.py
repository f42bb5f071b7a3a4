"""Apps that are run at times: when, how often, and what is said of them in between."""

import time
from datetime import datetime
from pathlib import Path

import pytest
from support.mesh import Mesh
from support.traffic import wait_until

IDLE = 'command = "${PYTHON} -S ${APPS}/idle.py"\nport = 0\n'


def job(every: str, script: str = "echo run", more: str = "") -> str:
    """A mesh of an app that a shell is, run at times."""
    return f"""
[apps.job]
command = '''{script}'''
shell = true
port = 0
every = "{every}"
{more}
"""


def test_it_runs_again_and_again_and_is_waiting_in_between(tmp_path: Path) -> None:
    with Mesh(tmp_path, job("1s")) as mesh:
        mesh.up()
        row = mesh.instance("job.1")
        assert (row.state, row.ready, row.pid) == ("waiting", False, None)
        assert row.sidecar_pid is not None
        mesh.await_event("completed", "job.1", number=3)
        begun = mesh.client.run().started_at
        for number, event in enumerate(mesh.events("started", "job.1"), 1):
            assert event.at - begun >= 0.99 * number
        assert mesh.instance("job.1").restarts == 0
        assert mesh.output("job.1").count("run") >= 3


def test_nobody_waits_for_the_first_run_and_why_says_when_it_is(tmp_path: Path) -> None:
    with Mesh(tmp_path, job("@yearly")) as mesh:
        mesh.up()  # waits until all is ready
        year = datetime.now().astimezone().year + 1
        (explanation,) = mesh.client.why("job.1")
        assert (explanation.state, explanation.reason) == (
            "waiting",
            f"next run at {year}-01-01 00:00:00",
        )
        expected = datetime(year, 1, 1).astimezone().timestamp()
        assert mesh.instance("job.1").next_run_at == expected
        assert not mesh.events("started", "job.1")


def test_a_start_runs_it_now_and_how_it_ended_is_said(tmp_path: Path) -> None:
    script = "test -e broken && exit 3 || exit 0"
    with Mesh(tmp_path, job("24h", script)) as mesh:
        mesh.up()
        mesh.cli("start", "job", check=True)
        mesh.await_event("completed", "job.1")
        (explanation,) = mesh.client.why("job.1")
        assert explanation.reason is not None
        assert explanation.reason.endswith("; the last one completed")
        (tmp_path / "broken").touch()
        mesh.cli("start", "job", check=True)
        failed = mesh.await_event("failed", "job.1")
        assert failed.message == "job.1 failed: exit code 3"
        assert (mesh.instance("job.1").reason or "").endswith("; the last one failed: exit code 3")
        row = mesh.instance("job.1")
        assert (row.state, row.exit_code, row.restarts) == ("waiting", 3, 0)


@pytest.mark.slow
def test_one_that_still_runs_is_not_started_twice_and_that_is_said(tmp_path: Path) -> None:
    script = "echo begin; while [ ! -e go ]; do sleep 0.05; done; echo end"
    with Mesh(tmp_path, job("1s", script)) as mesh:
        mesh.up()
        skipped = mesh.await_event("skipped", "job.1", number=2)
        assert skipped.message == ("job.1 does not run at this time: its last run has not ended")
        assert mesh.output("job.1") == ["begin"]
        assert len(mesh.events("started", "job.1")) == 1
        (tmp_path / "go").touch()
        mesh.await_event("started", "job.1", number=2)


@pytest.mark.slow
def test_a_stop_ends_the_schedule_and_a_start_begins_it_again(tmp_path: Path) -> None:
    with Mesh(tmp_path, job("1s")) as mesh:
        mesh.up()
        mesh.await_event("completed", "job.1")
        mesh.cli("stop", "job", check=True)
        row = mesh.instance("job.1")
        assert (row.state, row.next_run_at) == ("stopped", None)
        begun = len(mesh.events("started", "job.1"))
        mesh.cli("start", "job", check=True)
        mesh.await_event("started", "job.1", number=begun + 2)


@pytest.mark.slow
def test_a_run_that_hangs_ends_with_the_mesh(tmp_path: Path) -> None:
    with Mesh(tmp_path, job("1s", "echo begin; sleep 600")) as mesh:
        mesh.up()
        mesh.await_event("started", "job.1")
        begun = time.monotonic()
        mesh.down()
        mesh.await_gone(5)
        assert time.monotonic() - begun < 10


@pytest.mark.slow
def test_the_mesh_does_not_end_by_itself_while_there_is_a_schedule(tmp_path: Path) -> None:
    config = job("1s") + '[apps.once]\ncommand = "true"\nport = 0\n'
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        mesh.await_event("completed", "once.1")
        mesh.await_event("completed", "job.1", number=2)
        assert foreground.process.poll() is None


@pytest.mark.slow
def test_another_time_is_taken_up_by_a_reload_that_touches_no_run(tmp_path: Path) -> None:
    script = "echo begin; while [ ! -e go ]; do sleep 0.05; done"
    with Mesh(tmp_path, job("24h", script)) as mesh:
        mesh.up()
        mesh.cli("start", "job", check=True)
        mesh.await_event("started", "job.1")
        pid = mesh.instance("job.1").pid
        (tmp_path / "mesh.toml").write_text(job("1s", script))
        assert "changed job.1 (every)" in mesh.cli("reload", check=True).stdout
        assert mesh.instance("job.1").pid == pid
        mesh.await_event("skipped", "job.1")
        (tmp_path / "go").touch()
        mesh.await_event("started", "job.1", number=2)


def test_what_was_kept_running_and_is_to_run_at_times_is_ended_first(tmp_path: Path) -> None:
    with Mesh(tmp_path, f"[apps.job]\n{IDLE}") as mesh:
        mesh.up()
        (tmp_path / "mesh.toml").write_text(f'[apps.job]\n{IDLE}every = "24h"\n')
        mesh.cli("reload", check=True)
        row = mesh.instance("job.1")
        assert (row.state, row.pid) == ("waiting", None)
        (tmp_path / "mesh.toml").write_text(f"[apps.job]\n{IDLE}")
        mesh.cli("reload", check=True)
        assert mesh.instance("job.1").ready


@pytest.mark.slow
def test_a_restart_or_start_of_everything_runs_nothing_before_its_time(tmp_path: Path) -> None:
    with Mesh(tmp_path, job("24h") + f"[apps.web]\n{IDLE}") as mesh:
        mesh.up()
        done = mesh.cli("restart", check=True)
        assert "web.1" in done.stdout
        assert "job.1" not in done.stdout
        mesh.cli("start", check=True)
        assert not mesh.events("started", "job.1")
        assert mesh.instance("job.1").state == "waiting"


def test_a_run_waits_for_what_it_depends_on_and_has_its_hooks(tmp_path: Path) -> None:
    config = job(
        "24h",
        more="""depends_on = ["web"]
hooks = { on_exit = ["sh", "-c", "echo again=$$MESHRUN_WILL_RESTART"] }""",
    )
    web = 'ready = { exec = ["test", "-e", "well"], interval = "50ms", deadline = "60s" }\n'
    with Mesh(tmp_path, f"{config}[apps.web]\n{IDLE}{web}") as mesh:
        mesh.up(wait=False)
        mesh.await_event("started", "web.1")
        mesh.cli("start", "job", check=True)
        wait_until(lambda: mesh.instance("job.1").reason == "waits for web to be ready", "it waits")
        (tmp_path / "well").touch()
        mesh.await_event("completed", "job.1")
        assert mesh.output("job.1") == ["run", "[on_exit] again=no"]


@pytest.mark.slow
def test_a_run_whose_command_is_not_there_is_said_at_each_time(tmp_path: Path) -> None:
    with Mesh(tmp_path, '[apps.job]\ncommand = "./missing"\nport = 0\nevery = "1s"\n') as mesh:
        mesh.up()
        failed = mesh.await_event("failed", "job.1", number=2)
        assert "./missing" in failed.message
        assert mesh.instance("job.1").state == "waiting"


def test_the_exit_code_of_one_that_never_ends_for_good_is_refused(tmp_path: Path) -> None:
    with Mesh(tmp_path, job("1s")) as mesh:
        done = mesh.cli("up", "--exit-code-from", "job")
        assert done.returncode == 2
        assert "runs at times (every)" in done.stderr
