"""However an app misbehaves and however the run ends, nothing of it is left, and soon.

The matrix: every habit of `tests/apps/fugitive.py` with every way to end. No cgroup can be made in
it: where one can be, it only helps.
"""

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fugitives import (
    GRACE_S,
    HABITS,
    Fugitive,
    Terminal,
    await_none,
    config,
    within,
    without_cgroup,
)
from support.mesh import Mesh, await_any_exit
from support.sampling import WHOLE

# The requirements: the grace and 1 s; 2 s where the supervisor was killed. The rest is for a
# machine that is busy with other tests.
BUSY_S = 1.5
STOPPED_S = GRACE_S + 1.0 + BUSY_S
KILLED_S = 2.0 + BUSY_S


def by_signal(number: int) -> Callable[[Mesh], float]:
    """End a run by a signal to its supervisor."""

    def end(mesh: Mesh) -> float:
        mesh.kill(mesh.supervisor_pid, number)
        return KILLED_S if number == signal.SIGKILL else STOPPED_S

    return end


def by_down(mesh: Mesh) -> float:
    """End a run as a user does."""
    mesh.client.down()
    return STOPPED_S


def by_killing_the_launcher(mesh: Mesh) -> float:
    """Choose the launcher, as the kernel may that is out of memory."""
    mesh.kill(mesh.launcher_pid)
    return KILLED_S


def by_killing_both(mesh: Mesh) -> float:
    """Kill both before either can do anything, and let the next command clean up."""
    run = mesh.recorded()
    mesh.kill(run.supervisor.pid, signal.SIGSTOP)
    mesh.kill(mesh.launcher_pid)
    mesh.kill(run.supervisor.pid)
    await_any_exit([run.supervisor.process], KILLED_S)
    mesh.down()
    return 0.0


def by_killing_the_app(mesh: Mesh) -> float:
    """Choose the app: all that it has started is ended, though the run goes on."""
    mesh.kill(mesh.instance("fugitive.1").pid)
    return STOPPED_S


def by_stopping_the_app(mesh: Mesh) -> float:
    """Stop the app alone; the run goes on."""
    mesh.cli("stop", "fugitive", check=True)
    return 0.0


def by_killing_a_sidecar(mesh: Mesh) -> float:
    """Choose a sidecar, which starts again; then end the run."""
    mesh.kill(mesh.instance("fugitive.1").sidecar_pid)
    mesh.await_event("sidecar-started", "fugitive.1")
    return by_signal(signal.SIGTERM)(mesh)


ENDS: dict[str, Callable[[Mesh], float]] = {
    "INT": by_signal(signal.SIGINT),
    "TERM": by_signal(signal.SIGTERM),
    "HUP": by_signal(signal.SIGHUP),
    "QUIT": by_signal(signal.SIGQUIT),
    "KILL": by_signal(signal.SIGKILL),
    "down": by_down,
    "launcher killed": by_killing_the_launcher,
    "both killed": by_killing_both,
    "sidecar killed": by_killing_a_sidecar,
}
# These end the app alone. What has left its session and wiped its environment ends with the run.
ENDS_OF_THE_APP: dict[str, Callable[[Mesh], float]] = {
    "app killed": by_killing_the_app,
    "app stopped": by_stopping_the_app,
}
NAMELESS = ("wiped", "deaf-wiped", "disguise")
# Nothing but a cgroup leads to those once the launcher and the supervisor are gone.
OUT_OF_REACH = {(habit, "both killed") for habit in NAMELESS}
OUT_OF_REACH |= {(habit, end) for habit in NAMELESS for end in ENDS_OF_THE_APP}

MATRIX = [
    (habit, end)
    for habit in HABITS
    for end in (*ENDS, *ENDS_OF_THE_APP, "terminal closed")
    if (habit, end) not in OUT_OF_REACH
]


def cells() -> list[tuple[str, str]]:
    """All of the matrix in the long tests, else one cell of each row and each column."""
    if WHOLE:
        return MATRIX
    chosen: list[tuple[str, str]] = []
    ends = list(dict.fromkeys(end for _, end in MATRIX))
    for index, habit in enumerate(HABITS):
        wanted = (ends[(index + step) % len(ends)] for step in range(len(ends)))
        chosen.append(next((habit, end) for end in wanted if (habit, end) in MATRIX))
    return chosen


def test_the_sample_has_each_row_and_each_column() -> None:
    assert {habit for habit, _ in cells()} == set(HABITS)
    assert {end for _, end in cells()} == {end for _, end in MATRIX}


@pytest.fixture
def folder() -> Iterator[Path | None]:
    with without_cgroup() as found:
        yield found


@pytest.mark.long
@pytest.mark.parametrize(("habit", "end"), cells())
def test_nothing_is_left(tmp_path: Path, folder: Path | None, habit: str, end: str) -> None:
    trail = tmp_path / "trail"
    fugitive = Fugitive(trail, folder if end not in ENDS_OF_THE_APP else None)
    environment = {"TRAIL": str(trail)}
    with Mesh(tmp_path, config(habit), environment=environment, wrapper=within(folder)) as mesh:
        try:
            terminal = Terminal(mesh) if end == "terminal closed" else None
            if terminal is None:
                mesh.up()
            else:
                mesh.await_answer()
            mesh.wait_for(lambda _: "ready" in mesh.output("fugitive.1"))
            assert fugitive.left(), "it has left no trail"
            if terminal is not None:
                mesh.remember()
                terminal.close()
                within_s = STOPPED_S
            else:
                within_s = {**ENDS, **ENDS_OF_THE_APP}[end](mesh)
            begun = time.monotonic()
            await_none(fugitive.left, within_s)
            if end not in ENDS_OF_THE_APP:
                mesh.await_gone(max(0.0, within_s - (time.monotonic() - begun)))
            if terminal is not None:
                assert terminal.wait() == 129
        finally:
            fugitive.end()
