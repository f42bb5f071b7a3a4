"""Certificates for the peers by meshrun's own authority: the same keys and fields for all."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization

from meshrun.proxy.leaf import assemble, new_key, request
from meshrun.proxy.spiffe import SpiffeId
from meshrun.supervisor.ca import Root, create_root, sign

__all__ = ["SERVER_NAME", "Authority", "Credentials", "write"]

TRUST_DOMAIN = "bench.mesh"
LIFETIME_S = 86400.0

# nginx verifies a server only by a DNS name, which leaves of the mesh do not have.
SERVER_NAME = "backend.bench.mesh"


@dataclass(frozen=True, slots=True)
class Credentials:
    """What a peer shows and what it trusts, as PEM files; `pair` is certificate and key in one."""

    identity: str
    root: Path
    certificate: Path
    key: Path
    pair: Path


def write(
    folder: Path, name: str, *, identity: str, root: bytes, certificate: bytes, key: bytes
) -> Credentials:
    """Write PEM blocks into `folder` as a peer wants them, the key readable by the owner alone."""
    credentials = Credentials(
        identity=identity,
        root=folder / "root.pem",
        certificate=folder / f"{name}.crt.pem",
        key=folder / f"{name}.key.pem",
        pair=folder / f"{name}.pem",
    )
    content: Mapping[Path, bytes] = {
        credentials.root: root,
        credentials.certificate: certificate,
        credentials.key: key,
        credentials.pair: certificate + key,
    }
    for path, data in content.items():
        path.touch(mode=0o600)
        path.write_bytes(data)
    return credentials


class Authority:
    """A root, and the leaves of its trust domain that it signs into a folder."""

    def __init__(self, root: Root, trust_domain: str, folder: Path) -> None:
        self._root = root
        self._trust_domain = trust_domain
        self._folder = folder

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Make a fresh root for a benchmark, whose leaves are written into `folder`."""
        return cls(create_root(TRUST_DOMAIN, datetime.now(UTC)), TRUST_DOMAIN, folder)

    def issue(self, service: str, *, server_name: str | None = None) -> Credentials:
        """Sign a leaf for a service as a sidecar gets it; `server_name` adds a DNS name to it."""
        key = new_key()
        identity = SpiffeId.for_service(self._trust_domain, service)
        issued = sign(self._root, request(key, identity), identity, datetime.now(UTC), LIFETIME_S)
        certificate = x509.load_der_x509_certificate(issued.chain_der[0])
        if server_name is not None:
            certificate = self._renamed(certificate, server_name)
        leaf = assemble(key, issued.chain_der, issued.issued_at)
        return write(
            self._folder,
            service,
            identity=str(identity),
            root=self._root.certificate_pem,
            certificate=certificate.public_bytes(serialization.Encoding.PEM),
            key=leaf.key_pem,
        )

    def _renamed(self, leaf: x509.Certificate, server_name: str) -> x509.Certificate:
        builder = x509.CertificateBuilder(
            leaf.issuer,
            leaf.subject,
            leaf.public_key(),
            leaf.serial_number,
            leaf.not_valid_before_utc,
            leaf.not_valid_after_utc,
        )
        for extension in leaf.extensions:
            value = extension.value
            if isinstance(value, x509.SubjectAlternativeName):
                value = x509.SubjectAlternativeName([*value, x509.DNSName(server_name)])
            builder = builder.add_extension(value, critical=extension.critical)
        return builder.sign(self._root.key, hashes.SHA256())
