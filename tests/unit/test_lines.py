"""Output: lines from pieces, whatever the pieces, and a pipe that outlives its writer."""

import asyncio
import os
from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.lines import LineSplitter, Piece
from meshrun.supervisor.output import Pipe

LIMIT = 8
# Few different bytes, so that ends of lines are frequent and fall anywhere.
BYTES = st.lists(st.sampled_from([b"a", b"bc", b"\r", b"\n", b"\xff"]), max_size=60).map(b"".join)


def split(data: bytes, cuts: list[int], limit: int) -> list[bytes]:
    splitter = LineSplitter(limit)
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    lines = [line for a, b in pairwise(places) for line in splitter.feed(data[a:b])]
    return lines + splitter.finish()


@given(data=BYTES, cuts=st.lists(st.integers(0, 120), max_size=20))
def test_lines_are_the_same_however_the_bytes_come(data: bytes, cuts: list[int]) -> None:
    expected = [line.removesuffix(b"\r") for line in data.split(b"\n")]
    if not data.rpartition(b"\n")[2]:
        expected.pop()
    assert split(data, cuts, 1024) == expected


@given(data=BYTES.map(lambda b: b.replace(b"\r", b"")), cuts=st.lists(st.integers(0, 120)))
def test_nothing_is_lost_or_added_and_no_line_without_an_end_grows_over_the_limit(
    data: bytes, cuts: list[int]
) -> None:
    lines = split(data, cuts, LIMIT)
    assert b"".join(lines) == data.replace(b"\n", b"")
    whole = b"".join(line if isinstance(line, Piece) else line + b"\n" for line in lines)
    assert whole in (data, data + b"\n")


def test_a_line_over_the_limit_comes_in_pieces() -> None:
    splitter = LineSplitter(4)
    pieces = splitter.feed(b"abcdefghij")
    assert pieces == [b"abcd", b"efgh"]
    assert all(isinstance(piece, Piece) for piece in pieces)
    (last,) = splitter.feed(b"k\nl")
    assert last == b"ijk"
    assert not isinstance(last, Piece)
    assert splitter.finish() == [b"l"]
    assert splitter.finish() == []


def test_an_empty_line_is_a_line_and_an_empty_rest_is_none() -> None:
    splitter = LineSplitter()
    assert splitter.feed(b"\n\na\n") == [b"", b"", b"a"]
    assert splitter.finish() == []


def piped() -> tuple[Pipe, int, list[bytes]]:
    read_end, write_end = os.pipe()
    lines: list[bytes] = []
    return Pipe(read_end, lines.extend), write_end, lines


async def turn() -> None:
    """Let the loop look at its descriptors."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_what_the_writer_left_is_taken_at_its_end_though_somebody_holds_the_pipe() -> None:
    async def scenario() -> None:
        pipe, write_end, lines = piped()
        os.write(write_end, b"first\nno end")
        pipe.exhaust()
        assert lines == [b"first", b"no end"]
        os.write(write_end, b"later\n")
        await turn()
        assert lines[2:] == [b"later"]
        pipe.close()
        os.close(write_end)

    asyncio.run(scenario())


def test_a_paused_pipe_lets_its_writer_wait() -> None:
    async def scenario() -> None:
        pipe, write_end, lines = piped()
        pipe.pause()
        os.write(write_end, b"line\n")
        await turn()
        assert lines == []
        pipe.resume()
        await turn()
        assert lines == [b"line"]
        os.close(write_end)
        await turn()
        pipe.close()

    asyncio.run(scenario())


def test_a_pipe_that_somebody_holds_is_closed_in_time() -> None:
    async def scenario() -> None:
        pipe, write_end, lines = piped()
        held: list[list[int]] = []
        os.write(write_end, b"rest")
        await turn()
        pipe.close_within(0.0, held.append)
        async with asyncio.timeout(20):
            while not pipe.closed:  # noqa: ASYNC110 - a turn of the loop, and no time
                await asyncio.sleep(0)
        assert lines == [b"rest"]
        assert held == [[]]  # nobody but this process
        # Nobody reads any more.
        os.set_blocking(write_end, False)
        try:
            os.write(write_end, b"more")
        except BrokenPipeError:
            os.close(write_end)
            return
        raise AssertionError("the pipe is still open")

    asyncio.run(scenario())


def test_a_pipe_that_is_full_is_taken_up_to_what_a_pipe_can_hold() -> None:
    async def scenario() -> None:
        pipe, write_end, lines = piped()
        os.set_blocking(write_end, False)
        written = os.write(write_end, b"x" * 999 + b"\n")
        while written < 60_000:
            written += os.write(write_end, b"x" * 999 + b"\n")
        pipe.exhaust()
        assert len(b"".join(lines)) + len(lines) == written
        pipe.close()
        os.close(write_end)

    asyncio.run(scenario())
