"""Who gets through a handshake of two sidecars, and who does not, by real OpenSSL on both sides."""

import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.x509.oid import ExtendedKeyUsageOID
from support.certificates import LEAF, ROOT, TRUST_DOMAIN, Made, Profile, identity, issue, make, uri

from meshrun.proxy.errors import IdentityError
from meshrun.proxy.leaf import Leaf, new_key
from meshrun.proxy.tls import authenticate, client_context, peer_chain, server_context
from meshrun.supervisor.ca import Root

NOW = datetime.now(UTC)
CA = make(ROOT, now=NOW)
ROOTS = [CA.der]
WEB = issue(Root(CA.certificate, CA.key), "web", NOW)
DB = issue(Root(CA.certificate, CA.key), "db", NOW)

WEB_URI = uri(str(identity("web")))
RIGHT = replace(LEAF, names=(WEB_URI,))


@dataclass(frozen=True, slots=True)
class Pair:
    """Both ends of a connection in memory, and what is on its way between them."""

    client: ssl.SSLObject
    server: ssl.SSLObject
    to_client: ssl.MemoryBIO
    to_server: ssl.MemoryBIO

    def shake_hands(self) -> None:
        """Finish the handshake on both ends, or raise the first error of either."""
        waiting = [self.client, self.server]
        for _ in range(10):
            waiting = [end for end in waiting if not is_through(end)]
        assert not waiting, "the handshake is stuck"

    def shake_hands_and_authenticate(self) -> None:
        """Do what two sidecars do: each end judges the other."""
        self.shake_hands()
        authenticate(self.client, TRUST_DOMAIN, NOW)
        authenticate(self.server, TRUST_DOMAIN, NOW)


def is_through(end: ssl.SSLObject) -> bool:
    try:
        end.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def connect(
    client: ssl.SSLContext, server: ssl.SSLContext, session: ssl.SSLSession | None = None
) -> Pair:
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    return Pair(
        client.wrap_bio(to_client, to_server, session=session),
        server.wrap_bio(to_server, to_client, server_side=True),
        to_client,
        to_server,
    )


def between(client: Leaf, server: Leaf) -> Pair:
    return connect(client_context(client, ROOTS), server_context(server, ROOTS))


def established() -> Pair:
    pair = between(WEB, DB)
    pair.shake_hands()
    return pair


