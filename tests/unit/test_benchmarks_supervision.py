"""The suite of the process manager: what each runs, what apps say, and that nothing is left."""

import os
import select
import shlex
import signal
import subprocess
import time
import tomllib
from collections.abc import Sequence
from configparser import RawConfigParser
from pathlib import Path

import pytest
from benchmarks import supervision
from benchmarks.managers import Honcho, Manager, Meshrun, Supervisord
from benchmarks.managers.crew import App, Crew, parse
from benchmarks.managers.manager import Commands
from benchmarks.managers.running import Running, start, voluntary_switches
from benchmarks.programs import BenchmarkError
from support.traffic import wait_until

from meshrun.supervisor import processes
from meshrun.supervisor.configuration import procfile

APPS = {"app-001": ["/bin/sh", "/a folder/app.sh", "app-001"], "app-002": ["/bin/sh", "x", "y"]}
TIMEOUT_S = 20.0

# Starts what its arguments' file says, and ends it on TERM: the least that can be measured.
SHELL_MANAGER = 'trap "kill \\$children; exit" TERM\n{commands}\nwhile :; do wait; done\n'


class ShellManager(Manager):
    name = "sh"
    distribution = "none of that name"

    def __init__(self, script: str = SHELL_MANAGER) -> None:
        self._script = script

    def configuration(self, apps: Commands) -> tuple[str, str]:
        lines = [f'{shlex.join(words)} & children="$children $!"' for words in apps.values()]
        return "manager.sh", self._script.replace("{commands}", "\n".join(lines))

    def command(self) -> Sequence[str]:
        return ["/bin/sh", "manager.sh"]


def up(running: Running) -> list[App]:
    running.await_apps(running.crew.names, TIMEOUT_S)
    return [running.crew.running[name] for name in running.crew.names]


def lives(app: App) -> bool:
    return processes.identify(app.pid) is not None


def test_meshrun_gets_a_table_for_each_app() -> None:
    name, text = Meshrun().configuration(APPS)
    mesh = tomllib.loads(text)
    assert name == "mesh.toml"
    assert {app: table["command"] for app, table in mesh["apps"].items()} == APPS


def test_supervisord_gets_a_program_for_each_app_and_restarts_it() -> None:
    _, text = Supervisord().configuration(APPS)
    parser = RawConfigParser()
    parser.read_string(text)
    programs = {
        section.removeprefix("program:"): parser[section]
        for section in parser.sections()
        if section.startswith("program:")
    }
    assert {name: shlex.split(program["command"]) for name, program in programs.items()} == APPS
    assert {program["autorestart"] for program in programs.values()} == {"true"}


def test_honcho_gets_a_line_for_each_app() -> None:
    _, text = Honcho().configuration(APPS)
    entries, findings = procfile.parse(text, "Procfile")
    assert not findings
    assert {entry.name: shlex.split(entry.command) for entry in entries} == APPS


def test_what_apps_say_may_come_in_pieces() -> None:
    assert parse(b"app-001 17\napp-002 18\napp-0") == (
        [("app-001", 17), ("app-002", 18)],
        b"app-0",
    )
    assert parse(b"") == ([], b"")


def test_a_manager_is_measured_without_its_apps(tmp_path: Path) -> None:
    with start(ShellManager(), 3, tmp_path) as running:
        apps = up(running)
        own = running.own()
        assert len({app.pid for app in apps}) == 3
        assert len(own.everything) == 1
        assert not {app.pid for app in apps} & set(own.everything)
        # It sleeps once it has nothing left to start, which may be a moment after its apps are up.
        wait_until(lambda: voluntary_switches(own.everything) > 0, "the manager sleeps")
        assert all(app.since_s > running.begun_s for app in apps)


def test_a_stop_lasts_until_every_app_is_gone(tmp_path: Path) -> None:
    with start(ShellManager(), 3, tmp_path) as running:
        apps = up(running)
        assert 0 < running.stop(TIMEOUT_S) < TIMEOUT_S
        assert not any(map(lives, apps))


def test_an_app_that_is_started_again_is_heard_again(tmp_path: Path) -> None:
    again = SHELL_MANAGER.replace("wait; done", "wait; {commands}\ndone")
    with start(ShellManager(again), 1, tmp_path) as running:
        (first,) = up(running)
        killed_s = time.monotonic()
        first.kill()
        assert running.await_apps(running.crew.names, TIMEOUT_S) > killed_s
        assert running.crew.running[first.name].pid != first.pid


def test_apps_end_with_the_benchmark_even_if_nobody_ends_them(tmp_path: Path) -> None:
    with Crew(tmp_path, 1) as crew:
        (command,) = crew.commands.values()
        app = subprocess.Popen(command)
        assert select.select([crew], [], [], TIMEOUT_S)[0]
        assert [(said.name, said.pid) for said in crew.listen()] == [("app-001", app.pid)]
        assert app.poll() is None
    # What closes the pipes here, the kernel does for a benchmark that was killed.
    assert app.wait(TIMEOUT_S) >= 0


def test_a_manager_that_fails_is_reported_with_what_it_said(tmp_path: Path) -> None:
    failing = ShellManager("echo no such port; exit 3")
    with (
        start(failing, 1, tmp_path) as running,
        pytest.raises(BenchmarkError, match=r"cannot run sh: it ended with 3; .* no such port"),
    ):
        up(running)


def test_a_manager_runs_as_delivered_whatever_the_caller_has_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setenv("MESHRUN_STATE_DIR", "elsewhere")
    asking = ShellManager('echo "<$PYTHONDONTWRITEBYTECODE$MESHRUN_STATE_DIR>"; exit 3')
    with start(asking, 1, tmp_path) as running, pytest.raises(BenchmarkError, match="said: <>"):
        up(running)


def test_nothing_is_left_of_a_manager_that_does_not_end_its_apps(tmp_path: Path) -> None:
    careless = ShellManager("{commands}\nwait")
    with start(careless, 3, tmp_path) as running:
        apps = up(running)
        os.kill(running.own().core[0], signal.SIGKILL)
    assert not any(map(lives, apps))


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    apps: list[App] = []

    def interrupted() -> None:
        with start(ShellManager(), 3, tmp_path) as running:
            apps.extend(up(running))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert apps
    assert not any(map(lives, apps))


def test_a_missing_manager_is_an_error_and_its_version_is_none(tmp_path: Path) -> None:
    class Missing(ShellManager):
        def command(self) -> Sequence[str]:
            return [str(tmp_path / "no-such-program")]

    with (
        pytest.raises(BenchmarkError, match=r"cannot start sh: .*no-such-program"),
        start(Missing(), 1, tmp_path),
    ):
        pytest.fail("it was started")
    assert Missing().version() is None


def test_every_workload_is_described_and_comes_from_one_trial() -> None:
    assert set(supervision.DESCRIPTIONS) == set(supervision.WORKLOADS)
    measured = [workload for trial in supervision.TRIALS for workload in trial.workloads]
    assert sorted(measured) == sorted(supervision.WORKLOADS)
