"""Checks a peer's certificate chain as an X.509-SVID.

OpenSSL has verified the signatures and the chain to a trusted root when these functions are called;
what it does not check is what SPIFFE asks of a certificate beyond RFC 5280 (X509-SVID 2 to 5), and
which identity the certificate proves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import TypeVar

from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID

from meshrun.proxy.errors import IdentityError
from meshrun.proxy.spiffe import SpiffeId

__all__ = ["leaf_not_after", "validate_chain", "validate_signer"]

E = TypeVar("E", bound=x509.ExtensionType)

BOTH_SIDES = frozenset({ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH})

TIME = "%Y-%m-%dT%H:%M:%SZ"

# What cryptography raises for damaged fields; some are no ValueError.
UNREADABLE = (
    ValueError,
    TypeError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)

# A mesh has a root and, while it is being replaced, a cross-signed one; outside CAs a few more.
MAX_CHAIN = 10


@dataclass(frozen=True, slots=True)
class _Certificate:
    """What of a certificate the rules are about, read at once: the fields are parsed lazily."""

    what: str
    subject: x509.Name
    extensions: x509.Extensions
    not_before: datetime
    not_after: datetime

    def find(self, kind: type[E]) -> x509.Extension[E] | None:
        """Return the extension of this kind, None if there is none."""
        try:
            return self.extensions.get_extension_for_class(kind)
        except x509.ExtensionNotFound:
            return None

    def check_time(self, now: datetime) -> None:
        """Raise IdentityError outside the validity, both ends of which are in it (RFC 5280)."""
        if now < self.not_before:
            raise IdentityError(f"{self.what} is not valid before {self.not_before:{TIME}}")
        if now > self.not_after:
            raise IdentityError(f"{self.what} expired at {self.not_after:{TIME}}")


def validate_chain(chain: Sequence[bytes], trust_domain: str, now: datetime) -> SpiffeId:
    """Return the identity that a verified chain (DER, leaf first, including the root) proves.

    `now` is an aware time. Raises IdentityError, with the rule that is broken, for a chain that is
    not an X.509-SVID of `trust_domain` (X509-SVID 5).
    """
    if not 2 <= len(chain) <= MAX_CHAIN:
        raise IdentityError(f"the chain has {len(chain)} certificates, not 2 to {MAX_CHAIN}")
    leaf, identity = _leaf(chain[0])
    if identity.trust_domain != trust_domain:
        raise IdentityError(f"{identity} is not of the trust domain {trust_domain}")
    leaf.check_time(now)
    for der in chain[1:]:
        _signer(der, trust_domain).check_time(now)
    return identity


def validate_signer(der: bytes, trust_domain: str, now: datetime) -> None:
    """Raise IdentityError unless this certificate may sign leaves of `trust_domain` now.

    The rules are those of X509-SVID 4; a SPIFFE ID may be missing, as in the CAs of Vault.
    """
    _signer(der, trust_domain).check_time(now)


def leaf_not_after(der: bytes) -> float:
    """Return when a validated leaf expires, in seconds since the epoch."""
    leaf, _ = _leaf(der)
    return leaf.not_after.timestamp()


# Signers and peers are few and the same for handshake after handshake, so what does not depend on
# the time is kept. Only what OpenSSL verified comes here, so no stranger can fill it.
@lru_cache(maxsize=64)
def _signer(der: bytes, trust_domain: str) -> _Certificate:
    signer = _read(der, "the signing certificate")
    _check_signer_usage(signer)
    _check_signer_name(signer, trust_domain)
    return signer


@lru_cache(maxsize=64)
def _leaf(der: bytes) -> tuple[_Certificate, SpiffeId]:
    leaf = _read(der, "the leaf")
    return leaf, _leaf_identity(leaf)


def _read(der: bytes, what: str) -> _Certificate:
    try:
        certificate = x509.load_der_x509_certificate(der)
        return _Certificate(
            what=what,
            subject=certificate.subject,
            extensions=certificate.extensions,
            not_before=certificate.not_valid_before_utc,
            not_after=certificate.not_valid_after_utc,
        )
    except UNREADABLE as error:
        raise IdentityError(f"{what} is unreadable: {error}") from error


def _leaf_identity(leaf: _Certificate) -> SpiffeId:
    _check_leaf_usage(leaf)
    identity = _one_spiffe_id(leaf)
    if not identity.path:
        raise IdentityError(f"the leaf's SPIFFE ID {identity} names a trust domain, no workload")
    return identity


def _check_leaf_usage(leaf: _Certificate) -> None:
    constraints = leaf.find(x509.BasicConstraints)
    if constraints and constraints.value.ca:
        raise IdentityError("the leaf is a CA certificate")
    usage = leaf.find(x509.KeyUsage)
    if usage is None or not usage.critical:
        raise IdentityError("the leaf has no critical key usage")
    if not usage.value.digital_signature:
        raise IdentityError("the leaf's key usage lacks digitalSignature")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise IdentityError("the leaf's key usage has keyCertSign or cRLSign, which is a CA's")
    extended = leaf.find(x509.ExtendedKeyUsage)
    if extended and not set(extended.value) >= BOTH_SIDES:
        raise IdentityError("the leaf's extended key usage lacks serverAuth or clientAuth")


def _one_spiffe_id(leaf: _Certificate) -> SpiffeId:
    names = leaf.find(x509.SubjectAlternativeName)
    if names is None:
        raise IdentityError("the leaf has no subject alternative name")
    # RFC 5280 4.2.1.6.
    if not names.critical and not list(leaf.subject):
        raise IdentityError("the leaf has an empty subject and a name extension not critical")
    _check_other_names(names.value)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier)
    if len(uris) != 1:
        raise IdentityError(f"the leaf has {len(uris)} URI names, not exactly one")
    return SpiffeId.parse(uris[0])


def _check_other_names(names: x509.SubjectAlternativeName) -> None:
    # A peer that joins names into one text takes a DNS or mail name for a URI, and one that stops
    # at a NUL reads half of it (CVE-2022-21656, CVE-2009-2408): neither belongs in any name.
    for name in names:
        if isinstance(name, x509.DNSName | x509.RFC822Name):
            text = name.value
            if "\0" in text or "spiffe:" in text.lower():
                raise IdentityError(f"the leaf has the misleading name {text[:200]!a}")


def _check_signer_usage(signer: _Certificate) -> None:
    constraints = signer.find(x509.BasicConstraints)
    if constraints is None or not constraints.value.ca:
        raise IdentityError(f"{signer.what} is not a CA certificate")
    usage = signer.find(x509.KeyUsage)
    if usage is None or not usage.value.key_cert_sign:
        raise IdentityError(f"{signer.what} lacks the key usage keyCertSign")


def _check_signer_name(signer: _Certificate, trust_domain: str) -> None:
    names = signer.find(x509.SubjectAlternativeName)
    uris = names.value.get_values_for_type(x509.UniformResourceIdentifier) if names else []
    if not uris:
        return
    if len(uris) > 1:
        raise IdentityError(f"{signer.what} has {len(uris)} URI names, not at most one")
    identity = SpiffeId.parse(uris[0])
    if identity.path:
        raise IdentityError(f"{signer.what} has the SPIFFE ID {identity}, which is a workload's")
    if identity.trust_domain != trust_domain:
        raise IdentityError(f"{signer.what} is not of the trust domain {trust_domain}")
