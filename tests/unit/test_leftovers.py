"""run.json, and what of a killed run the next one ends and what it spares."""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest

from meshrun.supervisor import leftovers, processes, runfile
from meshrun.supervisor.runfile import RUN_MARKER, Recorded, RunFile
from meshrun.supervisor.statedir import StateDir

RUN_ID = "0123456789abcdef"
NOBODY = Recorded("gone", 2**22 + 1, 1)
SLEEP = "print('ready', flush=True); import time; time.sleep(600)"


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    opened = StateDir.open(tmp_path / "state", create=True)
    yield opened
    opened.close()


def run(*recorded: Recorded, boot_id: str | None = None, run_id: str = RUN_ID) -> RunFile:
    return RunFile(
        run_id=run_id,
        boot_id=boot_id or processes.boot_id(),
        supervisor=NOBODY,
        launcher=NOBODY,
        processes=recorded,
    )


@contextmanager
def child(script: str = SLEEP, *, marker: str | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """Start a process in a session of its own, with the marker of a run or without."""
    environment = {} if marker is None else {RUN_MARKER: marker}
    with subprocess.Popen(
        [sys.executable, "-S", "-c", script],
        stdout=subprocess.PIPE,
        start_new_session=True,
        env=environment,
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield process
        finally:
            process.kill()


def recorded(pid: int) -> Recorded:
    found = processes.identify(pid)
    assert found is not None
    return Recorded("app.1", found.pid, found.start_time)


def lives(process: subprocess.Popen[bytes]) -> bool:
    return processes.identify(process.pid) is not None


def test_what_was_written_is_read(state: StateDir) -> None:
    assert runfile.read(state) is None
    before = processes.now_ticks()
    runfile.write(state, run(NOBODY))
    read = runfile.read(state)
    assert read is not None
    assert before <= read.written_at <= processes.now_ticks()
    assert msgspec.structs.replace(read, written_at=0) == run(NOBODY)


def test_a_file_that_is_none_of_ours_says_nothing(state: StateDir) -> None:
    state.write("run.json", b"{}")
    assert runfile.read(state) is None
    assert leftovers.end_leftovers(state) == []


def test_a_recorded_process_is_ended_and_its_command_told(state: StateDir) -> None:
    with child() as app:
        runfile.write(state, run(recorded(app.pid)))
        (command,) = leftovers.end_leftovers(state)
        assert "time.sleep" in command
        assert not lives(app)
        assert runfile.read(state) is None


def test_a_process_that_has_got_the_number_since_is_spared(state: StateDir) -> None:
    with child() as stranger:
        entry = recorded(stranger.pid)
        earlier = msgspec.structs.replace(entry, start_time=entry.start_time - 1)
        old = msgspec.structs.replace(run(earlier), written_at=entry.start_time - 1)
        state.write("run.json", msgspec.json.encode(old))
        assert leftovers.end_leftovers(state) == []
        assert lives(stranger)


def test_who_carries_the_marker_is_ended_in_whatever_session(state: StateDir) -> None:
    with child(marker=RUN_ID) as runaway, child(marker="another") as stranger:
        runfile.write(state, run())
        assert len(leftovers.end_leftovers(state)) == 1
        assert not lives(runaway)
        assert lives(stranger)


def test_who_is_left_in_a_recorded_session_is_ended_though_its_leader_is_gone(
    state: StateDir,
) -> None:
    script = (
        "import os, sys, time\n"
        "if os.fork():\n"
        "    print(flush=True); sys.stdin.readline(); os._exit(0)\n"
        "time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-S", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
        env={},
    ) as leader:
        assert leader.stdout is not None
        assert leader.stdin is not None
        leader.stdout.readline()
        runfile.write(state, run(recorded(leader.pid)))
        leader.stdin.close()
        leader.wait()
        assert len(processes.session_members(leader.pid)) == 1
        assert len(leftovers.end_leftovers(state)) == 1
        assert processes.session_members(leader.pid) == []


def test_of_a_run_before_the_last_boot_nothing_is_looked_for(state: StateDir) -> None:
    with child(marker=RUN_ID) as stranger:
        runfile.write(state, run(recorded(stranger.pid), boot_id="another"))
        assert leftovers.end_leftovers(state) == []
        assert lives(stranger)
        assert runfile.read(state) is None


def test_whoever_cleans_up_spares_itself_and_what_it_was_started_from(state: StateDir) -> None:
    # In a session of its own: what else is in a recorded session is ended, and rightly so.
    script = f"""
import os, sys
from pathlib import Path
from meshrun.supervisor import leftovers, processes, runfile
from meshrun.supervisor.statedir import StateDir
if child := os.fork():
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
state = StateDir.open(Path({str(state.path)!r}), create=False)
assert runfile.read(state).processes[0].pid == os.getppid()
assert leftovers.end_leftovers(state) == []
"""
    with subprocess.Popen(
        [sys.executable, "-c", f"input(); exec({script!r})"],
        stdin=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, RUN_MARKER: RUN_ID},
    ) as started:
        runfile.write(state, run(recorded(started.pid)))
        started.communicate(b"go", timeout=30)
        assert started.returncode == 0


def test_a_supervisor_that_was_started_within_an_app_of_the_run_is_spared(
    state: StateDir,
) -> None:
    named = f"open('/proc/self/comm', 'w').write('{runfile.SUPERVISOR_NAME}'); {SLEEP}"
    with child(named, marker=RUN_ID) as supervisor:
        runfile.write(state, run())
        assert leftovers.end_leftovers(state) == []
        assert lives(supervisor)
