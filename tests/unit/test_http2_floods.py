"""Peers of HTTP/2 that want to cost more than they pay: each is told so, and left."""

from collections import Counter
from collections.abc import Callable

import pytest
from h2.errors import ErrorCodes
from hpack import Encoder
from hyperframe.frame import (
    AltSvcFrame,
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given
from hypothesis import strategies as st
from support.http2 import MemoryLink, Recorded, Recorder, frames_of

from meshrun.proxy.http import frames2
from meshrun.proxy.http.client2 import Http2Client
from meshrun.proxy.http.connection2 import MOST_STREAMS
from meshrun.proxy.http.exchange import Downstream
from meshrun.proxy.http.frames2 import HEADER_BYTES, PREFACE
from meshrun.proxy.http.heads import Framing, Request, Response
from meshrun.proxy.http.server2 import Http2Server
from meshrun.proxy.http.stream2 import Stream

HEAD = [(b":method", b"GET"), (b":scheme", b"http"), (b":path", b"/"), (b":authority", b"app")]
BEGINNING = PREFACE + SettingsFrame(0).serialize()


class Attacker:
    """A connection on which the test says each byte."""

    def __init__(self, handler: Recorder | None = None) -> None:
        self.handler = handler or Recorder()
        self.link = MemoryLink()
        self.server = Http2Server(self.link, self.handler, grpc=False)
        self.server.start()
        self.link.deliver(BEGINNING)
        self.link.take()
        self.encoder = Encoder()
        self.number = -1

    def send(self, *frames: Frame) -> None:
        self.link.deliver(b"".join(frame.serialize() for frame in frames))

    def head(self, *, end: bool = True) -> HeadersFrame:
        """Return the head of a request on a new stream."""
        self.number += 2
        flags = ["END_HEADERS", "END_STREAM"] if end else ["END_HEADERS"]
        return HeadersFrame(self.number, self.encoder.encode(HEAD), flags=flags)

    def sent_away(self) -> int | None:
        """Return the code with which the connection was closed, None if it is open."""
        if self.link.state == "open":
            return None
        assert self.handler.closings == 1
        *_, goaway = frames_of(self.link.take())
        assert isinstance(goaway, GoAwayFrame)
        return goaway.error_code


@pytest.fixture
def attacker() -> Attacker:
    return Attacker()


def answer(request: Request, downstream: Downstream) -> None:
    downstream.respond(Response(status=200))
    downstream.end([])
    downstream.flush()


class Unknown(Frame):
    """One of a kind that nobody knows."""

    type = 200

    def serialize_body(self) -> bytes:
        return b"x"


IDLE: dict[str, Callable[[int], Frame]] = {
    "settings": lambda n: SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: n}),
    "acknowledged settings": lambda n: SettingsFrame(0, flags=["ACK"]),
    "ping": lambda n: PingFrame(0, b"%8d" % n),
    "answered ping": lambda n: PingFrame(0, b"%8d" % n, flags=["ACK"]),
    "window": lambda n: WindowUpdateFrame(0, 1),
    "window of a stream": lambda n: WindowUpdateFrame(1, 1),
    "priority": lambda n: PriorityFrame(1 + 2 * n),
    "empty data": lambda n: DataFrame(1, b""),
    "padding": lambda n: DataFrame(1, b"", flags=["PADDED"], pad_length=200),
    "unknown": lambda n: Unknown(0),
    "alternative service": lambda n: AltSvcFrame(0, b"o", b"f"),
    "reset": lambda n: RstStreamFrame(3 + 2 * n, ErrorCodes.CANCEL),
    "goaway": lambda n: GoAwayFrame(0),
}


@pytest.mark.parametrize("kind", IDLE)
def test_flood_of_frames_that_move_nothing(attacker: Attacker, kind: str) -> None:
    attacker.send(attacker.head(end=False))
    count = 0
    for count in range(3000):
        if attacker.link.state != "open":
            break
        attacker.send(IDLE[kind](count))
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM
    least, most = (140, 170) if kind == "settings" else (1400, 1700)
    assert least < count < most
    assert attacker.handler.exchanges[0].said[-1].startswith("aborted: cannot take so many frames")


