"""Strangers at the port of a sidecar of a running mesh: refused, and the app hears nothing of them.

Whoever is right was signed for the purpose with the mesh's own root, from its state folder.
"""

import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from support.certificates import LEAF, make, uri
from support.mesh import Mesh
from support.traffic import ask, connect, count_descriptors, wait_until

from meshrun.proxy import tls
from meshrun.proxy.leaf import Leaf, assemble, new_key, request
from meshrun.proxy.spiffe import SpiffeId
from meshrun.supervisor import ca
from meshrun.supervisor.cli.records import Event

CONFIG = """
[mesh]
name = "shop"

[apps.server]
command = "${PYTHON} ${APPS}/serve.py --accepts accepts"

[apps.client]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["server"]

[apps.intruder]
command = "${PYTHON} ${APPS}/idle.py"
port = 0

[[intentions]]
from = "client"
to = "server"
"""

TRUST_DOMAIN = "shop.mesh"


@dataclass(frozen=True, slots=True)
class Site:
    """The mesh that strangers come to."""

    mesh: Mesh
    root: ca.Root

    @property
    def inbound(self) -> int:
        """Where the server's sidecar serves."""
        port = self.mesh.instance("server.1").sidecar_port
        assert port is not None
        return port

    @property
    def upstream(self) -> int:
        """Where the client reaches the server."""
        return self.mesh.upstream("client.1", "server")[1]

    def accepted(self) -> int:
        """How many connections the app has seen up to a call that is made now."""
        assert ask(self.upstream) == b"hello"
        return len((self.mesh.folder / "accepts").read_text().splitlines())

    def leaf(
        self,
        service: str,
        *,
        of: str = TRUST_DOMAIN,
        by: ca.Root | None = None,
        ago: timedelta = timedelta(0),
    ) -> Leaf:
        """Sign a leaf for `service` of the trust domain `of`, some time `ago`."""
        key, name = new_key(), SpiffeId.for_service(of, service)
        csr = request(key, name)
        issued = ca.sign(by or self.root, csr, name, datetime.now(UTC) - ago, ttl_s=60)
        return assemble(key, issued.chain_der, issued.issued_at)

    def context(self, leaf: Leaf) -> ssl.SSLContext:
        """Return the context of a caller that shows `leaf` and trusts the mesh."""
        return tls.client_context(leaf, [self.root.certificate_der])


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server that notes whom it sees."""
    with Mesh(tmp_path_factory.mktemp("mesh"), CONFIG) as mesh:
        mesh.up()
        certificate = mesh.client.roots()[0].pem.encode()
        key = (mesh.state_path / "root.key").read_bytes()
        yield Site(mesh, ca.load_root(certificate, key, TRUST_DOMAIN, datetime.now(UTC)))


def answer(site: Site, context: ssl.SSLContext) -> bytes:
    """Call the sidecar itself with TLS, and return what comes back."""
    with connect(site.inbound) as plain, context.wrap_socket(plain) as secured:
        secured.sendall(b"let me in")
        return secured.recv(100)


def is_refused(site: Site, context: ssl.SSLContext) -> bool:
    """Tell whether the caller gets no answer; a TLS 1.3 client hears of it at its first read."""
    try:
        return answer(site, context) == b""
    except (ssl.SSLError, ConnectionError):
        return True


def await_denial(site: Site, wanted: Callable[[Event], bool]) -> None:
    """Wait until the timeline tells of a denial like this."""
    events = site.mesh.events
    wait_until(lambda: any(map(wanted, events("denied", "server"))), "told in the timeline")


def right(site: Site) -> ssl.SSLContext:
    return site.context(site.leaf("client"))


def without_certificate(site: Site) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.load_verify_locations(cadata=site.root.certificate_der)
    return context


def with_tls_1_2(site: Site) -> ssl.SSLContext:
    context = right(site)
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def expired(site: Site) -> ssl.SSLContext:
    return site.context(site.leaf("client", ago=timedelta(seconds=61)))


def not_valid_yet(site: Site) -> ssl.SSLContext:
    return site.context(site.leaf("client", ago=timedelta(hours=-1)))


def self_signed(site: Site) -> ssl.SSLContext:
    profile = replace(LEAF, names=(uri(str(SpiffeId.for_service(TRUST_DOMAIN, "client"))),))
    return site.context(make(profile, now=datetime.now(UTC)).leaf())


def of_another_root(site: Site) -> ssl.SSLContext:
    namesake = ca.create_root(TRUST_DOMAIN, datetime.now(UTC))
    return site.context(site.leaf("client", by=namesake))


def of_another_trust_domain(site: Site) -> ssl.SSLContext:
    return site.context(site.leaf("client", of="other.mesh"))


STRANGERS = [
    (without_certificate, "peer did not return a certificate"),
    (with_tls_1_2, "unsupported protocol"),
    (expired, "certificate has expired"),
    (not_valid_yet, "certificate is not yet valid"),
    (self_signed, "signed certificate"),
    (of_another_root, "certificate verify failed"),
    (of_another_trust_domain, "not of the trust domain shop.mesh"),
]


@pytest.mark.parametrize(("stranger", "reason"), STRANGERS)
def test_a_stranger_is_refused_and_the_app_sees_no_connection(
    site: Site, stranger: Callable[[Site], ssl.SSLContext], reason: str
) -> None:
    before = site.accepted()
    assert is_refused(site, stranger(site))
    assert site.accepted() == before + 1
    await_denial(site, lambda event: reason in event.message)


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01\x02\x00", b""])
def test_plain_tcp_is_refused_and_the_app_sees_no_connection(site: Site, said: bytes) -> None:
    before = site.accepted()
    with connect(site.inbound) as plain:
        plain.sendall(said)
        plain.shutdown(socket.SHUT_WR)
        try:
            while heard := plain.recv(100):
                assert not heard.startswith(said)  # it may be a TLS alert
        except ConnectionResetError:
            pass
    assert site.accepted() == before + 1


def test_a_service_without_an_intention_is_refused_by_its_name(site: Site) -> None:
    before = site.accepted()
    assert is_refused(site, site.context(site.leaf("intruder")))
    assert site.accepted() == before + 1
    reason = "no intention matches intruder => server"
    await_denial(site, lambda event: event.source == "intruder" and reason in event.message)


def test_a_leaf_signed_for_the_purpose_gets_through(site: Site) -> None:
    assert answer(site, right(site)) == b"let me in"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs the openssl command")
def test_openssl_with_a_leaf_signed_for_the_purpose_gets_through(
    site: Site, tmp_path: Path
) -> None:
    leaf = site.leaf("client")
    pem = leaf.key_pem + b"".join(ssl.DER_cert_to_PEM_cert(c).encode() for c in leaf.chain_der)
    (tmp_path / "leaf.pem").write_bytes(pem)
    (tmp_path / "root.pem").write_bytes(site.root.certificate_pem)
    command = [
        *("openssl", "s_client", "-connect", f"127.0.0.1:{site.inbound}", "-quiet"),
        *("-cert", str(tmp_path / "leaf.pem"), "-key", str(tmp_path / "leaf.pem")),
        *("-CAfile", str(tmp_path / "root.pem"), "-verify_return_error"),
    ]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL) as openssl:
        assert openssl.stdin is not None
        assert openssl.stdout is not None
        openssl.stdin.write(b"let me in\n")
        openssl.stdin.flush()
        assert openssl.stdout.readline() == b"let me in\n"
        openssl.terminate()


def close_idle_tunnels(site: Site) -> None:
    site.mesh.cli("certs", "rotate", check=True)


def test_a_flood_of_silent_strangers_does_not_stop_real_calls(site: Site) -> None:
    pid = site.mesh.instance("server.1").sidecar_pid
    assert pid is not None
    close_idle_tunnels(site)
    before = count_descriptors(pid)
    with ExitStack() as stack:
        for _ in range(200):
            stack.enter_context(connect(site.inbound))
        wait_until(lambda: count_descriptors(pid) >= before + 200, "all strangers inside")
        for _ in range(20):
            assert ask(site.upstream) == b"hello"
        assert answer(site, right(site)) == b"let me in"
    close_idle_tunnels(site)
    wait_until(lambda: count_descriptors(pid) <= before, "all strangers gone")
