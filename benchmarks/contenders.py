"""What is compared: pairs of sidecars before a backend, as every one of them is started."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from importlib.metadata import version as installed_version
from pathlib import Path
from typing import Protocol

from benchmarks import peers
from benchmarks.certificates import SERVER_NAME, Authority
from benchmarks.peers import Peer, Side
from benchmarks.programs import BenchmarkError, free_ports
from benchmarks.results import PRODUCT, REFERENCE
from benchmarks.rule import Rule

__all__ = ["CONTENDERS", "SCALED", "Contender", "Pair", "judging", "mesh_file"]

MESHRUN_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two sidecars that run: the port for the load, and the processes of each side by its name."""

    port: int
    sides: Mapping[str, list[int]]

    @property
    def pids(self) -> list[int]:
        """Every process of both sides."""
        return [pid for pids in self.sides.values() for pid in pids]


class Contender(Protocol):
    """Something that can stand between the load and the backend."""

    name: str

    def version(self) -> str | None:
        """Return its version, None where it is not installed."""

    def start(self, backend_port: int, folder: Path) -> AbstractContextManager[Pair]:
        """Run it before the backend until the end of the block, its files in `folder`."""


class Direct:
    """Nothing: the load calls the backend itself."""

    name = REFERENCE

    def version(self) -> str | None:
        """Return nothing worth saying."""
        return "no proxy"

    @contextmanager
    def start(self, backend_port: int, folder: Path) -> Iterator[Pair]:
        """Yield the backend's own port."""
        yield Pair(backend_port, {})


class PeerPair:
    """A peer as the client side and again as the server side."""

    def __init__(self, peer: Peer) -> None:
        self.name = peer.name
        self._peer = peer

    def version(self) -> str | None:
        """Return its version, None where it is not installed."""
        return self._peer.version()

    @contextmanager
    def start(self, backend_port: int, folder: Path) -> Iterator[Pair]:
        """Run both sides before the backend."""
        authority = Authority.create(folder)
        client = authority.issue("client")
        server = authority.issue("backend", server_name=SERVER_NAME)
        client_port, server_port = free_ports(2)
        inner = Side(
            listen_port=server_port,
            target_port=backend_port,
            credentials=server,
            peer_identity=client.identity,
        )
        outer = Side(
            listen_port=client_port,
            target_port=server_port,
            credentials=client,
            peer_identity=server.identity,
            peer_name=SERVER_NAME,
        )
        with (
            self._peer.start_server(inner, folder) as server_side,
            self._peer.start_client(outer, folder) as client_side,
        ):
            yield Pair(client_port, {"client": client_side.pids, "server": server_side.pids})


class Meshrun:
    """The product, as `meshrun up` runs it: the backend is one of its services.

    With several `workers` for each sidecar it is a contender of another name. With a `rule` the
    service speaks that protocol, and the intention allows that method.
    """

    def __init__(self, workers: int = 1, rule: Rule | None = None) -> None:
        self.name = PRODUCT if workers == 1 else f"{PRODUCT}-{workers}"
        self._workers = workers
        self._rule = rule

    def version(self) -> str | None:
        """Return its version and that of the interpreter."""
        return f"{installed_version('meshrun')}, Python {sys.version.split()[0]}"

    @contextmanager
    def start(self, backend_port: int, folder: Path) -> Iterator[Pair]:
        """Run a mesh of a client and the backend, in `folder`."""
        (folder / "mesh.toml").write_text(mesh_file(backend_port, self._workers, self._rule))
        try:
            _meshrun(folder, "up", "--wait")
            instances = json.loads(_meshrun(folder, "ps", "--json"))
            environment = json.loads(_meshrun(folder, "env", "client", "--json"))
            sides = {
                "client" if row["app"] == "client" else "server": row["sidecar_pids"]
                for row in instances
            }
            yield Pair(int(environment["UPSTREAM_BACKEND_PORT"]), sides)
        finally:
            _meshrun(folder, "down")


def mesh_file(backend_port: int, workers: int = 1, rule: Rule | None = None) -> str:
    """Return the mesh.toml: a client that may call the backend, and does nothing itself."""
    protocol = "tcp" if rule is None else rule.protocol
    methods = "" if rule is None else f'methods = ["{rule.method}"]\n'
    return f"""\
[mesh]
name = "bench"

[apps.client]
command = ["sleep", "infinity"]
port = 0
upstreams = ["backend"]
workers = {workers}

[services.backend]
address = "127.0.0.1:{backend_port}"
protocol = "{protocol}"
workers = {workers}

[[intentions]]
from = "client"
to = "backend"
{methods}"""


def _meshrun(folder: Path, *args: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "meshrun", *args],
        cwd=folder,
        env={k: v for k, v in os.environ.items() if not k.startswith("MESHRUN_")},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        # So that Ctrl-C does not interrupt what ends the mesh.
        start_new_session=True,
        timeout=MESHRUN_TIMEOUT_S,
        check=False,
    )
    if done.returncode != 0:
        raise BenchmarkError(f"cannot run meshrun {args[0]}: {done.stdout}{done.stderr}")
    return done.stdout


# Measured where they are asked for by name: how a sidecar grows with its workers.
SCALED: tuple[Contender, ...] = (Meshrun(2), Meshrun(4))

CONTENDERS: tuple[Contender, ...] = (Meshrun(), *map(PeerPair, peers.PEERS), Direct())


def judging(rule: Rule) -> tuple[Contender, ...]:
    """Return those that decide about each request by a rule, and the reference."""
    return (
        Meshrun(rule=rule),
        PeerPair(peers.Envoy(rule)),
        PeerPair(peers.HAProxy(rule)),
        Direct(),
    )
