"""Certificates for tests: right ones by the mesh's own CA, wrong ones field by field."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from meshrun.proxy.leaf import Leaf, assemble, new_key, request
from meshrun.proxy.spiffe import SpiffeId
from meshrun.supervisor.ca import Root, sign

__all__ = [
    "LEAF",
    "NOW",
    "ROOT",
    "TRUST_DOMAIN",
    "Made",
    "Profile",
    "identity",
    "issue",
    "make",
    "uri",
]

TRUST_DOMAIN = "shop.mesh"

# The time of tests in which no OpenSSL looks at the clock.
NOW = datetime(2026, 3, 1, 12, 0, 0, tzinfo=UTC)


def uri(text: str) -> x509.GeneralName:
    """Return a URI name with any text, valid or not."""
    return x509.UniformResourceIdentifier(text)


def identity(service: str, trust_domain: str = TRUST_DOMAIN) -> SpiffeId:
    """Return the identity of a service of the tests' mesh."""
    return SpiffeId.for_service(trust_domain, service)


def issue(root: Root, service: str, now: datetime, ttl_s: float = 3600.0) -> Leaf:
    """Let the mesh's CA sign a leaf for `service`, as a sidecar would get it."""
    key = new_key()
    name = identity(service)
    issued = sign(root, request(key, name), name, now, ttl_s)
    return assemble(key, issued.chain_der, issued.issued_at)


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """The fields of a certificate to be made; None leaves the extension out.

    `begins_s` and `ends_s` are seconds relative to the time of making.
    """

    names: tuple[x509.GeneralName, ...] | None = (uri(f"spiffe://{TRUST_DOMAIN}/svc/web"),)
    names_critical: bool = True
    subject: str = ""
    ca: bool | None = False
    usage: frozenset[str] | None = frozenset({"digital_signature"})
    usage_critical: bool = True
    extended: tuple[x509.ObjectIdentifier, ...] | None = (
        ExtendedKeyUsageOID.SERVER_AUTH,
        ExtendedKeyUsageOID.CLIENT_AUTH,
    )
    extra: tuple[x509.ExtensionType, ...] = ()
    begins_s: float = -60.0
    ends_s: float = 3600.0


LEAF = Profile()

ROOT = Profile(
    names=(uri(f"spiffe://{TRUST_DOMAIN}"),),
    names_critical=False,
    subject="test CA",
    ca=True,
    usage=frozenset({"digital_signature", "key_cert_sign", "crl_sign"}),
    extended=None,
    ends_s=86400.0,
)


@dataclass(frozen=True, slots=True)
class Made:
    """A certificate with its key and its issuers, as far as they were made here."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey
    issuers: tuple["Made", ...] = ()

    @property
    def der(self) -> bytes:
        """The certificate alone."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    @property
    def chain(self) -> list[bytes]:
        """The certificate and its issuers up to the root, as a verified chain is."""
        return [self.der, *(issuer.der for issuer in self.issuers)]

    def leaf(self, intermediates: Iterable[bytes] = ()) -> Leaf:
        """Return what a sidecar would serve with: this certificate, then the intermediates."""
        return assemble(self.key, [self.der, *intermediates], datetime.now(UTC).timestamp())


def make(
    profile: Profile,
    issuer: Made | None = None,
    now: datetime = NOW,
    key: ec.EllipticCurvePrivateKey | None = None,
) -> Made:
    """Make a certificate of this profile, self-signed where there is no issuer."""
    key = key or new_key()
    subject = _subject(profile.subject)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now + timedelta(seconds=profile.begins_s))
        .not_valid_after(now + timedelta(seconds=profile.ends_s))
    )
    for extension, critical in _extensions(profile):
        builder = builder.add_extension(extension, critical=critical)
    certificate = builder.sign(issuer.key if issuer else key, hashes.SHA256())
    return Made(certificate, key, (issuer, *issuer.issuers) if issuer else ())


def _subject(common_name: str) -> x509.Name:
    if not common_name:
        return x509.Name([])
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _extensions(profile: Profile) -> Iterable[tuple[x509.ExtensionType, bool]]:
    if profile.names is not None:
        yield x509.SubjectAlternativeName(profile.names), profile.names_critical
    if profile.ca is not None:
        yield x509.BasicConstraints(ca=profile.ca, path_length=None), True
    if profile.usage is not None:
        yield _usage(profile.usage), profile.usage_critical
    if profile.extended is not None:
        yield x509.ExtendedKeyUsage(profile.extended), False
    for extension in profile.extra:
        yield extension, False


def _usage(names: frozenset[str]) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature="digital_signature" in names,
        content_commitment="content_commitment" in names,
        key_encipherment="key_encipherment" in names,
        data_encipherment="data_encipherment" in names,
        key_agreement="key_agreement" in names,
        key_cert_sign="key_cert_sign" in names,
        crl_sign="crl_sign" in names,
        encipher_only=False,
        decipher_only=False,
    )
