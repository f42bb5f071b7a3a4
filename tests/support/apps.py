"""Apps for tests: threads that serve one handler per connection, on plain sockets."""

import socket
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Self

__all__ = ["App", "Handler", "echo", "read_all", "reset", "told_by"]

PATIENCE_S = 20.0

Handler = Callable[[socket.socket], None]


class App:
    """Listens on the loopback and runs `handler` for each connection, until the block ends.

    `accepted` counts the connections that it has seen.
    """

    def __init__(self, handler: Handler, *, port: int = 0) -> None:
        self._handler = handler
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port: int = self._listener.getsockname()[1]
        self.accepted = 0
        self._connections: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

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
        for connection in self._connections:
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # ended already
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive(), "an app's handler did not end"
        for connection in self._connections:
            connection.close()

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=target, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            self._connections.append(connection)
            self._start(lambda taken=connection: self._serve(taken))  # type: ignore[misc]

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._handler(connection)
        except OSError:
            pass  # what the peer does to a connection is for the test's own end to see


def echo(connection: socket.socket) -> None:
    """Send everything back, and the end too."""
    while data := connection.recv(65536):
        connection.sendall(data)
    connection.shutdown(socket.SHUT_WR)


def told_by(name: str) -> Handler:
    """Return a handler that answers each message with `name`."""

    def answer(connection: socket.socket) -> None:
        while connection.recv(65536):
            connection.sendall(name.encode())

    return answer


def read_all(connection: socket.socket) -> bytes:
    """Return everything up to the end."""
    data = bytearray()
    while more := connection.recv(65536):
        data += more
    return bytes(data)


def reset(connection: socket.socket) -> None:
    """Close so that the other side sees a reset."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()
