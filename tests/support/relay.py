"""A TCP relay between two sidecars, through which a test counts what passes."""

import socket
import threading
from types import TracebackType
from typing import Self

import msgspec
from support.apps import reset
from support.sidecars import ControlledSidecar, port_of
from support.traffic import wait_until

from meshrun.proxy.messages import Endpoint

__all__ = ["Relay"]


class Relay:
    """Stands in front of `target`; an end or a reset of one side is passed on to the other.

    `accepted` counts the connections that it has seen, `open` those that are left, and `forwarded`
    the bytes towards `target`.
    """

    def __init__(self, target: ControlledSidecar) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._lock = threading.Lock()
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._threads: list[threading.Thread] = []
        self.accepted = 0
        self.open = 0
        self.forwarded = 0

    @property
    def endpoint(self) -> Endpoint:
        """Where the target is reached through this relay."""
        return msgspec.structs.replace(self._target.endpoint, port=port_of(self._listener))

    def wait_for(self, *, accepted: int | None = None, left: int | None = None) -> None:
        """Return once so many connections have come, and so many are left."""
        wait_until(
            lambda: (
                (accepted is None or self.accepted == accepted)
                and (left is None or self.open == left)
            ),
            f"{accepted} connections through the relay, {left} left",
        )

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for pair in self._pairs:
            for sock in pair:
                try:
                    sock.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass  # ended already
        for thread in self._threads:
            thread.join()

    def _start(self, target: object, *args: object) -> None:
        thread = threading.Thread(target=target, args=args, daemon=True)  # type: ignore[arg-type]
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self._target.endpoint.port))
            except OSError:
                reset(near)
                continue
            for sock in (near, far):
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self.accepted += 1
                self.open += 1
                self._pairs.append((near, far))
            self._start(self._pass_on, near, far)

    def _pass_on(self, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._copy, args=(far, near, False), daemon=True)
        back.start()
        self._copy(near, far, True)
        back.join()
        near.close()
        far.close()
        with self._lock:
            self.open -= 1

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
