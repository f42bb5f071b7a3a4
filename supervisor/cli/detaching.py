"""Sending a supervisor into the background, and hearing whether it got there.

The detached supervisor's output is a pipe until it has started: what is wrong with its
configuration is said here, by whoever asked for it, and so is its exit code.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import click

from meshrun.supervisor.cli.client import Client
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.runfile import RUN_MARKER
from meshrun.supervisor.statedir import StateDir

__all__ = ["detach", "report_started"]

# What a detached supervisor ends its output with; its state folder follows.
STARTED = b"\0started "


def report_started(state_path: Path) -> None:
    """Say that the supervisor runs, and give back the output of whoever started it."""
    os.write(1, STARTED + os.fsencode(state_path))
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(null, descriptor)
    os.close(null)


def detach(place: Place, options: Sequence[str], wait_s: float | None) -> int:
    """Start a supervisor in the background, with `wait_s` wait until all is ready.

    Returns the exit code of the command.
    """
    # -P: a folder that happens to hold a click.py must not become part of meshrun.
    command = [sys.executable, "-P", "-m", "meshrun", "up", "--detached", *_where(place)]
    # A mesh that is started from within another one's app is none of that one's processes.
    environment = {k: v for k, v in os.environ.items() if k != RUN_MARKER}
    supervisor = subprocess.Popen(
        [*command, *options],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env=environment,
        start_new_session=True,
    )
    assert supervisor.stdout is not None
    with supervisor.stdout as output:
        said, _, state = output.read().partition(STARTED)
    if said:
        click.echo(said.decode(errors="replace"), nl=False, err=True)
    if not state:
        return supervisor.wait()
    state_path = Path(os.fsdecode(state))
    see = _command(place, state_path, "ps")
    # It goes on without us: reaping it is init's work from here.
    supervisor.returncode = 0
    if wait_s is None:
        click.echo(f"running in the background, pid {supervisor.pid}; see `{see}`")
        return 0
    return _wait(place, state_path, wait_s)


def _where(place: Place) -> list[str]:
    where = [] if place.config is None else [f"--config={place.config}"]
    return where if place.state_dir is None else [*where, f"--state-dir={place.state_dir}"]


def _command(place: Place, state_path: Path, name: str) -> str:
    """Return the command line that reaches this run from the folder where it was started."""
    where = _where(place)
    if place.state_dir is None and state_path != place.state_path():
        where = [f"--state-dir={state_path}"]
    return shlex.join(["meshrun", *where, name])


def _wait(place: Place, state_path: Path, wait_s: float) -> int:
    ps, down = (_command(place, state_path, name) for name in ("ps", "down"))
    state = StateDir.open(state_path, create=False)
    answer = Client(state).wait(wait_s)
    if answer.ready:
        click.echo(f"everything is ready; see `{ps}`")
        return 0
    click.echo(f"meshrun: not ready: {answer.reason}", err=True)
    for line in answer.lines:
        click.echo(f"    {line}", err=True)
    click.echo(f"what else runs goes on; see `{ps}`, end it with `{down}`", err=True)
    return 1
