"""The mesh's certificate authority: one root, and the leaves that it signs for sidecars."""

import re
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshrun.proxy.errors import IdentityError
from meshrun.proxy.leaf import new_key, serial_text
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.svid import validate_signer

__all__ = ["IssuedLeaf", "Root", "create_root", "load_root", "sign"]

ROOT_LIFETIME = timedelta(days=3650)

# So that a peer whose clock is a little behind does not refuse what was just issued.
BACKDATING = timedelta(seconds=60)

# A P-256 request with one URI of the longest kind is under 3 KiB.
MAX_REQUEST_BYTES = 8192

# What cryptography raises for damaged fields; some are no ValueError.
UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

# The block alone: what else a combined file holds, and in which order, does not matter.
PRIVATE_KEY = re.compile(
    rb"-----BEGIN ([A-Z]+ )?PRIVATE KEY-----.*?-----END ([A-Z]+ )?PRIVATE KEY-----", re.DOTALL
)

SigningKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey


@dataclass(frozen=True, slots=True)
class Root:
    """The certificate that every sidecar trusts, with its key."""

    certificate: x509.Certificate
    key: SigningKey = field(repr=False, compare=False)

    @property
    def certificate_der(self) -> bytes:
        """The certificate as snapshots carry it."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def certificate_pem(self) -> bytes:
        """The certificate as it is kept and shown."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def key_pem(self) -> bytes:
        """Return the key, unencrypted: for a file of mode 0600 and nowhere else."""
        return self.key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )


@dataclass(frozen=True, slots=True)
class IssuedLeaf:
    """A signed leaf: DER, leaf first; `serial` in hexadecimal; times in wall-clock seconds."""

    chain_der: tuple[bytes, ...] = field(repr=False)
    serial: str
    not_before: float
    not_after: float
    issued_at: float
    identity: SpiffeId


def create_root(
    trust_domain: str,
    now: datetime,
    *,
    key: ec.EllipticCurvePrivateKey | None = None,
    serial: int | None = None,
) -> Root:
    """Make a self-signed root of ten years; without `key` or `serial`, with fresh random ones."""
    key = key or new_key()
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, _common_name(trust_domain))])
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(now + ROOT_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(_uri_name(SpiffeId(trust_domain, "")), critical=False)
        .add_extension(identifier, critical=False)
    )
    return Root(builder.sign(key, hashes.SHA256()), key)


def sign(
    root: Root,
    csr_der: bytes,
    identity: SpiffeId,
    now: datetime,
    ttl_s: float,
    *,
    serial: int | None = None,
) -> IssuedLeaf:
    """Sign a leaf for `identity`; nothing of the request but its key gets into the certificate.

    The leaf ends after `ttl_s`, or with the root if that is sooner. Raises IdentityError for a
    request that does not ask for exactly this identity with a P-256 key that the asker holds.
    """
    public_key = _requested_key(csr_der, identity)
    certificate = _leaf(root, public_key, identity, now, ttl_s, serial)
    return IssuedLeaf(
        chain_der=(certificate.public_bytes(serialization.Encoding.DER),),
        serial=serial_text(certificate.serial_number),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        issued_at=now.timestamp(),
        identity=identity,
    )


def load_root(cert_pem: bytes, key_pem: bytes, trust_domain: str, now: datetime) -> Root:
    """Read a root, ours or an outside CA's; either argument may hold both blocks, in any order.

    Raises IdentityError if one is unreadable, they do not belong together, or the certificate may
    not sign for `trust_domain` now.
    """
    certificate, public_key = _load_certificate(cert_pem)
    key = _load_key(key_pem)
    if public_key != key.public_key():
        raise IdentityError("cannot use the CA: its key is not the one that the certificate has")
    root = Root(certificate, key)
    try:
        validate_signer(root.certificate_der, trust_domain, now)
    except IdentityError as error:
        raise IdentityError(f"cannot use the CA for {trust_domain}: {error}") from error
    return root


