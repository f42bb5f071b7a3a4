"""One epoll set for the sockets of connections, inside the loop.

uvloop removes and makes anew its watcher whenever interest in a descriptor ends, which costs four
system calls where a full sink pauses its source; a set of our own changes interest with one, and
calls back without a handle and a context per event. It can also watch a descriptor for nothing but
its failure, which no loop's `add_reader` can.
"""

import asyncio
import select
from collections.abc import Callable

__all__ = ["BROKEN", "ONCE", "READABLE", "WRITABLE", "Poller"]

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

# epoll reports these whether asked or not.
BROKEN = select.EPOLLERR | select.EPOLLHUP

# For `change`, alone: `BROKEN` is reported once, then nothing until the next change.
ONCE = select.EPOLLONESHOT

# How many events are taken at once, and how often before the loop has its turn again.
BATCH = 256
ROUNDS = 8

Callback = Callable[[int], None]


class Poller:
    """Calls back with the events of descriptors, level-triggered.

    A callback may come once more, in vain, for a descriptor whose number was taken over meanwhile:
    it must stand a read or write that would block.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        loop.add_reader(self._epoll.fileno(), self._turn)

    def add(self, descriptor: int, events: int, callback: Callback) -> None:
        """Call `callback` for `events` of `descriptor`; `BROKEN` always comes too."""
        self._epoll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def change(self, descriptor: int, events: int) -> None:
        """Ask for these events from now on."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Forget `descriptor`, which must still be open."""
        del self._callbacks[descriptor]
        self._epoll.unregister(descriptor)

    async def wait(self, descriptor: int, events: int) -> int:
        """Return the events once one of `events`, or `BROKEN`, has come."""
        future: asyncio.Future[int] = self._loop.create_future()

        def came(which: int) -> None:
            if not future.done():
                future.set_result(which)

        self.add(descriptor, events, came)
        try:
            return await future
        finally:
            self.remove(descriptor)

    def close(self) -> None:
        """Stop; by then nothing may be watched any more."""
        assert not self._callbacks, "a closed poller would forget descriptors silently"
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()

    def _turn(self) -> None:
        callbacks = self._callbacks
        for _ in range(ROUNDS):
            ready = self._epoll.poll(0, BATCH)
            if not ready:
                return
            for descriptor, events in ready:
                callback = callbacks.get(descriptor)
                if callback is not None:
                    callback(events)
