"""What is kept of HTTP/2 for those who do not take it: how much, how long, and at whose expense."""

from collections.abc import Iterator
from time import monotonic

import pytest
from h2.events import DataReceived, Event, RequestReceived, StreamEnded, StreamReset
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame
from support.http2 import ClientPeer, Recorded, Recorder, RelayHandler, ServerPeer, frames_of

from meshrun.proxy import memory
from meshrun.proxy.http import connection2, stream2
from meshrun.proxy.http.connection2 import (
    CONNECTION_WINDOW_BYTES,
    MOST_LENT_BYTES,
    MOST_WAITING_BYTES,
    STALLED_S,
    STREAM_WINDOW_BYTES,
)
from meshrun.proxy.http.exchange import Downstream
from meshrun.proxy.http.heads import Framing, Request, Response

OK = [(b":status", b"200")]


@pytest.fixture(autouse=True)
def nothing_is_held_in_the_end() -> Iterator[None]:
    assert memory.held.bytes == 0
    yield
    assert memory.held.bytes == 0


@pytest.fixture
def handler() -> Recorder:
    return Recorder()


@pytest.fixture
def peer(handler: Recorder) -> Iterator[ClientPeer]:
    made = ClientPeer(handler)
    yield made
    made.server.reset("the test is over")


def the(handler: Recorder) -> Downstream:
    downstream = handler.exchanges[-1].downstream
    assert downstream is not None
    return downstream


def fill(peer: ClientPeer) -> int:
    """Send on a new stream as much as its window and that of the connection take."""
    number = peer.request(method=b"POST", end=False)
    peer.exchange()
    sent = 0
    while (room := min(peer.h2.local_flow_control_window(number), 16_384)) > 0:
        peer.h2.send_data(number, bytes(room))
        sent += room
        peer.exchange()
    return sent


def fill_until_stopped(handler: Recorder, peer: ClientPeer) -> int:
    """Do so on one stream after the other, where the other side holds; return how much it was."""
    handler.on_begin = lambda _, downstream: downstream.hold()
    sent = 0
    while size := fill(peer):
        sent += size
    handler.on_begin = lambda *_: None
    return sent