@dataclass(frozen=True, slots=True)
class _Request:
    """What of a request counts, read at once: the fields are parsed lazily."""

    key: object
    is_signed: bool
    names: tuple[x509.GeneralName, ...]


def _requested_key(csr_der: bytes, identity: SpiffeId) -> ec.EllipticCurvePublicKey:
    request = _read_request(csr_der)
    key = request.key
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise IdentityError("cannot sign the request: its key is not a P-256 key")
    if not request.is_signed:
        raise IdentityError("cannot sign the request: it is not signed with its own key")
    # With two names the peer's choice of one decides who it is (CVE-2022-40716).
    if [type(name) for name in request.names] != [x509.UniformResourceIdentifier]:
        raise IdentityError("cannot sign the request: it does not have exactly one name, a URI")
    asked = str(request.names[0].value)
    if asked != str(identity):
        raise IdentityError(
            f"cannot sign the request: it asks for {asked[:200]!a}, its sender is {identity}"
        )
    return key


def _read_request(csr_der: bytes) -> _Request:
    if len(csr_der) > MAX_REQUEST_BYTES:
        raise IdentityError(f"cannot sign the request: it is over {MAX_REQUEST_BYTES} bytes")
    try:
        request = x509.load_der_x509_csr(csr_der)
        return _Request(request.public_key(), request.is_signature_valid, _names(request))
    except UNREADABLE as error:
        raise IdentityError(f"cannot sign the request: it is unreadable: {error}") from error


def _names(request: x509.CertificateSigningRequest) -> tuple[x509.GeneralName, ...]:
    try:
        kind = x509.SubjectAlternativeName
        return tuple(request.extensions.get_extension_for_class(kind).value)
    except x509.ExtensionNotFound:
        return ()


def _leaf(
    root: Root,
    public_key: ec.EllipticCurvePublicKey,
    identity: SpiffeId,
    now: datetime,
    ttl_s: float,
    serial: int | None,
) -> x509.Certificate:
    root_ends = root.certificate.not_valid_after_utc
    if now >= root_ends:
        raise IdentityError(f"cannot sign a leaf for {identity}: the root expired at {root_ends}")
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([]))
        .issuer_name(root.certificate.subject)
        .public_key(public_key)
        .serial_number(serial or x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(min(now + timedelta(seconds=ttl_s), root_ends))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(_both_sides(), critical=False)
        # Critical because the subject is empty (RFC 5280 4.2.1.6).
        .add_extension(_uri_name(identity), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(_authority(root), critical=False)
    )
    return builder.sign(root.key, hashes.SHA256())


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=not signs_certificates,
        data_encipherment=not signs_certificates,
        key_agreement=not signs_certificates,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _both_sides() -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH])


def _uri_name(identity: SpiffeId) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity))])


def _authority(root: Root) -> x509.AuthorityKeyIdentifier:
    # The identifier that the issuer has; a root from outside may lack one.
    try:
        identifier = root.certificate.extensions.get_extension_for_class(
            x509.SubjectKeyIdentifier
        ).value
    except x509.ExtensionNotFound:
        identifier = x509.SubjectKeyIdentifier.from_public_key(root.key.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _common_name(trust_domain: str) -> str:
    # X.520 allows 64 characters.
    return f"meshrun CA of {trust_domain}"[:64]


def _load_certificate(pem: bytes) -> tuple[x509.Certificate, object]:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        return certificate, certificate.public_key()
    except UNREADABLE as error:
        raise IdentityError(f"cannot read the CA certificate: {error}") from error


def _load_key(pem: bytes) -> SigningKey:
    block = PRIVATE_KEY.search(pem)
    if not block:
        raise IdentityError("cannot read the CA key: there is no PEM block of a private key")
    try:
        key = serialization.load_pem_private_key(block[0], password=None)
    except TypeError as error:
        raise IdentityError(
            "cannot read the CA key: it is encrypted; store it decrypted"
        ) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise IdentityError(f"cannot read the CA key: {error}") from error
    if not isinstance(key, SigningKey):
        raise IdentityError("cannot use the CA key: it is neither an EC nor an RSA key")
    return key
