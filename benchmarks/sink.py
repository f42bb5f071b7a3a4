"""Downloads as fast as the machine can give, and throws it away: `sink.py PORT STREAMS SECONDS`.

A program of its own, so that it costs its own CPU time. The kernel drops what arrives (MSG_TRUNC)
without copying it to anybody, and wakes this program once per half megabyte.
"""

import json
import selectors
import socket
import sys
import time

PATH = "/bulk"
CHUNK_BYTES = 4 << 20
LOW_WATER_BYTES = 512 << 10
# Asked for all at once: the answers follow each other without a pause, and nobody reads them.
REQUESTS = 1000
ANSWER = b"HTTP/1.1 200 "
WARM_UP_S = 0.3
TIMEOUT_S = 10.0


def open_stream(port: int) -> socket.socket:
    """Connect, ask, and return the connection once the answer has begun; raises OSError."""
    stream = socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_S)
    stream.sendall(f"GET {PATH} HTTP/1.1\r\nHost: backend\r\n\r\n".encode() * REQUESTS)
    answer = stream.recv(len(ANSWER), socket.MSG_WAITALL)
    if answer != ANSWER:
        raise ConnectionError(f"cannot download: the answer begins with {answer!r}")
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVLOWAT, LOW_WATER_BYTES)
    stream.setblocking(False)
    return stream


def drain(selector: selectors.BaseSelector, seconds: float) -> tuple[int, float]:
    """Discard what comes for this long; return the bytes and the seconds that it really took."""
    nowhere = bytearray(CHUNK_BYTES)
    begun = now = time.monotonic()
    total = 0
    while now < begun + seconds:
        ready = selector.select(TIMEOUT_S)
        if not ready:
            raise TimeoutError(f"cannot download: nothing came for {TIMEOUT_S:g} s")
        for key, _ in ready:
            stream = key.fileobj
            assert isinstance(stream, socket.socket)
            number = stream.recv_into(nowhere, CHUNK_BYTES, socket.MSG_TRUNC)
            if not number:
                raise ConnectionError("cannot download: the stream ended")
            total += number
        now = time.monotonic()
    return total, now - begun


def main(port: int, streams: int, seconds: float) -> None:
    """Print the bytes in all, and the bytes and seconds of what counts, as JSON."""
    with selectors.DefaultSelector() as selector:
        for _ in range(streams):
            selector.register(open_stream(port), selectors.EVENT_READ)
        warm_up, _ = drain(selector, WARM_UP_S)
        counted, took_s = drain(selector, seconds)
    print(json.dumps({"bytes": warm_up + counted, "counted": counted, "seconds": took_s}))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]))
