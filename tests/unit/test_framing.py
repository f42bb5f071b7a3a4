"""The frames of a tunnel: bytes to frames and back, and what may follow what."""

import itertools
import re
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy import inbound_tunnels, outbound_tunnels, pool, pump
from meshrun.proxy.errors import FramingError
from meshrun.proxy.framing import (
    ALPN,
    HEADER_BYTES,
    MOST_DATA_BYTES,
    MOST_EARLY_BYTES,
    MOST_REFUSAL_BYTES,
    SMALL_BYTES,
    TRANSITIONS,
    Decoder,
    Frame,
    Hearing,
    Refusal,
    after,
    encode,
    encode_refusal,
    pack_data_header,
    read_refusal,
)
from meshrun.proxy.tunnel import RESET_TIMEOUT_S

Frames = list[tuple[Frame, bytes]]


def raw(kind: int, payload: bytes = b"", length: int | None = None) -> bytes:
    """Return a frame as docs/tunnel.md has it, of any type and with any length in its header."""
    size = len(payload) if length is None else length
    return bytes([kind]) + size.to_bytes(3, "big") + payload


def decode(*parts: bytes) -> Frames:
    decoder = Decoder()
    return [(f, bytes(p)) for part in parts for f, p in decoder.feed(memoryview(part))]


def merged(frames: Frames) -> Frames:
    """Return `frames` with the neighbouring parts of DATA joined."""
    result: Frames = []
    for frame, payload in frames:
        if frame is Frame.DATA and result and result[-1][0] is Frame.DATA:
            result[-1] = frame, result[-1][1] + payload
        else:
            result.append((frame, payload))
    return result


