"""SPIFFE IDs are read strictly and compared literally (SPIFFE-ID 2)."""

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.errors import IdentityError
from meshrun.proxy.spiffe import SpiffeId

ACCEPTED = [
    "spiffe://shop.mesh",
    "spiffe://shop.mesh/web",
    "spiffe://shop.mesh/ns/default/dc/local/svc/web",
    "spiffe://0-_.z/A-Z_a.z-0",
    "spiffe://shop.mesh/...",
    "spiffe://shop.mesh/.path",
    "spiffe://shop.mesh/..path",
    "spiffe://shop.mesh/path..",
    "spiffe://" + "a" * 255 + "/p",
    "spiffe://shop.mesh/" + "p" * (2048 - len("spiffe://shop.mesh/")),
]

REJECTED = {
    "empty": "",
    "no scheme": "shop.mesh/web",
    "https": "https://shop.mesh/web",
    "another scheme as long": "sparfe://shop.mesh/web",
    "capital scheme": "SPIFFE://shop.mesh/web",
    "capitalised scheme": "Spiffe://shop.mesh/web",
    "one slash": "spiffe:/shop.mesh/web",
    "space before": " spiffe://shop.mesh/web",
    "newline after": "spiffe://shop.mesh/web\n",
    "newline after the trust domain": "spiffe://shop.mesh\n",
    "empty trust domain": "spiffe:///web",
    "nothing": "spiffe://",
    "capital trust domain": "spiffe://Shop.mesh/web",
    "escaped trust domain": "spiffe://shop%2emesh/web",
    "user": "spiffe://user@shop.mesh/web",
    "user and password": "spiffe://user:pass@shop.mesh/web",
    "port": "spiffe://shop.mesh:8443/web",
    "empty port": "spiffe://shop.mesh:/web",
    "not ASCII trust domain": "spiffe://shöp.mesh/web",
    "trust domain of 256": "spiffe://" + "a" * 256 + "/p",
    "query": "spiffe://shop.mesh/web?x=1",
    "empty query": "spiffe://shop.mesh/web?",
    "query after the trust domain": "spiffe://shop.mesh?x",
    "fragment": "spiffe://shop.mesh/web#x",
    "fragment after the trust domain": "spiffe://shop.mesh#x",
    "escaped path": "spiffe://shop.mesh/w%65b",
    "escaped slash": "spiffe://shop.mesh/a%2Fb",
    "root path": "spiffe://shop.mesh/",
    "trailing slash": "spiffe://shop.mesh/web/",
    "empty segment": "spiffe://shop.mesh//web",
    "empty segment inside": "spiffe://shop.mesh/a//b",
    "dot": "spiffe://shop.mesh/.",
    "dot inside": "spiffe://shop.mesh/a/./b",
    "two dots": "spiffe://shop.mesh/a/..",
    "two dots inside": "spiffe://shop.mesh/a/../b",
    "wildcard": "spiffe://shop.mesh/ns/default/dc/local/svc/*",
    "NUL": "spiffe://shop.mesh/web\0.evil",
    "NUL in the trust domain": "spiffe://shop.mesh\0.evil/web",
    "space": "spiffe://shop.mesh/a b",
    "tilde": "spiffe://shop.mesh/~web",
    "not ASCII path": "spiffe://shop.mesh/wéb",
    "not ASCII digit": "spiffe://shop.mesh/web٣",
    "backslash": "spiffe://shop.mesh\\web",
    "2049 bytes": "spiffe://shop.mesh/" + "p" * (2049 - len("spiffe://shop.mesh/")),
}


@pytest.mark.parametrize("text", ACCEPTED)
def test_reads_and_writes_a_canonical_id(text: str) -> None:
    assert str(SpiffeId.parse(text)) == text


@pytest.mark.parametrize("text", list(REJECTED.values()), ids=list(REJECTED))
def test_rejects_what_is_not_canonical(text: str) -> None:
    with pytest.raises(IdentityError, match="cannot take"):
        SpiffeId.parse(text)


def test_an_error_shows_a_foreign_text_escaped_and_short() -> None:
    with pytest.raises(IdentityError) as caught:
        SpiffeId.parse("\x1b[2J\n" + "x" * 100_000)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_knows_the_service_of_a_service_id() -> None:
    parsed = SpiffeId.parse("spiffe://shop.mesh/ns/default/dc/east/svc/web.v1")
    assert (parsed.trust_domain, parsed.service) == ("shop.mesh", "web.v1")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/web",
        "/ns/other/dc/local/svc/web",
        "/ap/x/ns/default/dc/local/svc/web",
        "/ns/default/dc/local/svc/web/x",
        "/x/ns/default/dc/local/svc/web",
        "/ns/default/dc/svc/web",
        "/ns/default/dc/a/b/svc/web",
        "/NS/default/dc/local/svc/web",
        "/agent/client/dc/local/id/web",
    ],
)
def test_another_path_is_no_service(path: str) -> None:
    assert SpiffeId("shop.mesh", path).service is None


@pytest.mark.parametrize("path", ["web", "/", "/a//b", "/a/"])
def test_no_id_is_made_of_a_bad_path(path: str) -> None:
    with pytest.raises(IdentityError, match="the path"):
        SpiffeId("shop.mesh", path)


def test_makes_the_id_of_a_service() -> None:
    made = SpiffeId.for_service("shop.mesh", "web")
    assert str(made) == "spiffe://shop.mesh/ns/default/dc/local/svc/web"
    assert made.service == "web"


@pytest.mark.parametrize("service", ["", "*", "a/b", "..", "a b", "web?"])
def test_makes_no_id_of_a_bad_service_name(service: str) -> None:
    with pytest.raises(IdentityError):
        SpiffeId.for_service("shop.mesh", service)


def test_compares_literally() -> None:
    web = SpiffeId.for_service("shop.mesh", "web")
    assert web != SpiffeId.for_service("shop.mesh", "Web")
    assert web != SpiffeId.for_service("other.mesh", "web")
    assert SpiffeId.for_service("shop.mesh", "web.v1") != SpiffeId.for_service(
        "shop.mesh", "webxv1"
    )


TRUST_DOMAINS = st.text(string.ascii_lowercase + string.digits + "._-", min_size=1, max_size=255)
SEGMENTS = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=20).filter(
    lambda segment: segment not in (".", "..")
)


@given(TRUST_DOMAINS, st.lists(SEGMENTS, max_size=8))
def test_every_canonical_id_survives_a_round_trip(trust_domain: str, segments: list[str]) -> None:
    made = SpiffeId(trust_domain, "".join(f"/{segment}" for segment in segments))
    assert SpiffeId.parse(str(made)) == made


@given(st.one_of(st.text(), st.text().map(lambda rest: f"spiffe://{rest}")))
def test_a_text_is_an_id_that_reads_the_same_or_an_error(text: str) -> None:
    try:
        parsed = SpiffeId.parse(text)
    except IdentityError:
        return
    assert str(parsed) == text
