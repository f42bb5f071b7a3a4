"""What a process writes, from its pipes or its terminal, as whole lines."""

import asyncio
import os
from collections.abc import Callable

from meshrun.supervisor import processes
from meshrun.supervisor.lines import LineSplitter
from meshrun.supervisor.window import Window

__all__ = ["OnHeld", "OnLines", "Output", "Pipe"]

READ_BYTES = 64 * 1024
# /proc/sys/fs/pipe-max-size as it is by default: more cannot be in a pipe.
PIPE_LIMIT_BYTES = 1024 * 1024
# How long output is still taken after everything should have ended, from whoever holds the pipe.
DRAIN_S = 0.5

OnLines = Callable[[list[bytes]], None]
# Gets the ids of those who still hold an output that is given up.
OnHeld = Callable[[list[int]], None]


class Pipe:
    """The read end of one output of one process.

    `on_lines` gets each batch of lines. `pause` and `resume` let the app wait when whoever takes
    the lines cannot keep up. The end of the pipe says nothing about the end of the process: a
    grandchild may hold it for ever.
    """

    def __init__(self, descriptor: int, on_lines: OnLines, *, paused: bool = False) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._on_lines = on_lines
        self._splitter = LineSplitter()
        self._paused = paused
        self._deadline: asyncio.TimerHandle | None = None
        os.set_blocking(descriptor, False)
        if not paused:
            self._loop.add_reader(descriptor, self._readable)

    @property
    def closed(self) -> bool:
        """Whether nothing comes any more."""
        return self._descriptor < 0

    def pause(self) -> None:
        """Take nothing more for now."""
        if self._descriptor >= 0 and not self._paused:
            self._paused = True
            self._loop.remove_reader(self._descriptor)

    def resume(self) -> None:
        """Go on."""
        if self._descriptor >= 0 and self._paused:
            self._paused = False
            self._loop.add_reader(self._descriptor, self._readable)

    def _readable(self) -> None:
        try:
            data = os.read(self._descriptor, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # EIO: the last holder of a terminal is gone
            data = b""
        self._take(data)

    def _take(self, data: bytes) -> None:
        if not data:
            self.close()
            return
        lines = self._splitter.feed(data)
        if lines:
            self._on_lines(lines)

    def exhaust(self) -> None:
        """Take now what is in the pipe, a line without an end too; its writer has ended."""
        # What a pipe holds, and no more: somebody else who has it may write for ever.
        left = PIPE_LIMIT_BYTES
        while self._descriptor >= 0 and left > 0:
            try:
                data = os.read(self._descriptor, READ_BYTES)
            except BlockingIOError:
                break
            except OSError:
                data = b""
            self._take(data)
            left -= len(data)
        self._hand_on_rest()

    def _hand_on_rest(self) -> None:
        rest = self._splitter.finish()
        if rest:
            self._on_lines(rest)

    def close_within(self, timeout_s: float, on_held: OnHeld) -> None:
        """Close at the end of the pipe, or after `timeout_s` if somebody still holds it."""
        if self._descriptor >= 0:
            self._deadline = self._loop.call_later(timeout_s, self._give_up, on_held)

    def _give_up(self, on_held: OnHeld) -> None:
        self.exhaust()  # it may have been paused
        if self._descriptor >= 0:
            on_held(processes.holders(self._descriptor))
        self.close()

    def close(self) -> None:
        """Hand on what is left and close."""
        if self._descriptor < 0:
            return
        self._loop.remove_reader(self._descriptor)
        os.close(self._descriptor)
        self._descriptor = -1
        if self._deadline is not None:
            self._deadline.cancel()
        self._hand_on_rest()


class Output:
    """All that one process writes; paused as a whole when the log cannot keep up."""

    def __init__(self) -> None:
        self._pipes: list[Pipe] = []
        self._draining: list[Pipe] = []
        self._terminals: list[tuple[int, Window]] = []
        self._begun = False
        self._paused = False

    def open(self, on_lines: OnLines) -> int:
        """Return the write end of a new pipe, which is read once the output has begun."""
        read_end, write_end = os.pipe()
        self._take_up(read_end, on_lines)
        return write_end

    def open_terminal(self, on_lines: OnLines, window: Window) -> int:
        """Return a new terminal for a process; what is written there is read as from a pipe.

        It has the size of a window as long as it is open.
        """
        ours, theirs = os.openpty()
        self._take_up(ours, on_lines)
        # One more holder of it: to who reads, a terminal that nobody holds is at its end, though a
        # process that has closed it may open it again (/dev/tty), and to close it would hang up.
        try:
            held = os.dup(theirs)
        except OSError:
            os.close(theirs)
            raise
        self._terminals.append((held, window))
        window.add(held)
        return theirs

    def _take_up(self, descriptor: int, on_lines: OnLines) -> None:
        self._begun = False
        self._pipes.append(Pipe(descriptor, on_lines, paused=True))

    def begin(self) -> None:
        """Read what the process writes, and has written before."""
        self._begun = True
        if not self._paused:
            self.resume()

    def pause(self) -> None:
        """Let the process wait with what it writes."""
        self._paused = True
        for pipe in (*self._pipes, *self._draining):
            pipe.pause()

    def resume(self) -> None:
        """Go on."""
        self._paused = False
        for pipe in self._draining:
            pipe.resume()
        if self._begun:
            for pipe in self._pipes:
                pipe.resume()

    def exited(self, others_s: float, on_held: OnHeld) -> None:
        """Take what the process wrote before it ended.

        For `others_s` and a little more, what others write who still hold its pipes is taken, too.
        Then `on_held` is told of them, if there are any.
        """
        told: list[list[int]] = []

        def tell_once(holders: list[int]) -> None:
            # Who has stdout has most often stderr, too.
            if holders not in told:
                told.append(holders)
                on_held(holders)

        self._let_go()
        for pipe in self._pipes:
            pipe.exhaust()
            pipe.close_within(others_s + DRAIN_S, tell_once)
        self._draining = [p for p in (*self._draining, *self._pipes) if not p.closed]
        self._pipes = []
        if not self._paused:
            self.resume()

    def finish(self) -> None:
        """Take what is left of processes that have ended, and close: nobody writes any more."""
        for pipe in self._draining:
            pipe.exhaust()
            pipe.close()
        self._draining = []

    def _let_go(self) -> None:
        for descriptor, window in self._terminals:
            window.remove(descriptor)
            os.close(descriptor)
        self._terminals = []

    def discard(self) -> None:
        """Close what was opened for a process that was not started."""
        self._let_go()
        for pipe in self._pipes:
            pipe.close()
        self._pipes = []
