"""Whose a byte is: this message's or the next one's."""

import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.body1 import (
    BATCH,
    EXTENSION_LIMIT_BYTES,
    EXTENSIONS_LIMIT_BYTES,
    LAST_CHUNK,
    TRAILERS_LIMIT_BYTES,
    Chunked,
    chunk,
    last_chunk,
    permitted_trailers,
)
from meshrun.proxy.http.heads import Fields
from meshrun.proxy.http.semantics import FIELD_LIMIT


def decode(*parts: bytes, of_response: bool = False) -> tuple[bytes, int, Fields | None]:
    """Return the body in `parts`, how many bytes it took, and its trailers if it is over."""
    decoder = Chunked(of_response=of_response)
    body, taken = bytearray(), 0
    for part in parts:
        at = 0
        while at < len(part) and not decoder.over:
            piece, count = decoder.feed(part[at:])
            assert count
            body += piece
            at += count
        taken += at
    return bytes(body), taken, decoder.trailers if decoder.over else None


def fragments(wire: bytes, cuts: list[int]) -> list[bytes]:
    at = sorted({0, *(cut for cut in cuts if cut < len(wire)), len(wire)})
    return [wire[start:end] for start, end in itertools.pairwise(at)]


def status_of(wire: bytes, *, of_response: bool = False) -> int:
    """Return with what status a body is refused, whole and byte by byte."""
    statuses = set()
    for parts in ([wire], [wire[at : at + 1] for at in range(len(wire))]):
        with pytest.raises(HttpError, match="cannot take") as refused:
            decode(*parts, of_response=of_response)
        statuses.add(refused.value.status)
    (status,) = statuses
    return status


# Chunks.


