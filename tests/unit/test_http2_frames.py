"""Frames as they are cut, joined and sent: nothing is lost, and large ones are taken."""

import itertools

from h2.events import DataReceived
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, Frame, PingFrame, SettingsFrame
from hypothesis import given
from hypothesis import strategies as st
from support.http2 import ClientPeer, Recorder, frames_of

from meshrun.proxy.http import frames2
from meshrun.proxy.http.frames2 import FRAME_LIMIT_BYTES, Frames
from meshrun.proxy.http.heads import Framing, Response

SIZES = st.integers(0, 40) | st.integers(0, FRAME_LIMIT_BYTES)
DATA = st.builds(
    lambda stream, size, end, pad: DataFrame(
        stream,
        bytes([size % 256]) * size,
        flags=["END_STREAM"] * end + ["PADDED"] * bool(pad and size < 1000),
        pad_length=pad if size < 1000 else 0,
    ),
    st.sampled_from([1, 3]),
    SIZES,
    st.booleans(),
    st.sampled_from([0, 0, 0, 9]),
)
PINGS = st.builds(lambda: PingFrame(0, b"12345678"))


def cut(wire: bytes, parts: list[int]) -> list[Frame]:
    """Return what comes out of `wire`, when it comes in such parts."""
    frames = Frames(of_client=False)
    ends = sorted({0, len(wire), *(part % (len(wire) + 1) for part in parts)})
    return [
        frame
        for start, end in itertools.pairwise(ends)
        for passed in frames.feed(memoryview(wire[start:end]), 0.0)
        for frame in frames_of(bytes(passed.whole))
    ]


def told(frames: list[Frame]) -> list[tuple[int, bytes, bool, int]]:
    """Return what frames say, where those that may be joined are one."""
    said: list[tuple[int, bytes, bool, int]] = []
    for frame in frames:
        if not isinstance(frame, DataFrame):
            said.append((0, b"", False, 0))
            continue
        end, pad = "END_STREAM" in frame.flags, frame.pad_length
        now = (frame.stream_id, frame.data, end, pad)
        if said and said[-1][0] == now[0] and not said[-1][2] and not pad and not said[-1][3]:
            stream, data, _, _ = said.pop()
            now = (stream, data + frame.data, end, 0)
        said.append(now)
    return said


@given(st.lists(DATA | PINGS, max_size=12), st.lists(st.integers(0, 2**30), max_size=12))
def test_what_is_cut_and_joined_is_what_was_sent(sent: list[Frame], parts: list[int]) -> None:
    frames = [SettingsFrame(0), *sent]
    taken = cut(b"".join(frame.serialize() for frame in frames), parts)
    assert told(taken[1:]) == told(frames[1:])
    assert len(taken) <= len(frames)
    assert all(frame.body_len <= FRAME_LIMIT_BYTES for frame in taken)


def test_frame_without_data_is_not_joined_away() -> None:
    empty, full = DataFrame(1, b""), DataFrame(1, b"x")
    sent = [SettingsFrame(0), full, empty, full, empty, DataFrame(1, b"", flags=["END_STREAM"])]
    taken = cut(b"".join(frame.serialize() for frame in sent), [])
    sizes = [len(frame.data) for frame in taken if isinstance(frame, DataFrame)]
    assert sizes == [1, 0, 1, 0, 0]


def test_many_frames_that_are_joined_count_as_more_than_one() -> None:
    frames = Frames(of_client=False)
    run = frames2.FRAMES_LIKE_ONE + 1
    runs = [DataFrame(stream, b"x").serialize() * run for stream in (1, 3)] * 16
    list(frames.feed(memoryview(SettingsFrame(0).serialize()), 0.0, 64))
    turns = [list(frames.feed(memoryview(b"".join(runs)), 0.0, 32))]
    while frames.more:
        turns.append(list(frames.feed(b"", 0.0, 32)))
    assert [len(turn) for turn in turns] == [16, 16]
    assert {frame.data_bytes for turn in turns for frame in turn} == {run}


def test_large_frames_are_taken_and_sent_to_whoever_takes_them() -> None:
    handler = Recorder()
    peer = ClientPeer(handler)
    assert peer.h2.max_outbound_frame_size == FRAME_LIMIT_BYTES
    peer.h2.update_settings({SettingCodes.MAX_FRAME_SIZE: 2**20})
    peer.h2.increment_flow_control_window(2**20)
    number = peer.request(method=b"POST", end=False)
    peer.h2.increment_flow_control_window(2**20, number)
    peer.h2.send_data(number, bytes(FRAME_LIMIT_BYTES), end_stream=True)
    peer.exchange()
    [exchange] = handler.exchanges
    assert len(exchange.body) == FRAME_LIMIT_BYTES
    assert exchange.downstream is not None
    exchange.downstream.respond(Response(status=200, framing=Framing.STREAM))
    exchange.downstream.send(bytes(3 * FRAME_LIMIT_BYTES // 2))
    exchange.downstream.end([])
    exchange.downstream.flush()
    peer.exchange()
    sizes = [len(getattr(event, "data", b"")) for event in peer.of(DataReceived, number)]
    assert sizes == [FRAME_LIMIT_BYTES, FRAME_LIMIT_BYTES // 2]