def fragments(data: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    return [data[start:end] for start, end in itertools.pairwise(at)]


# The table.


@pytest.mark.parametrize("hearing", Hearing)
@pytest.mark.parametrize("frame", Frame)
def test_a_frame_is_in_the_table_or_a_breach(hearing: Hearing, frame: Frame) -> None:
    if (hearing, frame) in TRANSITIONS:
        assert after(hearing, frame) is TRANSITIONS[hearing, frame]
    else:
        with pytest.raises(FramingError, match=f"{frame.name} came while {hearing.name.lower()}"):
            after(hearing, frame)


@pytest.mark.parametrize(
    ("begin", "frames", "end"),
    [
        (Hearing.UNOPENED, [Frame.OPEN, Frame.DATA, Frame.DATA, Frame.FINISH], Hearing.UNOPENED),
        (Hearing.UNOPENED, [Frame.OPEN, Frame.FINISH, Frame.OPEN, Frame.RESET], Hearing.UNOPENED),
        (Hearing.AWAITING, [Frame.ACCEPTED, Frame.DATA, Frame.FINISH], Hearing.UNCALLED),
        (Hearing.AWAITING, [Frame.ACCEPTED, Frame.RESET], Hearing.UNCALLED),
        (Hearing.AWAITING, [Frame.REFUSED], Hearing.UNCALLED),
        (Hearing.AWAITING, [Frame.RESET], Hearing.UNCALLED),
    ],
)
def test_a_life(begin: Hearing, frames: list[Frame], end: Hearing) -> None:
    hearing = begin
    for frame in frames:
        hearing = after(hearing, frame)
    assert hearing is end


def test_every_direction_ends_in_exactly_the_frames_that_say_so() -> None:
    rest = {Hearing.UNOPENED, Hearing.UNCALLED}
    ends = {frame for (_, frame), state in TRANSITIONS.items() if state in rest}
    assert ends == {Frame.FINISH, Frame.RESET, Frame.REFUSED}
    for (hearing, frame), state in TRANSITIONS.items():
        assert (frame in ends) is (state in rest), (hearing, frame)


def test_only_the_side_that_opens_hears_answers_and_only_the_other_hears_open() -> None:
    opener = {Hearing.UNCALLED, Hearing.AWAITING, Hearing.CALLED}
    for (hearing, frame), state in TRANSITIONS.items():
        assert (hearing in opener) is (state in opener)
        assert frame is not Frame.OPEN or hearing is Hearing.UNOPENED
        assert frame not in (Frame.ACCEPTED, Frame.REFUSED) or hearing is Hearing.AWAITING


# Bytes.


def test_the_bytes_are_those_of_the_specification() -> None:
    assert encode(Frame.OPEN).hex() == "01000000"
    assert encode(Frame.ACCEPTED).hex() == "02000000"
    assert encode_refusal(Refusal.DENIED, "denied").hex() == "03000007" + "01" + b"denied".hex()
    assert encode(Frame.FINISH).hex() == "05000000"
    assert encode(Frame.RESET).hex() == "06000000"
    buffer = bytearray(6)
    pack_data_header(memoryview(buffer), 1, 0x0A0B0C)
    assert buffer.hex() == "00" + "040a0b0c" + "00"


def test_the_longest_data_has_a_header() -> None:
    buffer = bytearray(HEADER_BYTES)
    pack_data_header(memoryview(buffer), 0, MOST_DATA_BYTES)
    assert buffer.hex() == "04ffffff"
    assert decode(bytes(buffer) + b"x") == [(Frame.DATA, b"x")]


@pytest.mark.parametrize(
    "frame", [Frame.OPEN, Frame.ACCEPTED, Frame.FINISH, Frame.RESET], ids=lambda frame: frame.name
)
@pytest.mark.parametrize("length", [1, 4, MOST_DATA_BYTES])
def test_a_frame_that_has_no_payload_may_have_none(frame: Frame, length: int) -> None:
    assert decode(raw(frame)) == [(frame, b"")]
    with pytest.raises(FramingError, match=f"cannot take a {frame.name} of {length} bytes"):
        decode(raw(frame, length=length))


@pytest.mark.parametrize("length", [0, MOST_REFUSAL_BYTES + 1, MOST_DATA_BYTES])
def test_a_refusal_has_a_code_and_a_short_text(length: int) -> None:
    with pytest.raises(FramingError, match=f"cannot take a REFUSED of {length} bytes"):
        decode(raw(Frame.REFUSED, length=length))


def test_an_empty_data_is_a_breach() -> None:
    with pytest.raises(FramingError, match="cannot take a DATA of 0 bytes"):
        decode(raw(Frame.DATA))


@pytest.mark.parametrize("length", [0, 1, MOST_DATA_BYTES])
def test_an_unknown_type_is_a_breach_whatever_its_length(length: int) -> None:
    for kind in {*range(256)} - {*Frame}:
        with pytest.raises(FramingError, match=f"cannot understand a frame of type {kind}$"):
            decode(raw(kind, length=length))


def test_frames_before_a_breach_are_still_obeyed() -> None:
    frames = Decoder().feed(memoryview(raw(Frame.OPEN) + raw(9)))
    assert next(frames)[0] is Frame.OPEN
    with pytest.raises(FramingError):
        next(frames)


# The text of a refusal.


@given(st.sampled_from(Refusal), st.text())
def test_a_refusal_comes_back_as_it_was_said(refusal: Refusal, text: str) -> None:
    ((frame, payload),) = decode(encode_refusal(refusal, text))
    assert frame is Frame.REFUSED
    assert len(payload) <= MOST_REFUSAL_BYTES
    code, said = read_refusal(payload)
    assert code is refusal
    assert said.isprintable()
    if text.isprintable() and len(text.encode()) < MOST_REFUSAL_BYTES:
        assert said == text


@given(st.binary(max_size=MOST_REFUSAL_BYTES - 1))
def test_the_text_of_a_stranger_never_reaches_a_terminal_as_a_command(text: bytes) -> None:
    _, said = read_refusal(bytes([Refusal.BUSY]) + text)
    assert said.isprintable()


@pytest.mark.parametrize("code", [0, len(Refusal) + 1, 255])
def test_an_unknown_refusal_is_a_breach(code: int) -> None:
    with pytest.raises(FramingError, match=f"a refusal with the code {code}"):
        read_refusal(bytes([code]) + b"because")


# Whatever comes.

some_frames = st.lists(
    st.one_of(
        st.sampled_from(
            [(f, b"") for f in (Frame.OPEN, Frame.ACCEPTED, Frame.FINISH, Frame.RESET)]
        ),
        st.tuples(st.just(Frame.DATA), st.binary(min_size=1, max_size=70)),
        st.tuples(st.just(Frame.REFUSED), st.binary(min_size=1, max_size=MOST_REFUSAL_BYTES)),
    ),
    max_size=12,
)


@given(some_frames, st.lists(st.integers(0, 600), max_size=30))
def test_any_fragmentation_gives_the_same_frames_and_bytes(sent: Frames, cuts: list[int]) -> None:
    wire = b"".join(raw(frame, payload) for frame, payload in sent)
    assert decode(wire) == merged(sent)
    assert merged(decode(*fragments(wire, cuts))) == merged(sent)
    assert merged(decode(*(bytes([byte]) for byte in wire))) == merged(sent)


@given(some_frames, st.integers(0, 600))
def test_what_is_half_received_is_known(sent: Frames, cut: int) -> None:
    decoder = Decoder()
    wire = b"".join(raw(frame, payload) for frame, payload in sent)
    ends = {0}
    for frame, payload in sent:
        ends.add(max(ends) + HEADER_BYTES + len(payload))
        assert frame
    cut = min(cut, len(wire))
    list(decoder.feed(memoryview(wire[:cut])))
    assert decoder.whole is (cut in ends)


# Headers of every kind, and more often than chance would have it right ones.
some_bytes = st.lists(
    st.one_of(
        st.binary(max_size=40),
        st.builds(raw, st.integers(0, 8), st.binary(max_size=20), st.none() | st.integers(0, 300)),
    ),
    max_size=12,
).map(b"".join)


@given(some_bytes, st.lists(st.integers(0, 400), max_size=30))
def test_garbage_gives_frames_or_a_breach_and_little_is_kept(wire: bytes, cuts: list[int]) -> None:
    decoder = Decoder()
    seen: Frames = []
    try:
        for part in fragments(wire, cuts):
            for frame, payload in decoder.feed(memoryview(part)):
                seen.append((frame, bytes(payload)))
            assert len(decoder._kept) < HEADER_BYTES + MOST_REFUSAL_BYTES
    except FramingError:
        pass
    # What was understood is what was sent, up to where it was not.
    said = b"".join(payload for _, payload in seen)
    assert len(said) <= len(wire)
    whole = decode_up_to_the_breach(wire)
    assert merged(seen) == merged(whole)


@given(some_bytes, st.lists(st.integers(0, 400), max_size=30), st.integers(1, 5))
def test_frames_are_the_same_in_turns(wire: bytes, cuts: list[int], most: int) -> None:
    decoder = Decoder()
    seen: Frames = []
    try:
        for part in fragments(wire, cuts):
            fed = part
            if decoder.more:  # as it comes while others have their turn
                decoder.keep(memoryview(part))
                fed = b""
            turn = [(frame, bytes(data)) for frame, data in decoder.feed(fed, most)]
            assert len(turn) <= most + 1  # the last frame of the turn before may have gone on
            seen += turn
        while decoder.more:
            seen += [(frame, bytes(data)) for frame, data in decoder.feed(b"", most)]
    except FramingError:
        pass
    expected = merged(decode_up_to_the_breach(wire))
    said = merged(seen)
    assert said == expected[: len(said)]


def test_a_turn_has_so_many_frames_and_the_rest_is_kept() -> None:
    decoder = Decoder()
    wire = raw(Frame.DATA, b"x") * 5 + raw(Frame.FINISH)
    turns = [[bytes(payload) for _, payload in decoder.feed(wire, 3)]]
    decoder.keep(memoryview(raw(Frame.OPEN)))
    while decoder.more:
        turns.append([bytes(payload) for _, payload in decoder.feed(b"", 3)])
    assert turns == [[b"xxx"], [b"xx", b""], [b""]]


def test_small_payloads_that_came_together_are_one() -> None:
    bulk = b"y" * SMALL_BYTES
    sent = [b"a", b"b" * 100, bulk, b"c", b"d"]
    wire = b"".join(raw(Frame.DATA, payload) for payload in sent) + raw(Frame.FINISH)
    frames = list(Decoder().feed(memoryview(wire)))
    assert [bytes(payload) for _, payload in frames] == [b"a" + b"b" * 100, bulk, b"cd", b""]
    assert frames[1][1].obj is wire


def decode_up_to_the_breach(wire: bytes) -> Frames:
    """Read `wire` as slowly and plainly as the specification says it."""
    found: Frames = []
    limits = {1: (0, 0), 2: (0, 0), 3: (1, 256), 4: (1, 2**24 - 1), 5: (0, 0), 6: (0, 0)}
    while len(wire) >= 4:
        kind, length = wire[0], int.from_bytes(wire[1:4], "big")
        if kind not in limits or not limits[kind][0] <= length <= limits[kind][1]:
            break
        payload = wire[4 : 4 + length]
        if len(payload) < length and kind != Frame.DATA:
            break
        if payload or kind != Frame.DATA:
            found.append((Frame(kind), payload))
        wire = wire[4 + length :]
    return found


def test_a_peer_that_sends_single_bytes_costs_no_more_than_the_bytes() -> None:
    decoder = Decoder()
    wire = raw(Frame.DATA, b"x" * 100_000) + raw(Frame.REFUSED, b"\1" + b"y" * 255) * 200
    began = time.process_time()
    count = sum(
        len(payload) for byte in wire for _, payload in decoder.feed(memoryview(bytes([byte])))
    )
    assert count == 100_000 + 256 * 200
    assert time.process_time() - began < 5


# The specification.

SPECIFICATION = (Path(__file__).parents[2] / "docs" / "tunnel.md").read_text(encoding="utf-8")


def rows(pattern: str) -> list[tuple[str, ...]]:
    """Return what `pattern` captures in the rows of the specification's tables."""
    return re.findall(rf"^\| {pattern}", SPECIFICATION, re.MULTILINE)


def test_the_specification_has_the_table_of_states() -> None:
    found = {
        (Hearing[state], Frame[frame]): Hearing[then]
        for state, frame, then in rows(r"`(\w+)`[^|]* \| `(\w+)` \| `(\w+)` \|$")
    }
    assert found == TRANSITIONS


def test_the_specification_has_the_frames_with_their_limits() -> None:
    limits = {
        (int(kind), name): (int(least), int(most or least))
        for kind, name, least, most in rows(r"(\d) \| `(\w+)` \| (\d+)(?: to (\d+))? \|")
    }
    assert set(limits) == {(frame.value, frame.name) for frame in Frame}
    for (kind, _), (least, most) in limits.items():
        for length in {least, most}:
            list(Decoder().feed(memoryview(raw(kind, length=length))))
        for length in {least - 1, most + 1} - {-1, 2**24}:
            with pytest.raises(FramingError):
                list(Decoder().feed(memoryview(raw(kind, length=length))))


def test_the_specification_has_the_refusals() -> None:
    found = rows(r"(\d) \| `([A-Z]+)` \| [^|]* \| [^|]* \|$")
    assert [(int(code), name) for code, name in found] == [(r.value, r.name) for r in Refusal]


def test_the_specification_has_the_numbers_of_the_code() -> None:
    assert f"`{ALPN}`" in SPECIFICATION
    assert f"at most {MOST_EARLY_BYTES} bytes of payload" in SPECIFICATION
    assert f"waits {RESET_TIMEOUT_S:g} s" in SPECIFICATION
    assert f"later streams: {pool.IDLE_S:g} s, at most {pool.MOST_IDLE} " in SPECIFICATION
    assert f"idle for {inbound_tunnels.IDLE_S:g} s" in SPECIFICATION
    assert f"beyond {inbound_tunnels.MOST_IDLE} idle" in SPECIFICATION
    assert f"one read of the app ({pump.BUFFER_BYTES >> 10} KiB)" in SPECIFICATION
    assert f"{pump.MOST_WAITING_BYTES >> 10} KiB together" in SPECIFICATION
    assert f"connect timeout and {outbound_tunnels.ANSWER_GRACE_S:g} s" in SPECIFICATION


def test_the_example_of_the_specification_is_what_the_code_says() -> None:
    begin, end = "test_framing.py: begin -->", "<!-- read by tests/unit/test_framing.py: end"
    example = SPECIFICATION.partition(begin)[2].partition(end)[0]
    said: dict[str, bytes] = {"opener": b"", "taker": b""}
    side = ""
    for line in example.splitlines():
        found = re.match(r"(opener|taker|      ) {2,3}((?:[0-9a-f]{2} ?)+)(?: |$)", line)
        if found:
            side = found[1].strip() or side
            said[side] += bytes.fromhex(found[2])
    assert decode(said["opener"]) == [
        (Frame.OPEN, b""),
        (Frame.DATA, b"GET / HTTP/1.0\r\n\r\n"),
        (Frame.FINISH, b""),
        (Frame.OPEN, b""),
        (Frame.DATA, b"hi"),
        (Frame.RESET, b""),
    ]
    *accepted, (refused, payload) = decode(said["taker"])
    assert accepted == [
        (Frame.ACCEPTED, b""),
        (Frame.DATA, b"HTTP/1.0 204 No Content\r\n\r\n"),
        (Frame.FINISH, b""),
    ]
    text = inbound_tunnels.TEXTS[Refusal.UNREACHABLE]
    assert (refused, read_refusal(payload)) == (Frame.REFUSED, (Refusal.UNREACHABLE, text))