@pytest.mark.parametrize(
    ("wire", "body"),
    [
        (b"0\r\n\r\n", b""),
        (b"000000000000000\r\n\r\n", b""),
        (b"5\r\nhello\r\n0\r\n\r\n", b"hello"),
        (b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", b"hello world"),
        (b"00a\r\n0123456789\r\n0\r\n\r\n", b"0123456789"),
        (b"9\r\n0\r\n\r\n0\r\n\r\r\n0\r\n\r\n", b"0\r\n\r\n0\r\n\r"),
        (b"1;a\r\nx\r\n0;b=c\r\n\r\n", b"x"),
        (b'1;a=b;c="d;\\"\\\\\t \xe9";e\r\nx\r\n0\r\n\r\n', b"x"),
    ],
)
def test_a_body_is_what_its_chunks_hold(wire: bytes, body: bytes) -> None:
    assert decode(wire) == (body, len(wire), [])
    assert decode(*(wire[at : at + 1] for at in range(len(wire)))) == (body, len(wire), [])
    assert decode(wire + b"0\r\n\r\n") == (body, len(wire), [])
    assert decode(wire[:-1]) == (body, len(wire) - 1, None)


def test_a_chunk_is_a_view_of_what_was_fed() -> None:
    wire = b"5\r\nhello\r\n0\r\n\r\nGET"
    piece, _ = Chunked().feed(memoryview(wire))
    assert isinstance(piece, memoryview)
    assert (piece.obj is wire, bytes(piece)) == (True, b"hello")


def test_chunks_that_came_together_are_one_piece() -> None:
    wire = b"1\r\nx\r\n2\r\nyz\r\n9\r\nbe"
    assert Chunked().feed(memoryview(wire)) == (b"xyzbe", len(wire))


def test_a_turn_takes_so_many_chunks_and_no_more() -> None:
    decoder = Chunked()
    one = b"1\r\nx\r\n"
    wire = one * (BATCH + 3) + LAST_CHUNK
    assert decoder.feed(wire) == (b"x" * BATCH, len(one) * BATCH)
    assert not decoder.over
    assert decoder.feed(wire[len(one) * BATCH :]) == (b"xxx", len(one) * 3 + len(LAST_CHUNK))
    assert decoder.over


def test_behind_the_end_nothing_is_taken() -> None:
    decoder = Chunked()
    decoder.feed(LAST_CHUNK)
    assert decoder.over
    assert decoder.feed(b"5\r\nhello\r\n") == (b"", 0)


@pytest.mark.parametrize(
    "wire",
    [
        *(b"\r\n", b"\n", b" 5\r\n", b"5 \r\n", b"\t5\r\n", b"+5\r\n", b"-5\r\n", b"-0\r\n"),
        *(b"0x5\r\n", b"5x\r\n", b"g\r\n", b"5_0\r\n", b"5.\r\n", b"\xb2\r\n", b";a\r\n"),
        *(b"5\n", b"5\r\r\n", b"5\rX", b"5\0\r\n", b"5,5\r\n", b"5\x0b\r\n"),
        *(b"0000000000000005\r\n", b"fffffffffffffffff\r\n", b"1" * 1000),
        *(b"5;\r\n", b"5; a\r\n", b"5 ;a\r\n", b"5;a =b\r\n", b"5;a= b\r\n", b"5;a=\r\n"),
        *(b"5;=b\r\n", b"5;;a\r\n", b'5;a="b\r\n', b'5;a=b"\r\n', b'5;a="b"c\r\n', b"5;a\nb\r\n"),
        *(b'5;a="\r\n"\r\n', b"5;a=b c\r\n", b"5;a\0\r\n", b"5;\xe9\r\n", b'5;a="\\\r\n"\r\n'),
        *(b"1\r\nxx\r\n", b"1\r\nx\n", b"1\r\nx\r\r\n", b"1\r\nx0\r\n\r\n", b"1\r\nx;\r\n"),
        *(b"1\r\nx\r0\r\n", b"2\r\nx\r\n0\r\n\r\n"),
        *(b"0\r\n\n", b"0\r\n" + b"x" * 9000, b"0\r\n\rX\r\n\r\n"),
    ],
)
def test_what_is_no_chunk_is_refused(wire: bytes) -> None:
    assert status_of(wire) == (431 if len(wire) > 9000 else 400)
    assert status_of(wire, of_response=True) == 502


def test_garbage_is_refused_before_a_line_of_it_is_whole() -> None:
    for wire in (b"z", b"GET", b"5 ", b"5\rx", b"5;a\n", b"\xff", b"1" * 16):
        with pytest.raises(HttpError):
            decode(wire)


# Extensions.


def test_an_extension_may_be_as_long_as_the_limit() -> None:
    for size in (b"1", b"0" * 14 + b"1"):
        longest = b";" + b"a" * (EXTENSION_LIMIT_BYTES - 1)
        wire = size + longest + b"\r\nx\r\n"
        assert decode(wire) == (b"x", len(wire), None)
        assert decode(*(wire[at : at + 1] for at in range(len(wire))))[0] == b"x"
        assert status_of(size + longest + b"a\r\nx\r\n") == 400


def test_extensions_are_bounded_by_the_body_that_they_come_with() -> None:
    extension = b";" + b"a" * 199
    flood = b"1" + extension + b"\r\nx\r\n"
    count = EXTENSIONS_LIMIT_BYTES // 199
    assert decode(flood * (count - 1))[2] is None
    assert status_of(flood * (count + 1)) == 400
    # Signatures of chunks are extensions too: as many as one likes, over real chunks.
    signed = b"400" + extension + b"\r\n" + b"x" * 0x400 + b"\r\n"
    assert len(decode(signed * 2 * count)[0]) == 0x400 * 2 * count
    # A large body does not earn a flood.
    large = b"fffff\r\n" + b"x" * 0xFFFFF + b"\r\n"
    assert status_of_whole(large + flood * (count + 1)) == 400


def status_of_whole(wire: bytes) -> int:
    with pytest.raises(HttpError) as refused:
        decode(wire)
    return refused.value.status


# Trailers.


def test_trailers_come_with_the_end() -> None:
    wire = b"1\r\nx\r\n0\r\nGrpc-Status: 0\r\na:\t b \r\n\r\n"
    trailers = [("Grpc-Status", "0"), ("a", "b")]
    assert decode(wire + b"GET") == (b"x", len(wire), trailers)
    assert decode(*(wire[at : at + 1] for at in range(len(wire)))) == (b"x", len(wire), trailers)


@pytest.mark.parametrize(
    "name",
    [
        *("Transfer-Encoding", "content-length", "HOST", "Authorization", "Cookie", "Set-Cookie"),
        *("Content-Type", "Content-Encoding", "Connection", "TE", "Trailer", "Upgrade", "Expect"),
        *("X-Forwarded-Client-Cert", "x-mesh-client-id", "X-Forwarded-For", "Cache-Control"),
    ],
)
def test_what_was_decided_without_it_comes_in_no_trailer(name: str) -> None:
    wire = f"0\r\nA: b\r\n{name}: c\r\nD: e\r\n\r\n".encode()
    assert decode(wire) == (b"", len(wire), [("A", "b"), ("D", "e")])
    assert permitted_trailers([(name, "c"), ("A", "b")]) == [("A", "b")]


@pytest.mark.parametrize(
    "line", [" a: b", "a : b", "a", ": b", "a: b\0", "a: b\nc: d", "a: b\r c", "a: b\r\n c"]
)
def test_a_trailer_that_is_no_field_is_refused(line: str) -> None:
    wire = f"0\r\nx: y\r\n{line}\r\n\r\n".encode()
    assert status_of(wire) == 400
    assert status_of(wire, of_response=True) == 502


def test_underscores_in_the_names_of_trailers_are_for_responses() -> None:
    wire = b"0\r\na_b: c\r\nx_mesh-client_id: d\r\n\r\n"
    assert status_of(wire) == 400
    assert decode(wire, of_response=True)[2] == [("a_b", "c")]


def test_there_is_a_limit_to_trailers() -> None:
    lines = b"a: b\r\n" * FIELD_LIMIT
    assert len(decode(b"0\r\n" + lines + b"\r\n")[2] or ()) == FIELD_LIMIT
    assert status_of(b"0\r\n" + lines + b"a: b\r\n\r\n") == 431
    longest = b"a: " + b"x" * (TRAILERS_LIMIT_BYTES - 7) + b"\r\n\r\n"
    assert decode(b"0\r\n" + longest)[2] is not None
    assert status_of(b"0\r\na" + longest) == 431
    assert status_of(b"0\r\na" + longest, of_response=True) == 502


# However it is fragmented.

some_chunks = st.lists(
    st.tuples(
        st.binary(min_size=1, max_size=40),
        st.sampled_from([b"", b";a", b";a=b", b';a="\\";"']),
        st.sampled_from([b"%x", b"%X", b"0%x"]),
    ),
    max_size=6,
)
some_trailers = st.lists(st.sampled_from([("A", "b"), ("grpc-status", "0"), ("c", "")]), max_size=3)


@given(some_chunks, some_trailers, st.binary(max_size=5), st.lists(st.integers(0, 400)))
def test_any_fragmentation_gives_the_same_body(
    chunks: list[tuple[bytes, bytes, bytes]], trailers: Fields, rest: bytes, cuts: list[int]
) -> None:
    wire = b"".join(
        size % len(data) + extension + b"\r\n" + data + b"\r\n" for data, extension, size in chunks
    )
    wire += last_chunk(trailers)
    expected = b"".join(data for data, _, _ in chunks), len(wire), trailers
    assert decode(wire + rest) == expected
    assert decode(*fragments(wire + rest, cuts)) == expected


@given(
    st.lists(
        st.one_of(
            st.binary(max_size=8),
            st.sampled_from([b"\r\n", b"0\r\n", b"5\r\nhello\r\n", b"1", b";a=b", b"a: b\r\n"]),
        ),
        max_size=8,
    ).map(b"".join),
    st.lists(st.integers(0, 60)),
)
def test_garbage_is_refused_or_not_however_it_is_fragmented(wire: bytes, cuts: list[int]) -> None:
    def outcome(parts: list[bytes]) -> object:
        try:
            return decode(*parts)
        except HttpError as refused:
            return refused.status

    assert outcome(fragments(wire, cuts)) == outcome([wire])


def test_single_bytes_cost_no_more_than_the_bytes() -> None:
    wire = b'1;a="' + b"b" * 200 + b'"\r\nx\r\n'
    wire = wire * 50 + b"fffff\r\n" + b"x" * 100_000
    began = time.process_time()
    assert decode(*(wire[at : at + 1] for at in range(len(wire))))[1] == len(wire)
    assert time.process_time() - began < 5


# Writing.


@given(st.lists(st.binary(max_size=300)), some_trailers)
def test_what_is_written_is_read_as_it_was(parts: list[bytes], trailers: Fields) -> None:
    wire = b"".join(chunk(memoryview(part)) for part in parts) + last_chunk(trailers)
    assert decode(wire) == (b"".join(parts), len(wire), trailers)


def test_nothing_is_no_chunk() -> None:
    assert chunk(b"") == b""
    assert chunk(b"x" * 26) == b"1a\r\n" + b"x" * 26 + b"\r\n"
    assert last_chunk([]) == LAST_CHUNK == b"0\r\n\r\n"
    assert last_chunk([("A", "b")]) == b"0\r\nA: b\r\n\r\n"


@pytest.mark.parametrize("pair", [("a", "b\r\n\r\nc"), ("a\n", "b"), ("a", "\0")])
def test_no_trailer_is_written_that_is_more_than_one(pair: tuple[str, str]) -> None:
    with pytest.raises(HttpError, match="cannot write"):
        last_chunk([pair])
