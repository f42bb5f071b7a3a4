"""The lines of a log file: what is written is what is read, whatever an app writes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor import loglines
from meshrun.supervisor.lines import STREAMS, Piece
from meshrun.supervisor.loglines import Header, Line

NOON = 1_790_000_000.25
CONTENT = st.binary(max_size=40).map(lambda b: b.replace(b"\n", b""))


@given(
    contents=st.lists(CONTENT | CONTENT.map(Piece), min_size=1, max_size=5),
    stream=st.sampled_from([*STREAMS, "marker"]),
    restarts=st.integers(0, 10**9 - 1),
)
def test_what_is_encoded_is_what_is_parsed(
    contents: list[bytes], stream: loglines.Source, restarts: int
) -> None:
    if stream == "marker":  # meshrun's own are short
        contents = [bytes(content) for content in contents]
    encoded = loglines.encode(NOON, stream, restarts, contents)
    *raws, rest = encoded.split(b"\n")
    assert rest == b""
    assert [loglines.parse("web.1", raw) for raw in raws] == [
        Line(NOON, "web.1", stream, content, restarts, partial=isinstance(content, Piece))
        for content in contents
    ]


@given(number=st.integers(0, 10**18 - 1))
def test_a_header_says_when_and_which(number: int) -> None:
    raw = loglines.header(NOON, number).removesuffix(b"\n")
    assert loglines.parse_header(raw) == Header(NOON, number)
    assert loglines.parse("web.1", raw) is None


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"rubbish",
        b"2026-01-01T00:00:00.000000Z X0 odd",
        b"2026-99-01T00:00:00.000000Z O0 never",
        b"2026-01-01T00:00:00.000000Z O-1 less",
        b"2026-01-01T00:00:00.000000Z m0 no piece of a marker",
    ],
)
def test_anything_else_is_no_line(raw: bytes) -> None:
    assert loglines.parse("web.1", raw) is None
    assert loglines.parse_header(raw) is None


def test_a_time_that_is_none_heads_nothing() -> None:
    assert loglines.parse_header(b"2026-99-01T00:00:00.000000Z F1") is None
