"""Calls its upstreams steadily, each in every way that it can be called, for tests.

Arguments: `NAME=tcp` or `NAME=http` for each upstream. Each call is a line of JSON in the file
`calls.INSTANCE` in its folder. While there is a file `pause` it makes none, and has a file
`paused.INSTANCE` there.
"""

import http.client
import json
import os
import random
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from itertools import count, cycle
from pathlib import Path

INSTANCE = os.environ["MESHRUN_INSTANCE"]
# Longer than anything may take: what is late is no failure, what never comes is one.
PATIENCE_S = 25.0
MOST_THINKING_S = 0.5
LOOK_AGAIN_S = 0.05

# Makes one call, which bears a mark that no other has.
Call = Callable[[str], None]


class WrongAnswerError(Exception):
    """An answer to something that was not asked: this may happen for no reason whatsoever."""


class NoAnswerError(Exception):
    """None, or half of one, or that there is none."""


def want(got: object, wanted: object) -> None:
    """Raise WrongAnswerError unless both are the same."""
    if got != wanted:
        raise WrongAnswerError(f"{str(got)[:200]} in place of {str(wanted)[:200]}")


def want_whole(got: bytes, wanted: bytes) -> None:
    """Raise NoAnswerError if it has an end too soon, WrongAnswerError if it is another one."""
    if got != wanted and wanted.startswith(got):
        raise NoAnswerError(f"it ended after {len(got)} bytes of {len(wanted)}")
    want(got, wanted)


class Tcp:
    """Calls a server that says everything again; `since` is when the last call began."""

    def __init__(self, address: str) -> None:
        host, _, port = address.rpartition(":")
        self._address = host, int(port)
        self.since = 0.0

    def close(self) -> None:
        """Have no connection open."""

    def kinds(self) -> Iterator[tuple[str, Call]]:
        """Yield the ways to call, again and again."""
        yield from cycle((("ask", self.ask), ("talk", self.talk), ("end", self.end)))

    def _connect(self) -> socket.socket:
        return socket.create_connection(self._address, timeout=PATIENCE_S)

    def ask(self, mark: str, times: int = 1) -> None:
        """Say something and hear it."""
        self.since = time.time()
        with self._connect() as connection, connection.makefile("rb") as answers:
            for number in range(times):
                line = f"{mark} {number}\n".encode()
                connection.sendall(line)
                want_whole(answers.readline(), line)
                if number + 1 < times:
                    time.sleep(random.uniform(0.0, 0.2))

    def talk(self, mark: str) -> None:
        """Say something several times."""
        self.ask(mark, 4)

    def end(self, mark: str) -> None:
        """Say all, end, and hear all of it."""
        self.since = time.time()
        with self._connect() as connection, connection.makefile("rb") as answers:
            said = (mark * 500).encode()
            connection.sendall(said)
            connection.shutdown(socket.SHUT_WR)
            want_whole(answers.read(), said)


class Http:
    """Calls a server that says what it was asked.

    `since` is when the last call began, or its connection was last known to be well.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._kept: http.client.HTTPConnection | None = None
        self._used_at = 0.0
        self.since = 0.0

    def kinds(self) -> Iterator[tuple[str, Call]]:
        """Yield the ways to call, again and again."""
        ways = (("get", self.get), ("post", self.post), ("kept", self.keep), ("slow", self.slow))
        yield from cycle(ways)

    def close(self) -> None:
        """Have no connection open."""
        if self._kept is not None:
            self._kept.close()
            self._kept = None

    def _connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self._address, timeout=PATIENCE_S)

    def _exchange(
        self, connection: http.client.HTTPConnection, method: str, path: str, body: bytes = b""
    ) -> bytes:
        connection.request(method, path, body or None)
        response = connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise NoAnswerError(f"status {response.status} {answer[:200]!r}")
        return answer

    def _seen(self, connection: http.client.HTTPConnection, method: str, mark: str) -> None:
        body = mark.encode() * 100 if method == "POST" else b""
        answer = self._exchange(connection, method, f"/saw/{mark}", body)
        try:
            saw = json.loads(answer)
            found = (saw["method"], saw["target"], saw["body_bytes"])
        except (ValueError, LookupError, TypeError):
            raise WrongAnswerError(f"{answer[:200]!r}") from None
        want(found, (method, f"/saw/{mark}", len(body)))

    def get(self, mark: str) -> None:
        """Ask over a new connection what may be asked twice."""
        self.since = time.time()
        with closing(self._connect()) as connection:
            self._seen(connection, "GET", mark)

    def post(self, mark: str) -> None:
        """Ask over a new connection what may not."""
        self.since = time.time()
        with closing(self._connect()) as connection:
            self._seen(connection, "POST", mark)

    def keep(self, mark: str) -> None:
        """Ask over a connection that is there; what has become of it since is seen only now."""
        if self._kept is None:
            self._kept, self._used_at = self._connect(), time.time()
        self.since = self._used_at
        try:
            self._seen(self._kept, "GET", mark)
        except BaseException:
            self.close()
            raise
        self._used_at = time.time()

    def slow(self, mark: str) -> None:
        """Ask what takes its time."""
        self.since = time.time()
        with closing(self._connect()) as connection:
            want(self._exchange(connection, "GET", f"/sleep/0.2?{mark}"), b"slow")


class Steady:
    """A caller of each upstream, each in a thread of its own."""

    def __init__(self, upstreams: list[tuple[str, str]]) -> None:
        self._upstreams = upstreams
        self._log = os.open(f"calls.{INSTANCE}", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._numbers = count()
        self._pausing = threading.Barrier(len(upstreams), action=self._paused)

    def run(self) -> None:
        """Call until told to stop."""
        for name, protocol in self._upstreams:
            threading.Thread(target=self._call, args=(name, protocol)).start()

    def _paused(self) -> None:
        Path(f"paused.{INSTANCE}").touch()

    def _call(self, name: str, protocol: str) -> None:
        address = os.environ[f"UPSTREAM_{name.upper()}_ADDR"]
        caller = Http(address) if protocol == "http" else Tcp(address)
        for kind, call in caller.kinds():
            if os.path.exists("pause"):
                caller.close()
                self._pausing.wait()
                while os.path.exists("pause"):
                    time.sleep(LOOK_AGAIN_S)
            mark = f"{INSTANCE}-{os.getpid()}-{next(self._numbers)}"
            failure = ""
            try:
                call(mark)
            except (OSError, http.client.HTTPException, WrongAnswerError, NoAnswerError) as error:
                failure = repr(error)
            self._write(name, kind, caller.since, failure)
            time.sleep(random.uniform(0.0, MOST_THINKING_S))

    def _write(self, name: str, kind: str, began: float, failure: str) -> None:
        call = {
            "source": INSTANCE,
            "to": name,
            "kind": kind,
            "began": began,
            "ended": time.time(),
            "failure": failure,
        }
        os.write(self._log, json.dumps(call).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    words = (word.partition("=") for word in sys.argv[1:])
    Steady([(name, protocol) for name, _, protocol in words]).run()
