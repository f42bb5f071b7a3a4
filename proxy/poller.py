"""One epoll set for the loop of a sidecar and, past it, for the sockets of its connections.

It stands in for the loop's selector, and calls the connections back right out of the wait: no
handle, context or second turn of the loop per event, and one system call where a loop beside an
epoll set of its own makes three. It can also watch a descriptor for nothing but its failure, which
no loop's `add_reader` can.
"""

import asyncio
import math
import select
import selectors
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import FileDescriptorLike

__all__ = ["BROKEN", "ONCE", "READABLE", "WRITABLE", "Poller"]

READABLE = select.EPOLLIN
WRITABLE = select.EPOLLOUT

# epoll reports these whether asked or not.
BROKEN = select.EPOLLERR | select.EPOLLHUP

# For `change`, alone: `BROKEN` is reported once, then nothing until the next change.
ONCE = select.EPOLLONESHOT

# How many events are taken at once, before the loop has its turn.
BATCH = 256

Callback = Callable[[int], None]


class Poller(selectors.BaseSelector):
    """Calls back with the events of descriptors, level-triggered, within the loop of `new_loop`."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callback] = {}
        # Forgotten since the last wait: their numbers may stand for others by now.
        self._gone: set[int] = set()
        self._keys: dict[FileDescriptorLike, selectors.SelectorKey] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    def new_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop that waits here; closing it closes this."""
        self._loop = asyncio.SelectorEventLoop(self)
        return self._loop

    # For connections.

    @property
    def watched(self) -> int:
        """How many descriptors of connections there are."""
        return len(self._callbacks)

    def add(self, descriptor: int, events: int, callback: Callback) -> None:
        """Call `callback` for `events` of `descriptor`; `BROKEN` always comes too."""
        self._epoll.register(descriptor, events)
        self._callbacks[descriptor] = callback

    def change(self, descriptor: int, events: int) -> None:
        """Ask for these events from now on."""
        self._epoll.modify(descriptor, events)

    def remove(self, descriptor: int) -> None:
        """Forget `descriptor`, which must still be open."""
        self.forget(descriptor)
        self._epoll.unregister(descriptor)

    def forget(self, descriptor: int) -> None:
        """Forget `descriptor`, which is closed next: that removes it from the set."""
        del self._callbacks[descriptor]
        self._gone.add(descriptor)

    async def wait(self, descriptor: int, events: int) -> int:
        """Return the events once one of `events`, or `BROKEN`, has come."""
        future: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def came(which: int) -> None:
            if not future.done():
                future.set_result(which)

        self.add(descriptor, events, came)
        try:
            return await future
        finally:
            self.remove(descriptor)

    # For the loop.

    def register(
        self, fileobj: "FileDescriptorLike", events: int, data: object = None
    ) -> selectors.SelectorKey:
        """Report `events` of `fileobj` to the loop."""
        key = selectors.SelectorKey(fileobj, _number(fileobj), events, data)
        self._epoll.register(key.fd, _mask(events))
        self._keys[key.fd] = key
        return key

    def unregister(self, fileobj: "FileDescriptorLike") -> selectors.SelectorKey:
        """Report no more of `fileobj`; raises KeyError."""
        key = self._keys.pop(_number(fileobj))
        try:
            self._epoll.unregister(key.fd)
        except OSError:
            pass  # closed already, which removed it
        return key

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait; serve the connections, and return what is ready of the loop's own."""
        if timeout is not None:
            # epoll counts in milliseconds: rounded up, or the end of a wait would be a spin.
            timeout = max(0.0, math.ceil(timeout * 1e3) * 1e-3)
        found = []
        callbacks, gone = self._callbacks, self._gone
        gone.clear()
        for descriptor, events in self._epoll.poll(timeout, BATCH):
            if gone and descriptor in gone:
                continue  # the event is one of a socket that was closed a moment ago
            callback = callbacks.get(descriptor)
            if callback is None:
                found += self._ready(descriptor, events)
                continue
            try:
                callback(events)
            except Exception as error:  # noqa: BLE001  # a bug of one connection, not of all
                self._confess(error)
        return found

    def get_map(self) -> Mapping["FileDescriptorLike", selectors.SelectorKey]:
        """Return what the loop has registered."""
        return self._keys

    def close(self) -> None:
        """Close; by then no connection may be watched any more."""
        assert not self._callbacks, "a closed poller would forget descriptors silently"
        self._keys.clear()
        self._epoll.close()

    def _ready(self, descriptor: int, events: int) -> list[tuple[selectors.SelectorKey, int]]:
        key = self._keys.get(descriptor)
        if key is None:
            return []
        which = 0
        if events & ~WRITABLE:
            which |= selectors.EVENT_READ
        if events & ~READABLE:
            which |= selectors.EVENT_WRITE
        return [(key, which & key.events)]

    def _confess(self, error: Exception) -> None:
        assert self._loop is not None
        self._loop.call_exception_handler(
            {"message": "a connection's callback failed", "exception": error}
        )


def _number(fileobj: "FileDescriptorLike") -> int:
    return fileobj if isinstance(fileobj, int) else fileobj.fileno()


def _mask(events: int) -> int:
    read = READABLE if events & selectors.EVENT_READ else 0
    return read | (WRITABLE if events & selectors.EVENT_WRITE else 0)
