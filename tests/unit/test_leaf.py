"""A sidecar makes its key, asks for its leaf, and knows when to ask again."""

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given
from hypothesis import strategies as st
from support.certificates import LEAF, NOW, identity, make

from meshrun.proxy.errors import IdentityError
from meshrun.proxy.leaf import assemble, new_key, renew_at, request, serial_text

ISSUED_AT = NOW.timestamp()


def test_a_request_holds_the_identity_and_nothing_else() -> None:
    key = new_key()
    csr = x509.load_der_x509_csr(request(key, identity("web")))
    assert csr.is_signature_valid
    assert csr.public_key() == key.public_key()
    assert list(csr.subject) == []
    assert [extension.value for extension in csr.extensions] == [
        x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(identity("web")))])
    ]


def test_a_key_is_p256_and_never_the_same() -> None:
    first, second = new_key(), new_key()
    assert isinstance(first.curve, ec.SECP256R1)
    assert first.public_key() != second.public_key()


def test_assembles_the_issued_chain_with_its_key() -> None:
    made = make(LEAF)
    leaf = assemble(made.key, [made.der, b"intermediate"], ISSUED_AT)
    assert leaf.chain_der == (made.der, b"intermediate")
    assert int(leaf.serial, 16) == made.certificate.serial_number
    assert leaf.not_before == ISSUED_AT - 60
    assert leaf.not_after == ISSUED_AT + 3600
    assert leaf.issued_at == ISSUED_AT
    key = serialization.load_pem_private_key(leaf.key_pem, password=None)
    assert key.public_key() == made.key.public_key()


def test_the_key_is_not_in_what_a_log_would_show() -> None:
    made = make(LEAF)
    assert "PRIVATE" not in repr(made.leaf())


def test_refuses_the_certificate_of_another_key() -> None:
    with pytest.raises(IdentityError, match="another key"):
        assemble(new_key(), [make(LEAF).der], ISSUED_AT)


@pytest.mark.parametrize("chain", [[], [b""], [b"-----BEGIN CERTIFICATE-----"]])
def test_refuses_an_unreadable_chain(chain: list[bytes]) -> None:
    with pytest.raises(IdentityError, match="leaf"):
        assemble(new_key(), chain, ISSUED_AT)


def test_renews_between_six_and_nine_tenths_of_the_lifetime() -> None:
    assert renew_at(1000.0, 2000.0, 0.0) == pytest.approx(1600.0)
    assert renew_at(1000.0, 2000.0, 0.5) == pytest.approx(1750.0)


@given(
    st.floats(0, 4e9),
    st.floats(10, 3e8),
    st.floats(0, 1, exclude_max=True),
)
def test_renewal_is_always_after_the_issue_and_before_the_end(
    issued_at: float, ttl_s: float, fraction: float
) -> None:
    due = renew_at(issued_at, issued_at + ttl_s, fraction)
    assert issued_at + 0.59 * ttl_s < due < issued_at + 0.91 * ttl_s


@pytest.mark.parametrize(("serial", "text"), [(1, "01"), (0xABC, "0abc"), (0x1234, "1234")])
def test_a_serial_is_written_in_whole_bytes(serial: int, text: str) -> None:
    assert serial_text(serial) == text
