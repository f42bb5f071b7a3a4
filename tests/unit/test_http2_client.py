"""The side of HTTP/2 that asks, before a server of h2."""

from typing import cast

import pytest
from h2.errors import ErrorCodes
from h2.events import DataReceived, RequestReceived, StreamEnded, StreamReset, TrailersReceived
from h2.settings import SettingCodes
from hyperframe.frame import (
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from support.http2 import Recorded, ServerPeer, frames_of

from meshrun.proxy.http import connection2
from meshrun.proxy.http.exchange import Failure
from meshrun.proxy.http.fields2 import Secret
from meshrun.proxy.http.heads import Framing, Request

OK = [(b":status", b"200")]
WINDOW_BYTES = 65_535


@pytest.fixture
def peer() -> ServerPeer:
    return ServerPeer()


def ask(
    peer: ServerPeer, framing: Framing = Framing.NONE, method: str = "GET", length: int = 0
) -> Recorded:
    """Send a request; return its exchange."""
    exchange = Recorded()
    request = Request(
        method=method, path="/a", query="?b", authority="app", framing=framing, length=length
    )
    exchange.upstream = peer.client.request(request, exchange)
    exchange.upstream.flush()
    return exchange


def heads(peer: ServerPeer) -> list[list[tuple[bytes, bytes]]]:
    return [
        [(bytes(name), bytes(value)) for name, value in cast(RequestReceived, event).headers or []]
        for event in peer.of(RequestReceived)
    ]


# Requests.


def test_request_without_a_body_is_one_frame(peer: ServerPeer) -> None:
    exchange = ask(peer)
    assert exchange.upstream is not None
    exchange.upstream.end([])  # is said of every request
    exchange.upstream.flush()
    [head] = frames_of(peer.link.take())
    assert isinstance(head, HeadersFrame)
    assert "END_STREAM" in head.flags


def test_request_as_it_is_written(peer: ServerPeer) -> None:
    request = Request(
        method="POST",
        path="/a",
        query="?b",
        authority="app:80",
        fields=[("Accept", "*/*"), ("TE", "trailers"), ("Connection", "x"), ("k", Secret("v"))],
        framing=Framing.LENGTH,
        length=4,
    )
    exchange = Recorded()
    upstream = peer.client.request(request, exchange, [("X-Mesh-Client-Id", "é")])
    upstream.send(b"da")
    upstream.send(memoryview(b"ta"))
    upstream.end([("Sum", "1")])
    upstream.flush()
    peer.exchange()
    assert heads(peer) == [
        [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":path", b"/a?b"),
            (b":authority", b"app:80"),
            (b"accept", b"*/*"),
            (b"te", b"trailers"),
            (b"k", b"v"),
            (b"x-mesh-client-id", b"\xe9"),
            (b"content-length", b"4"),
        ]
    ]
    indexable = [
        bytes(field[0])
        for field in cast(RequestReceived, peer.of(RequestReceived)[0]).headers or []
        if getattr(field, "indexable", True)
    ]
    assert b"k" not in indexable  # what must not be indexed is not on the next hop either
    [data] = peer.of(DataReceived)
    assert cast(DataReceived, data).data == b"data"
    assert len(peer.of(TrailersReceived)) == 1
    assert len(peer.of(StreamEnded)) == 1


def test_body_that_ends_at_once_is_one_frame(peer: ServerPeer) -> None:
    exchange = ask(peer, Framing.STREAM, "POST")
    assert exchange.upstream is not None
    peer.link.take()
    exchange.upstream.send(b"data")
    exchange.upstream.end([])
    exchange.upstream.flush()
    [data] = frames_of(peer.link.take())
    assert isinstance(data, DataFrame)
    assert data.data == b"data"
    assert "END_STREAM" in data.flags


def test_body_waits_for_the_window(peer: ServerPeer) -> None:
    exchange = ask(peer, Framing.STREAM, "POST")
    upstream = exchange.upstream
    assert upstream is not None
    upstream.send(bytes(WINDOW_BYTES + 10))
    upstream.flush()
    peer.exchange()
    assert exchange.said == ["hold"]
    peer.h2.acknowledge_received_data(WINDOW_BYTES, 1)
    peer.exchange()
    assert exchange.said == ["hold", "resume"]
    upstream.end([])
    upstream.flush()
    peer.exchange()
    assert sum(len(cast(DataReceived, event).data or b"") for event in peer.of(DataReceived)) == (
        WINDOW_BYTES + 10
    )


def test_larger_window_by_settings_wakes_what_waits(peer: ServerPeer) -> None:
    exchange = ask(peer, Framing.STREAM, "POST")
    assert exchange.upstream is not None
    peer.h2.increment_flow_control_window(WINDOW_BYTES)
    peer.exchange()
    exchange.upstream.send(bytes(WINDOW_BYTES + 10))
    exchange.upstream.flush()
    peer.exchange()
    assert exchange.said == ["hold"]
    peer.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 2 * WINDOW_BYTES})
    peer.exchange()
    assert exchange.said == ["hold", "resume"]


