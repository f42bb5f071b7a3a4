"""The X.509-SVID checklist: a certificate made for each rule (X509-SVID 2 to 5, RFC 5280)."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import LEAF, NOW, ROOT, TRUST_DOMAIN, Made, Profile, make, uri

from meshrun.proxy.errors import IdentityError
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.svid import validate_chain, validate_signer

WEB = f"spiffe://{TRUST_DOMAIN}/svc/web"
TRUSTED = make(ROOT)
INTERMEDIATE = replace(ROOT, subject="test intermediate")

# The object identifiers 2.5.29.18 and 2.5.29.17 in DER.
ISSUER_NAMES = bytes.fromhex("0603551d12")
SUBJECT_NAMES = bytes.fromhex("0603551d11")

CERT_SIGN = frozenset({"key_cert_sign"})


def validate(leaf: Profile, issuer: Made = TRUSTED) -> SpiffeId:
    return validate_chain(make(leaf, issuer).chain, TRUST_DOMAIN, NOW)


def named(*names: x509.GeneralName, critical: bool = True) -> Profile:
    return replace(LEAF, names=names, names_critical=critical)


def directory_name(text: str) -> x509.GeneralName:
    return x509.DirectoryName(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]))


ACCEPTED = {
    "the plain leaf": LEAF,
    "no basic constraints": replace(LEAF, ca=None),
    "no extended key usage": replace(LEAF, extended=None),
    "more extended key usages": replace(
        LEAF,
        extended=(
            ExtendedKeyUsageOID.CODE_SIGNING,
            ExtendedKeyUsageOID.CLIENT_AUTH,
            ExtendedKeyUsageOID.SERVER_AUTH,
        ),
    ),
    "Consul's key usages": replace(
        LEAF,
        usage=frozenset(
            {"digital_signature", "key_encipherment", "key_agreement", "data_encipherment"}
        ),
    ),
    "a subject and names not critical": replace(LEAF, subject="web", names_critical=False),
    "a DNS name beside": named(uri(WEB), x509.DNSName("web.internal")),
    "dots": named(uri(f"spiffe://{TRUST_DOMAIN}/.../.path/..path")),
    "2048 bytes": named(uri(WEB + "x" * (2048 - len(WEB)))),
}


@pytest.mark.parametrize("leaf", list(ACCEPTED.values()), ids=list(ACCEPTED))
def test_accepts(leaf: Profile) -> None:
    assert leaf.names is not None
    assert str(validate(leaf)) == leaf.names[0].value


REJECTED_NAMES = {
    "no names": (replace(LEAF, names=None), "no subject alternative name"),
    "a DNS name only": (named(x509.DNSName("web")), "0 URI names"),
    "two valid URIs": (named(uri(WEB), uri(WEB + "2")), "2 URI names"),
    "the same URI twice": (named(uri(WEB), uri(WEB)), "2 URI names"),
    "a second URI of another scheme": (named(uri(WEB), uri("https://web")), "2 URI names"),
    "https": (named(uri("https://shop.mesh/web")), "does not start with spiffe://"),
    "sparfe": (named(uri("sparfe://shop.mesh/web")), "does not start with spiffe://"),
    "capital scheme": (named(uri("SPIFFE://shop.mesh/web")), "does not start with spiffe://"),
    "no path": (named(uri("spiffe://shop.mesh")), "names a trust domain"),
    "root path": (named(uri("spiffe://shop.mesh/")), "empty segment"),
    "another trust domain": (named(uri("spiffe://other.mesh/web")), "not of the trust domain"),
    "a subdomain": (named(uri("spiffe://a.shop.mesh/web")), "not of the trust domain"),
    "names not critical without subject": (named(uri(WEB), critical=False), "empty subject"),
    "query": (named(uri(WEB + "?x")), "character"),
    "fragment": (named(uri(WEB + "#x")), "character"),
    "user": (named(uri("spiffe://u@shop.mesh/web")), "trust domain"),
    "port": (named(uri("spiffe://shop.mesh:1/web")), "trust domain"),
    "empty trust domain": (named(uri("spiffe:///web")), "trust domain is empty"),
    "capital trust domain": (named(uri("spiffe://SHOP.mesh/web")), "trust domain"),
    "escaped trust domain": (named(uri("spiffe://shop%2Emesh/web")), "trust domain"),
    "trust domain of 256": (named(uri(f"spiffe://{'a' * 256}/web")), "longer than 255"),
    "escaped path": (named(uri("spiffe://shop.mesh/w%65b")), "character"),
    "empty segment": (named(uri("spiffe://shop.mesh/a//b")), "empty segment"),
    "dot segment": (named(uri("spiffe://shop.mesh/a/./b")), "segment '.'"),
    "dots segment": (named(uri("spiffe://shop.mesh/a/../b")), "segment '..'"),
    "trailing slash": (named(uri(WEB + "/")), "empty segment"),
    "wildcard": (named(uri("spiffe://shop.mesh/svc/*")), "character"),
    "NUL in the URI": (named(uri(WEB + "\0.evil")), "character"),
    "NUL in the trust domain": (named(uri("spiffe://shop.mesh\0evil/web")), "trust domain"),
    "URI text as DNS name": (named(x509.DNSName(WEB)), "misleading"),
    "URI text as DNS name beside a URI": (named(uri(WEB), x509.DNSName(WEB + "2")), "misleading"),
    "URI text as mail name": (named(x509.RFC822Name("spiffe://shop.mesh/a@b.c")), "misleading"),
    "URI text joined into a DNS name": (
        named(uri(WEB), x509.DNSName(f"web, URI:{WEB}2")),
        "misleading",
    ),
    "NUL in a DNS name": (named(uri(WEB), x509.DNSName("web\0.evil")), "misleading"),
    "URI text as directory name": (named(directory_name(WEB)), "0 URI names"),
    "URI text as subject only": (replace(LEAF, names=None, subject=WEB), "no subject alternative"),
}

REJECTED_USAGE = {
    "CA": (replace(LEAF, ca=True), "CA certificate"),
    "keyCertSign": (
        replace(LEAF, usage=frozenset({"digital_signature", "key_cert_sign"})),
        "keyCertSign",
    ),
    "cRLSign": (replace(LEAF, usage=frozenset({"digital_signature", "crl_sign"})), "cRLSign"),
    "no digitalSignature": (
        replace(LEAF, usage=frozenset({"key_agreement"})),
        "lacks digitalSignature",
    ),
    "no key usage": (replace(LEAF, usage=None), "no critical key usage"),
    "key usage not critical": (replace(LEAF, usage_critical=False), "no critical key usage"),
    "server only": (replace(LEAF, extended=(ExtendedKeyUsageOID.SERVER_AUTH,)), "clientAuth"),
    "client only": (replace(LEAF, extended=(ExtendedKeyUsageOID.CLIENT_AUTH,)), "serverAuth"),
    "any usage": (
        replace(LEAF, extended=(ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE,)),
        "serverAuth",
    ),
    "expired": (replace(LEAF, ends_s=-1), "expired"),
    "not yet valid": (replace(LEAF, begins_s=1), "not valid before"),
}

REJECTED = REJECTED_NAMES | REJECTED_USAGE


@pytest.mark.parametrize(("leaf", "reason"), list(REJECTED.values()), ids=list(REJECTED))
def test_rejects_the_leaf(leaf: Profile, reason: str) -> None:
    with pytest.raises(IdentityError, match=reason):
        validate(leaf)


ACCEPTED_SIGNERS = {
    "without names": replace(INTERMEDIATE, names=None),
    "with a DNS name": replace(INTERMEDIATE, names=(x509.DNSName("ca.example"),)),
    "with keyCertSign only": replace(INTERMEDIATE, usage=CERT_SIGN),
}


@pytest.mark.parametrize("signer", list(ACCEPTED_SIGNERS.values()), ids=list(ACCEPTED_SIGNERS))
def test_accepts_the_signer_of_an_outside_ca(signer: Profile) -> None:
    assert str(validate(LEAF, make(signer, TRUSTED))) == WEB


REJECTED_SIGNERS = {
    "not a CA": (replace(INTERMEDIATE, ca=False), "not a CA"),
    "no basic constraints": (replace(INTERMEDIATE, ca=None), "not a CA"),
    "no keyCertSign": (replace(INTERMEDIATE, usage=frozenset({"crl_sign"})), "keyCertSign"),
    "no key usage": (replace(INTERMEDIATE, usage=None), "keyCertSign"),
    "a workload's SPIFFE ID": (replace(INTERMEDIATE, names=(uri(WEB),)), "a workload's"),
    "another trust domain's": (
        replace(INTERMEDIATE, names=(uri("spiffe://other.mesh"),)),
        "not of the trust domain",
    ),
    "a URI that is no SPIFFE ID": (
        replace(INTERMEDIATE, names=(uri("https://shop.mesh"),)),
        "does not start with",
    ),
    "two URIs": (
        replace(INTERMEDIATE, names=(uri("spiffe://shop.mesh"), uri("spiffe://shop.mesh"))),
        "2 URI names",
    ),
    "expired": (replace(INTERMEDIATE, ends_s=-1), "expired"),
    "not yet valid": (replace(INTERMEDIATE, begins_s=1), "not valid before"),
}


@pytest.mark.parametrize(
    ("signer", "reason"), list(REJECTED_SIGNERS.values()), ids=list(REJECTED_SIGNERS)
)
def test_rejects_a_right_leaf_under_a_wrong_intermediate(signer: Profile, reason: str) -> None:
    with pytest.raises(IdentityError, match=reason):
        validate(LEAF, make(signer, TRUSTED))


@pytest.mark.parametrize(
    ("signer", "reason"), list(REJECTED_SIGNERS.values()), ids=list(REJECTED_SIGNERS)
)
def test_rejects_a_right_leaf_under_a_wrong_root(signer: Profile, reason: str) -> None:
    with pytest.raises(IdentityError, match=reason):
        validate(LEAF, make(signer))


@pytest.mark.parametrize(
    ("signer", "reason"), list(REJECTED_SIGNERS.values()), ids=list(REJECTED_SIGNERS)
)
def test_rejects_a_wrong_ca_certificate_to_sign_with(signer: Profile, reason: str) -> None:
    with pytest.raises(IdentityError, match=reason):
        validate_signer(make(signer).der, TRUST_DOMAIN, NOW)


def test_a_signer_seen_before_still_expires() -> None:
    chain = make(replace(LEAF, ends_s=10**6), TRUSTED).chain
    validate_chain(chain, TRUST_DOMAIN, NOW)
    with pytest.raises(IdentityError, match="the signing certificate expired"):
        validate_chain(chain, TRUST_DOMAIN, NOW + timedelta(seconds=ROOT.ends_s + 1))


def test_a_signer_seen_before_is_not_one_of_another_trust_domain() -> None:
    issuer = make(replace(ROOT, names=None))
    chain = make(LEAF, issuer).chain
    validate_chain(chain, TRUST_DOMAIN, NOW)
    with pytest.raises(IdentityError, match="not of the trust domain"):
        validate_chain(chain, "other.mesh", NOW)
    with pytest.raises(IdentityError, match="not of the trust domain"):
        validate_chain([chain[0], TRUSTED.der], "other.mesh", NOW)


@pytest.mark.parametrize("chain", [[], [make(LEAF).der], make(LEAF, TRUSTED).chain * 6])
def test_rejects_a_chain_of_an_impossible_length(chain: list[bytes]) -> None:
    with pytest.raises(IdentityError, match="the chain has"):
        validate_chain(chain, TRUST_DOMAIN, NOW)


@pytest.mark.parametrize("junk", [b"", b"\0", b"0\x03\x02\x01\x01", make(LEAF).der[:-1]])
def test_rejects_an_unreadable_certificate_anywhere(junk: bytes) -> None:
    leaf, root = make(LEAF, TRUSTED).chain
    for chain in ([junk, root], [leaf, junk]):
        with pytest.raises(IdentityError, match="unreadable"):
            validate_chain(chain, TRUST_DOMAIN, NOW)


def test_rejects_a_certificate_with_the_same_extension_twice() -> None:
    # No library builds one: the extension of issuer names is renamed to that of subject names.
    issuer_names = x509.IssuerAlternativeName([uri(WEB)])
    der = make(replace(LEAF, extra=(issuer_names,)), TRUSTED).der
    assert der.count(ISSUER_NAMES) == 1
    with pytest.raises(IdentityError, match="unreadable"):
        validate_chain([der.replace(ISSUER_NAMES, SUBJECT_NAMES), TRUSTED.der], TRUST_DOMAIN, NOW)


def test_rejects_a_certificate_of_unknown_version() -> None:
    der = bytearray(make(LEAF, TRUSTED).der)
    version = der.index(b"\xa0\x03\x02\x01\x02")
    der[version + 4] = 7
    with pytest.raises(IdentityError, match="unreadable"):
        validate_chain([bytes(der), TRUSTED.der], TRUST_DOMAIN, NOW)


VALID = make(LEAF, TRUSTED).der


# A damaged serial number or name makes the library warn and read on.
@pytest.mark.filterwarnings("ignore")
@given(st.integers(0, len(VALID) - 1), st.integers(0, 255))
def test_a_damaged_certificate_is_an_identity_or_an_identity_error(place: int, value: int) -> None:
    damaged = VALID[:place] + bytes([value]) + VALID[place + 1 :]
    try:
        identity = validate_chain([damaged, TRUSTED.der], TRUST_DOMAIN, NOW)
    except IdentityError:
        return
    assert identity.trust_domain == TRUST_DOMAIN
