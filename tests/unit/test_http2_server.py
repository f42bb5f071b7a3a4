"""The side of HTTP/2 that requests come over, before a client of h2."""

import asyncio
import hashlib

import pytest
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    InformationalResponseReceived,
    PingReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes
from hyperframe.frame import GoAwayFrame, PingFrame, RstStreamFrame
from support.http2 import ClientPeer, Recorder, frames_of
from support.tlspair import until

from meshrun.proxy.http import connection2, server2
from meshrun.proxy.http.exchange import Downstream
from meshrun.proxy.http.heads import Framing, Response

BODY = bytes(range(256)) * 4
WINDOW_BYTES = 65_535


@pytest.fixture
def handler() -> Recorder:
    return Recorder()


@pytest.fixture
def peer(handler: Recorder) -> ClientPeer:
    return ClientPeer(handler)


def the(handler: Recorder) -> Downstream:
    """Return the downstream of the last request."""
    downstream = handler.exchanges[-1].downstream
    assert downstream is not None
    return downstream


def answer(downstream: Downstream, body: bytes = b"", status: int = 200) -> None:
    framing = Framing.LENGTH if body else Framing.NONE
    downstream.respond(Response(status=status, framing=framing, length=len(body)))
    downstream.send(body)
    downstream.end([])
    downstream.flush()


def fields(event: object) -> dict[bytes, bytes]:
    return dict(getattr(event, "headers", None) or [])


# Requests.


def test_request_without_a_body_is_complete_at_once(handler: Recorder, peer: ClientPeer) -> None:
    peer.request((b"accept", b"*/*"))
    peer.exchange()
    [exchange] = handler.exchanges
    assert exchange.said == ["end"]
    assert exchange.flushes == 1
    request = exchange.request
    assert request is not None
    assert (request.method, request.path, request.query) == ("GET", "/a", "")
    assert request.authority == "app"
    assert request.fields == [("accept", "*/*")]
    assert request.framing is Framing.NONE


def test_body_and_trailers_are_delivered_as_they_come(handler: Recorder, peer: ClientPeer) -> None:
    number = peer.request(method=b"POST", end=False)
    peer.exchange()
    peer.h2.send_data(number, b"one", pad_length=7)
    peer.exchange()
    [exchange] = handler.exchanges
    assert exchange.body == b"one"
    peer.h2.send_data(number, b"two")
    peer.h2.send_headers(number, [(b"checksum", b"1")], end_stream=True)
    peer.exchange()
    assert exchange.body == b"onetwo"
    assert exchange.said[-1] == "end"
    assert exchange.trailers == [("checksum", "1")]
    assert exchange.request is not None
    assert exchange.request.framing is Framing.STREAM


def test_several_requests_are_under_way_at_once(handler: Recorder, peer: ClientPeer) -> None:
    numbers = [peer.request() for _ in range(5)]
    peer.exchange()
    assert peer.server.in_flight == 5
    for exchange in reversed(handler.exchanges):
        assert exchange.downstream is not None
        answer(exchange.downstream)
    peer.exchange()
    ended = peer.of(StreamEnded)
    assert [getattr(event, "stream_id", 0) for event in ended] == numbers[::-1]
    assert peer.server.in_flight == 0


def test_no_window_is_given_back_while_the_exchange_holds(
    handler: Recorder, peer: ClientPeer
) -> None:
    number = peer.request(method=b"POST", end=False)
    peer.exchange()
    [exchange] = handler.exchanges
    the(handler).hold()
    limit = connection2.STREAM_WINDOW_BYTES
    sent = 0
    while (room := min(peer.h2.local_flow_control_window(number), 16_384)) > 0:
        peer.h2.send_data(number, b"x" * room)
        sent += room
        peer.exchange()
    assert sent == limit
    assert exchange.body == b""
    the(handler).resume()
    peer.exchange()
    assert len(exchange.body) == limit
    assert peer.h2.local_flow_control_window(number) == limit


