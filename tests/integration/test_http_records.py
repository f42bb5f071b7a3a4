"""What real sidecars count and tell of HTTP, however hostile whoever calls is."""

from collections import Counter
from collections.abc import Iterator

import msgspec
import pytest
from hpack.struct import NeverIndexedHeaderTuple
from support.httpmesh import ENTRIES, ID, RULES, Entry, HttpMesh
from support.sidecars import ControlledSidecar
from support.wire import call_as_peer
from support.wire2 import Wire2

from meshrun.proxy.ledger import MOST_SOURCES, OTHER
from meshrun.proxy.messages import Denied, Record, Recorded, Reporter, Stats, StatsRequested

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
# What the sidecar of the caller would not let through.
PEERS: list[Entry] = ["peer", "tunnel"]

each_peer = pytest.mark.parametrize("entry", PEERS)


def record(*sidecars: ControlledSidecar, wanted: bool = True) -> None:
    """Let these tell of each request from now on, or no more."""
    for sidecar in sidecars:
        sidecar.apply(msgspec.structs.replace(sidecar.snapshot, records=wanted))


@pytest.fixture(scope="module")
def running() -> Iterator[HttpMesh]:
    with HttpMesh() as mesh:
        record(mesh.client, mesh.server)
        yield mesh


@pytest.fixture
def mesh(running: HttpMesh) -> Iterator[HttpMesh]:
    """The mesh of this module, without connections; both of its sidecars tell of each request."""
    yield running
    running.tidy()


@pytest.fixture
def fresh() -> Iterator[HttpMesh]:
    """A mesh in which nobody has been counted yet."""
    with HttpMesh() as mesh:
        record(mesh.client, mesh.server)
        yield mesh


def next_record(sidecar: ControlledSidecar) -> Record:
    """Return what a sidecar tells next, which is told by itself."""
    (told,) = sidecar.expect(Recorded).records
    return told


def stats(sidecar: ControlledSidecar) -> Stats:
    """Ask a sidecar what it has counted."""
    sidecar.send(StatsRequested(number=1))
    return sidecar.expect(Stats)


def counted(sidecar: ControlledSidecar) -> Counter[tuple[str, Reporter, int]]:
    """Return how many requests were counted, by source, reporter and class of status."""
    found: Counter[tuple[str, Reporter, int]] = Counter()
    for each in stats(sidecar).exchanges:
        found[each.source, each.reporter, each.status_class] += sum(each.buckets)
    return found


@pytest.mark.slow
def test_each_source_is_told_apart_only_as_long_as_there_are_few(fresh: HttpMesh) -> None:
    mesh, made_up = fresh, MOST_SOURCES + 20
    for number in range(made_up):
        leaf = mesh.mesh.leaf(f"made-up-{number}")
        with call_as_peer(mesh.mesh, mesh.server, leaf) as wire:
            wire.say(b"GET /a HTTP/1.1\r\nHost: server\r\n\r\n")
            assert wire.hear_answer().status == 403
    found = stats(mesh.server)
    for sources in (
        Counter(each.source for each in found.exchanges),
        Counter(each.source for each in found.verdicts),
    ):
        assert len(sources) <= MOST_SOURCES + 1
        assert sources[OTHER] == 1
    assert sum(sum(each.buckets) for each in found.exchanges) == made_up
    assert sum(each.denied for each in found.verdicts) == made_up


