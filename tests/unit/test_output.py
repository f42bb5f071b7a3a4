"""The output of a process: what is paused stays so, and what was opened meanwhile waits, too."""

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable

from meshrun.supervisor.output import DRAIN_S, Output
from meshrun.supervisor.window import DEFAULT, Size, Window, size_of


async def turn() -> None:
    """Let the loop look at its descriptors."""
    for _ in range(3):
        await asyncio.sleep(0)


class Taken:
    """The lines that came, and a wait for so many of them."""

    def __init__(self) -> None:
        self.lines: list[bytes] = []
        self._more = asyncio.Event()

    def take(self, lines: list[bytes]) -> None:
        self.lines += lines
        self._more.set()

    async def until(self, number: int) -> None:
        async with asyncio.timeout(20):
            while len(self.lines) < number:
                await self._more.wait()
                self._more.clear()


def run(scenario: Callable[[Output, Taken], Awaitable[None]]) -> None:
    async def within() -> None:
        await scenario(Output(), Taken())

    asyncio.run(within())


def never(holders: list[int]) -> None:
    raise AssertionError(holders)


def test_nothing_is_read_before_whoever_must_know_has_heard_of_the_process() -> None:
    async def scenario(output: Output, taken: Taken) -> None:
        write_end = output.open(taken.take)
        os.write(write_end, b"line\n")
        await turn()
        assert taken.lines == []
        output.begin()
        await taken.until(1)
        output.discard()
        os.close(write_end)

    run(scenario)


def test_a_pipe_opened_while_the_output_is_paused_waits_too() -> None:
    async def scenario(output: Output, taken: Taken) -> None:
        output.pause()
        write_end = output.open(taken.take)
        output.begin()
        os.write(write_end, b"line\n")
        await turn()
        assert taken.lines == []
        output.resume()
        await taken.until(1)
        output.discard()
        os.close(write_end)

    run(scenario)


def test_resuming_reads_nothing_that_has_not_begun() -> None:
    async def scenario(output: Output, taken: Taken) -> None:
        output.pause()
        write_end = output.open(taken.take)
        output.resume()
        os.write(write_end, b"line\n")
        await turn()
        assert taken.lines == []
        output.discard()
        os.close(write_end)

    run(scenario)


def test_what_a_child_of_an_ended_process_writes_is_taken_and_waits_while_paused() -> None:
    async def scenario(output: Output, taken: Taken) -> None:
        write_end = output.open(taken.take)
        output.begin()
        os.write(write_end, b"last\n")
        output.exited(60.0, never)
        assert taken.lines == [b"last"]
        output.pause()
        os.write(write_end, b"the child's\n")
        await turn()
        assert taken.lines == [b"last"]
        output.resume()
        await taken.until(2)
        os.close(write_end)
        await turn()

    run(scenario)


def test_at_the_end_of_all_what_nobody_has_read_is_taken() -> None:
    async def scenario(output: Output, taken: Taken) -> None:
        write_end = output.open(taken.take)
        output.begin()
        output.exited(60.0, never)
        output.pause()
        os.write(write_end, b"the last words")
        output.finish()
        assert taken.lines == [b"the last words"]
        with contextlib.suppress(BrokenPipeError):
            os.write(write_end, b"nobody reads\n")
            raise AssertionError("the pipe is still open")
        os.close(write_end)

    run(scenario)


def test_who_holds_both_outputs_is_named_once() -> None:
    async def scenario(output: Output, taken: Taken) -> None:
        ends = [output.open(taken.take) for _ in range(2)]
        output.begin()
        told: list[list[int]] = []
        child = await asyncio.create_subprocess_exec("sleep", "60", stdout=ends[0], stderr=ends[1])
        output.exited(0.0, told.append)
        for end in ends:
            os.write(end, b"x")
        await taken.until(2)
        child.kill()
        await child.wait()
        assert told == [[child.pid]]
        for end in ends:
            os.close(end)

    run(scenario)


def test_a_pipe_that_is_held_for_ever_is_let_go_with_what_is_in_it() -> None:
    async def scenario(output: Output, taken: Taken) -> None:
        write_end = output.open(taken.take)
        output.begin()
        held: list[int] = []
        output.exited(0.0, held.extend)
        output.pause()
        os.write(write_end, b"held\n")
        child = await asyncio.create_subprocess_exec("sleep", "60", stdout=write_end)
        await taken.until(1)
        child.kill()
        await child.wait()
        assert held == [child.pid]
        os.set_blocking(write_end, False)
        with contextlib.suppress(BrokenPipeError):
            while True:
                os.write(write_end, b"nobody reads\n")
        os.close(write_end)

    assert DRAIN_S < 20
    run(scenario)


def test_a_terminal_has_the_size_of_the_window_until_its_process_has_ended() -> None:
    async def scenario(output: Output, taken: Taken) -> None:
        window = Window()
        terminal = output.open_terminal(taken.take, window)
        output.begin()
        assert size_of(terminal) == DEFAULT
        window.resize(Size(40, 100))
        assert size_of(terminal) == Size(40, 100)
        os.write(terminal, b"one\ntwo")
        output.exited(0.0, never)
        assert taken.lines == [b"one", b"two"]
        window.resize(Size(50, 200))
        assert size_of(terminal) == Size(40, 100)
        os.close(terminal)
        await turn()

    run(scenario)


def test_a_terminal_that_its_process_has_closed_can_be_opened_again() -> None:
    async def scenario(output: Output, taken: Taken) -> None:
        terminal = output.open_terminal(taken.take, Window())
        output.begin()
        name = os.ttyname(terminal)
        os.close(terminal)
        await turn()
        again = os.open(name, os.O_WRONLY | os.O_NOCTTY)
        os.write(again, b"still there\n")
        await taken.until(1)
        os.close(again)
        output.exited(0.0, never)
        assert taken.lines == [b"still there"]

    run(scenario)


def test_the_size_of_what_is_no_terminal_is_the_default() -> None:
    read_end, write_end = os.pipe()
    assert size_of(read_end) == DEFAULT == Size(24, 80)
    os.close(read_end)
    os.close(write_end)