@pytest.mark.parametrize("kind", ["ping", "window", "settings"])
def test_flood_at_once_is_cut_off_within(attacker: Attacker, kind: str) -> None:
    attacker.send(*[IDLE[kind](number) for number in range(10_000)])
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM


def test_peer_that_moves_data_may_say_more() -> None:
    attacker = Attacker(Recorder(answer))
    for _ in range(1000):
        attacker.send(attacker.head())
        attacker.send(*[PingFrame(0, b"12345678")] * 8)
        attacker.link.take()
    assert attacker.sent_away() is None


def test_small_data_is_no_merit(attacker: Attacker) -> None:
    attacker.send(attacker.head(end=False))
    for _ in range(2000):
        attacker.send(DataFrame(1, b"x"), PingFrame(0))
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM


def test_small_data_may_come_for_ever() -> None:
    attacker = Attacker()
    attacker.send(attacker.head(end=False))
    for _ in range(5000):
        attacker.send(DataFrame(1, b"x"))
    assert attacker.sent_away() is None
    assert len(attacker.handler.exchanges[0].body) == 5000


@pytest.mark.parametrize(
    ("extra", "status"), [([(b"x", b"y" * 61_440)], 431), ([(b"x", b"\0")], 400)]
)
def test_heads_that_are_refused_are_given_up_too(
    attacker: Attacker, extra: list[tuple[bytes, bytes]], status: int
) -> None:
    # Each is answered, and the answer taken: that it costs the peer nothing is no merit.
    for _ in range(2000):
        attacker.number += 2
        block = attacker.encoder.encode([*HEAD, *extra], huffman=False)
        attacker.send(
            HeadersFrame(attacker.number, block[:16_384], flags=["END_STREAM"]),
            *[
                ContinuationFrame(attacker.number, block[at : at + 16_384])
                for at in range(16_384, len(block), 16_384)
            ],
            ContinuationFrame(attacker.number, b"", flags=["END_HEADERS"]),
        )
        if attacker.link.state != "open":
            break
        attacker.link.take()
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM
    assert set(attacker.handler.refusals) == {status}
    assert len(attacker.handler.refusals) < 600


def test_block_of_more_fields_than_a_head_may_have_by_far(attacker: Attacker) -> None:
    attacker.send(HeadersFrame(1, b"\x90" * 1000, flags=["END_HEADERS", "END_STREAM"]))
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM


def test_rapid_reset(attacker: Attacker) -> None:
    # CVE-2023-44487: each request is made, and costs the app, and is given up at once.
    for _ in range(2000):
        attacker.send(attacker.head(), RstStreamFrame(attacker.number, ErrorCodes.CANCEL))
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM
    assert len(attacker.handler.exchanges) < 1600
    assert all(exchange.said[-1].startswith("aborted") for exchange in attacker.handler.exchanges)


def test_made_you_reset(attacker: Attacker) -> None:
    # CVE-2025-8671: the same, but the server is made to reset each stream.
    for _ in range(2000):
        attacker.send(attacker.head(end=False), WindowUpdateFrame(attacker.number, 2**31 - 1))
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM
    assert len(attacker.handler.exchanges) < 1600


def test_whoever_leaves_may_give_up_all_that_may_be_under_way(attacker: Attacker) -> None:
    # Behind another sidecar the connection is that of others, too.
    attacker.send(*[attacker.head() for _ in range(MOST_STREAMS)])
    attacker.send(*[RstStreamFrame(n, ErrorCodes.CANCEL) for n in range(1, attacker.number + 1, 2)])
    assert attacker.sent_away() is None
    assert attacker.server.in_flight == 0


def test_bodies_of_a_wrong_length_are_given_up_too(attacker: Attacker) -> None:
    for _ in range(2000):
        attacker.number += 2
        block = attacker.encoder.encode([*HEAD, (b"content-length", b"1")])
        attacker.send(
            HeadersFrame(attacker.number, block, flags=["END_HEADERS"]),
            DataFrame(attacker.number, b"xx"),
        )
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM


def test_refused_streams_are_given_up_too(attacker: Attacker) -> None:
    attacker.send(*[attacker.head() for _ in range(3000)])
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM
    assert len(attacker.handler.exchanges) == 1024


