"""Other people's programs as the other sidecar of a test, and what they need to be one."""

import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path
from typing import Protocol

from benchmarks import certificates, programs
from benchmarks.certificates import Credentials
from benchmarks.peers import PEERS as PROXIES
from benchmarks.peers import Side
from support.apps import App
from support.sidecars import TRUST_DOMAIN, Mesh
from support.traffic import wait_until

from meshrun.proxy.leaf import Leaf
from meshrun.proxy.spiffe import SpiffeId

__all__ = ["PEERS", "OpenSSL", "OtherSidecar", "write_credentials"]


class OtherSidecar(Protocol):
    """A program that can be the client side (plain to TLS) or the server side (TLS to plain)."""

    @property
    def name(self) -> str:
        """What people call it."""

    def version(self) -> str | None:
        """Return its version, None where it is not installed."""

    def start_client(self, side: Side, folder: Path) -> AbstractContextManager[object]:
        """Run the client side, its files in `folder`, from the time it listens."""

    def start_server(self, side: Side, folder: Path) -> AbstractContextManager[object]:
        """Run the server side, its files in `folder`, from the time it listens."""


class OpenSSL:
    """The openssl command: a process for each connection, as inetd would start it.

    It checks the chain alone. Neither side can end one direction and go on with the other.
    """

    name = "openssl"

    def version(self) -> str | None:
        """Return its version, None where it is not installed."""
        said = programs.ask_version("openssl", "version")
        return said and said.split()[1]

    @contextmanager
    def start_client(self, side: Side, folder: Path) -> Iterator[None]:
        """Run an `s_client` for each connection that comes in plain."""
        command = ["openssl", "s_client", "-connect", f"127.0.0.1:{side.target_port}"]
        command += [*_options(side), "-verify", "1", "-no_ign_eof", "-nocommands"]

        def serve(connection: socket.socket) -> None:
            plain = connection.fileno()
            with (folder / "openssl-client.log").open("ab") as log:
                subprocess.run(command, stdin=plain, stdout=plain, stderr=log, check=False)
            connection.shutdown(socket.SHUT_RDWR)

        with App(serve, port=side.listen_port):
            yield

    @contextmanager
    def start_server(self, side: Side, folder: Path) -> Iterator[None]:
        """Run an `s_server` for each connection, which is passed on to it as it comes."""

        def serve(connection: socket.socket) -> None:
            with (
                socket.create_connection(("127.0.0.1", side.target_port)) as backend,
                _s_server(side, backend, folder) as secured,
            ):
                _relay(connection, secured)

        with App(serve, port=side.listen_port):
            yield


PEERS: tuple[OtherSidecar, ...] = (*PROXIES, OpenSSL())


def write_credentials(folder: Path, mesh: Mesh, service: str, leaf: Leaf) -> Credentials:
    """Write into `folder` that a peer shows `leaf` as `service`, and trusts `mesh`."""
    return certificates.write(
        folder,
        service,
        identity=str(SpiffeId.for_service(TRUST_DOMAIN, service)),
        root=mesh.root.certificate_pem,
        certificate=ssl.DER_cert_to_PEM_cert(leaf.chain_der[0]).encode("ascii"),
        key=leaf.key_pem,
    )


def _options(side: Side) -> list[str]:
    files = side.credentials
    return [
        *("-cert", str(files.certificate), "-key", str(files.key), "-CAfile", str(files.root)),
        *("-tls1_3", "-quiet", "-verify_quiet", "-verify_return_error"),
        *(("-alpn", side.alpn) if side.alpn else ()),
    ]


@contextmanager
def _s_server(side: Side, backend: socket.socket, folder: Path) -> Iterator[socket.socket]:
    # Yields a connection to a server that serves this one, from and to `backend`.
    (port,) = programs.free_ports(1)
    command = ["openssl", "s_server", "-accept", f"127.0.0.1:{port}", "-naccept", "1"]
    command += [*_options(side), "-Verify", "1", "-num_tickets", "0"]
    with (folder / "openssl-server.log").open("ab") as log:
        plain = backend.fileno()
        process = subprocess.Popen(command, stdin=plain, stdout=plain, stderr=log)
    found: list[socket.socket] = []

    def answers() -> bool:
        try:
            found.append(socket.create_connection(("127.0.0.1", port)))
        except ConnectionRefusedError:
            assert process.poll() is None, "openssl s_server ended before it listened"
            return False
        return True

    try:
        wait_until(answers, "openssl s_server listens")
        with closing(found[0]) as connection:
            yield connection
    finally:
        process.kill()
        process.wait()


def _relay(one: socket.socket, other: socket.socket) -> None:
    back = threading.Thread(target=_copy, args=(other, one))
    back.start()
    _copy(one, other)
    back.join()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        # Broken on one side, it is over on both.
        for each in (source, sink):
            try:
                each.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass
