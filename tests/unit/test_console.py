"""The log of a foreground run: aligned and coloured, and patient with whoever does not read."""

import asyncio
import os
import threading

from meshrun.supervisor.console import HIGH_BYTES, Console
from meshrun.supervisor.logs import Line
from meshrun.supervisor.painter import Painter


def test_names_are_aligned_to_the_longest() -> None:
    painter = Painter(["a.1", "long-name.1"], colour=False)
    assert painter.paint("a.1", b"x") == b"a.1         | x\n"
    assert painter.paint("long-name.1", b"x") == b"long-name.1 | x\n"
    assert painter.paint("meshrun", b"x") == b"meshrun     | x\n"
    assert painter.paint("late.1", b"x") == b"late.1      | x\n"


def test_a_longer_name_that_comes_later_moves_all_lines() -> None:
    painter = Painter(["a.1"], colour=False)
    assert painter.paint("long-name.1", b"x") == b"long-name.1 | x\n"
    assert painter.paint("a.1", b"x") == b"a.1         | x\n"


def test_each_name_has_a_colour_and_its_line_ends_it() -> None:
    painter = Painter(["a.1", "b.1"], colour=True)
    assert painter.paint("a.1", b"x") == b"\x1b[36ma.1     | \x1b[0mx\n"
    assert painter.paint("b.1", b"x") == b"\x1b[33mb.1     | \x1b[0mx\n"


def test_a_colour_that_an_app_leaves_on_ends_with_its_line() -> None:
    coloured, plain = Painter(["a.1"], colour=True), Painter(["a.1"], colour=False)
    assert coloured.paint("a.1", b"\x1b[31mred").endswith(b"\x1b[31mred\x1b[0m\n")
    assert plain.paint("a.1", b"\x1b[31mred").endswith(b"\x1b[31mred\n")


def lines(content: bytes, number: int = 1) -> list[Line]:
    return [Line(0.0, "a.1", "stdout", content)] * number


def test_everything_is_written_in_order_before_it_closes() -> None:
    async def scenario() -> bytes:
        read_end, write_end = os.pipe()
        console = Console(write_end, Painter(["a.1"], colour=False), _nothing, _nothing)
        console.show(lines(b"one"))
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
            console.show(lines(b"x" * 1000, 100))
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


def test_a_reader_that_has_gone_is_no_error() -> None:
    async def scenario() -> None:
        read_end, write_end = os.pipe()
        os.close(read_end)
        console = Console(write_end, Painter(["a.1"], colour=False), _nothing, _nothing)
        console.show(lines(b"x"))
        console.close(20.0)
        os.close(write_end)

    asyncio.run(scenario())