def passes(peer: ClientPeer) -> bool:
    """Whether more than the window of the connection can be sent, where nobody holds."""
    number = peer.request(method=b"POST", end=False)
    for _ in range(2 * CONNECTION_WINDOW_BYTES // 16_384):
        if peer.h2.local_flow_control_window(number) < 16_384:
            return False
        peer.h2.send_data(number, bytes(16_384))
        peer.exchange()
    return True


# Received, and not taken.


def test_streams_that_are_held_do_not_stop_the_others(handler: Recorder, peer: ClientPeer) -> None:
    handler.on_begin = lambda _, downstream: downstream.hold()
    streams = MOST_LENT_BYTES // STREAM_WINDOW_BYTES
    assert [fill(peer) for _ in range(streams)] == [STREAM_WINDOW_BYTES] * streams
    # What the window of the connection covers need not be lent.
    assert memory.held.bytes == MOST_LENT_BYTES - CONNECTION_WINDOW_BYTES // 2
    handler.on_begin = lambda *_: None
    assert passes(peer)


def test_a_connection_keeps_what_is_lent_to_it_and_its_window(
    handler: Recorder, peer: ClientPeer
) -> None:
    assert fill_until_stopped(handler, peer) == MOST_LENT_BYTES + CONNECTION_WINDOW_BYTES


def test_a_sidecar_lends_so_much_to_all_connections_together(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(memory, "MOST_HELD_BYTES", 2 * MOST_LENT_BYTES)
    handlers = [Recorder() for _ in range(4)]
    peers = [ClientPeer(handler) for handler in handlers]
    sent = [fill_until_stopped(*pair) for pair in zip(handlers, peers, strict=True)]
    assert sum(sent) == 2 * MOST_LENT_BYTES + 4 * CONNECTION_WINDOW_BYTES
    for peer in peers:
        peer.server.reset("the test is over")


def test_what_was_lent_is_paid_back_when_it_is_taken(handler: Recorder, peer: ClientPeer) -> None:
    assert fill_until_stopped(handler, peer)
    for exchange in handler.exchanges:
        assert exchange.downstream is not None
        exchange.downstream.resume()
    peer.exchange()
    assert memory.held.bytes == 0
    assert passes(peer)
    assert sum(len(exchange.body) for exchange in handler.exchanges) > MOST_LENT_BYTES


@pytest.mark.parametrize("end", ["reset", "abort", "connection"])
def test_what_was_lent_is_paid_back_when_the_stream_is_over(
    handler: Recorder, peer: ClientPeer, end: str
) -> None:
    assert fill_until_stopped(handler, peer)
    for number, exchange in enumerate(handler.exchanges):
        assert exchange.downstream is not None
        if end == "reset":
            peer.h2.reset_stream(1 + 2 * number)
        elif end == "abort":
            exchange.downstream.abort("denied now")
    if end == "connection":
        peer.server.broken("gone")
    peer.exchange()
    assert memory.held.bytes == 0
    if end != "connection":
        assert passes(peer)


def test_what_is_kept_in_small_frames_takes_no_more_memory(
    handler: Recorder, peer: ClientPeer
) -> None:
    handler.on_begin = lambda _, downstream: downstream.hold()
    number = peer.request(method=b"POST", end=False)
    peer.exchange()
    for _ in range(1000):
        peer.link.deliver(DataFrame(number, b"x").serialize())
    [stream] = peer.server._streams.values()
    assert isinstance(stream._kept, bytearray)
    assert len(stream._kept) == 1000
    the(handler).resume()
    assert handler.exchanges[0].said == ["data"]


# Joined.


def test_pieces_that_come_with_one_read_are_handed_on_as_one(
    handler: Recorder, peer: ClientPeer
) -> None:
    numbers = [peer.request(method=b"POST", end=False) for _ in range(2)]
    peer.exchange()
    # In turns, so that no two of a stream follow each other; few enough for one turn of the loop.
    frames = [DataFrame(number, b"%d" % at) for at in range(10) for number in numbers]
    frames.append(DataFrame(numbers[0], b"end", flags=["END_STREAM"]))
    peer.link.deliver(b"".join(frame.serialize() for frame in frames))
    first, second = handler.exchanges
    assert (first.said, bytes(first.body)) == (["data", "end"], b"0123456789end")
    assert (second.said, bytes(second.body)) == (["data"], b"0123456789")
    assert (first.flushes, second.flushes) == (2, 2)


def relayed() -> tuple[ClientPeer, ServerPeer]:
    """Return a client and a server with a relay between them."""
    server = ServerPeer()
    server.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 2**31 - 1})
    server.exchange()
    return ClientPeer(RelayHandler(server.client)), server


def streams(peer: ClientPeer | ServerPeer, kind: type[Event]) -> list[int]:
    """Return of which streams such events were heard."""
    return [getattr(event, "stream_id", 0) for event in peer.of(kind)]


def sizes(peer: ServerPeer) -> list[int]:
    """Return how large the pieces were that were heard."""
    return [len(getattr(event, "data", b"")) for event in peer.of(DataReceived)]


def move(asking: ClientPeer, answering: ServerPeer) -> None:
    """Let all pass that is said."""
    for _ in range(2):
        asking.exchange()
        answering.exchange()


def test_what_is_relayed_of_many_small_frames_is_few_large_ones() -> None:
    asking, answering = relayed()
    number = asking.request(method=b"POST", end=False)
    move(asking, answering)
    asking.link.deliver(b"".join(DataFrame(number, b"x").serialize() for _ in range(1000)))
    frames = frames_of(answering.link.take())
    assert [len(frame.data) for frame in frames if isinstance(frame, DataFrame)] == [1000]


# Given, and not taken.


