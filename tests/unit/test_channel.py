"""The framing of the channel: whatever comes in whatever pieces, messages or ChannelError."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy import channel
from meshrun.proxy.channel import LENGTH_BYTES, MAX_MESSAGE_BYTES
from meshrun.proxy.errors import ChannelError
from meshrun.proxy.messages import (
    Denied,
    Enforced,
    FromSidecar,
    LeafRequested,
    Logged,
    Renew,
    Serving,
)

messages: st.SearchStrategy[FromSidecar] = st.one_of(
    st.builds(Enforced, version=st.integers(0, 2**63)),
    st.builds(Serving, serial=st.text()),
    st.builds(LeafRequested, request=st.integers(0, 2**31), csr=st.binary()),
    st.builds(
        Denied,
        kind=st.sampled_from(["intention", "peer"]),
        source=st.text(),
        reason=st.text(),
        live=st.booleans(),
        count=st.integers(1, 10**6),
    ),
)


@given(st.lists(messages, max_size=8), st.data())
def test_messages_come_out_as_they_went_in_however_the_stream_is_cut(
    sent: list[FromSidecar], data: st.DataObject
) -> None:
    stream = b"".join(channel.encode(message) for message in sent)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=10)))
    decoder = channel.from_sidecar()
    received = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        received += decoder.feed(stream[start:end])
    assert received == sent


@given(st.lists(messages, min_size=1, max_size=3))
def test_one_byte_at_a_time_is_enough(sent: list[FromSidecar]) -> None:
    decoder = channel.from_sidecar()
    received = []
    for byte in b"".join(channel.encode(message) for message in sent):
        received += decoder.feed(bytes([byte]))
    assert received == sent


@given(st.lists(st.binary(), max_size=5))
def test_hostile_bytes_are_a_channel_error_and_nothing_else(pieces: list[bytes]) -> None:
    decoder = channel.from_sidecar()
    try:
        for piece in pieces:
            decoder.feed(piece)
    except ChannelError:
        pass


@given(st.binary(max_size=200))
def test_hostile_bodies_are_a_channel_error_and_nothing_else(body: bytes) -> None:
    decoder = channel.to_sidecar()
    try:
        decoder.feed(len(body).to_bytes(LENGTH_BYTES, "big") + body)
    except ChannelError:
        pass


def test_a_length_over_the_limit_is_refused_before_its_bytes_come() -> None:
    decoder = channel.from_sidecar()
    with pytest.raises(ChannelError, match="the limit is"):
        decoder.feed((MAX_MESSAGE_BYTES + 1).to_bytes(LENGTH_BYTES, "big"))


def test_nothing_is_read_behind_an_error() -> None:
    decoder = channel.from_sidecar()
    with pytest.raises(ChannelError):
        decoder.feed(b"\x00\x00\x00\x01\xc1")
    with pytest.raises(ChannelError, match="earlier message"):
        decoder.feed(channel.encode(Enforced(version=1)))


def test_each_side_refuses_the_messages_of_its_own() -> None:
    with pytest.raises(ChannelError):
        channel.to_sidecar().feed(channel.encode(Enforced(version=1)))
    with pytest.raises(ChannelError):
        channel.from_sidecar().feed(channel.encode(Renew()))


def test_a_message_too_long_is_not_sent() -> None:
    with pytest.raises(ChannelError, match="cannot send a Logged of"):
        channel.encode(Logged(level="info", message="x" * MAX_MESSAGE_BYTES))
