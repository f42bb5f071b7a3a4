"""New leaves while programs call each other: nobody notices."""

import signal
import ssl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from cryptography import x509
from support.mesh import APPS, Mesh
from support.sampling import WHOLE
from support.traffic import Callers, ask, connect, wait_until

from meshrun.proxy.leaf import serial_text

CONFIG = """
[mesh]
name = "rotation"
leaf_ttl = "%s"

[apps.echo-server]
command = "${PYTHON} ${EXAMPLES}/echo_server.py"
protocol = "http"
ready = { http = "/healthz" }

[apps.echo-client]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = [{ service = "echo-server", connect_timeout = "1s" }]

[[intentions]]
from = "echo-client"
to = "echo-server"
"""

ENVIRONMENT = {"EXAMPLES": str(APPS.parent.parent / "examples")}
ROTATIONS = 20
REQUEST = b"GET / HTTP/1.0\r\n\r\n"


def serials(mesh: Mesh) -> Mapping[str, str]:
    """Return which leaf each sidecar serves."""
    return {leaf.instance: leaf.serial for leaf in mesh.client.certs()}


def upstream(mesh: Mesh) -> int:
    """Return where the client reaches the server."""
    return mesh.upstream("echo-client.1", "echo_server")[1]


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mesh]:
    """A mesh whose leaves are replaced only on demand."""
    folder = tmp_path_factory.mktemp("mesh")
    with Mesh(folder, CONFIG % "24h", environment=ENVIRONMENT) as started:
        started.up()
        yield started


def shown_serial(port: int) -> str:
    """Return the serial number of the leaf that a sidecar shows to whoever comes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with connect(port) as connection, context.wrap_socket(connection) as secured:
        leaf = secured.getpeercert(binary_form=True)
    assert leaf is not None
    return serial_text(x509.load_der_x509_certificate(leaf).serial_number)


@pytest.mark.slow
def test_no_call_fails_while_all_leaves_are_rotated_again_and_again(mesh: Mesh) -> None:
    seen = [*serials(mesh).values()]
    with Callers(upstream(mesh)) as callers:
        for _ in range(ROTATIONS):
            mesh.cli("certs", "rotate", check=True)
            seen += serials(mesh).values()
            callers.wait_for(5)
    assert callers.failures == []
    assert len(seen) == len(set(seen)) == 2 * (1 + ROTATIONS)


def test_a_rotated_leaf_is_shown_to_the_next_caller(mesh: Mesh) -> None:
    port = mesh.instance("echo-server.1").sidecar_port
    assert port is not None
    for _ in range(2):
        assert shown_serial(port) == serials(mesh)["echo-server.1"]
        mesh.cli("certs", "rotate", check=True)


def test_one_app_may_be_rotated_alone(mesh: Mesh) -> None:
    before = serials(mesh)
    mesh.cli("certs", "rotate", "echo-server", check=True)
    after = serials(mesh)
    assert after["echo-server.1"] != before["echo-server.1"]
    assert after["echo-client.1"] == before["echo-client.1"]


@pytest.mark.long
def test_leaves_are_renewed_in_time_and_no_call_fails(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG % "10s", environment=ENVIRONMENT) as mesh:
        mesh.up()
        before = serials(mesh)
        with Callers(upstream(mesh)) as callers:
            for instance in before:
                mesh.await_event("rotated", instance, number=3 if WHOLE else 1)
            callers.wait_for(5)
        assert callers.failures == []
        after = serials(mesh)
        assert all(after[instance] != serial for instance, serial in before.items())


def served(port: int) -> bool:
    """Tell whether the app itself answers a request: a sidecar would answer with another status."""
    try:
        return ask(port, REQUEST).startswith(b"HTTP/1.1 200 ")
    except ConnectionError:
        return False


@pytest.mark.long
@pytest.mark.skipif(not WHOLE, reason="takes as long as a leaf lives")
def test_without_a_control_plane_a_leaf_serves_until_it_expires_and_then_no_more(
    tmp_path: Path,
) -> None:
    with Mesh(tmp_path, CONFIG % "10s", environment=ENVIRONMENT) as mesh:
        mesh.up()
        port = upstream(mesh)
        expires_at = min(leaf.not_after for leaf in mesh.client.certs())
        supervisor = mesh.supervisor_pid
        mesh.kill(supervisor, signal.SIGSTOP)
        stopped_at = time.time()
        try:
            # A leaf that was being renewed may live a little longer, none for less.
            wait_until(lambda: not served(port), "refused", patience_s=30)
            assert time.time() > expires_at
            # Whichever leaf went first: now the caller's own has expired too, and it says so.
            wait_until(lambda: time.time() > stopped_at + 10, "all leaves expired", patience_s=30)
            assert not served(port)
        finally:
            mesh.kill(supervisor, signal.SIGCONT)
        wait_until(lambda: served(port), "answered again")
        failures = [event.message for event in mesh.events("connection-failed")]
        assert any("leaf has expired" in message for message in failures)
