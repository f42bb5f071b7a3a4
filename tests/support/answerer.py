"""An app that answers requests of HTTP/1 without a body, as the test says."""

import socket
from collections.abc import Callable
from dataclasses import dataclass, field

from support.apps import reset

__all__ = ["OK", "Answerer", "named"]

OK = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s"


@dataclass
class Answerer:
    """The handler of an app: keeps the heads of requests, and answers each with `answer`.

    What `answer` returns is sent; None resets the connection. `last` closes it after each answer.
    """

    answer: Callable[[bytes], bytes | None]
    last: bool = False
    heads: list[bytes] = field(default_factory=list)

    def __call__(self, connection: socket.socket) -> None:
        received = b""
        while True:
            while b"\r\n\r\n" not in received:
                data = connection.recv(65536)
                if not data:
                    return
                received += data
            head, _, received = received.partition(b"\r\n\r\n")
            self.heads.append(head)
            said = self.answer(head)
            if said is None:
                reset(connection)
                return
            connection.sendall(said)
            if self.last:
                connection.shutdown(socket.SHUT_WR)
                return


def named(name: str) -> Answerer:
    """Answer with a name."""
    return Answerer(lambda _: OK % (len(name), name.encode()))