# Responses.


def test_interim_heads_body_and_trailers_are_delivered(peer: ServerPeer) -> None:
    exchange = ask(peer)
    peer.exchange()
    peer.h2.send_headers(1, [(b":status", b"103"), (b"link", b"</x>")])
    peer.h2.send_headers(1, [*OK, (b"x_y", b"1")])
    peer.h2.send_data(1, b"body")
    peer.h2.send_headers(1, [(b"grpc-status", b"0")], end_stream=True)
    peer.exchange()
    assert exchange.said == ["head 103", "head 200", "data", "end"]
    assert exchange.body == b"body"
    assert exchange.trailers == [("grpc-status", "0")]
    assert exchange.heads[1].fields == [("x_y", "1")]
    assert exchange.heads[1].framing is Framing.STREAM
    assert exchange.flushes == 1
    assert peer.client.in_flight == 0


def test_response_that_is_a_head_only(peer: ServerPeer) -> None:
    exchange = ask(peer)
    peer.exchange()
    peer.h2.send_headers(1, [*OK, (b"grpc-status", b"5")], end_stream=True)
    peer.exchange()
    assert exchange.said == ["head 200", "end"]
    assert exchange.heads[0].framing is Framing.NONE


@pytest.mark.parametrize(
    ("method", "status", "end"),
    [
        ("HEAD", b"200", False),
        ("HEAD", b"200", True),
        ("GET", b"304", False),
        ("GET", b"304", True),
    ],
)
def test_length_without_a_body(peer: ServerPeer, method: str, status: bytes, end: bool) -> None:
    exchange = ask(peer, method=method)
    peer.exchange()
    peer.h2.send_headers(1, [(b":status", status), (b"content-length", b"9")], end_stream=end)
    if not end:
        peer.h2.end_stream(1)
    peer.exchange()
    assert exchange.said == [f"head {status.decode()}", "end"]
    assert (exchange.heads[0].framing, exchange.heads[0].length) == (Framing.NONE, 9)
    assert peer.link.state == "open"
    assert peer.client.in_flight == 0


@pytest.mark.parametrize(
    ("method", "status", "body"), [("HEAD", b"200", b"x"), ("GET", b"204", b"x")]
)
def test_body_where_there_is_none_breaks_the_stream_only(
    peer: ServerPeer, method: str, status: bytes, body: bytes
) -> None:
    exchange, other = ask(peer, method=method), ask(peer)
    peer.exchange()
    peer.h2.send_headers(1, [(b":status", status)])
    peer.h2.send_data(1, body, end_stream=True)
    peer.h2.send_headers(3, OK, end_stream=True)
    peer.exchange()
    assert exchange.failure is Failure.BROKEN
    assert other.said == ["head 200", "end"]


@pytest.mark.parametrize("body", [b"123", b"12345"])
def test_body_of_another_length_than_it_said_breaks_the_stream_only(
    peer: ServerPeer, body: bytes
) -> None:
    exchange, other = ask(peer), ask(peer)
    peer.exchange()
    peer.h2.send_headers(1, [*OK, (b"content-length", b"4")])
    peer.h2.send_data(1, body, end_stream=True)
    peer.h2.send_headers(3, OK, end_stream=True)
    peer.exchange()
    assert exchange.failure is Failure.BROKEN
    assert "not as long" in exchange.said[-1]
    assert other.said == ["head 200", "end"]


@pytest.mark.parametrize(
    "head",
    [
        [],
        [(b":status", b"20")],
        [(b":status", b"101")],
        [(b":status", b"200"), (b":path", b"/")],
        [(b":status", b"200"), (b"connection", b"close")],
        [(b":status", b"200"), (b"A", b"1")],
        [(b":status", b"200"), (b"a", b" 1")],
        [(b":status", b"200"), (b"content-length", b"1"), (b"content-length", b"1")],
    ],
)
def test_response_that_is_none_fails_and_the_connection_goes_on(
    peer: ServerPeer, head: list[tuple[bytes, bytes]]
) -> None:
    exchange, other = ask(peer), ask(peer)
    peer.exchange()
    # Not by h2, which knows that 101 is no end.
    block = peer.h2.encoder.encode(head)
    frame = HeadersFrame(1, block, flags=["END_HEADERS"])
    peer.link.deliver(frame.serialize())
    assert exchange.failure is Failure.SILENT
    assert peer.client.in_flight == 1
    peer.h2.send_headers(3, OK, end_stream=True)
    peer.exchange()
    assert other.said == ["head 200", "end"]


