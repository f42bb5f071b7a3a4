"""What the sidecars say in header fields of their own, and what a caller cannot say by them."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.http import own_fields
from meshrun.proxy.http.body1 import permitted_trailers
from meshrun.proxy.http.exchange import Failure
from meshrun.proxy.http.fields2 import read_request
from meshrun.proxy.http.head1 import parse_request
from meshrun.proxy.http.heads import Fields, Request, Response
from meshrun.proxy.http.own_fields import RequestIds

CALLER = "spiffe://shop.mesh/ns/default/dc/local/svc/web"
APP = "spiffe://shop.mesh/ns/default/dc/local/svc/api"

IDENTITY = ("x-forwarded-client-cert", "x-mesh-client-id")
OWN = (*IDENTITY, "x-request-id", "x-meshrun-failure")


# Of what a name may have, all that is neither letter nor digit.
SEPARATORS = "!#$%&'*+-.^_`|~"


def spellings(*names: str, separators: str = SEPARATORS) -> st.SearchStrategy[str]:
    """Names as somebody might write them whose app takes all of these for the same."""

    def spelled(name: str) -> st.SearchStrategy[str]:
        between = st.text(separators, max_size=2)
        letters = [between if c == "-" else st.sampled_from([c, c.upper()]) for c in f"-{name}-"]
        return st.tuples(*letters).map("".join)

    return st.sampled_from(names).flatmap(spelled)


def sent_over_http1(fields: Fields) -> Request:
    lines = ["GET / HTTP/1.1", "Host: a", *(f"{name}: {value}" for name, value in fields), "", ""]
    return parse_request("\r\n".join(lines).encode())


def sent_over_http2(fields: Fields, *, underscores: bool) -> Request:
    pseudo = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"a")]
    sent = [(name.lower().encode(), value.encode()) for name, value in fields]
    return read_request([*pseudo, *sent], ended=True, underscores=underscores)


others = st.sampled_from(
    [
        "Accept",
        "user-agent",
        "Content-Type",
        "x-mesh-client-ids",
        "x-mesh.client",
        "x-forwarded-client",
        "forwarded-client-cert",
        "traceparent",
    ]
)


def ids() -> RequestIds:
    return RequestIds(Random(1))


def test_an_app_is_told_who_calls_by_whom() -> None:
    assert own_fields.identity_of(CALLER, "ab12", told_by=APP) == [
        ("X-Forwarded-Client-Cert", f"By={APP};Hash=ab12;URI={CALLER}"),
        ("X-Mesh-Client-Id", CALLER),
    ]


@pytest.mark.parametrize("underscores", [False, True])
@given(
    kept=st.lists(st.tuples(others, st.just("kept"))),
    data=st.data(),
)
def test_no_spelling_of_an_identity_gets_past_and_all_else_does(
    underscores: bool, kept: Fields, data: st.DataObject
) -> None:
    # Where underscores are not taken for hyphens they are refused.
    separators = SEPARATORS if underscores else SEPARATORS.replace("_", "")
    spelled = spellings(*IDENTITY, separators=separators)
    forged = data.draw(st.lists(st.tuples(spelled, st.just("forged"))))
    sent = data.draw(st.permutations([*kept, *forged]))
    expected = [field for field in sent if field[1] == "kept"]
    through = sent_over_http2(sent, underscores=underscores).fields
    assert through == [(name.lower(), value) for name, value in expected]
    if not underscores:
        for _ in range(3):  # until the lines are known
            assert sent_over_http1(sent).fields == expected


@pytest.mark.parametrize(
    "named", ["x-mesh-client-id", "X.Mesh.Client.Id", "x-forwarded-client.cert"]
)
def test_to_name_an_identity_in_connection_changes_nothing(named: str) -> None:
    fields = [("Connection", f"close, {named}"), (named, "forged"), ("A", "1")]
    assert sent_over_http1(fields).fields == [("A", "1")]


def test_the_identifier_that_a_request_has_stays() -> None:
    kept = [("x-REQUEST-id", "mine"), ("Accept", "*/*")]
    assert own_fields.request_id(kept) == "mine"
    own_fields.add_request_id(kept, ids())
    assert own_fields.request_id(kept) == "mine"
    assert len(kept) == 2


def test_a_request_without_an_identifier_gets_one() -> None:
    fields: Fields = [("Content-Type", "text/plain")]
    assert own_fields.request_id(fields) is None
    own_fields.add_request_id(fields, ids())
    assert own_fields.request_id(fields) == ids().new()


@given(spellings(*OWN))
def test_nothing_of_the_sidecars_comes_behind_a_body(name: str) -> None:
    assert permitted_trailers([(name, "forged"), ("grpc-status", "0")]) == [("grpc-status", "0")]


@pytest.mark.parametrize("failure", [Failure.UNSENT, Failure.SILENT])
def test_a_failure_is_understood_by_the_other_sidecar_and_no_app_hears_of_it(
    failure: Failure,
) -> None:
    head = Response(status=503, fields=[("Content-Type", "text/plain")])
    own_fields.add_failure(head, failure)
    assert len(head.fields) == 2
    assert own_fields.take_failure(head) is failure
    assert head.fields == [("Content-Type", "text/plain")]
    assert own_fields.take_failure(head) is None


@pytest.mark.parametrize("failure", [None, Failure.BROKEN])
def test_what_allows_no_second_try_is_not_told(failure: Failure | None) -> None:
    head = Response(status=503)
    own_fields.add_failure(head, failure)
    assert not head.fields


@pytest.mark.parametrize("said", [["sent"], ["unsent", "unsent"], ["unsent", "silent"], [""]])
def test_a_failure_that_is_said_wrongly_is_none_and_goes_all_the_same(said: list[str]) -> None:
    head = Response(status=503, fields=[("x-meshrun-FAILURE", value) for value in said])
    assert own_fields.take_failure(head) is None
    assert not head.fields


def test_identifiers_are_uuids_of_which_none_comes_twice() -> None:
    made = ids()
    seen = {made.new() for _ in range(1000)}
    assert len(seen) == 1000
    assert all(len(each) == 36 and each[14] == "4" and each[19] == "8" for each in seen)
