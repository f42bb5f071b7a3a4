"""The product: `meshrun up`, with a sidecar and an identity for every app."""

from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import msgspec

from benchmarks.managers.manager import Commands, Manager
from benchmarks.programs import BenchmarkError
from benchmarks.results import PRODUCT
from meshrun.proxy.intentions import WILDCARD
from meshrun.supervisor.cli.client import Client
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.statedir import StateDir

__all__ = ["Meshrun"]

STATE_DIR = ".meshrun"


class Meshrun(Manager):
    """As delivered: every app gets a port, and its sidecar listens with mutual TLS in front of it.

    Restarts what was killed by its default, `on-failure`.
    """

    name = PRODUCT
    distribution = "meshrun"
    sidecar_name = "sidecar "
    decides = True

    def configuration(self, apps: Commands) -> tuple[str, str]:
        """Return a mesh.toml with a table for each app."""
        # A JSON list of strings is a TOML one, escapes included.
        tables = [
            f"[apps.{name}]\ncommand = {msgspec.json.encode(list(words)).decode()}\n"
            for name, words in apps.items()
        ]
        mesh = f'[mesh]\nname = "bench"\nstate_dir = "{STATE_DIR}"\n'
        return "mesh.toml", "\n".join([mesh, *tables])

    def command(self) -> Sequence[str]:
        """Return the command that runs the mesh in the foreground."""
        return ["meshrun", "up"]

    def status_command(self) -> Sequence[str]:
        """Return the command that shows every instance."""
        return ["meshrun", "ps"]

    def reload_command(self) -> Sequence[str]:
        """Return the command that has a changed mesh.toml applied."""
        return ["meshrun", "reload"]

    def decide(self, folder: Path, *, allowed: bool) -> None:
        """Put the intention of everybody towards everybody: it concerns every sidecar."""
        with _client(folder) as client:
            client.put_intention(
                *(WILDCARD, WILDCARD, "allow" if allowed else "deny"),
                description="",
                meta={},
                replace=True,
            )

    def await_sidecars(self, folder: Path, timeout_s: float) -> None:
        """Return once every sidecar has its certificate and serves."""
        with _client(folder) as client:
            verdict = client.wait(timeout_s)
        if not verdict.ready:
            raise BenchmarkError(f"cannot wait for meshrun's sidecars: {verdict.reason}")


@contextmanager
def _client(folder: Path) -> Iterator[Client]:
    try:
        with closing(StateDir.open(folder / STATE_DIR, create=False)) as state:
            yield Client(state)
    except MeshrunError as error:
        raise BenchmarkError(f"cannot ask meshrun's API: {error}") from error