def test_too_many_interim_heads_break_the_stream(peer: ServerPeer) -> None:
    exchange = ask(peer)
    peer.exchange()
    for _ in range(101):
        peer.h2.send_headers(1, [(b":status", b"103")])
    peer.exchange()
    assert exchange.failure is Failure.SILENT
    assert exchange.said.count("head 103") == 100
    assert peer.of(StreamReset, 1)


def test_answer_before_the_end_of_the_request_ends_the_request(peer: ServerPeer) -> None:
    exchange = ask(peer, Framing.STREAM, "POST")
    peer.exchange()
    peer.h2.send_headers(1, OK, end_stream=True)
    peer.exchange()
    assert exchange.said == ["head 200", "end"]
    assert peer.client.in_flight == 0
    [reset] = peer.of(StreamReset, 1)
    assert getattr(reset, "error_code", 0) == ErrorCodes.CANCEL
    assert exchange.upstream is not None
    exchange.upstream.send(b"late")
    exchange.upstream.end([])
    exchange.upstream.abort("late")
    exchange.upstream.flush()
    assert peer.exchange() == []


def test_response_is_kept_while_the_exchange_holds(peer: ServerPeer) -> None:
    exchange = ask(peer)
    assert exchange.upstream is not None
    peer.exchange()
    peer.h2.send_headers(1, OK)
    peer.exchange()
    exchange.upstream.hold()
    peer.h2.send_data(1, b"body", end_stream=True)
    peer.exchange()
    assert exchange.body == b""
    assert peer.client.in_flight == 1
    flushes = exchange.flushes
    exchange.upstream.resume()
    assert exchange.said == ["head 200", "data", "end"]
    assert exchange.flushes == flushes + 1
    assert peer.client.in_flight == 0


# Failures.


@pytest.mark.parametrize(
    ("code", "answered", "failure"),
    [
        (ErrorCodes.REFUSED_STREAM, False, Failure.UNSENT),
        (ErrorCodes.REFUSED_STREAM, True, Failure.BROKEN),
        (ErrorCodes.INTERNAL_ERROR, False, Failure.SILENT),
        (ErrorCodes.INTERNAL_ERROR, True, Failure.BROKEN),
        (0xBAD, False, Failure.SILENT),
    ],
)
def test_reset_by_the_peer_fails_the_stream(
    peer: ServerPeer, code: int, answered: bool, failure: Failure
) -> None:
    exchange = ask(peer)
    peer.exchange()
    if answered:
        peer.h2.send_headers(1, OK)
    peer.h2.reset_stream(1, code)
    peer.exchange()
    assert exchange.failure is failure
    assert peer.client.in_flight == 0
    assert not peer.client.closed


def test_abort_resets_the_stream_at_once(peer: ServerPeer) -> None:
    exchange = ask(peer)
    peer.link.take()
    assert exchange.upstream is not None
    exchange.upstream.abort("nobody waits")
    [reset] = frames_of(peer.link.take())
    assert isinstance(reset, RstStreamFrame)
    assert reset.error_code == ErrorCodes.CANCEL
    assert exchange.said == []
    assert peer.client.in_flight == 0


def goaway(last: int, code: ErrorCodes = ErrorCodes.NO_ERROR) -> bytes:
    return GoAwayFrame(0, last, code, b"bye").serialize()


def test_goaway_fails_what_was_not_looked_at_and_lets_the_rest_finish(peer: ServerPeer) -> None:
    first, second = ask(peer), ask(peer)
    peer.exchange()
    peer.link.deliver(goaway(1))
    assert second.failure is Failure.UNSENT
    assert second.flushes == 1
    assert first.said == []
    assert peer.client.capacity == 0
    assert peer.changes == [0]
    peer.h2.send_headers(1, OK)
    peer.h2.send_data(1, b"body", end_stream=True)
    peer.exchange()
    assert first.said == ["head 200", "data", "end"]
    assert peer.client.closed
    assert peer.link.state == "closed"
    assert peer.changes == [0, 0]


def test_goaway_while_nothing_is_under_way_closes(peer: ServerPeer) -> None:
    peer.link.deliver(goaway(0))
    assert peer.client.closed
    assert peer.link.state == "closed"
    assert peer.changes == [0]


def test_retired_client_closes_behind_the_last_answer(peer: ServerPeer) -> None:
    exchange = ask(peer)
    peer.exchange()
    peer.client.retire()
    assert peer.client.capacity == 0
    assert peer.link.state == "open"
    peer.h2.send_headers(1, OK, end_stream=True)
    peer.link.deliver(peer.h2.data_to_send())
    assert exchange.said == ["head 200", "end"]
    assert peer.client.closed
    assert isinstance(frames_of(peer.link.take())[-1], GoAwayFrame)


