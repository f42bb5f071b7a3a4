"""The socket on which one life of an app says how it is (sd_notify(3)), and who may speak there."""

import asyncio
import contextlib
import os
import secrets
import socket
import struct
from collections.abc import Callable

from meshrun.supervisor import processes
from meshrun.supervisor.probes.notification import LIMIT_BYTES, Notification, parse
from meshrun.supervisor.statedir import StateDir

__all__ = ["NotifySocket"]

# sun_path has 108 bytes, the last of them for the end of the string (unix(7)).
LONGEST_PATH_BYTES = 107
# What is read at once, and how long nobody is heard after it: an app that floods its socket waits,
# as the kernel holds only a few datagrams for it, and the loop has time for everybody else.
AT_ONCE = 16
REST_S = 0.1

_CREDENTIALS = struct.Struct("3i")
# Room for the credentials and for nothing else: descriptors that come with a datagram (FDSTORE,
# BARRIER) are closed by the kernel, which is all that a barrier waits for.
_ANCILLARY_BYTES = socket.CMSG_LEN(_CREDENTIALS.size)


class NotifySocket:
    """Hears the notifications of the process `pid` and of those that descend from it.

    A path in the state folder, which only this user can enter; a name in the abstract namespace
    where that path is too long. Either can be reached by other processes, and the kernel says who
    sent each datagram (SCM_CREDENTIALS): what a stranger says counts for nothing.
    """

    def __init__(self, state: StateDir, instance: str) -> None:
        self._socket = socket.socket(
            socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
        )
        self._state = state
        self._name = f"{instance}.notify"
        self._path = os.path.join(os.path.abspath(state.path), self._name)
        self._loop = asyncio.get_running_loop()
        self._rest: asyncio.TimerHandle | None = None
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_PASSCRED, 1)
            if len(os.fsencode(self._path)) <= LONGEST_PATH_BYTES:
                self.address = self._path
                state.remove(self._name)  # what a killed run left
                self._socket.bind(str(state.file(self._name)))
            else:
                # Nobody else can have taken a name that nobody could guess.
                self.address = f"@meshrun/{secrets.token_hex(8)}/{self._name}"
                self._socket.bind(f"\0{self.address[1:]}")
        except OSError:
            self.close()
            raise

    def listen(
        self,
        pid: int,
        on_notification: Callable[[Notification], None],
        on_stranger: Callable[[int], None],
    ) -> None:
        """Begin to hear; what came before has waited in the socket."""
        self._pid = pid
        self._on_notification = on_notification
        self._on_stranger = on_stranger
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def _readable(self) -> None:
        for _ in range(AT_ONCE):
            if self._socket.fileno() < 0 or not self._take():
                return
        self._loop.remove_reader(self._socket.fileno())
        self._rest = self._loop.call_later(REST_S, self._go_on)

    def _go_on(self) -> None:
        self._rest = None
        self._loop.add_reader(self._socket.fileno(), self._readable)

    def _take(self) -> bool:
        """Take one datagram; False where there is none."""
        try:
            datagram, ancillary, flags, _ = self._socket.recvmsg(LIMIT_BYTES, _ANCILLARY_BYTES)
        except BlockingIOError:
            return False
        if flags & socket.MSG_TRUNC:
            return True
        sender = _sender(ancillary)
        if self._is_ours(sender):
            self._on_notification(parse(datagram))
        else:
            self._on_stranger(sender)
        return True

    def _is_ours(self, sender: int) -> bool:
        # A sender that is gone by now is nobody's: its number says nothing any more.
        if sender <= 0:
            return False
        return processes.session_of(sender) == self._pid or self._pid in processes.ancestors(sender)

    def close(self) -> None:
        """Hear no more."""
        if self._socket.fileno() < 0:
            return
        if self._rest is not None:
            self._rest.cancel()
        self._loop.remove_reader(self._socket.fileno())
        self._socket.close()
        with contextlib.suppress(OSError):
            self._state.remove(self._name)


def _sender(ancillary: list[tuple[int, int, bytes]]) -> int:
    """Return the process that sent a datagram, 0 where the kernel does not say."""
    for level, kind, data in ancillary:
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            return int(_CREDENTIALS.unpack_from(data)[0])
    return 0
