"""A client of h2, both halves with a relay between them, and a server of h2, under a schedule.

Windows, pieces, pauses, fragments and clogged links are drawn; every stream must come through with
its own bytes, in order, and end once.
"""

import hashlib
from dataclasses import dataclass, field
from random import Random

import pytest
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import (
    DataReceived,
    Event,
    RequestReceived,
    ResponseReceived,
    StreamEnded,
    StreamReset,
    TrailersReceived,
)
from h2.settings import SettingCodes
from hypothesis import given, settings
from hypothesis import strategies as st
from support.http2 import MemoryLink, RelayHandler
from support.sampling import EXAMPLES

from meshrun.proxy import memory
from meshrun.proxy.http import connection2, stream2
from meshrun.proxy.http.client2 import Http2Client
from meshrun.proxy.http.server2 import Http2Server

pytestmark = pytest.mark.long

MOST_BYTES = 150_000


def noise(seed: str, size: int) -> bytes:
    return hashlib.shake_256(seed.encode()).digest(size)


@dataclass
class Side:
    """What one end of a stream says and hears."""

    to_say: bytes
    trailers: bool
    headed: bool  # the head was said
    said: int = 0
    ended: bool = False
    heard: bytearray = field(default_factory=bytearray)
    heard_trailers: bool = False
    heard_ends: int = 0
    resets: int = 0
    unread: int = 0  # received, and not acknowledged


class End:
    """A peer: a connection of h2, and its streams."""

    def __init__(self, rng: Random, *, client: bool, window: int) -> None:
        self.rng = rng
        self.link = MemoryLink()
        self.sides: dict[int, Side] = {}
        self.numbers: dict[str, int] = {}  # of streams by name
        self.h2 = H2Connection(H2Configuration(client_side=client, header_encoding=False))
        self.h2.initiate_connection()
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: window})
        self.to_deliver = bytearray()

    def say(self) -> bool:
        """Say a piece of some stream; return whether anybody has something to say."""
        live = [number for number, side in self.sides.items() if not side.ended and not side.resets]
        if not live:
            return False
        number = self.rng.choice(live)
        side = self.sides[number]
        if not side.headed:
            side.headed = True
            self.h2.send_headers(number, [(b":status", b"200")])
        room = min(self.h2.local_flow_control_window(number), 16_384)
        left = len(side.to_say) - side.said
        size = min(room, left, self.rng.choice([1, 100, 5000, 16_384]))
        last = size == left and self.may_end(side)
        if size or last:
            piece = side.to_say[side.said : side.said + size]
            side.said += size
            side.ended = last
            self.h2.send_data(number, piece, end_stream=last and not side.trailers)
            if last and side.trailers:
                self.h2.send_headers(number, [(b"x-sum", b"1")], end_stream=True)
        return True

    def may_end(self, side: Side) -> bool:
        return True

    def read(self) -> None:
        """Give some windows back."""
        for number, side in self.sides.items():
            if side.unread and self.rng.random() < 0.5:
                self.h2.acknowledge_received_data(side.unread, number)
                side.unread = 0

    def move(self) -> bool:
        """Let some bytes pass between this peer and the sidecar; return whether any may follow."""
        link, rng = self.link, self.rng
        self.to_deliver += self.h2.data_to_send()
        moved = bool(self.to_deliver or link.out)
        if self.to_deliver:
            count = rng.choice([1, 9, 500, 20_000, len(self.to_deliver)])
            piece = bytes(self.to_deliver[:count])
            del self.to_deliver[:count]
            link.deliver(piece)
        if rng.random() < 0.3:
            link.clogged = True
        if link.out and rng.random() < 0.7:
            count = rng.choice([1, 9, 500, 20_000, len(link.out)])
            piece = bytes(link.out[:count])
            del link.out[:count]
            for event in self.h2.receive_data(piece):
                self.hear(event)
        if link.clogged and not link.out:
            link.unclog()
        return moved or link.clogged or any(side.unread for side in self.sides.values())

    def hear(self, event: Event) -> None:
        number = getattr(event, "stream_id", 0)
        if isinstance(event, DataReceived):
            side = self.sides[number]
            side.heard += event.data or b""
            side.unread += event.flow_controlled_length or 0
        elif isinstance(event, TrailersReceived):
            self.sides[number].heard_trailers = True
        elif isinstance(event, StreamEnded):
            self.sides[number].heard_ends += 1
        elif isinstance(event, StreamReset):
            self.sides[number].resets += 1


class Asking(End):
    def ask(self, name: str, size: int, *, trailers: bool) -> None:
        number = self.h2.get_next_available_stream_id()
        self.numbers[name] = number
        head = [
            (b":method", b"POST"),
            (b":scheme", b"http"),
            (b":authority", b"app"),
            (b":path", b"/" + name.encode()),
        ]
        side = self.sides[number] = Side(noise(f"{name} up", size), trailers, headed=True)
        side.ended = not size and not trailers
        self.h2.send_headers(number, head, end_stream=side.ended)


class Answering(End):
    sizes: dict[str, tuple[int, bool]]

    def may_end(self, side: Side) -> bool:
        # With the end of a response goes what is left of its request.
        return side.heard_ends > 0

    def hear(self, event: Event) -> None:
        if isinstance(event, RequestReceived):
            assert event.stream_id is not None
            name = dict(event.headers or [])[b":path"].decode()[1:]
            size, trailers = self.sizes[name]
            self.numbers[name] = event.stream_id
            body = noise(f"{name} down", size)
            self.sides[event.stream_id] = Side(body, trailers, headed=False)
        elif isinstance(event, ResponseReceived):
            raise AssertionError("a server hears no response")
        else:
            super().hear(event)


