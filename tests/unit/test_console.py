"""The log of a foreground run: aligned and coloured, and patient with whoever does not read."""

import asyncio
import os
import threading

from meshrun.supervisor.console import HIGH_BYTES, MOST_BYTES, Console
from meshrun.supervisor.lines import Piece
from meshrun.supervisor.painter import Painter


def test_names_are_aligned_to_the_longest() -> None:
    painter = Painter(["a.1", "long-name.1"], colour=False)
    assert painter.paint("a.1", [b"x"]) == b"a.1         | x\n"
    assert painter.paint("long-name.1", [b"x"]) == b"long-name.1 | x\n"
    assert painter.paint("meshrun", [b"x"]) == b"meshrun     | x\n"
    assert painter.paint("late.1", [b"x"]) == b"late.1      | x\n"


def test_a_longer_name_that_comes_later_moves_all_lines() -> None:
    painter = Painter(["a.1"], colour=False)
    assert painter.paint("long-name.1", [b"x"]) == b"long-name.1 | x\n"
    assert painter.paint("a.1", [b"x"]) == b"a.1         | x\n"


def test_each_name_has_a_colour_and_its_line_ends_it() -> None:
    painter = Painter(["a.1", "b.1"], colour=True)
    assert painter.paint("a.1", [b"x"]) == b"\x1b[36ma.1     | \x1b[0mx\n"
    assert painter.paint("b.1", [b"x"]) == b"\x1b[33mb.1     | \x1b[0mx\n"


def test_a_colour_that_an_app_leaves_on_ends_with_its_line() -> None:
    coloured, plain = Painter(["a.1"], colour=True), Painter(["a.1"], colour=False)
    assert coloured.paint("a.1", [b"\x1b[31mred"]).endswith(b"\x1b[31mred\x1b[0m\n")
    assert plain.paint("a.1", [b"\x1b[31mred"]).endswith(b"\x1b[31mred\n")


def test_a_line_that_goes_on_and_a_marker_look_like_it() -> None:
    coloured, plain = Painter(["a.1"], colour=True), Painter(["a.1"], colour=False)
    assert plain.paint("a.1", [Piece(b"x"), b"y"]) == "a.1     | x…\na.1     | y\n".encode()
    assert plain.mark("a.1", b"ended") == b"a.1     | --- ended\n"
    assert coloured.mark("a.1", b"ended").endswith(b"\x1b[2m--- ended\x1b[0m\n")


def test_everything_is_written_in_order_before_it_closes() -> None:
    async def scenario() -> bytes:
        read_end, write_end = os.pipe()
        console = Console(write_end, Painter(["a.1"], colour=False), _nothing, _nothing)
        console.show("a.1", [b"one"])
        console.say("two\nthree")
        console.close()
        os.close(write_end)
        with os.fdopen(read_end, "rb") as reader:
            return reader.read()

    assert asyncio.run(scenario()) == b"a.1     | one\nmeshrun | two\nmeshrun | three\n"


def _nothing() -> None:
    pass


def test_whoever_does_not_read_lets_the_apps_wait_until_they_do() -> None:
    async def scenario() -> None:
        read_end, write_end = os.pipe()
        full, free = asyncio.Event(), asyncio.Event()
        console = Console(write_end, Painter(["a.1"], colour=False), full.set, free.set)
        begun = 0
        while not full.is_set():
            console.show("a.1", [b"x" * 1000] * 100)
            begun += 1
        assert begun * 100 * 1000 <= HIGH_BYTES + 200_000
        assert not free.is_set()
        read = threading.Thread(target=_read_all, args=(read_end,))
        read.start()
        async with asyncio.timeout(20):
            await free.wait()
        console.close()
        os.close(write_end)
        read.join()

    asyncio.run(scenario())


def _read_all(read_end: int) -> None:
    with os.fdopen(read_end, "rb") as reader:
        while reader.read(65536):
            pass


def test_what_is_too_much_for_whoever_does_not_read_is_counted_and_left_out() -> None:
    async def scenario() -> list[bytes]:
        read_end, write_end = os.pipe()
        free = asyncio.Event()
        console = Console(write_end, Painter(["a.1"], colour=False), _nothing, free.set)
        for number in range(MOST_BYTES // 100_000 + 100):
            console.show("a.1", [b"%d " % number + b"x" * 100_000])
        read: list[bytes] = []
        reading = threading.Thread(target=_read_lines, args=(read_end, read))
        reading.start()
        async with asyncio.timeout(20):
            await free.wait()
        console.show("a.1", [b"after"])
        console.close(20.0)
        os.close(write_end)
        reading.join()
        return read

    *shown, said, after = asyncio.run(scenario())
    numbers = [int(line.split()[2]) for line in shown]
    left_out = MOST_BYTES // 100_000 + 100 - len(shown)
    assert numbers == list(range(len(shown)))
    assert left_out >= 100
    assert said == b"meshrun | %d lines are left out here; see: meshrun logs\n" % left_out
    assert after == b"a.1     | after\n"


def _read_lines(read_end: int, into: list[bytes]) -> None:
    with os.fdopen(read_end, "rb") as reader:
        into.extend(reader)


def test_a_terminal_that_does_not_block_gets_every_line() -> None:
    async def scenario() -> int:
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        console = Console(write_end, Painter(["a.1"], colour=False), _nothing, _nothing)
        console.show("a.1", [b"x" * 99_999] * 10)
        read: list[bytes] = []
        reading = threading.Thread(target=_read_lines, args=(read_end, read))
        reading.start()
        console.close(20.0)
        os.close(write_end)
        reading.join()
        return len(read)

    assert asyncio.run(scenario()) == 10


def test_a_reader_that_has_gone_is_no_error() -> None:
    async def scenario() -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        console = Console(write_end, Painter(["a.1"], colour=False), _nothing, _nothing)
        console.show("a.1", [b"x"])
        console.close(20.0)
        os.close(write_end)

    asyncio.run(scenario())
