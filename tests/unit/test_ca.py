"""The CA signs what the channel's owner may be, and nothing else of what it asks for."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import NOW, ROOT, TRUST_DOMAIN, Profile, identity, make, uri

from meshrun.proxy.errors import IdentityError
from meshrun.proxy.leaf import assemble, new_key, request
from meshrun.proxy.svid import validate_chain
from meshrun.supervisor.ca import IssuedLeaf, Root, create_root, load_root, sign

WEB = identity("web")
TRUSTED = create_root(TRUST_DOMAIN, NOW)

USAGES = (
    "digital_signature",
    "content_commitment",
    "key_encipherment",
    "data_encipherment",
    "key_agreement",
    "key_cert_sign",
    "crl_sign",
)

AnyKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def usages(certificate: x509.Certificate) -> set[str]:
    extension = certificate.extensions.get_extension_for_class(x509.KeyUsage)
    assert extension.critical
    return {name for name in USAGES if getattr(extension.value, name)}


def uris(certificate: x509.Certificate) -> list[str]:
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert len(list(names)) == 1
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def signed(root: Root = TRUSTED, ttl_s: float = 3600.0) -> IssuedLeaf:
    return sign(root, request(new_key(), WEB), WEB, NOW, ttl_s)


def certificate_of(issued: IssuedLeaf) -> x509.Certificate:
    return x509.load_der_x509_certificate(issued.chain_der[0])


def csr(
    *names: x509.GeneralName,
    key: AnyKey | None = None,
    extra: tuple[x509.ExtensionType, ...] = (),
    subject: str = "",
) -> bytes:
    """Make a request as a sidecar never would."""
    common_name = [x509.NameAttribute(NameOID.COMMON_NAME, subject)] if subject else []
    builder = x509.CertificateSigningRequestBuilder(x509.Name(common_name))
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    for extension in extra:
        builder = builder.add_extension(extension, critical=True)
    key = key or new_key()
    algorithm = None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256()
    return builder.sign(key, algorithm).public_bytes(serialization.Encoding.DER)


def test_the_root_has_the_fields_of_a_spiffe_signing_certificate() -> None:
    root = TRUSTED.certificate
    constraints = root.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert constraints.value.ca
    assert usages(root) == {"digital_signature", "key_cert_sign", "crl_sign"}
    assert uris(root) == [f"spiffe://{TRUST_DOMAIN}"]
    assert root.subject == root.issuer
    assert isinstance(TRUSTED.key, ec.EllipticCurvePrivateKey)
    assert isinstance(TRUSTED.key.curve, ec.SECP256R1)
    root.verify_directly_issued_by(root)


def test_the_root_is_valid_from_a_minute_ago_for_ten_years() -> None:
    assert TRUSTED.certificate.not_valid_before_utc == NOW - timedelta(seconds=60)
    assert TRUSTED.certificate.not_valid_after_utc == NOW + timedelta(days=3650)


def test_a_root_takes_its_key_and_serial_where_they_are_given() -> None:
    key = new_key()
    root = create_root(TRUST_DOMAIN, NOW, key=key, serial=7)
    assert root.certificate.serial_number == 7
    assert root.certificate.public_key() == key.public_key()


def test_a_root_is_made_for_the_longest_trust_domain() -> None:
    root = create_root("a" * 255, NOW)
    assert uris(root.certificate) == ["spiffe://" + "a" * 255]


@pytest.mark.parametrize("trust_domain", ["", "Shop", "a b", "a/b", "a" * 256])
def test_no_root_for_a_bad_trust_domain(trust_domain: str) -> None:
    with pytest.raises(IdentityError):
        create_root(trust_domain, NOW)


def test_a_leaf_has_the_fields_of_an_x509_svid() -> None:
    leaf = certificate_of(signed())
    extensions = leaf.extensions
    constraints = extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert not constraints.value.ca
    assert usages(leaf) == {
        "digital_signature",
        "key_encipherment",
        "key_agreement",
        "data_encipherment",
    }
    assert set(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    assert uris(leaf) == [str(WEB)]
    assert list(leaf.subject) == []
    assert extensions.get_extension_for_class(x509.SubjectAlternativeName).critical


def test_a_leaf_is_linked_to_its_root() -> None:
    leaf, root = certificate_of(signed()), TRUSTED.certificate
    leaf.verify_directly_issued_by(root)
    authority = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = leaf.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    issuers = root.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert authority.key_identifier == issuers.digest
    assert own == x509.SubjectKeyIdentifier.from_public_key(leaf.public_key())


def test_a_leaf_is_valid_from_a_minute_ago_for_its_ttl() -> None:
    issued = signed(ttl_s=10.0)
    assert issued.not_before == NOW.timestamp() - 60
    assert issued.not_after == NOW.timestamp() + 10
    assert issued.issued_at == NOW.timestamp()


def test_a_leaf_does_not_outlive_its_root() -> None:
    issued = signed(ttl_s=timedelta(days=5000).total_seconds())
    assert issued.not_after == TRUSTED.certificate.not_valid_after_utc.timestamp()


def test_an_expired_root_signs_nothing() -> None:
    later = NOW + timedelta(days=3650)
    with pytest.raises(IdentityError, match="the root expired"):
        sign(TRUSTED, request(new_key(), WEB), WEB, later, 60.0)


def test_what_is_told_of_a_leaf_is_what_stands_in_it() -> None:
    issued = signed()
    leaf = certificate_of(issued)
    assert int(issued.serial, 16) == leaf.serial_number
    assert issued.not_before == leaf.not_valid_before_utc.timestamp()
    assert issued.not_after == leaf.not_valid_after_utc.timestamp()
    assert issued.identity == WEB


def test_every_leaf_has_another_serial() -> None:
    assert len({signed().serial for _ in range(20)}) == 20


def test_a_leaf_of_the_ca_passes_the_checks_of_its_peers() -> None:
    issued = signed()
    chain = [*issued.chain_der, TRUSTED.certificate_der]
    assert validate_chain(chain, TRUST_DOMAIN, NOW) == WEB


def test_the_issued_chain_fits_the_key_that_it_was_requested_for() -> None:
    key = new_key()
    issued = sign(TRUSTED, request(key, WEB), WEB, NOW, 60.0)
    leaf = assemble(key, issued.chain_der, issued.issued_at)
    assert (leaf.serial, leaf.not_after) == (issued.serial, issued.not_after)


def test_nothing_of_the_request_but_its_key_gets_into_the_leaf() -> None:
    key = new_key()
    extra: tuple[x509.ExtensionType, ...] = (
        x509.BasicConstraints(ca=True, path_length=None),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]),
        x509.IssuerAlternativeName([uri("spiffe://evil")]),
    )
    asked = csr(uri(str(WEB)), key=key, extra=extra, subject="evil")
    leaf = certificate_of(sign(TRUSTED, asked, WEB, NOW, 60.0))
    assert leaf.public_key() == key.public_key()
    assert list(leaf.subject) == []
    assert {extension.oid for extension in leaf.extensions} == {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
        ExtensionOID.SUBJECT_KEY_IDENTIFIER,
        ExtensionOID.AUTHORITY_KEY_IDENTIFIER,
    }
    assert not leaf.extensions.get_extension_for_class(x509.BasicConstraints).value.ca


NAME = uri(str(WEB))

REFUSED = {
    "no name": (csr(), "exactly one name"),
    "two URIs": (csr(NAME, uri(str(identity("db")))), "exactly one name"),
    "the same URI twice": (csr(NAME, NAME), "exactly one name"),
    "a DNS name beside": (csr(NAME, x509.DNSName("web")), "exactly one name"),
    "a DNS name of that text": (csr(x509.DNSName(str(WEB))), "exactly one name"),
    "another service": (csr(uri(str(identity("db")))), "its sender is"),
    "another trust domain": (csr(uri(str(identity("web", "other.mesh")))), "its sender is"),
    "a capital": (csr(uri(str(WEB).replace("web", "Web"))), "its sender is"),
    "NUL after the name": (csr(uri(f"{WEB}\0")), "its sender is"),
    "P-384": (csr(NAME, key=ec.generate_private_key(ec.SECP384R1())), "P-256"),
    "secp256k1": (csr(NAME, key=ec.generate_private_key(ec.SECP256K1())), "P-256"),
    "RSA": (csr(NAME, key=rsa.generate_private_key(65537, 2048)), "P-256"),
    "Ed25519": (csr(NAME, key=ed25519.Ed25519PrivateKey.generate()), "P-256"),
    "empty": (b"", "unreadable"),
    "junk": (b"\0" * 100, "unreadable"),
    "PEM": (b"-----BEGIN CERTIFICATE REQUEST-----", "unreadable"),
    "cut short": (csr(NAME)[:-1], "unreadable"),
    "a certificate": (TRUSTED.certificate_der, "unreadable"),
    "over 8 KiB": (csr(NAME, uri("spiffe://a/" + "b" * 9000)), "over 8192 bytes"),
}


@pytest.mark.parametrize(("asked", "reason"), list(REFUSED.values()), ids=list(REFUSED))
def test_refuses_the_request(asked: bytes, reason: str) -> None:
    with pytest.raises(IdentityError, match=reason):
        sign(TRUSTED, asked, WEB, NOW, 60.0)


def test_refuses_a_request_for_a_key_that_the_asker_does_not_hold() -> None:
    mine, theirs = new_key(), new_key()
    swapped = request(mine, WEB).replace(point(mine), point(theirs))
    with pytest.raises(IdentityError, match="not signed with its own key"):
        sign(TRUSTED, swapped, WEB, NOW, 60.0)


def point(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(
        serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    )


HOLDER = new_key()
VALID = request(HOLDER, WEB)


@given(st.integers(0, len(VALID) - 1), st.integers(0, 255))
def test_a_damaged_request_is_refused_or_means_the_same(place: int, value: int) -> None:
    # An unused bit of the signature may be flipped; nothing that is signed may.
    damaged = VALID[:place] + bytes([value]) + VALID[place + 1 :]
    try:
        issued = sign(TRUSTED, damaged, WEB, NOW, 60.0)
    except IdentityError:
        return
    assert certificate_of(issued).public_key() == HOLDER.public_key()


CERT, KEY = TRUSTED.certificate_pem, TRUSTED.key_pem()


@pytest.mark.parametrize(
    ("cert", "key"),
    [(CERT, KEY), (CERT + KEY, CERT + KEY), (KEY + CERT, KEY + CERT)],
    ids=["apart", "certificate first", "key first"],
)
def test_loads_what_it_dumped(cert: bytes, key: bytes) -> None:
    loaded = load_root(cert, key, TRUST_DOMAIN, NOW)
    assert loaded == TRUSTED
    assert loaded.key_pem() == KEY
    certificate_of(signed(loaded)).verify_directly_issued_by(TRUSTED.certificate)


def pem(key: AnyKey, password: bytes | None = None) -> bytes:
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if password:
        encryption = serialization.BestAvailableEncryption(password)
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption
    )


UNLOADABLE = {
    "another key": (CERT, create_root(TRUST_DOMAIN, NOW).key_pem(), "its key is not the one"),
    "a key of another kind": (CERT, pem(rsa.generate_private_key(65537, 2048)), "its key is not"),
    "an Ed25519 key": (CERT, pem(ed25519.Ed25519PrivateKey.generate()), "neither an EC nor an RSA"),
    "an encrypted key": (CERT, pem(new_key(), b"secret"), "encrypted"),
    "no key": (CERT, b"", "no PEM block of a private key"),
    "a corrupt key": (CERT, KEY[:60] + b"####" + KEY[64:], "cannot read the CA key"),
    "no certificate": (b"", KEY, "cannot read the CA certificate"),
    "a corrupt certificate": (CERT[:80] + b"####" + CERT[84:], KEY, "cannot read the CA cert"),
    "DER": (TRUSTED.certificate_der, KEY, "cannot read the CA certificate"),
}


@pytest.mark.parametrize(("cert", "key", "reason"), list(UNLOADABLE.values()), ids=list(UNLOADABLE))
def test_refuses_to_load(cert: bytes, key: bytes, reason: str) -> None:
    with pytest.raises(IdentityError, match=reason):
        load_root(cert, key, TRUST_DOMAIN, NOW)


UNFIT = {
    "another trust domain's": (
        replace(ROOT, names=(uri("spiffe://other.mesh"),)),
        "not of the trust domain",
    ),
    "a workload's": (replace(ROOT, names=(uri(str(WEB)),)), "a workload's"),
    "no CA": (replace(ROOT, ca=False), "not a CA"),
    "no keyCertSign": (replace(ROOT, usage=frozenset({"digital_signature"})), "keyCertSign"),
    "expired": (replace(ROOT, ends_s=-1), "expired"),
}


@pytest.mark.parametrize(("profile", "reason"), list(UNFIT.values()), ids=list(UNFIT))
def test_refuses_a_certificate_that_may_not_sign_for_the_mesh(
    profile: Profile, reason: str
) -> None:
    made = make(profile)
    with pytest.raises(IdentityError, match=reason):
        load_root(
            Root(made.certificate, made.key).certificate_pem, pem(made.key), TRUST_DOMAIN, NOW
        )


@pytest.mark.parametrize(
    "key",
    [
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["P-384", "RSA"],
)
def test_signs_with_the_key_of_an_outside_ca(
    key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey,
) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "outside")])
    usage = TRUSTED.certificate.extensions.get_extension_for_class(x509.KeyUsage).value
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, NOW, NOW + timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(usage, critical=True)
        .sign(key, hashes.SHA256())
    )
    outside = Root(certificate, key)
    root = load_root(outside.certificate_pem, outside.key_pem(), TRUST_DOMAIN, NOW)
    certificate_of(signed(root)).verify_directly_issued_by(certificate)


def test_the_keys_are_not_in_what_a_log_would_show() -> None:
    assert "key=" not in repr(TRUSTED)