def test_no_more_is_wanted_for_any_stream_while_much_waits(
    handler: Recorder, peer: ClientPeer
) -> None:
    peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    body = bytes(MOST_WAITING_BYTES // 16)

    def answer(_: Request, downstream: Downstream) -> None:
        downstream.respond(Response(status=200, framing=Framing.STREAM))
        downstream.send(body)
        downstream.end([])
        downstream.flush()

    first = peer.request()
    peer.exchange()
    assert handler.exchanges[0].said == ["end"]
    handler.on_begin = answer  # each whole, so that nothing is held back behind it
    for _ in range(17):
        peer.request()
        peer.exchange()
    assert handler.exchanges[0].said == ["end", "hold"]
    handler.on_begin = lambda *_: None
    late = peer.request()
    peer.exchange()
    assert handler.exchanges[-1].said == ["hold", "end"]
    # Once it has taken some, others may go on.
    for number in range(first + 2, late, 2):
        peer.h2.increment_flow_control_window(len(body), number)
    peer.exchange()
    assert handler.exchanges[0].said == ["end", "hold", "resume"]
    assert handler.exchanges[-1].said == ["hold", "end", "resume"]


def test_responses_that_wait_are_bounded_whatever_a_peer_asks_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asking, answering = relayed()
    asking.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    for _ in range(500):
        asking.request()
    move(asking, answering)
    numbers = streams(answering, RequestReceived)
    assert len(numbers) == 500
    body, said = bytes(16_384), 0
    for number in numbers:
        answering.h2.send_headers(number, OK)
        if answering.h2.local_flow_control_window(number) < len(body):
            break
        answering.h2.send_data(number, body, end_stream=True)
        said += len(body)
        answering.exchange()
    assert asking.server._waiting_bytes < MOST_WAITING_BYTES + stream2.PIECE_BYTES
    assert said < MOST_WAITING_BYTES + MOST_LENT_BYTES + CONNECTION_WINDOW_BYTES + len(body)
    # And all of them come when they are asked for.
    for number in numbers:
        asking.h2.increment_flow_control_window(len(body), number)
        asking.h2.increment_flow_control_window(len(body))
    move(asking, answering)
    assert len(asking.of(StreamEnded)) == said // len(body)
    assert memory.held.bytes == 0
    asking.server.reset("the test is over")


def test_window_of_a_request_is_given_back_when_the_app_has_taken_it() -> None:
    asking, answering = relayed()
    answering.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    move(asking, answering)
    whole = 0
    while True:
        number = asking.request(method=b"POST", end=False)
        asking.exchange()
        if asking.h2.local_flow_control_window(number) < 16_384:
            break
        asking.h2.send_data(number, bytes(16_384), end_stream=True)
        asking.exchange()
        whole += 16_384
    assert whole == MOST_LENT_BYTES + CONNECTION_WINDOW_BYTES
    assert memory.held.bytes == MOST_LENT_BYTES
    answering.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 65_535})
    answering.h2.increment_flow_control_window(2 * whole)
    move(asking, answering)
    assert sum(sizes(answering)) == whole
    assert memory.held.bytes == 0
    asking.server.reset("the test is over")


# For how long.


def test_stream_of_which_nothing_is_taken_is_cut(
    handler: Recorder, peer: ClientPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [monotonic()]
    for module in (connection2, stream2):
        monkeypatch.setattr(module, "monotonic", lambda: now[0])
    peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 100})
    numbers = [peer.request() for _ in range(3)]
    peer.exchange()
    for exchange, end in zip(handler.exchanges, (False, True, False), strict=True):
        assert exchange.downstream is not None
        exchange.downstream.respond(Response(status=200, framing=Framing.STREAM))
        exchange.downstream.send(bytes(1000))
        if end:
            exchange.downstream.end([])
        exchange.downstream.flush()
    [timer] = peer.link.timers
    assert timer.wait_s == STALLED_S
    now[0] += STALLED_S - 1
    peer.h2.increment_flow_control_window(1, numbers[2])
    peer.exchange()
    now[0] += 1
    timer.fire()
    peer.exchange()
    assert streams(peer, StreamReset) == numbers[:2]
    assert "took nothing" in handler.exchanges[0].said[-1]
    assert handler.exchanges[2].said == ["end", "hold"]
    [timer] = peer.link.timers
    assert timer.wait_s == STALLED_S - 1
    # What is taken in time leaves nothing to look at.
    peer.h2.increment_flow_control_window(1000, numbers[2])
    peer.exchange()
    timer.fire()
    assert peer.link.timers == []


def test_request_of_which_an_app_takes_nothing_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = ServerPeer()
    peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    peer.exchange()
    exchange = Recorded()
    request = Request("POST", "/", "", "app", framing=Framing.STREAM)
    upstream = exchange.upstream = peer.client.request(request, exchange)
    upstream.send(b"x")
    upstream.flush()
    monkeypatch.setattr(connection2, "STALLED_S", 0.0)
    peer.link.timers[0].fire()
    assert exchange.said[0] == "hold"
    assert "took nothing" in exchange.said[1]
    assert peer.client.in_flight == 0
    assert peer.link.timers == []


def test_closed_connection_looks_at_nothing_any_more(handler: Recorder, peer: ClientPeer) -> None:
    peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    peer.request()
    peer.exchange()
    the(handler).respond(Response(status=200, framing=Framing.STREAM))
    the(handler).send(b"x")
    the(handler).flush()
    assert peer.link.timers
    peer.server.reset("denied now")
    assert peer.link.timers == []
