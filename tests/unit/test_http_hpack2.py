"""Header blocks against the library hpack, and those that stand for too much."""

import hpack
import pytest
from hpack.exceptions import HPACKDecodingError, HPACKError, OversizedHeaderListError
from hpack.struct import HeaderTuple, NeverIndexedHeaderTuple
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.http.hpack2 import (
    DECODED_LIMIT_BYTES,
    DECODED_LIMIT_FIELDS,
    MOST_SIZE_CHANGES,
    Decoder,
    Encoder,
    Field,
)

NAMES = st.sampled_from([b":path", b":status", b"cookie", b"x-a", b"x-b"]) | st.binary(max_size=200)
VALUES = st.sampled_from([b"/", b"200", b"", b"abc"]) | st.binary(max_size=300)
FIELDS = st.builds(
    lambda kind, name, value: kind(name, value),
    st.sampled_from([HeaderTuple, NeverIndexedHeaderTuple]),
    NAMES,
    VALUES,
)
LISTS = st.lists(st.tuples(st.lists(FIELDS, max_size=20), st.none() | st.integers(0, 4096)))


def told(fields: object) -> list[tuple[bool, Field]]:
    """Return fields with whether a table may have them."""
    assert isinstance(fields, list)
    return [(field.indexable, tuple(field)) for field in fields]


@given(LISTS)
def test_what_is_encoded_is_read_by_the_library(
    lists: list[tuple[list[HeaderTuple], int | None]],
) -> None:
    encoder, decoder = Encoder(), hpack.Decoder()
    for fields, size in lists:
        if size is not None:
            encoder.header_table_size = size
        assert told(decoder.decode(encoder.encode(fields), raw=True)) == told(fields)
    assert encoder.header_table.dynamic_entries == decoder.header_table.dynamic_entries


@given(LISTS, st.booleans())
def test_what_the_library_encodes_is_read(
    lists: list[tuple[list[HeaderTuple], int | None]], huffman: bool
) -> None:
    encoder, decoder = hpack.Encoder(), Decoder()
    for fields, size in lists:
        if size is not None:
            encoder.header_table_size = size
        read = decoder.decode(encoder.encode(fields, huffman=huffman))
        assert [field[:] for field in read] == [field[:] for field in fields]
    assert encoder.header_table.dynamic_entries == decoder.header_table.dynamic_entries


@given(st.lists(st.binary(max_size=60), max_size=5))
def test_whatever_comes_is_read_as_the_library_reads_it(blocks: list[bytes]) -> None:
    ours, theirs = Decoder(), hpack.Decoder()
    for block in blocks:
        try:
            expected = told(theirs.decode(block, raw=True))
        except (HPACKError, IndexError):
            with pytest.raises(HPACKError):
                ours.decode(block)
            return
        assert told(ours.decode(block)) == expected


def test_block_that_changes_the_table_again_and_again() -> None:
    # A byte is a change, and a block of them would have the loop for a tenth of a second.
    decoder = Decoder()
    assert decoder.decode(b"\x20" * MOST_SIZE_CHANGES + b"\x82") == [(b":method", b"GET")]
    with pytest.raises(HPACKDecodingError):
        decoder.decode(b"\x20" * (MOST_SIZE_CHANGES + 1) + b"\x82")


def test_fields_that_have_left_the_table_are_not_kept() -> None:
    encoder, decoder = Encoder(), hpack.Decoder()
    for number in range(1000):
        fields = [(b"x-%d" % number, b"y" * 2000), (b"z", b"z" * 5000)]
        assert decoder.decode(encoder.encode(fields), raw=True) == fields
    assert len(encoder._entries) < 20
    assert len(encoder._names) < 20


def test_what_must_not_be_indexed_is_not_even_where_the_table_has_it() -> None:
    encoder, decoder = Encoder(), hpack.Decoder()
    decoder.decode(encoder.encode([(b"x", b"1")]))
    for field in (NeverIndexedHeaderTuple(b"x", b"1"), NeverIndexedHeaderTuple(b":path", b"/")):
        [read] = decoder.decode(encoder.encode([field]), raw=True)
        assert not read.indexable


@pytest.mark.parametrize(
    "block",
    [
        b"\x90" * (DECODED_LIMIT_FIELDS + 1),  # a byte a field
        hpack.Encoder().encode([(b"x", b"y" * 4000)] * (DECODED_LIMIT_BYTES // 4000)),
        hpack.Encoder().encode([(b"x", b"y" * DECODED_LIMIT_BYTES)]),
    ],
)
def test_block_that_stands_for_too_much_is_given_up_within(block: bytes) -> None:
    with pytest.raises(OversizedHeaderListError):
        Decoder().decode(block)


def test_head_of_as_many_fields_and_bytes_as_may_be_is_read() -> None:
    fields = [(b"x-%d" % number, bytes(b"y" * 550)) for number in range(100)]
    assert Decoder().decode(hpack.Encoder().encode(fields)) == fields
