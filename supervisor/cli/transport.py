"""One HTTP/1.1 exchange on a socket that is connected already, as the commands need it.

`http.client` would do, but costs every command the import of `email` and `ssl`: a quarter of the
time that `meshrun ps` may take. This speaks to meshrun's own server only, over a Unix socket, one
request a connection; RFC 9112 sections 4, 6 and 7.1.
"""

import io
import socket
from collections.abc import Iterator
from typing import Protocol

from meshrun.supervisor.errors import MeshrunError

__all__ = ["LINE_LIMIT_BYTES", "Response", "TransportError", "exchange"]

# An app's line has 1 MiB at most, and six times that where JSON must escape every byte.
LINE_LIMIT_BYTES = 8 * 1024 * 1024
BODY_LIMIT_BYTES = 64 * 1024 * 1024
HEAD_LINE_LIMIT_BYTES = 8 * 1024
HEAD_LINES_LIMIT = 100
PIECE_BYTES = 64 * 1024


class TransportError(MeshrunError):
    """The answer broke off, came too late or is not HTTP."""


class Readable(Protocol):
    """What of a buffered reader is used here."""

    def readline(self, limit: int, /) -> bytes:
        """Read a line with its end, `limit` bytes at most."""

    def read1(self, size: int, /) -> bytes:
        """Read what is there, waiting only for the first byte."""


class Response:
    """The status of an answer, and its body while it comes."""

    def __init__(self, reader: Readable) -> None:
        self._reader = reader
        self.status = self._read_status()
        headers = self._read_headers()
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self._length = _number(headers["content-length"]) if "content-length" in headers else None

    def body(self) -> bytes:
        """Return the whole body. Raises TransportError."""
        body = bytearray()
        for piece in self._pieces():
            body += piece
            if len(body) > BODY_LIMIT_BYTES:
                raise TransportError(f"the answer is larger than {BODY_LIMIT_BYTES >> 20} MiB")
        return bytes(body)

    def lines(self) -> Iterator[bytes]:
        """Yield each line of the body as soon as it is there. Raises TransportError."""
        rest = b""
        for piece in self._pieces():
            *whole, rest = (rest + piece).split(b"\n") if b"\n" in piece else (rest + piece,)
            yield from whole
            if len(rest) > LINE_LIMIT_BYTES:
                raise TransportError(f"a line is longer than {LINE_LIMIT_BYTES >> 20} MiB")
        if rest:
            yield rest

    def _read_status(self) -> int:
        version, _, rest = self._head_line().partition(" ")
        if not version.startswith("HTTP/1."):
            raise TransportError("what answered does not speak HTTP")
        return _number(rest[:3])

    def _read_headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for _ in range(HEAD_LINES_LIMIT):
            line = self._head_line()
            if not line:
                return headers
            name, _, value = line.partition(":")
            headers[name.strip().lower()] = value.strip()
        raise TransportError("the answer has too many headers")

    def _head_line(self) -> str:
        line = self._reader.readline(HEAD_LINE_LIMIT_BYTES)
        if not line.endswith(b"\n"):
            raise TransportError("the answer broke off")
        return line.decode("latin-1").rstrip("\r\n")

    def _pieces(self) -> Iterator[bytes]:
        if self._chunked:
            while size := _number(self._head_line().partition(";")[0], base=16):
                yield from self._exactly(size)
                self._head_line()
        elif self._length is not None:
            yield from self._exactly(self._length)
        else:
            while piece := self._reader.read1(PIECE_BYTES):
                yield piece

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size:
            piece = self._reader.read1(min(size, PIECE_BYTES))
            if not piece:
                raise TransportError("the answer broke off")
            size -= len(piece)
            yield piece


def exchange(connection: socket.socket, method: str, target: str, body: bytes | None) -> Response:
    """Send a request and return the answer once its head is there. Raises TransportError.

    The caller closes the connection; `target` is percent-encoded already.
    """
    head = [f"{method} {target} HTTP/1.1", "Host: meshrun", "Connection: close"]
    if body is not None:
        head += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    try:
        connection.sendall("\r\n".join([*head, "", ""]).encode("ascii") + (body or b""))
    except OSError as error:
        raise _failed(error) from error
    # Not `makefile`: the connection would stay open as long as anybody holds the answer.
    return Response(_Patient(io.BufferedReader(socket.SocketIO(connection, "rb"))))


class _Patient:
    """A reader of a socket whose time-outs and resets are TransportErrors."""

    def __init__(self, reader: io.BufferedReader) -> None:
        self._reader = reader

    def readline(self, limit: int, /) -> bytes:
        try:
            return self._reader.readline(limit)
        except OSError as error:
            raise _failed(error) from error

    def read1(self, size: int, /) -> bytes:
        try:
            return self._reader.read1(size)
        except OSError as error:
            raise _failed(error) from error


def _failed(error: OSError) -> TransportError:
    if isinstance(error, TimeoutError):
        return TransportError("it does not answer in time")
    return TransportError(f"the answer broke off: {error.strerror or error}")


def _number(text: str, *, base: int = 10) -> int:
    try:
        return int(text, base)
    except ValueError as error:
        raise TransportError("the answer is not valid HTTP") from error
