"""What a running mesh shows of its traffic: taps, the access log, the page for Prometheus."""

import os
import select
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager

import msgspec
from support.exposition import Family, read
from support.mesh import PATIENCE_S, Mesh
from support.traffic import wait_until

from meshrun.supervisor.access import Entry

__all__ = [
    "access_log",
    "await_entry",
    "metrics",
    "tap",
    "tap_command",
    "tapping",
    "whole_metrics",
]


def metrics(mesh: Mesh) -> dict[str, Family]:
    """Scrape the mesh."""
    return read(mesh.client.metrics())


def whole_metrics(mesh: Mesh) -> dict[str, Family]:
    """Scrape the mesh until every sidecar was quick enough to be on the page."""
    while True:
        page = metrics(mesh)
        if all(page["meshrun_sidecar_answered"].samples.values()):
            return page


def access_log(mesh: Mesh) -> list[Entry]:
    """Return every entry of the access log."""
    path = mesh.state_path / "logs" / "access.log"
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [msgspec.json.decode(line, type=Entry) for line in lines]


def await_entry(mesh: Mesh, matches: Callable[[Entry], bool], what: str) -> Entry:
    """Wait until an entry stands in the access log, and return it."""
    wait_until(lambda: any(map(matches, access_log(mesh))), f"in the access log: {what}")
    return next(filter(matches, access_log(mesh)))


def tap(mesh: Mesh, source: str, destination: str) -> Generator[bytes, None, None]:
    """Yield what a tap is told, until it is closed; silence is an error in the end."""
    return mesh.client.tap(source, destination, quiet_s=PATIENCE_S)


@contextmanager
def tap_command(mesh: Mesh, source: str, destination: str) -> Iterator[Callable[[], str]]:
    """Run `meshrun tap` until it is killed at the end of the block.

    What it gets returns the next line that it prints, and waits for it.
    """
    printed = b""

    def next_line() -> str:
        nonlocal printed
        while b"\n" not in printed:
            assert select.select([stdout], [], [], PATIENCE_S)[0], "the command prints nothing"
            data = os.read(stdout.fileno(), 65536)
            assert data, "the command has ended"
            printed += data
        line, _, printed = printed.partition(b"\n")
        return line.decode()

    with subprocess.Popen(
        [sys.executable, "-P", "-m", "meshrun", "tap", source, destination],
        cwd=mesh.folder,
        env=mesh.environment,
        stdout=subprocess.PIPE,
        bufsize=0,
    ) as command:
        assert command.stdout is not None
        stdout = command.stdout
        try:
            yield next_line
        finally:
            command.kill()


@contextmanager
def tapping(mesh: Mesh, source: str, destination: str) -> Iterator[Callable[[], Entry]]:
    """Tap until the end of the block, which begins when the sidecars record.

    What it gets returns the next entry, and waits for it.
    """
    with closing(tap(mesh, source, destination)) as lines:
        yield lambda: msgspec.json.decode(next(lines), type=Entry)