def bare_client() -> ssl.SSLContext:
    """Return a client that checks nothing and shows nothing."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def test_each_side_learns_who_the_other_is() -> None:
    pair = established()
    assert authenticate(pair.server, TRUST_DOMAIN, NOW) == identity("web")
    assert authenticate(pair.client, TRUST_DOMAIN, NOW) == identity("db")


def test_the_verified_chain_goes_from_the_leaf_to_the_root() -> None:
    assert peer_chain(established().server) == [*WEB.chain_der, CA.der]


def test_bytes_pass_both_ways() -> None:
    pair = established()
    pair.client.write(b"ping")
    assert pair.server.read() == b"ping"
    pair.server.write(b"pong")
    assert pair.client.read() == b"pong"


def test_a_right_certificate_of_another_service_says_so() -> None:
    pair = established()
    assert authenticate(pair.client, TRUST_DOMAIN, NOW) != identity("echo-server")
    assert authenticate(pair.server, TRUST_DOMAIN, NOW) != identity("echo-client")


def test_a_right_certificate_is_none_in_another_trust_domain() -> None:
    with pytest.raises(IdentityError, match="not of the trust domain"):
        authenticate(established().server, "other.mesh", NOW)


OTHER_CA = make(ROOT, now=NOW)
EXPIRED_CA = make(replace(ROOT, subject="expired", ends_s=-1), CA, NOW)

STRANGERS = {
    "expired": (make(replace(RIGHT, ends_s=-5), CA, NOW), "expired"),
    "not yet valid": (make(replace(RIGHT, begins_s=600), CA, NOW), "not yet valid"),
    "self-signed": (make(replace(RIGHT, subject="web"), now=NOW), "self-signed|self signed"),
    "another CA of the same name": (make(RIGHT, OTHER_CA, NOW), "signature|issuer"),
    "another CA": (
        make(RIGHT, make(replace(ROOT, subject="evil"), now=NOW), NOW),
        "self.signed certificate in certificate chain",
    ),
    "signed by a leaf": (
        make(RIGHT, make(replace(RIGHT, subject="web"), CA, NOW), NOW),
        "issuer|CA|purpose",
    ),
}


def as_client(stranger: Leaf) -> Pair:
    return between(stranger, DB)


def as_server(stranger: Leaf) -> Pair:
    return between(WEB, stranger)


SIDES = pytest.mark.parametrize("side", [as_client, as_server])


@SIDES
@pytest.mark.parametrize(("stranger", "reason"), list(STRANGERS.values()), ids=list(STRANGERS))
def test_a_stranger_does_not_get_through_the_handshake(
    stranger: Made, reason: str, side: Callable[[Leaf], Pair]
) -> None:
    intermediates = [issuer.der for issuer in stranger.issuers]
    with pytest.raises(ssl.SSLCertVerificationError, match=f"(?i){reason}"):
        side(stranger.leaf(intermediates)).shake_hands()


def test_a_stranger_that_hides_its_ca_does_not_get_through() -> None:
    stranger = make(RIGHT, make(replace(ROOT, subject="evil"), now=NOW), NOW)
    with pytest.raises(ssl.SSLCertVerificationError, match="unable to get local issuer"):
        between(stranger.leaf(), DB).shake_hands()


@SIDES
def test_a_leaf_under_an_expired_intermediate_does_not_get_through(
    side: Callable[[Leaf], Pair],
) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match="expired"):
        side(make(RIGHT, EXPIRED_CA, NOW).leaf([EXPIRED_CA.der])).shake_hands()


IMPOSTORS = {
    "two URIs": replace(RIGHT, names=(WEB_URI, uri(str(identity("db"))))),
    "no URI": replace(RIGHT, names=(x509.DNSName("web"),)),
    "the text as a DNS name": replace(RIGHT, names=(x509.DNSName(str(identity("web"))),)),
    "a trust domain only": replace(RIGHT, names=(uri(f"spiffe://{TRUST_DOMAIN}"),)),
    "another trust domain": replace(RIGHT, names=(uri(str(identity("web", "other.mesh"))),)),
    "NUL": replace(RIGHT, names=(uri(f"{identity('web')}\0.evil"),)),
    "a CA": replace(RIGHT, ca=True),
    "keyCertSign": replace(RIGHT, usage=frozenset({"digital_signature", "key_cert_sign"})),
    "no key usage": replace(RIGHT, usage=None),
    "server only": replace(RIGHT, extended=(ExtendedKeyUsageOID.SERVER_AUTH,)),
    "client only": replace(RIGHT, extended=(ExtendedKeyUsageOID.CLIENT_AUTH,)),
}


@SIDES
@pytest.mark.parametrize("profile", list(IMPOSTORS.values()), ids=list(IMPOSTORS))
def test_a_signed_certificate_that_is_no_svid_is_refused(
    profile: Profile, side: Callable[[Leaf], Pair]
) -> None:
    pair = side(make(profile, CA, NOW).leaf())
    with pytest.raises((IdentityError, ssl.SSLCertVerificationError)):
        pair.shake_hands_and_authenticate()


def test_a_client_without_a_certificate_does_not_get_through() -> None:
    pair = connect(bare_client(), server_context(DB, ROOTS))
    with pytest.raises(ssl.SSLError, match="PEER_DID_NOT_RETURN_A_CERTIFICATE"):
        pair.shake_hands()


def test_the_refused_client_hears_it_at_its_first_read() -> None:
    # In TLS 1.3 the client is through before the server has judged its certificate.
    pair = connect(bare_client(), server_context(DB, ROOTS))
    with pytest.raises(ssl.SSLError):
        pair.shake_hands()
    with pytest.raises(ssl.SSLError, match="CERTIFICATE_REQUIRED"):
        pair.client.read()


def test_a_client_of_tls_1_2_does_not_get_through() -> None:
    client = bare_client()
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        connect(client, server_context(DB, ROOTS)).shake_hands()


def test_a_server_of_tls_1_2_does_not_get_through() -> None:
    server = server_context(DB, ROOTS)
    server.minimum_version = ssl.TLSVersion.TLSv1_2
    server.maximum_version = ssl.TLSVersion.TLSv1_2
    with pytest.raises(ssl.SSLError, match="UNSUPPORTED_PROTOCOL"):
        connect(client_context(WEB, ROOTS), server).shake_hands()


def test_plain_bytes_do_not_get_through() -> None:
    pair = between(WEB, DB)
    pair.to_server.write(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n")
    with pytest.raises(ssl.SSLError, match=r"HTTP_REQUEST|WRONG_VERSION_NUMBER"):
        pair.server.do_handshake()


def test_who_showed_no_certificate_is_nobody() -> None:
    server = server_context(DB, ROOTS)
    server.verify_mode = ssl.CERT_NONE
    pair = connect(bare_client(), server)
    pair.shake_hands()
    with pytest.raises(IdentityError, match="showed no certificate"):
        authenticate(pair.server, TRUST_DOMAIN, NOW)


def test_no_ticket_is_sent() -> None:
    pair = established()
    assert pair.to_client.pending == 0
    pair.server.write(b"x")
    assert pair.client.read() == b"x"
    assert pair.client.session is not None
    assert not pair.client.session.has_ticket


def test_no_session_is_resumed() -> None:
    client, server = client_context(WEB, ROOTS), server_context(DB, ROOTS)
    first = connect(client, server)
    first.shake_hands()
    second = connect(client, server, session=first.client.session)
    second.shake_hands()
    assert not second.server.session_reused
    assert authenticate(second.server, TRUST_DOMAIN, NOW) == identity("web")


def test_a_resumed_session_would_prove_nothing() -> None:
    client, server = client_context(WEB, ROOTS), server_context(DB, ROOTS)
    server.num_tickets = 2
    first = connect(client, server)
    first.shake_hands()
    first.server.write(b"x")
    first.client.read()
    second = connect(client, server, session=first.client.session)
    second.shake_hands()
    assert second.server.session_reused
    for end in (second.server, second.client):
        with pytest.raises(IdentityError, match="resumed"):
            authenticate(end, TRUST_DOMAIN, NOW)


@pytest.mark.parametrize("make_context", [server_context, client_context])
def test_the_systems_cas_are_not_trusted(
    make_context: Callable[[Leaf, list[bytes]], ssl.SSLContext],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = tmp_path / "ca.pem"
    bundle.write_text(ssl.DER_cert_to_PEM_cert(OTHER_CA.der))
    monkeypatch.setenv("SSL_CERT_FILE", str(bundle))
    assert make_context(WEB, ROOTS).get_ca_certs(binary_form=True) == ROOTS


@pytest.mark.parametrize("make_context", [server_context, client_context])
def test_session_keys_are_not_logged(
    make_context: Callable[[Leaf, list[bytes]], ssl.SSLContext],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    make_context(WEB, ROOTS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make_context", [server_context, client_context])
def test_the_key_is_in_no_file_and_no_descriptor_is_left(
    make_context: Callable[[Leaf, list[bytes]], ssl.SSLContext], tmp_path: Path
) -> None:
    before = os.listdir("/proc/self/fd")
    make_context(WEB, ROOTS)
    broken = replace(WEB, key_pem=DB.key_pem)
    with pytest.raises(IdentityError, match="cannot serve with leaf"):
        make_context(broken, ROOTS)
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("roots", [[], [b""], [b"junk"], [CA.der, b"junk"], [CA.der, b""]])
def test_unreadable_roots_are_refused(roots: list[bytes]) -> None:
    with pytest.raises(IdentityError, match="cannot serve with leaf"):
        server_context(WEB, roots)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give up its uid")
def test_a_leaf_is_loaded_by_a_process_that_gave_up_its_uid() -> None:
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setresgid(65534, 65534, 65534)
            os.setresuid(65534, 65534, 65534)
            server_context(WEB, ROOTS)
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0


def test_old_and_new_root_are_trusted_while_one_replaces_the_other() -> None:
    new = make(replace(ROOT, subject="new CA"), now=NOW)
    web = make(RIGHT, new, NOW).leaf()
    roots = [CA.der, new.der]
    pair = connect(client_context(web, roots), server_context(DB, roots))
    pair.shake_hands_and_authenticate()


@SIDES
def test_a_new_root_that_the_old_one_signed_is_trusted_by_who_knows_the_old(
    side: Callable[[Leaf], Pair],
) -> None:
    key = new_key()
    new_root = replace(ROOT, subject="new CA")
    new = make(new_root, now=NOW, key=key)
    crossed = make(new_root, CA, NOW, key=key)
    pair = side(make(RIGHT, new, NOW).leaf([crossed.der]))
    pair.shake_hands_and_authenticate()


def test_an_outside_ca_is_trusted_without_its_own_root() -> None:
    outside = make(replace(ROOT, subject="ours", names=None), OTHER_CA, NOW)
    web = make(RIGHT, outside, NOW).leaf()
    roots = [outside.der]
    pair = connect(client_context(web, roots), server_context(web, roots))
    pair.shake_hands_and_authenticate()
    assert peer_chain(pair.server) == [*web.chain_der, outside.der]