def test_what_is_kept_is_delivered_only_up_to_the_next_hold(
    handler: Recorder, peer: ClientPeer
) -> None:
    number = peer.request(method=b"POST", end=False)
    peer.exchange()
    [exchange] = handler.exchanges
    the(handler).hold()
    body = hashlib.shake_128(b"kept").digest(connection2.STREAM_WINDOW_BYTES)
    for at in range(0, len(body), 16_384):
        peer.h2.send_data(number, body[at : at + 16_384])
        peer.exchange()
    peer.h2.end_stream(number)
    peer.exchange()
    exchange.on_data = the(handler).hold
    the(handler).resume()
    assert exchange.body == body[: len(body) // 2]
    the(handler).resume()
    assert exchange.body == body
    assert exchange.said == ["data", "data"]
    the(handler).resume()
    assert exchange.said == ["data", "data", "end"]


def test_window_of_a_request_that_ends_held_is_given_back_to_the_connection(
    handler: Recorder, peer: ClientPeer
) -> None:
    # Else some such requests would stop the connection for ever.
    for _ in range(2 * connection2.CONNECTION_WINDOW_BYTES // connection2.STREAM_WINDOW_BYTES):
        number = peer.request(method=b"POST", end=False)
        peer.exchange()
        the(handler).hold()
        while (room := min(peer.h2.local_flow_control_window(number), 16_384)) > 0:
            peer.h2.send_data(number, bytes(room))
        peer.exchange()
        answer(the(handler))
        peer.exchange()
    peer.request(method=b"POST", end=False)
    peer.exchange()
    assert peer.h2.outbound_flow_control_window > connection2.STREAM_WINDOW_BYTES


@pytest.mark.parametrize(
    ("status", "head"),
    [
        (400, {b":method": b"get"}),
        (400, {b":path": b""}),
        (400, {b":path": b"a"}),
        (400, {b":scheme": b"ftp"}),
        (400, {b":authority": b"a b"}),
        (400, {b"host": b"other"}),
        (400, {b"connection": b"close"}),
        (400, {b"te": b"gzip"}),
        (400, {b"x_y": b"1"}),
        (400, {b"Upper": b"1"}),
        (405, {b":method": b"CONNECT"}),
        (417, {b"expect": b"magic"}),
        (431, {b"long": b"x" * 61_440}),
    ],
)
def test_request_that_is_none_is_answered_and_the_connection_goes_on(
    handler: Recorder, peer: ClientPeer, status: int, head: dict[bytes, bytes]
) -> None:
    good = {b":method": b"GET", b":scheme": b"http", b":path": b"/", b":authority": b"app"}
    number = peer.h2.get_next_available_stream_id()
    peer.h2.send_headers(number, list({**good, **head}.items()))
    peer.exchange()
    [response] = peer.of(ResponseReceived)
    assert fields(response)[b":status"] == b"%d" % status
    assert handler.refusals == [status]
    assert handler.exchanges == []
    # The rest of it is not waited for.
    [reset] = peer.of(StreamReset)
    assert getattr(reset, "error_code", None) == ErrorCodes.NO_ERROR
    peer.request()
    peer.exchange()
    assert len(handler.exchanges) == 1


def test_more_than_a_hundred_fields_are_too_many(handler: Recorder, peer: ClientPeer) -> None:
    peer.request(*[(b"x-%d" % number, b"1") for number in range(101)])
    peer.exchange()
    assert handler.refusals == [431]


def test_grpc_is_refused_in_its_own_words(handler: Recorder) -> None:
    peer = ClientPeer(handler, grpc=True)
    peer.request((b"te", b"gzip"), (b"my_meta", b"1"))
    peer.exchange()
    [response] = peer.of(ResponseReceived)
    assert fields(response)[b":status"] == b"200"
    assert fields(response)[b"grpc-status"] == b"13"
    assert getattr(response, "stream_ended", None) is not None


def test_metadata_of_grpc_may_have_underscores(handler: Recorder) -> None:
    peer = ClientPeer(handler, grpc=True)
    number = peer.request((b"my_meta", b"1"), method=b"POST", end=False)
    peer.h2.send_headers(number, [(b"my_trailer", b"2")], end_stream=True)
    peer.exchange()
    [exchange] = handler.exchanges
    assert exchange.request is not None
    assert exchange.request.fields == [("my_meta", "1")]
    assert exchange.trailers == [("my_trailer", "2")]


@pytest.mark.parametrize("sent", [b"123", b"12345"])
def test_body_of_another_length_than_it_said_resets_its_stream_only(
    handler: Recorder, peer: ClientPeer, sent: bytes
) -> None:
    other = peer.request()
    number = peer.request((b"content-length", b"4"), method=b"POST", end=False)
    peer.h2.send_data(number, sent, end_stream=True)
    peer.exchange()
    assert getattr(peer.of(StreamReset)[0], "stream_id", 0) == number
    assert handler.exchanges[1].said[-1].startswith("aborted: the body is not as long")
    downstream = handler.exchanges[0].downstream
    assert downstream is not None
    answer(downstream, b"fine")
    peer.exchange()
    assert peer.of(DataReceived, other)


def test_trailers_behind_a_body_that_is_too_short_reset_the_stream(
    handler: Recorder, peer: ClientPeer
) -> None:
    number = peer.request((b"content-length", b"4"), method=b"POST", end=False)
    peer.h2.send_data(number, b"123")
    peer.h2.send_headers(number, [(b"a", b"1")], end_stream=True)
    peer.exchange()
    assert peer.of(StreamReset, number)
    assert "end" not in handler.exchanges[0].said


def test_body_of_the_length_it_said_is_taken(handler: Recorder, peer: ClientPeer) -> None:
    number = peer.request((b"content-length", b"4"), method=b"POST", end=False)
    peer.h2.send_data(number, b"12", pad_length=3)
    peer.h2.send_data(number, b"34", end_stream=True)
    peer.exchange()
    assert handler.exchanges[0].body == b"1234"
    assert handler.exchanges[0].said[-1] == "end"


@pytest.mark.parametrize("field", [(b"connection", b"x"), (b":path", b"/"), (b"x_y", b"1")])
def test_trailers_that_are_none_reset_the_stream(
    handler: Recorder, peer: ClientPeer, field: tuple[bytes, bytes]
) -> None:
    number = peer.request(method=b"POST", end=False)
    peer.h2.send_headers(number, [field], end_stream=True)
    peer.exchange()
    assert peer.of(StreamReset, number)
    assert handler.exchanges[0].said[-1].startswith("aborted")


def test_stream_over_the_limit_is_refused_by_itself(
    handler: Recorder, peer: ClientPeer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server2, "MOST_STREAMS", 2)
    numbers = [peer.request() for _ in range(3)]
    peer.exchange()
    assert len(handler.exchanges) == 2
    [reset] = peer.of(StreamReset)
    assert getattr(reset, "stream_id", 0) == numbers[2]
    assert getattr(reset, "error_code", 0) == ErrorCodes.REFUSED_STREAM


def test_peer_hears_the_limits(peer: ClientPeer) -> None:
    settings = peer.h2.remote_settings
    assert settings.max_concurrent_streams == connection2.MOST_STREAMS
    assert settings.initial_window_size == connection2.STREAM_WINDOW_BYTES
    assert settings[SettingCodes.MAX_HEADER_LIST_SIZE] == 61_440
    assert peer.h2.outbound_flow_control_window == connection2.CONNECTION_WINDOW_BYTES


# Responses.


def test_head_and_its_end_are_one_frame(handler: Recorder, peer: ClientPeer) -> None:
    peer.request()
    peer.exchange()
    downstream = the(handler)
    downstream.respond(Response(status=200, fields=[("grpc-status", "7")]))
    downstream.end([])
    downstream.flush()
    [response, *_] = peer.exchange()
    assert isinstance(response, ResponseReceived)
    assert response.stream_ended is not None
    assert not peer.of(DataReceived)


def test_data_and_its_end_are_one_frame(handler: Recorder, peer: ClientPeer) -> None:
    peer.request()
    peer.exchange()
    answer(the(handler), b"hello")
    peer.exchange()
    [data] = peer.of(DataReceived)
    assert isinstance(data, DataReceived)
    assert data.data == b"hello"
    assert data.stream_ended is not None


def test_interim_heads_and_trailers(handler: Recorder, peer: ClientPeer) -> None:
    peer.request()
    peer.exchange()
    downstream = the(handler)
    downstream.respond(Response(status=103, fields=[("Link", "</x>")]))
    downstream.respond(Response(status=200, framing=Framing.STREAM))
    downstream.send(b"body")
    downstream.end([("Checksum", "5")])
    downstream.flush()
    peer.exchange()
    [interim] = peer.of(InformationalResponseReceived)
    assert fields(interim) == {b":status": b"103", b"link": b"</x>"}
    [trailers] = peer.of(TrailersReceived)
    assert fields(trailers) == {b"checksum": b"5"}
    assert len(peer.of(StreamEnded)) == 1


def test_fields_of_a_connection_are_not_sent(handler: Recorder, peer: ClientPeer) -> None:
    peer.request()
    peer.exchange()
    downstream = the(handler)
    downstream.respond(Response(status=200, fields=[("Keep-Alive", "5"), ("X-A", "é")]))
    downstream.end([])
    downstream.flush()
    peer.exchange()
    [response] = peer.of(ResponseReceived)
    assert fields(response) == {b":status": b"200", b"x-a": b"\xe9"}


def test_response_within_begin(peer: ClientPeer) -> None:
    handler = Recorder(lambda request, downstream: answer(downstream, b"no", 403))
    peer = ClientPeer(handler)
    peer.request()
    unfinished = peer.request(method=b"POST", end=False)
    peer.exchange()
    assert [fields(event)[b":status"] for event in peer.of(ResponseReceived)] == [b"403"] * 2
    assert handler.exchanges[0].said == ["end"]
    assert handler.exchanges[1].said == []
    [reset] = peer.of(StreamReset)
    assert getattr(reset, "stream_id", 0) == unfinished
    assert peer.server.in_flight == 0


def test_response_before_the_end_of_the_request_ends_the_request(
    handler: Recorder, peer: ClientPeer
) -> None:
    number = peer.request(method=b"POST", end=False)
    peer.exchange()
    answer(the(handler), b"enough")
    peer.h2.send_data(number, b"late")
    peer.exchange()
    resets = peer.of(StreamReset, number)
    assert getattr(resets[0], "error_code", None) == ErrorCodes.NO_ERROR
    assert peer.of(StreamEnded, number)
    assert handler.exchanges[0].body == b""


def test_what_the_window_does_not_take_is_kept_and_the_other_side_holds(
    handler: Recorder, peer: ClientPeer
) -> None:
    number = peer.request()
    peer.exchange()
    [exchange] = handler.exchanges
    downstream = the(handler)
    downstream.respond(Response(status=200, framing=Framing.STREAM))
    downstream.send(bytes(WINDOW_BYTES))
    downstream.flush()
    assert "hold" not in exchange.said
    downstream.send(b"tail")
    downstream.flush()
    peer.exchange()
    assert exchange.said[-1] == "hold"
    peer.h2.acknowledge_received_data(WINDOW_BYTES, number)
    peer.exchange()
    assert exchange.said[-1] == "resume"
    downstream.end([])
    downstream.flush()
    peer.exchange()
    data = b"".join(event.data for event in peer.of(DataReceived) if hasattr(event, "data"))
    assert data == bytes(WINDOW_BYTES) + b"tail"
    assert exchange.said.count("hold") == exchange.said.count("resume") == 1


def test_streams_take_turns_where_the_connection_is_narrow(
    handler: Recorder, peer: ClientPeer
) -> None:
    numbers = [peer.request() for _ in range(4)]
    peer.exchange()
    for exchange in handler.exchanges:
        downstream = exchange.downstream
        assert downstream is not None
        downstream.respond(Response(status=200, framing=Framing.STREAM))
        downstream.send(bytes(WINDOW_BYTES))
    handler.exchanges[0].downstream.flush()  # type: ignore[union-attr]
    peer.exchange()
    # All share one window of 65,535: each has had a piece, none all of it.
    sizes = [
        sum(len(event.data) for event in peer.of(DataReceived, number) if hasattr(event, "data"))
        for number in numbers
    ]
    assert sizes == [16_384, 16_384, 16_384, 16_383]


def test_small_answer_passes_a_large_one_that_waits(handler: Recorder, peer: ClientPeer) -> None:
    peer.request()
    peer.exchange()
    large = the(handler)
    large.respond(Response(status=200, framing=Framing.STREAM))
    large.send(bytes(4 * WINDOW_BYTES))
    large.flush()
    small = peer.request()
    peer.exchange()
    the(handler).respond(Response(status=204))
    the(handler).end([])
    the(handler).flush()
    peer.exchange()
    assert peer.of(StreamEnded, small)


def test_nothing_but_answers_is_written_to_a_link_that_is_clogged(
    handler: Recorder, peer: ClientPeer
) -> None:
    number = peer.request()
    peer.exchange()
    downstream = the(handler)
    peer.link.clogged = True
    downstream.respond(Response(status=200, framing=Framing.STREAM))
    downstream.send(b"data")
    downstream.flush()
    assert handler.exchanges[0].said[-1] == "hold"
    peer.h2.ping(b"12345678")
    assert not [event for event in peer.exchange() if not hasattr(event, "ping_data")]
    peer.link.unclog()
    assert handler.exchanges[0].said[-1] == "resume"
    peer.exchange()
    assert peer.of(DataReceived, number)


# Ends.


def test_reset_by_the_peer_aborts_the_exchange_at_once(handler: Recorder, peer: ClientPeer) -> None:
    number = peer.request()
    peer.exchange()
    peer.h2.reset_stream(number, ErrorCodes.CANCEL)
    peer.exchange()
    [exchange] = handler.exchanges
    assert exchange.said == ["end", "aborted: the stream was reset: CANCEL"]
    assert exchange.flushes == 2
    answer(the(handler), b"late")  # is nobody's business any more
    assert peer.exchange() == []


def test_abort_resets_the_stream(handler: Recorder, peer: ClientPeer) -> None:
    number = peer.request()
    peer.exchange()
    the(handler).respond(Response(status=200, framing=Framing.STREAM))
    the(handler).flush()
    the(handler).abort("the app broke off")
    peer.exchange()
    [reset] = peer.of(StreamReset, number)
    assert getattr(reset, "error_code", 0) == ErrorCodes.INTERNAL_ERROR
    assert handler.exchanges[0].said == ["end"]


def test_end_of_the_connection_aborts_what_is_under_way(
    handler: Recorder, peer: ClientPeer
) -> None:
    peer.request()
    peer.exchange()
    peer.server.ended()
    assert handler.exchanges[0].said[-1] == "aborted: the peer closed the connection"
    assert handler.closings == 1
    assert peer.link.state == "closed"
    peer.server.reset("again")
    peer.server.broken("again")
    assert handler.closings == 1


def test_reset_of_the_connection_aborts_what_is_under_way(
    handler: Recorder, peer: ClientPeer
) -> None:
    peer.request()
    peer.exchange()
    peer.server.reset("denied now")
    assert handler.exchanges[0].said[-1] == "aborted: denied now"
    assert handler.exchanges[0].flushes == 2
    assert handler.closings == 1
    assert peer.link.state == "reset"


def test_retired_connection_closes_behind_the_last_answer(handler: Recorder) -> None:
    async def main() -> None:
        peer = ClientPeer(handler)
        peer.request()
        peer.exchange()
        peer.server.retire()
        peer.server.retire()
        # h2 takes a GOAWAY for the end of it all: from here on frames are looked at by themselves.
        goaway, ping = frames_of(peer.link.take())
        assert isinstance(goaway, GoAwayFrame)
        assert (goaway.last_stream_id, goaway.error_code) == (2**31 - 1, ErrorCodes.NO_ERROR)
        peer.request()  # sent before the peer could know
        peer.link.deliver(peer.h2.data_to_send())
        assert len(handler.exchanges) == 2
        assert isinstance(ping, PingFrame)
        peer.link.deliver(PingFrame(0, ping.opaque_data, flags=["ACK"]).serialize())
        [goaway] = frames_of(peer.link.take())
        assert isinstance(goaway, GoAwayFrame)
        assert goaway.last_stream_id == 3
        late = peer.request()
        peer.link.deliver(peer.h2.data_to_send())
        [reset] = frames_of(peer.link.take())
        assert isinstance(reset, RstStreamFrame)
        assert (reset.stream_id, reset.error_code) == (late, ErrorCodes.REFUSED_STREAM)
        for exchange in handler.exchanges:
            assert exchange.downstream is not None
            assert peer.link.state == "open"
            answer(exchange.downstream, b"bye")
        assert peer.link.state == "closed"
        assert handler.closings == 1
        assert [frame.stream_id for frame in frames_of(peer.link.take())] == [1, 1, 3, 3]

    asyncio.run(main())


def test_idle_connection_that_is_retired_closes_without_an_answer_too(
    handler: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server2, "LAST_CALL_S", 0.01)

    async def main() -> None:
        peer = ClientPeer(handler)
        peer.server.retire()
        assert peer.link.state == "open"
        await until(lambda: peer.link.state == "closed", "the connection closes")
        assert handler.closings == 1

    asyncio.run(main())


def test_peer_that_says_goodbye_gets_its_answers(handler: Recorder, peer: ClientPeer) -> None:
    peer.request()
    peer.exchange()
    peer.h2.close_connection()
    peer.link.deliver(peer.h2.data_to_send())
    assert peer.link.state == "open"
    answer(the(handler), b"bye")
    assert peer.link.state == "closed"
    assert b"bye" in peer.link.take()


def test_ping_is_answered(peer: ClientPeer) -> None:
    peer.h2.ping(b"12345678")
    assert not peer.of(PingReceived)
    [event] = peer.exchange()
    assert getattr(event, "ping_data", b"") == b"12345678"
