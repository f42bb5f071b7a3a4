"""What an app does with its upstream, done by the test: an upstream port serves every caller."""

import hashlib
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.client import HTTPConnection, HTTPException

from support.mesh import PATIENCE_S
from support.threads import Threads

__all__ = [
    "MIB",
    "Callers",
    "ask",
    "connect",
    "count_descriptors",
    "peak_memory_bytes",
    "pseudo_random",
    "reaches",
    "wait_until",
]

MIB = 1024 * 1024


def connect(port: int) -> socket.socket:
    """Connect to a port of the loopback."""
    return socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)


def ask(port: int, message: bytes = b"hello") -> bytes:
    """Send `message` over a new connection, and return what comes back first; raises OSError."""
    with connect(port) as connection:
        connection.sendall(message)
        answer = connection.recv(65536)
        if not answer:
            raise ConnectionAbortedError("the connection ended without an answer")
        return answer


def reaches(port: int, message: bytes = b"hello") -> bool:
    """Tell whether a call is answered; one that is refused ends with a reset, or at once."""
    try:
        ask(port, message)
    except ConnectionError:
        return False
    return True


def wait_until(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Return once `condition` holds, for what nothing announces; fails, saying `what`, if late."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"after {patience_s:g} s still not: {what}"
        time.sleep(0.01)


def pseudo_random(total_bytes: int, seed: int) -> Iterator[bytes]:
    """Yield chunks of this many bytes in all, which no shifted, lost or repeated piece resembles.

    Each chunk is the same block under another number: making them must not take the time that the
    test wants to give to the sidecars.
    """
    block = hashlib.shake_256(seed.to_bytes(8, "big")).digest(MIB - 8)
    for number in range(total_bytes // MIB):
        yield number.to_bytes(8, "big") + block


def count_descriptors(pid: int) -> int:
    """How many descriptors a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def peak_memory_bytes(pid: int) -> int:
    """The most that a process ever had in memory, with what it shares with others."""
    with open(f"/proc/{pid}/status", encoding="ascii") as file:
        lines = dict(line.split(":", 1) for line in file)
    return int(lines["VmHWM"].split()[0]) * 1024


class Callers(Threads):
    """Calls a server over HTTP without pause, until the block ends.

    One thread uses one connection as long as it lasts, another a new one for each call.
    """

    def __init__(self, port: int) -> None:
        super().__init__([self._call_on_one, self._call_on_new])
        self._port = port
        self.failures: list[str] = []
        self.kept = 0
        self.fresh = 0

    def _call_on_one(self) -> None:
        with self._connection() as connection:
            while not self.over.is_set():
                self.kept += self._call(connection)

    def _call_on_new(self) -> None:
        while not self.over.is_set():
            with self._connection() as connection:
                self.fresh += self._call(connection)

    def _connection(self) -> closing[HTTPConnection]:
        return closing(HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S))

    def _call(self, connection: HTTPConnection) -> bool:
        try:
            connection.request("GET", "/")
            response = connection.getresponse()
            body = response.read()
        except (OSError, HTTPException) as error:
            self._fail(repr(error))
            connection.close()
            return False
        if response.status != 200 or not body.startswith(b"Hello from echo-server"):
            self._fail(f"{response.status} {body[:200]!r}")
            return False
        return True

    def _fail(self, what: str) -> None:
        self.failures.append(what)
        if len(self.failures) > 100:
            self.over.set()

    def wait_for(self, calls: int) -> None:
        """Return when each thread has made this many more calls that succeeded, or one failed."""
        kept, fresh = self.kept + calls, self.fresh + calls
        wait_until(
            lambda: bool(self.failures) or (self.kept >= kept and self.fresh >= fresh),
            f"{calls} more calls of both kinds",
        )