SIZES = st.one_of(st.integers(0, 100), st.integers(0, MOST_BYTES))
STREAMS = st.lists(st.tuples(SIZES, st.booleans(), SIZES, st.booleans()), min_size=1, max_size=8)
WINDOWS = st.sampled_from([1, 100, 65_535, 300_000])


def give_one_up(end: End, given_up: set[str]) -> None:
    """Reset a stream that is under way, if there is one."""
    live = [
        name
        for name, number in end.numbers.items()
        if name not in given_up and not (end.sides[number].ended and end.sides[number].heard_ends)
    ]
    if live:
        name = end.rng.choice(live)
        given_up.add(name)
        end.sides[end.numbers[name]].resets = 1
        end.h2.reset_stream(end.numbers[name], ErrorCodes.CANCEL)


def play(
    streams: list[tuple[int, bool, int, bool]], seed: int, windows: tuple[int, int], give_up: int
) -> tuple[Asking, Answering, set[str]]:
    """Let all streams run, of which one in `give_up` is reset by either end on its way."""
    rng = Random(seed)
    asking = Asking(rng, client=True, window=windows[0])
    answering = Answering(rng, client=False, window=windows[1])
    answering.sizes = {str(at): (down, trailers) for at, (*_, down, trailers) in enumerate(streams)}
    client = Http2Client(answering.link, lambda _: None)
    server = Http2Server(asking.link, RelayHandler(client), grpc=False)
    client.start()
    server.start()
    # h2 as a peer is stuck where its window shrinks below what it has taken and not given back.
    while asking.move() or answering.move():
        pass
    waiting = [(str(at), up, trailers) for at, (up, trailers, *_) in enumerate(streams)]
    given_up: set[str] = set()
    quiet = 0
    while quiet < 50:
        busy = False
        if waiting and rng.random() < 0.2:
            name, size, trailers = waiting.pop()
            asking.ask(name, size, trailers=trailers)
        for end in (asking, answering):
            end.say()
            if rng.random() < 0.3:
                end.read()
            busy = end.move() or busy
        if give_up and asking.numbers and rng.randrange(give_up) == 0:
            give_one_up(rng.choice([asking, answering]), given_up)
        quiet = 0 if busy or waiting else quiet + 1
    assert server.in_flight == client.in_flight == 0
    for connection in (server, client):
        assert connection._waiting_bytes == connection._lent_bytes == memory.held.bytes == 0
    assert asking.link.state == answering.link.state == "open"
    return asking, answering, given_up


@given(STREAMS, st.integers(0, 2**32), st.tuples(WINDOWS, WINDOWS))
@settings(deadline=None, max_examples=EXAMPLES)
def test_no_byte_is_lost_or_out_of_order_and_each_stream_ends_once(
    streams: list[tuple[int, bool, int, bool]], seed: int, windows: tuple[int, int]
) -> None:
    if min(windows) < 1000:  # else it takes a frame for each of very many bytes
        streams = [(up % 2000, a, down % 2000, b) for up, a, down, b in streams]
    asking, answering, _ = play(streams, seed, windows, give_up=0)
    for at, (up, up_trailers, down, down_trailers) in enumerate(streams):
        name = str(at)
        for end, other, size, trailers in (
            (answering, "up", up, up_trailers),
            (asking, "down", down, down_trailers),
        ):
            side = end.sides[end.numbers[name]]
            assert bytes(side.heard) == noise(f"{name} {other}", size)
            assert side.heard_trailers is trailers
            assert side.heard_ends == 1


@given(
    STREAMS,
    st.integers(0, 2**32),
    st.sampled_from([100, 65_535, 300_000]),
    st.sampled_from([0, 0, 100]),
)
@settings(deadline=None, max_examples=EXAMPLES)
def test_bodies_larger_than_all_windows_come_through(
    streams: list[tuple[int, bool, int, bool]], seed: int, window: int, give_up: int
) -> None:
    streams = streams * (1 if window < 1000 else 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(connection2, "STREAM_WINDOW_BYTES", 30_000)
        patch.setattr(connection2, "CONNECTION_WINDOW_BYTES", 70_000)
        patch.setattr(connection2, "MOST_LENT_BYTES", 100_000)
        patch.setattr(connection2, "MOST_WAITING_BYTES", 50_000)
        patch.setattr(stream2, "PIECE_BYTES", 20_000)
        asking, answering, given_up = play(streams, seed, (window, window), give_up)
    for at, (up, _, down, _) in enumerate(streams):
        for end, other, size in ((answering, "up", up), (asking, "down", down)):
            if str(at) not in given_up:
                side = end.sides[end.numbers[str(at)]]
                assert bytes(side.heard) == noise(f"{at} {other}", size)
                assert side.heard_ends == 1


@given(STREAMS, st.integers(0, 2**32))
@settings(deadline=None, max_examples=EXAMPLES)
def test_streams_that_are_given_up_leave_the_others_whole(
    streams: list[tuple[int, bool, int, bool]], seed: int
) -> None:
    asking, answering, given_up = play(streams, seed, (65_535, 65_535), give_up=30)
    for at, (up, _, down, _) in enumerate(streams):
        name = str(at)
        for end, other, size in ((answering, "up", up), (asking, "down", down)):
            if name not in end.numbers:
                assert name in given_up
                continue
            side = end.sides[end.numbers[name]]
            whole = noise(f"{name} {other}", size)
            if name in given_up:
                assert whole.startswith(bytes(side.heard))
                assert side.heard_ends <= 1
            else:
                assert bytes(side.heard) == whole
                assert side.heard_ends == 1
