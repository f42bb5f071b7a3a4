"""The log of a foreground run: one aligned, coloured stream of everything that is said.

A terminal that was paused, or a pager that nobody scrolls, must not stop the mesh: a thread does
the writing, and what it cannot get rid of makes the apps wait (`on_full`), not the memory grow.
"""

import asyncio
import os
import queue
import select
import threading
from collections.abc import Callable, Sequence

from meshrun.supervisor.logs import MESH
from meshrun.supervisor.painter import Painter

__all__ = ["Console"]

HIGH_BYTES = 1024 * 1024
LOW_BYTES = 256 * 1024
# What ended apps leave in their pipes is taken even now; over this it is only in the log files.
MOST_BYTES = 8 * 1024 * 1024


class Console:
    """Writes lines to a descriptor from a thread of its own."""

    def __init__(
        self,
        descriptor: int,
        painter: Painter,
        on_full: Callable[[], None],
        on_free: Callable[[], None],
    ) -> None:
        self._descriptor = descriptor
        self._painter = painter
        self._on_full = on_full
        self._on_free = on_free
        self._loop = asyncio.get_running_loop()
        self._queue: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._pending_bytes = 0
        self._full = False
        self._left_out = 0
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def show(self, instance: str, contents: Sequence[bytes]) -> None:
        """Print lines of output."""
        self._put(self._painter.paint(instance, contents), len(contents))

    def say(self, text: str) -> None:
        """Print something that meshrun itself says, a line or several."""
        lines = text.encode(errors="replace").splitlines()
        self._put(self._painter.paint(MESH, lines), len(lines))

    def _put(self, content: bytes, lines: int) -> None:
        if self._left_out or self._pending_bytes + len(content) > MOST_BYTES:
            self._left_out += lines
            return
        self._queue_up(content)

    def _queue_up(self, content: bytes) -> None:
        self._pending_bytes += len(content)
        self._queue.put(content)
        if not self._full and self._pending_bytes > HIGH_BYTES:
            self._full = True
            self._on_full()

    def _written(self, count: int) -> None:
        self._pending_bytes -= count
        if self._full and self._pending_bytes < LOW_BYTES:
            self._say_left_out()
            self._full = False
            self._on_free()

    def _say_left_out(self) -> None:
        if self._left_out:
            text = b"%d lines are left out here; see: meshrun logs" % self._left_out
            self._left_out = 0
            self._queue_up(self._painter.paint(MESH, [text]))

    def _run(self) -> None:
        while (content := self._queue.get()) is not None:
            view = memoryview(content)
            while view:
                try:
                    view = view[os.write(self._descriptor, view) :]
                except BlockingIOError:
                    # Whoever shares the terminal has made it so (O_NONBLOCK is of the open file).
                    select.select([], [self._descriptor], [])
                except OSError:  # the terminal or the reader of the pipe is gone: say it to nobody
                    break
            try:
                self._loop.call_soon_threadsafe(self._written, len(content))
            except RuntimeError:  # the loop has been closed: these are the last lines
                continue

    def close(self, timeout_s: float = 1.0) -> None:
        """Write what is left, but do not wait for ever on somebody who does not read."""
        self._say_left_out()
        self._queue.put(None)
        self._thread.join(timeout_s)