@pytest.mark.parametrize(("answered", "failure"), [(False, Failure.SILENT), (True, Failure.BROKEN)])
def test_broken_connection_fails_what_is_under_way(
    peer: ServerPeer, answered: bool, failure: Failure
) -> None:
    exchange = ask(peer)
    peer.exchange()
    if answered:
        peer.h2.send_headers(1, OK)
        peer.exchange()
    peer.client.broken("connection reset by peer")
    assert exchange.failure is failure
    assert exchange.said[-1] == "failed: connection reset by peer"
    assert peer.client.closed
    assert peer.changes == [0]


def test_peer_that_breaks_the_protocol_is_told_and_left(peer: ServerPeer) -> None:
    exchange = ask(peer)
    peer.exchange()
    peer.link.deliver(DataFrame(9, b"of a stream that nobody opened").serialize())
    assert exchange.failure is Failure.SILENT
    assert peer.client.closed
    [goaway_frame] = frames_of(peer.link.take())
    assert isinstance(goaway_frame, GoAwayFrame)
    assert goaway_frame.error_code == ErrorCodes.PROTOCOL_ERROR


def test_pushed_streams_are_none(peer: ServerPeer) -> None:
    ask(peer)
    peer.exchange()
    assert peer.h2.remote_settings.enable_push == 0
    peer.link.deliver(b"\0\0\5\5\4\0\0\0\1\0\0\0\2\x82")
    assert peer.client.closed


# Capacity.


def test_capacity_is_what_the_peer_says(peer: ServerPeer) -> None:
    assert peer.client.capacity == 100
    peer.h2.update_settings({SettingCodes.MAX_CONCURRENT_STREAMS: 2})
    peer.exchange()
    assert peer.client.capacity == 2
    first = ask(peer)
    assert peer.changes == []
    ask(peer)
    assert peer.client.capacity == 0
    assert peer.changes == [0]
    peer.exchange()
    peer.h2.send_headers(1, OK, end_stream=True)
    peer.exchange()
    assert first.said[-1] == "end"
    assert peer.client.capacity == 1
    assert peer.changes == [0, 1]


def test_peer_that_takes_any_number_gets_so_many_as_are_kept(peer: ServerPeer) -> None:
    frame = SettingsFrame(0, {SettingsFrame.MAX_CONCURRENT_STREAMS: 2**32 - 1})
    peer.link.deliver(frame.serialize())
    assert peer.client.capacity == connection2.MOST_STREAMS


def test_connection_without_numbers_for_streams_closes(peer: ServerPeer) -> None:
    # As if a thousand million requests had been.
    peer.client._h2.highest_outbound_stream_id = 2**31 - 3
    exchange = ask(peer)
    assert peer.client.capacity == 0
    assert peer.link.state == "open"
    peer.link.take()
    peer.h2.highest_inbound_stream_id = 2**31 - 3
    frame = HeadersFrame(2**31 - 1, peer.h2.encoder.encode(OK), flags=["END_HEADERS", "END_STREAM"])
    peer.link.deliver(frame.serialize())
    assert exchange.said == ["head 200", "end"]
    assert peer.client.closed


def test_own_heads_are_no_answers_that_the_peer_does_not_read(peer: ServerPeer) -> None:
    peer.link.clogged = True
    for number in range(90):
        exchange = Recorded()
        fields = [(f"x-{number}", "y" * 2000)]
        request = Request(method="GET", path="/", query="", authority="app", fields=fields)
        exchange.upstream = peer.client.request(request, exchange)
        exchange.upstream.flush()
        if number % 30 == 0:
            peer.h2.ping(b"%8d" % number)
            peer.link.deliver(peer.h2.data_to_send())
    assert len(peer.link.out) > 2 * connection2.MOST_UNREAD_BYTES
    peer.link.deliver(WindowUpdateFrame(0, 1000).serialize())
    assert peer.link.state == "open"
    assert peer.client.in_flight == 90


def test_answers_that_the_peer_does_not_read_are_counted_among_own_heads(peer: ServerPeer) -> None:
    for _ in range(90):
        ask(peer)
    peer.exchange()
    peer.link.clogged = True
    for round_ in range(100):
        # 17 bytes each to be said to them.
        pings = [PingFrame(0, b"%8d" % number) for number in range(60)]
        peer.link.deliver(b"".join(ping.serialize() for ping in pings))
        # Which earns the peer some patience.
        number = 1 + 2 * (round_ % 90)
        peer.link.deliver(
            HeadersFrame(number, b"\x08\x03100", flags=["END_HEADERS"]).serialize() * 6
        )
        if peer.link.state != "open":
            break
    assert peer.link.state == "closed"
    assert len(peer.link.out) < 2 * connection2.MOST_UNREAD_BYTES
