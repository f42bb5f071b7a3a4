"""A TCP relay between two sidecars, through which a test counts what passes."""

import socket
import threading

import msgspec
from support.apps import App, reset
from support.sidecars import ControlledSidecar
from support.traffic import wait_until

from meshrun.proxy.messages import Endpoint

__all__ = ["Relay"]


class Relay(App):
    """Stands in front of `target`; an end or a reset of one side is passed on to the other.

    `accepted` counts the connections that it has seen, `open` are those that are left, and
    `forwarded` counts the bytes towards `target`.
    """

    def __init__(self, target: ControlledSidecar) -> None:
        super().__init__(self._pass_on)
        self._target = target
        self._lock = threading.Lock()
        self._ended = 0
        self.forwarded = 0

    @property
    def open(self) -> int:
        """How many connections have not ended."""
        return self.accepted - self._ended

    @property
    def endpoint(self) -> Endpoint:
        """Where the target is reached through this relay."""
        return msgspec.structs.replace(self._target.endpoint, port=self.port)

    def wait_for(self, *, accepted: int | None = None, left: int | None = None) -> None:
        """Return once so many connections have come, and so many are left."""
        wait_until(
            lambda: (
                (accepted is None or self.accepted == accepted)
                and (left is None or self.open == left)
            ),
            f"{accepted} connections through the relay, {left} left",
        )

    def _pass_on(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(("127.0.0.1", self._target.endpoint.port))
        except OSError:
            reset(near)
        else:
            self._join(near, far)
        with self._lock:
            self._ended += 1

    def _join(self, near: socket.socket, far: socket.socket) -> None:
        for sock in (near, far):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        back = threading.Thread(target=self._copy, args=(far, near, False), daemon=True)
        back.start()
        self._copy(near, far, True)
        back.join()
        near.close()
        far.close()

    def _copy(self, source: socket.socket, sink: socket.socket, forward: bool) -> None:
        try:
            while data := source.recv(65536):
                sink.sendall(data)
                if forward:
                    self.forwarded += len(data)
        except OSError:
            # Closes as a reset would: both directions, whatever is under way.
            for sock in (source, sink):
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
            return
        try:
            sink.shutdown(socket.SHUT_WR)
        except OSError:
            pass
