"""What a running mesh shows of its traffic: taps, the access log, the page for Prometheus."""

from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager

import msgspec
from support.exposition import Family, read
from support.mesh import Mesh
from support.traffic import wait_until

from meshrun.supervisor.access import Entry

__all__ = ["access_log", "await_entry", "metrics", "tapping", "whole_metrics"]


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


@contextmanager
def tapping(mesh: Mesh, source: str, destination: str) -> Iterator[Callable[[], Entry]]:
    """Tap until the end of the block, which begins when the sidecars record.

    What it gets returns the next entry, and waits for it.
    """
    with closing(mesh.client.tap(source, destination)) as lines:
        yield lambda: msgspec.json.decode(next(lines), type=Entry)
