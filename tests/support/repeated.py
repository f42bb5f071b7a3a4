"""Calls without pause, of whatever kind, while something happens to who answers them."""

import http.client
import socket
from collections import Counter
from collections.abc import Callable
from contextlib import closing

from support.mesh import PATIENCE_S
from support.threads import Threads
from support.traffic import wait_until

__all__ = ["Repeated", "ask_over_http", "ask_over_tcp"]

CALLERS = 3


def ask_over_tcp(address: tuple[str, int]) -> str:
    """Call a server that says its name, over a connection of its own."""
    with socket.create_connection(address, timeout=PATIENCE_S) as connection:
        connection.sendall(b"who?")
        with connection.makefile() as answer:
            return answer.readline().strip()


def ask_over_http(address: tuple[str, int]) -> str:
    """Send a request that may not be sent twice, over a connection of its own."""
    with closing(http.client.HTTPConnection(*address, timeout=PATIENCE_S)) as connection:
        connection.request("POST", "/", b"x" * 100)
        response = connection.getresponse()
        response.read()
        return str(response.status)


class Repeated(Threads):
    """Calls from several threads until the block ends; `answers` are what came of it."""

    def __init__(self, call: Callable[[], str]) -> None:
        super().__init__([self._run] * CALLERS)
        self._call = call
        self.answers: Counter[str] = Counter()
        self.failures: list[str] = []

    def _run(self) -> None:
        while not self.over.is_set():
            try:
                answer = self._call()
            except (OSError, http.client.HTTPException) as error:
                answer = ""
                self.failures.append(repr(error))
            if answer:
                self.answers[answer] += 1
            else:
                self.failures.append("no answer")
            if len(self.failures) > 10:
                return

    def wait_for(self, more: int) -> None:
        """Return when so many more calls have been answered, or one has not."""
        goal = self.answers.total() + more
        wait_until(
            lambda: bool(self.failures) or self.answers.total() >= goal, f"{more} more calls"
        )
