"""Processes by id and start time, and the end of all that is found."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from meshrun.supervisor import processes
from meshrun.supervisor.processes import ProcessId

SLEEP = [sys.executable, "-S", "-c", "print('ready', flush=True); import time; time.sleep(600)"]
DEAF = [
    sys.executable,
    "-S",
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True);"
    "time.sleep(600)",
]


@contextmanager
def child(
    command: list[str], *, session: bool = False, environment: dict[str, str] | None = None
) -> Iterator[ProcessId]:
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, start_new_session=session, env=environment
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        found = processes.identify(process.pid)
        assert found is not None
        try:
            yield found
        finally:
            process.kill()


def test_a_process_is_known_by_its_id_and_start_time() -> None:
    me = processes.identify(os.getpid())
    assert me is not None
    assert 0 < me.start_time <= processes.now_ticks()
    assert processes.identify(2**22 + 1) is None


def test_one_with_the_same_number_but_another_start_is_not_signalled() -> None:
    with child(SLEEP) as sleeper:
        other = ProcessId(sleeper.pid, sleeper.start_time + 1)
        assert not processes.send_signal(other, signal.SIGKILL)
        assert processes.open_pidfd(other) is None
        assert processes.identify(sleeper.pid) == sleeper
        assert processes.send_signal(sleeper, signal.SIGKILL)
        processes.await_exit(sleeper, 20.0)
        assert processes.identify(sleeper.pid) is None  # a zombie: nobody has waited for it
        assert not processes.send_signal(sleeper, 0)


def test_a_session_has_its_leader_and_members() -> None:
    with child(SLEEP, session=True) as leader:
        assert processes.session_members(leader.pid) == [leader]
        assert processes.session_of(leader.pid) == leader.pid
    assert processes.session_members(leader.pid) == []


def test_descendants_and_ancestors_are_found() -> None:
    script = f"import subprocess; subprocess.run({SLEEP!r})"
    with child([sys.executable, "-S", "-c", script]) as parent:
        below = processes.descendants(parent.pid)
        assert len(below) == 1
        assert parent in processes.descendants(os.getpid())
        assert {parent.pid, os.getpid()} <= processes.ancestors(below[0].pid)
        processes.end_all(lambda: processes.descendants(parent.pid), 1.0, 5.0, time.monotonic)


def test_a_variable_and_the_command_are_read_from_the_process() -> None:
    with child(SLEEP, environment={"A": "1=2", "AB": "3"}) as sleeper:
        assert processes.environment_value(sleeper.pid, "A") == "1=2"
        assert processes.environment_value(sleeper.pid, "B") is None
        assert processes.command_line(sleeper.pid).startswith(sys.executable)
    assert processes.environment_value(sleeper.pid, "A") is None
    assert processes.command_line(sleeper.pid) == f"pid {sleeper.pid}"


def test_all_that_is_found_is_ended_the_deaf_after_the_grace() -> None:
    with child(SLEEP) as sleeper, child(DEAF) as deaf:
        wanted = {sleeper, deaf}

        def find() -> list[ProcessId]:
            return [p for p in wanted if processes.identify(p.pid) == p]

        begun = time.monotonic()
        assert processes.end_all(find, 0.2, 20.0, time.monotonic) == []
        assert time.monotonic() - begun >= 0.2


def test_what_cannot_be_ended_is_named_when_the_time_is_up() -> None:
    with child(SLEEP) as sleeper:
        phantom = ProcessId(sleeper.pid, sleeper.start_time + 1)
        clock = iter(range(100))
        left = processes.end_all(lambda: [phantom], 1.0, 3.0, lambda: float(next(clock)))
        assert left == [phantom]


def test_the_name_of_a_program_may_hold_anything(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("names")
    odd = folder / "a) R 1 (b"
    os.symlink(sys.executable, odd)
    script = "open('/proc/self/comm', 'w').write('x) R 1 2 (y'); " + SLEEP[-1]
    with child([str(odd), "-S", "-c", script]) as sleeper:
        assert processes.name(sleeper.pid) == "x) R 1 2 (y"
        assert sleeper in processes.descendants(os.getpid())


HALF_DEAD = """
import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(600,)).start()
print('ready', flush=True)
# exit(2), not exit_group(2): this thread alone.
ctypes.CDLL(None).syscall({'x86_64': 60}.get(os.uname().machine, 93), 0)
"""


def test_a_process_whose_first_thread_has_ended_lives_as_long_as_another_does() -> None:
    command = [sys.executable, "-S", "-c", HALF_DEAD]
    with child(command, session=True, environment={"A": "1"}) as half_dead:
        while Path(f"/proc/{half_dead.pid}/stat").read_bytes().split()[2] != b"Z":
            os.sched_yield()
        assert processes.identify(half_dead.pid) == half_dead
        assert processes.session_members(half_dead.pid) == [half_dead]
        assert half_dead in processes.descendants(os.getpid())
        assert processes.environment_value(half_dead.pid, "A") == "1"
        assert processes.send_signal(half_dead, signal.SIGKILL)
        processes.await_exit(half_dead, 20.0)
        assert processes.identify(half_dead.pid) is None


def test_children_are_listed_with_those_that_have_ended() -> None:
    with child(SLEEP) as living, child([sys.executable, "-S", "-c", "print()"]) as ended:
        processes.await_exit(ended, 20.0)
        assert {living.pid, ended.pid} <= set(processes.children(os.getpid()))
        assert processes.parents([living.pid, 2**22 + 1]) == {living.pid: os.getpid()}


def test_a_group_is_killed_only_with_a_member_in_it() -> None:
    with child(SLEEP, session=True) as leader, child(SLEEP, session=True) as other:
        assert processes.group_of(leader.pid) == leader.pid
        processes.kill_group(leader.pid, other)
        gone = ProcessId(leader.pid, leader.start_time - 1)
        processes.kill_group(leader.pid, gone)
        assert processes.identify(leader.pid) == leader
        processes.kill_group(leader.pid, leader)
        processes.await_exit(leader, 20.0)
        assert processes.identify(leader.pid) is None
        assert processes.identify(other.pid) == other


def test_who_has_children_that_fork_and_end_in_a_loop_can_end_them_all() -> None:
    script = """
import os, sys, time
from meshrun.supervisor import prctl, processes
prctl.set_subreaper()
spared = os.fork()
if spared == 0:
    time.sleep(600)
for _ in range(3):
    if os.fork() == 0:
        begun = time.monotonic()
        while time.monotonic() - begun < 60:
            os.setsid()
            if os.fork():
                os._exit(0)
        os._exit(0)
left = processes.end_descendants(0.1, 20.0, time.monotonic, {spared})
print(left, processes.children(os.getpid()) == [spared])
left = processes.end_descendants(0.1, 20.0, time.monotonic)
print(left, processes.reap())
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["[] True", "[] ([], False)"]
