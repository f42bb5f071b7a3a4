"""Requests at a constant rate whatever the answers do: `openloop.py PORT RATE CONNECTIONS SECONDS`.

A closed loop waits for an answer before it asks again, so a proxy that stalls is asked less and
looks better than it is ("coordinated omission"). Here every request has its moment from the start,
and its latency counts from that moment, also while no connection was free to send it.

A program of its own, on select(2): of what Python has, only that waits in microseconds.
"""

import ctypes
import gc
import json
import math
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence

REQUEST = b"GET / HTTP/1.1\r\nHost: backend\r\n\r\n"
WARM_UP_S = 0.3
# How long the last answers may take; what has not come by then counts as having taken that long.
PATIENCE_S = 2.0
TIMEOUT_S = 10.0
PR_SET_TIMERSLACK = 29


def percentile(ordered: Sequence[float], share: float) -> float:
    """Return the value that `share` of the values, in rising order, do not exceed."""
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


class Connection:
    """A connection to the proxy, and the request on it; `intended` is when that was to be sent."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answer_bytes = self._ask_once()
        self.socket.setblocking(False)
        self.intended = 0.0
        self.missing = 0

    def fileno(self) -> int:
        """Let select(2) wait for it."""
        return self.socket.fileno()

    def _ask_once(self) -> int:
        """Return the length of an answer: all answers of the backend are alike."""
        self.socket.sendall(REQUEST)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += self._receive()
        head, _, body = answer.partition(b"\r\n\r\n")
        fields = dict(line.split(b": ", 1) for line in head.split(b"\r\n")[1:])
        rest = int(fields[b"Content-Length"]) - len(body)
        while rest > 0:
            piece = self._receive()
            answer += piece
            rest -= len(piece)
        return len(answer)

    def _receive(self) -> bytes:
        piece = self.socket.recv(65536)
        if not piece:
            raise ConnectionError("cannot ask: the connection ended")
        return piece

    def ask(self, intended: float) -> None:
        """Send the request that was to be sent at `intended`."""
        self.intended = intended
        self.missing = self.answer_bytes
        if self.socket.send(REQUEST) != len(REQUEST):
            raise ConnectionError("cannot ask: the connection takes no more")

    def take(self) -> bool:
        """Receive what is there; tell whether the answer is complete."""
        self.missing -= len(self._receive())
        return self.missing <= 0


def generate(connections: Sequence[Connection], rate: float, seconds: float) -> list[float]:
    """Ask at `rate` for this long; return each latency in seconds, in the order of the answers."""
    latencies: list[float] = []
    idle = deque(connections)
    busy: set[Connection] = set()
    late: deque[float] = deque()
    clock = time.monotonic
    number, total = 0, int(rate * seconds)
    begun = clock()
    end = begun + seconds + PATIENCE_S
    while len(latencies) < total:
        now = clock()
        if now > end:
            unsent = (begun + n / rate for n in range(number, total))
            latencies.extend(now - at for at in (*(c.intended for c in busy), *late, *unsent))
            break
        while number < total and begun + number / rate <= now:
            late.append(begun + number / rate)
            number += 1
        while late and idle:
            connection = idle.popleft()
            connection.ask(late.popleft())
            busy.add(connection)
        until = begun + number / rate if number < total else end
        ready, _, _ = select.select(busy, (), (), max(0.0, until - clock()))
        for connection in ready:
            if connection.take():
                latencies.append(clock() - connection.intended)
                busy.remove(connection)
                idle.append(connection)
    return latencies


def main(port: int, rate: float, number: int, seconds: float) -> None:
    """Print the requests in all, and the percentiles in seconds, as JSON."""
    # By default the kernel wakes a sleeper up to 50 microseconds late, to wake several at once.
    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, 1, 0, 0, 0)
    connections = [Connection(port) for _ in range(number)]
    warm_up = generate(connections, rate, WARM_UP_S)
    gc.collect()
    gc.disable()
    begun = time.monotonic()
    latencies = generate(connections, rate, seconds)
    took_s = time.monotonic() - begun
    ordered = sorted(latencies)
    print(
        json.dumps(
            {
                "requests": len(warm_up) + len(ordered),
                "rate": len(ordered) / max(took_s, seconds),
                "p50": percentile(ordered, 0.5),
                "p99": percentile(ordered, 0.99),
                "p999": percentile(ordered, 0.999),
            }
        )
    )


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4]))
