"""A sidecar's own certificate: its key, the request for it, and when to renew it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from meshrun.proxy.errors import IdentityError
from meshrun.proxy.spiffe import SpiffeId

__all__ = ["Leaf", "assemble", "new_key", "renew_at", "request", "serial_text"]

# Consul's leafcert: early enough to survive an outage of the control plane, spread so that
# sidecars started together do not renew together.
EARLIEST_RENEWAL = 0.6
LATEST_RENEWAL = 0.9


@dataclass(frozen=True, slots=True)
class Leaf:
    """A certificate chain (DER, leaf first) with its key (PEM, PKCS#8), in memory only.

    `serial` is lower-case hexadecimal. `not_before`, `not_after` and `issued_at` are wall-clock
    seconds since the epoch.
    """

    key_pem: bytes = field(repr=False)
    chain_der: tuple[bytes, ...] = field(repr=False)
    serial: str
    not_before: float
    not_after: float
    issued_at: float


def new_key() -> ec.EllipticCurvePrivateKey:
    """Make a P-256 key."""
    return ec.generate_private_key(ec.SECP256R1())


def request(key: ec.EllipticCurvePrivateKey, identity: SpiffeId) -> bytes:
    """Return the PKCS#10 request in DER for a leaf that says `identity`, its one URI SAN."""
    name = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])
    builder = x509.CertificateSigningRequestBuilder(x509.Name([])).add_extension(
        name, critical=True
    )
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def assemble(key: ec.EllipticCurvePrivateKey, chain_der: Sequence[bytes], issued_at: float) -> Leaf:
    """Put the issued chain to the key that it was requested for.

    Raises IdentityError if the first certificate is unreadable or another key's.
    """
    if not chain_der:
        raise IdentityError("cannot use an issued leaf: its chain is empty")
    try:
        certificate = x509.load_der_x509_certificate(chain_der[0])
        public_key = certificate.public_key()
    except ValueError as error:
        raise IdentityError(f"cannot read the issued leaf: {error}") from error
    if public_key != key.public_key():
        raise IdentityError("cannot use the issued leaf: it certifies another key")
    return Leaf(
        key_pem=_key_pem(key),
        chain_der=tuple(chain_der),
        serial=serial_text(certificate.serial_number),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        issued_at=issued_at,
    )


def renew_at(issued_at: float, not_after: float, fraction: float) -> float:
    """Return when to renew, in wall-clock seconds; `fraction`, of [0, 1), is the random part."""
    share = EARLIEST_RENEWAL + (LATEST_RENEWAL - EARLIEST_RENEWAL) * fraction
    return issued_at + share * (not_after - issued_at)


def serial_text(serial: int) -> str:
    """Write a serial number as everything here shows it: hexadecimal, whole bytes."""
    digits = f"{serial:x}"
    return digits.zfill(len(digits) + len(digits) % 2)


def _key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
