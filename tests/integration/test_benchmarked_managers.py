"""Process managers as they are measured: what is heard of their apps, and that nothing is left."""

import os
import select
import shlex
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from benchmarks import supervision
from benchmarks.managers import Manager
from benchmarks.managers.crew import App, Crew
from benchmarks.managers.manager import Commands
from benchmarks.managers.running import Running, start, voluntary_switches
from benchmarks.programs import BenchmarkError
from benchmarks.results import PRODUCT, Settings
from support.traffic import wait_until

from meshrun.supervisor import processes

TIMEOUT_S = 20.0

# Starts what its file says, and ends it on TERM: the least that can be measured. It ends its whole
# group: an app may have said that it runs before a shell has noted its process id.
SHELL_MANAGER = "trap 'trap : TERM; kill 0; exit' TERM\n{commands}\nwhile :; do wait; done\n"


class ShellManager(Manager):
    name = "sh"
    distribution = "none of that name"

    def __init__(self, script: str = SHELL_MANAGER) -> None:
        self._script = script

    def configuration(self, apps: Commands) -> tuple[str, str]:
        lines = [f"{shlex.join(words)} &" for words in apps.values()]
        return "manager.sh", self._script.replace("{commands}", "\n".join(lines))

    def command(self) -> Sequence[str]:
        return ["/bin/sh", "manager.sh"]


def up(running: Running) -> list[App]:
    running.await_apps(running.crew.names, TIMEOUT_S)
    return [running.crew.running[name] for name in running.crew.names]


def lives(app: App) -> bool:
    return processes.identify(app.pid) is not None


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


def test_the_end_of_an_app_is_noticed(tmp_path: Path) -> None:
    with start(ShellManager(), 3, tmp_path) as running:
        apps = up(running)
        killed_s = time.monotonic()
        apps[1].kill()
        assert running.await_end(running.crew.names, TIMEOUT_S) > killed_s
        with pytest.raises(BenchmarkError, match="none of 1 apps has ended"):
            running.await_end(running.crew.names[:1], 0.01)


def test_a_helper_holds_the_output_of_an_app_that_has_ended(tmp_path: Path) -> None:
    with start(ShellManager(), 1, tmp_path, helper_s=60.0) as running:
        (app,) = up(running)
        (helper,) = processes.children(app.pid)
        app.kill()
        running.await_end(running.crew.names, TIMEOUT_S)
        assert Path(f"/proc/{helper}/fd/1").samefile(tmp_path / "output.log")
    assert processes.identify(helper) is None


def test_an_app_that_is_changed_has_another_command_in_the_file(tmp_path: Path) -> None:
    with start(ShellManager(), 2, tmp_path) as running:
        up(running)
        before = (tmp_path / "manager.sh").read_text().splitlines()
        running.change("app-002")
        after = (tmp_path / "manager.sh").read_text().splitlines()
        assert [line for line in after if line not in before] == [
            f"/bin/sh {tmp_path}/app.sh app-002 changed &"
        ]
        assert len(after) == len(before)


def test_a_command_of_a_manager_ends_with_the_block(tmp_path: Path) -> None:
    with start(ShellManager(), 1, tmp_path) as running:
        up(running)
        with running.command(["/bin/sh", "-c", "touch done"]):
            pass
        assert (tmp_path / "done").exists()


def test_a_command_that_fails_is_reported_with_what_it_said(tmp_path: Path) -> None:
    with (
        start(ShellManager(), 1, tmp_path) as running,
        pytest.raises(BenchmarkError, match=r"cannot use .*: it ended with 4; it said: no such"),
        running.command(["/bin/sh", "-c", "echo no such app; exit 4"]),
    ):
        up(running)


def test_a_command_does_not_outlive_an_interruption(tmp_path: Path) -> None:
    said = tmp_path / "pid"
    command = ["/bin/sh", "-c", "echo $$ >pid.new; mv pid.new pid; exec sleep 60"]

    def interrupted(running: Running) -> None:
        with running.command(command):
            wait_until(said.exists, "the command runs")
            raise KeyboardInterrupt

    with start(ShellManager(), 1, tmp_path) as running:
        with pytest.raises(KeyboardInterrupt):
            interrupted(running)
        assert processes.identify(int(said.read_text())) is None


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


@pytest.mark.slow
def test_the_suite_measures_what_meshrun_changes() -> None:
    wanted = [supervision.RELOAD, supervision.STATUS, supervision.DECISION]
    said: list[str] = []
    settings = Settings(
        rounds=1,
        seconds=1,
        quick=True,
        contenders=frozenset({PRODUCT}),
        only=frozenset(wanted),
        say=said.append,
        note=said.append,
    )
    found = supervision.run(settings)
    assert list(dict.fromkeys(m.workload for m in found)) == wanted, said
    assert all(m.median > 0 for m in found)