def test_client_that_hears_its_answers_out_may_give_up_as_many() -> None:
    attacker = Attacker(Recorder(answer))
    for _ in range(1500):
        attacker.send(attacker.head(), RstStreamFrame(attacker.number, ErrorCodes.CANCEL))
        attacker.link.take()
    assert attacker.sent_away() is None


def test_answers_that_are_not_read(attacker: Attacker) -> None:
    # Within what is granted, but for ever.
    attacker.link.clogged = True
    for _ in range(100):
        attacker.send(attacker.head())
    for round_ in range(10_000):
        if attacker.link.state != "open":
            break
        attacker.send(attacker.head(), PingFrame(0, b"%8d" % round_))
        attacker.send(RstStreamFrame(attacker.number, ErrorCodes.CANCEL))
        for exchange in attacker.handler.exchanges[-1:]:
            assert exchange.downstream is not None
            answer(exchange.request or Request("GET", "/", "", ""), exchange.downstream)
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM
    assert len(attacker.link.out) < 200_000


def test_responses_wait_for_a_peer_that_does_not_read() -> None:
    handler = Recorder(answer)
    attacker = Attacker(handler)
    attacker.link.clogged = True
    attacker.send(*[attacker.head() for _ in range(1024)])
    assert attacker.server.in_flight == 1024
    assert len(attacker.link.out) == 0
    attacker.send(attacker.head())
    [reset] = frames_of(attacker.link.take())
    assert isinstance(reset, RstStreamFrame)
    assert reset.error_code == ErrorCodes.REFUSED_STREAM
    attacker.link.unclog()
    assert attacker.server.in_flight == 0
    assert len(frames_of(attacker.link.take())) == 1024


def test_window_of_a_byte_makes_one_stream_be_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    # Else a peer with a thousand streams makes a thousand be looked at with each of its frames.
    def begin(request: Request, downstream: Downstream) -> None:
        downstream.respond(Response(status=200, framing=Framing.STREAM))
        downstream.send(bytes(60_000))

    attacker = Attacker(Recorder(begin))
    attacker.send(*[attacker.head() for _ in range(50)])
    attacker.link.take()
    looked_at = []
    take_turn = attacker.server._take_turn

    def note(stream: Stream) -> int:
        looked_at.append(stream.number)
        return take_turn(stream)

    monkeypatch.setattr(attacker.server, "_take_turn", note)
    for _ in range(100):
        attacker.send(WindowUpdateFrame(0, 1))
    assert len(looked_at) <= 2 * 100  # it is given a turn, and then waits again
    pieces = [f for f in frames_of(attacker.link.take()) if isinstance(f, DataFrame)]
    assert [len(piece.data) for piece in pieces] == [1] * 100
    assert Counter(piece.stream_id for piece in pieces) == dict.fromkeys(range(1, 100, 2), 2)


# Blocks of header fields.


def test_block_without_an_end(attacker: Attacker) -> None:
    # CVE-2024-27316.
    attacker.send(HeadersFrame(1, b"", flags=[]))
    for _ in range(100):
        attacker.send(ContinuationFrame(1, bytes(1000)))
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM


def test_block_of_large_pieces(attacker: Attacker) -> None:
    attacker.send(HeadersFrame(1, bytes(16_384), flags=[]))
    for _ in range(8):
        attacker.send(ContinuationFrame(1, bytes(16_384)))
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM


def test_block_of_few_bytes_that_stand_for_many(attacker: Attacker) -> None:
    # CVE-2016-6581: one field of the table, thousands of times.
    field = (b"x", bytes(b"y" * 4000))
    block = attacker.encoder.encode([*HEAD, *[field] * 200])
    assert len(block) < 5000
    attacker.send(HeadersFrame(1, block, flags=["END_HEADERS"]))
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM


def test_block_of_too_many_bytes_is_one_stream_s_matter(attacker: Attacker) -> None:
    block = attacker.encoder.encode([*HEAD, *[(b"x", bytes(b"y" * 1000))] * 70])
    attacker.send(
        HeadersFrame(1, block[:16_000], flags=["END_STREAM"]),
        *[ContinuationFrame(1, block[at : at + 9000]) for at in range(16_000, len(block), 9000)],
        ContinuationFrame(1, b"", flags=["END_HEADERS"]),
    )
    assert attacker.sent_away() is None
    assert attacker.handler.refusals == [431]


