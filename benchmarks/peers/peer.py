"""What every peer offers, and the two sides of a pair."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import programs
from benchmarks.certificates import Credentials
from benchmarks.programs import Program

__all__ = ["MAX_CONNECTIONS", "Peer", "Side"]

MAX_CONNECTIONS = 8192


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One side of a pair: where it listens, what it dials (both on 127.0.0.1), and who it is.

    `peer_identity` is the SPIFFE ID that the other side must have, checked where the proxy can.
    `peer_name` is a DNS name in the certificate of the server that a client dials: nginx verifies a
    server by that and by nothing else, so without it nginx as the client verifies nobody.
    `alpn` is the protocol above TLS that it names, where the proxy can: nginx as the client cannot,
    nor can stunnel.
    """

    listen_port: int
    target_port: int
    credentials: Credentials
    peer_identity: str
    peer_name: str | None = None
    alpn: str | None = None


class Peer(ABC):
    """A proxy that can be the client side (plain to TLS) or the server side (TLS to plain).

    TLS 1.3 only, both ends verify the chain of the other, no resumption, one worker. What each
    checks beyond the chain is in its own docstring.
    """

    name: str
    suffix = "conf"

    @abstractmethod
    def version(self) -> str | None:
        """Return its version, None where it is not installed."""

    @abstractmethod
    def server_side(self, side: Side) -> str:
        """Return the configuration of the server side."""

    @abstractmethod
    def client_side(self, side: Side) -> str:
        """Return the configuration of the client side."""

    @abstractmethod
    def command(self, configuration: Path) -> Sequence[str | Path]:
        """Return the command that runs it in the foreground."""

    @contextmanager
    def start_server(self, side: Side, folder: Path) -> Iterator[Program]:
        """Run the server side, its files in `folder`; yields once it listens."""
        with self._start("server", self.server_side(side), side.listen_port, folder) as program:
            yield program

    @contextmanager
    def start_client(self, side: Side, folder: Path) -> Iterator[Program]:
        """Run the client side, its files in `folder`; yields once it listens."""
        with self._start("client", self.client_side(side), side.listen_port, folder) as program:
            yield program

    @contextmanager
    def _start(self, role: str, text: str, port: int, folder: Path) -> Iterator[Program]:
        name = f"{self.name}-{role}"
        file = folder / f"{name}.{self.suffix}"
        file.write_text(text)
        with programs.run(self.command(file), name=name, port=port, folder=folder) as program:
            yield program
