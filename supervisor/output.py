"""What an app writes, from its pipes, as whole lines."""

import asyncio
import os
from collections.abc import Callable

from meshrun.supervisor.lines import LineSplitter

__all__ = ["Pipe"]

READ_BYTES = 64 * 1024
# /proc/sys/fs/pipe-max-size as it is by default: more cannot be in a pipe.
PIPE_LIMIT_BYTES = 1024 * 1024


class Pipe:
    """The read end of one output of one process.

    `on_lines` gets each batch of lines. `pause` and `resume` let the app wait when whoever takes
    the lines cannot keep up. The end of the pipe says nothing about the end of the process: a
    grandchild may hold it for ever.
    """

    def __init__(self, descriptor: int, on_lines: Callable[[list[bytes]], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._descriptor = descriptor
        self._on_lines = on_lines
        self._splitter = LineSplitter()
        self._paused = False
        self._deadline: asyncio.TimerHandle | None = None
        os.set_blocking(descriptor, False)
        self._loop.add_reader(descriptor, self._readable)

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

    def close_within(self, timeout_s: float) -> None:
        """Close at the end of the pipe, or after `timeout_s` if somebody still holds it."""
        if self._descriptor >= 0:
            self.resume()
            self._deadline = self._loop.call_later(timeout_s, self.close)

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