@each_peer
def test_what_a_peer_sends_that_is_no_request_is_told(mesh: HttpMesh, entry: Entry) -> None:
    before = counted(mesh.server)
    with mesh.call(entry) as wire:
        wire.say(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert wire.hear_answer().status == 400
    told = next_record(mesh.server)
    assert told == Record(
        at=told.at,
        kind="request",
        source="client",
        identity=str(mesh.client.identity),
        destination="server",
        duration_s=0.0,
        protocol="HTTP/1",
        status=400,
        failure="cannot take the head: it has two host fields",
    )
    assert counted(mesh.server) - before == {("client", "destination", 4): 1}


def test_who_sends_what_is_no_request_is_named(mesh: HttpMesh) -> None:
    with mesh.call("peer") as wire:
        wire.say(b"GET / HTTP/1.1\r\n\r\n")
        assert wire.hear_answer().status == 400
    denied = mesh.server.expect(Denied)
    assert (denied.kind, denied.source) == ("request", "client")
    assert denied.reason == "cannot take the request: it has no Host"
    assert next_record(mesh.server).failure == denied.reason


@each_peer
def test_a_request_with_a_body_that_is_none_is_one_request(mesh: HttpMesh, entry: Entry) -> None:
    before = counted(mesh.server)
    with mesh.call(entry) as wire:
        head = f"POST /x HTTP/1.1\r\nHost: server\r\n{ID}\r\nTransfer-Encoding: chunked\r\n\r\n"
        wire.say(head.encode() + b"1\r\na\r\nzz\r\n")
        assert wire.hear_answer().status == 400
    told = next_record(mesh.server)
    assert (told.method, told.path, told.request_id, told.status) == ("POST", "/x", "1", 400)
    assert not told.denied
    assert "no chunk size" in told.failure
    assert counted(mesh.server) - before == {("client", "destination", 4): 1}


def test_a_body_that_is_none_behind_a_response_changes_no_status(mesh: HttpMesh) -> None:
    before = counted(mesh.server)
    with mesh.call("peer") as wire:
        wire.say(b"POST /x HTTP/1.1\r\nHost: server\r\nTransfer-Encoding: chunked\r\n\r\n")
        app = mesh.app.accept()
        app.hear_head()
        app.say(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhello")
        assert wire.hear_head().startswith(b"HTTP/1.1 200 ")
        wire.say(b"zz\r\n")
        wire.hear_break()
    told = next_record(mesh.server)
    assert (told.status, told.sent_bytes) == (200, 5)
    assert "no chunk size" in told.failure
    assert counted(mesh.server) - before == {("client", "destination", 2): 1}


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_request_is_told_once_and_by_the_sidecar_of_the_called(
    mesh: HttpMesh, entry: Entry
) -> None:
    before, sent = counted(mesh.server), counted(mesh.client)
    with mesh.call(entry) as wire:
        wire.say(f"GET /a?b HTTP/1.1\r\nHost: server\r\n{ID}\r\nUser-Agent: c\r\n\r\n".encode())
        app = mesh.app.accept()
        app.hear_request()
        app.say(OK)
        assert wire.hear_answer().status == 200
        told = next_record(mesh.server)
    assert (told.path, told.status, told.user_agent, told.failure) == ("/a", 200, "c", "")
    assert counted(mesh.server) - before == {("client", "destination", 2): 1}
    assert counted(mesh.client) == sent


# Of these a client may say that no table of a compression shall have them.
TEXTS = {
    ":method": "GET",
    ":scheme": "http",
    ":path": "/denied",
    ":authority": "server",
    "user-agent": "shy/1.0",
    "x-request-id": "1",
}


@pytest.mark.parametrize("protocol", ["http2", "grpc"])
def test_a_request_of_which_nothing_may_be_indexed_is_told_like_any(protocol: str) -> None:
    with HttpMesh(RULES, protocol="http2" if protocol == "http2" else "grpc") as mesh:
        record(mesh.server)
        with mesh.call("peer") as plain:
            wire = Wire2(plain, client=True)
            number = wire.h2.get_next_available_stream_id()
            head = [NeverIndexedHeaderTuple(*field) for field in TEXTS.items()]
            wire.head(number, head, end=True)
            wire.hear_answer(number)
            told = next_record(mesh.server)
        shown = (told.method, told.path, told.authority, told.user_agent, told.request_id)
        assert shown == ("GET", "/denied", "server", "shy/1.0", "1")
        assert (told.status, told.denied, told.protocol) == (403, True, "HTTP/2")


ROUNDS = 4
REQUESTS = 500


def cost_s(mesh: HttpMesh) -> float:
    """Return what requests cost the sidecar of the server that are answered by itself, in CPU."""
    before = mesh.server.cpu_s()
    with mesh.call("peer") as wire:
        for _ in range(REQUESTS):
            wire.say(b"GET /denied HTTP/1.1\r\nHost: server\r\nUser-Agent: x\r\n\r\n")
            assert wire.hear_answer().status == 403
    return mesh.server.cpu_s() - before


def test_to_tell_of_each_request_costs_a_fraction_of_it(fresh: HttpMesh) -> None:
    # In turns, and of each the cheapest: what else the machine does comes on top.
    told, untold = [], []
    for _ in range(ROUNDS):
        record(fresh.server, wanted=True)
        told.append(cost_s(fresh))
        record(fresh.server, wanted=False)
        untold.append(cost_s(fresh))
    assert min(told) < 1.5 * min(untold)