def test_frame_within_a_block(attacker: Attacker) -> None:
    attacker.send(HeadersFrame(1, b"", flags=[]), PingFrame(0))
    assert attacker.sent_away() == ErrorCodes.PROTOCOL_ERROR


# Settings.


def test_settings_that_nobody_knows_are_not_kept(attacker: Attacker) -> None:
    before = len(attacker.server._h2.remote_settings)
    for number in range(100, 130):
        attacker.send(SettingsFrame(0, {number: 1}))
    assert len(attacker.server._h2.remote_settings) == before
    assert attacker.sent_away() is None


def test_too_many_settings_at_once(attacker: Attacker) -> None:
    attacker.send(SettingsFrame(0, dict.fromkeys(range(100, 200), 1)))
    assert attacker.sent_away() == ErrorCodes.ENHANCE_YOUR_CALM


def test_table_of_the_encoder_stays_small(attacker: Attacker) -> None:
    attacker.send(SettingsFrame(0, {SettingsFrame.HEADER_TABLE_SIZE: 2**32 - 1}))
    assert attacker.server._h2.encoder.header_table_size == frames2.HEADER_TABLE_BYTES
    attacker.send(SettingsFrame(0, {SettingsFrame.HEADER_TABLE_SIZE: 0}))
    assert attacker.server._h2.encoder.header_table_size == 0


def test_table_of_the_decoder_stays_small(attacker: Attacker) -> None:
    attacker.encoder.header_table_size = 65_536
    attacker.send(attacker.head())
    assert attacker.sent_away() == ErrorCodes.PROTOCOL_ERROR


# Frames that are none.


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", ErrorCodes.PROTOCOL_ERROR),
        (PREFACE + PingFrame(0).serialize(), ErrorCodes.PROTOCOL_ERROR),
        (PREFACE + SettingsFrame(0, flags=["ACK"]).serialize(), ErrorCodes.PROTOCOL_ERROR),
        (BEGINNING + b"\1\0\1\0\0\0\0\0\1", ErrorCodes.FRAME_SIZE_ERROR),
        (BEGINNING + b"\0\0\5\4\0\0\0\0\0aaaaa", ErrorCodes.FRAME_SIZE_ERROR),
        (BEGINNING + b"\0\0\4\2\0\0\0\0\1aaaa", None),
        (BEGINNING + b"\0\0\1\0\x08\0\0\0\1\5", ErrorCodes.PROTOCOL_ERROR),
        (BEGINNING + ContinuationFrame(1, b"").serialize(), ErrorCodes.PROTOCOL_ERROR),
        (BEGINNING + b"\0\0\4\5\4\0\0\0\1\0\0\0\2", ErrorCodes.PROTOCOL_ERROR),
        (BEGINNING + DataFrame(1, b"x").serialize(), ErrorCodes.PROTOCOL_ERROR),
        (BEGINNING + HeadersFrame(2, b"\x82", flags=["END_HEADERS"]).serialize(), 1),
        (BEGINNING + HeadersFrame(1, b"\xff", flags=["END_HEADERS"]).serialize(), 1),
        (BEGINNING + b"\0\0\4\x08\0\0\0\0\0\0\0\0\0", ErrorCodes.PROTOCOL_ERROR),
    ],
)
def test_what_is_no_http2(data: bytes, code: int | None) -> None:
    for step in (len(data), 1):
        handler = Recorder()
        link = MemoryLink()
        Http2Server(link, handler, grpc=False).start()
        link.take()
        for at in range(0, len(data), step):
            link.deliver(data[at : at + step])
        if code is None:
            assert link.state == "open"
        else:
            assert link.state == "closed"
            goaway = frames_of(link.take())[-1]
            assert isinstance(goaway, GoAwayFrame)
            assert goaway.error_code == code


def test_frame_that_is_too_long_is_not_waited_for() -> None:
    link = MemoryLink()
    Http2Server(link, Recorder(), grpc=False).start()
    link.deliver(BEGINNING + b"\xff\xff\xff\0\0\0\0\0\1")
    assert link.state == "closed"


