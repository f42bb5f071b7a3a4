"""Accepts connections on a listening socket that stays open whatever happens."""

import asyncio
import socket
from collections.abc import Callable
from enum import Enum, auto

from meshrun.proxy import sockets

__all__ = ["Listener"]

PAUSE_S = 0.1

# How many are accepted before others have their turn: other connections, and other workers on the
# same listener, of which the first awake would else take a whole burst.
BATCH = 4


class _State(Enum):
    PAUSED = auto()  # connections wait in the kernel's queue
    ACCEPTING = auto()
    STARVED = auto()  # as paused, until a timer ends it


class Listener:
    """Calls `on_accepted` with each connection while it is not paused.

    Out of descriptors it pauses by itself, since the waiting connection would wake the loop without
    end, and says so to `on_trouble`, once until it accepts again.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_accepted: Callable[[socket.socket], None],
        on_trouble: Callable[[str], None],
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._on_accepted = on_accepted
        self._on_trouble = on_trouble
        self._state = _State.PAUSED
        self._timer: asyncio.TimerHandle | None = None
        self._told = False

    def resume(self) -> None:
        """Accept from now on."""
        if self._state is _State.PAUSED:
            self._state = _State.ACCEPTING
            self._loop.add_reader(self._sock.fileno(), self._readable)

    def pause(self) -> None:
        """Leave new connections in the kernel's queue."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._state is _State.ACCEPTING:
            self._loop.remove_reader(self._sock.fileno())
        self._state = _State.PAUSED

    def close(self) -> None:
        """Give the socket up; others that share it keep listening."""
        self.pause()
        self._sock.close()

    def _readable(self) -> None:
        for _ in range(BATCH):
            if self._state is not _State.ACCEPTING:
                return
            try:
                sock, _ = self._sock.accept()
                sock.setblocking(False)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:
                if error.errno in sockets.STARVED:
                    self._starve(error)
                    return
                continue  # the other side left while it waited; the next may be there
            self._told = False
            self._on_accepted(sock)

    def _starve(self, error: OSError) -> None:
        self.pause()
        self._state = _State.STARVED
        self._timer = self._loop.call_later(PAUSE_S, self._recover)
        if not self._told:
            self._told = True
            where = "{}:{}".format(*self._sock.getsockname())
            self._on_trouble(f"cannot accept on {where}: {error.strerror}; trying again")

    def _recover(self) -> None:
        self._timer = None
        self._state = _State.PAUSED
        self.resume()