def test_more_than_the_window_holds(attacker: Attacker) -> None:
    attacker.send(attacker.head(end=False))
    [exchange] = attacker.handler.exchanges
    assert exchange.downstream is not None
    exchange.downstream.hold()
    attacker.send(*[DataFrame(1, bytes(16_384)) for _ in range(17)])
    assert attacker.sent_away() == ErrorCodes.FLOW_CONTROL_ERROR


# Whatever comes, nothing is raised, and every exchange ends once.

KINDS = st.sampled_from([*range(11)])
RAW = st.builds(
    lambda kind, flags, stream, body: (
        len(body).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body
    ),
    KINDS,
    st.sampled_from([0, 1, 4, 5, 8, 0x20, 0x2D, 0xFF]),
    st.integers(0, 6),
    st.one_of(
        st.binary(max_size=20),
        st.sampled_from(
            [
                Encoder().encode(HEAD),
                Encoder().encode([*HEAD, (b"content-length", b"3")]),
                Encoder().encode([(b":status", b"200"), (b"content-length", b"2")]),
                Encoder().encode([(b"trailer-of-it", b"1")]),
                b"\0\0\0\1",
                b"\0\0\0\0\0\0\0\0",
                b"\0\4\0\0\0\1",
            ]
        ),
    ),
)


@given(st.lists(RAW, max_size=40), st.integers(1, 50))
def test_any_frames_to_a_server(frames: list[bytes], step: int) -> None:
    handler = Recorder()
    link = MemoryLink()
    server = Http2Server(link, handler, grpc=False)
    server.start()
    data = BEGINNING + b"".join(frames)
    for at in range(0, len(data), step):
        link.deliver(data[at : at + step])
    server.reset("the test is over")
    assert handler.closings == 1
    for exchange in handler.exchanges:
        ends = [word for word in exchange.said if word.startswith("aborted")]
        assert len(ends) == 1
        assert exchange.said.count("end") <= 1
        assert exchange.said[-1] == ends[0]


@given(st.lists(RAW, max_size=40), st.integers(1, 50))
def test_any_frames_to_a_client(frames: list[bytes], step: int) -> None:
    link = MemoryLink()
    client = Http2Client(link, lambda _: None)
    client.start()
    exchanges = []
    for framing in (Framing.NONE, Framing.STREAM, Framing.LENGTH):
        exchange = Recorded()
        request = Request("POST", "/", "", "app", framing=framing, length=3)
        exchange.upstream = client.request(request, exchange)
        exchanges.append(exchange)
    data = SettingsFrame(0).serialize() + b"".join(frames)
    for at in range(0, len(data), step):
        link.deliver(data[at : at + step])
    client.reset("the test is over")
    for exchange in exchanges:
        ends = [word for word in exchange.said if word == "end" or word.startswith("failed")]
        assert len(ends) == 1
        assert exchange.said[-1] == ends[0]


def test_header_is_nine_bytes() -> None:
    assert len(PingFrame(0).serialize()) == HEADER_BYTES + 8


def test_frames_that_come_at_once_leave_others_their_turn(attacker: Attacker) -> None:
    link, begun = attacker.link, attacker.handler.exchanges
    heads = b"".join(attacker.head().serialize() for _ in range(200))
    assert link.owner is not None
    link.owner.received(memoryview(heads))
    turns = []
    while link.later:
        assert not link.listening  # no more comes meanwhile
        turns.append(len(begun))
        link.later.pop(0)()
    assert turns == [64, 128, 192]
    assert len(begun) == 200
    assert link.listening


def test_small_data_that_comes_at_once_leaves_others_their_turn(attacker: Attacker) -> None:
    link = attacker.link
    attacker.send(attacker.head(end=False))
    [exchange] = attacker.handler.exchanges
    assert link.owner is not None
    link.owner.received(memoryview(DataFrame(1, b"x").serialize() * 10_000))
    turns = [len(exchange.body)]
    while link.later:
        link.later.pop(0)()
        turns.append(len(exchange.body))
    assert turns == [4096, 8192, 10_000]
    assert exchange.said == ["data"] * 3
