"""Bytes on connections, said and heard by hand: what a caller sends, and what the app then saw.

Whoever tests says what each end does, one after the other; every hearing has a deadline.
"""

import select
import socket
import ssl
from dataclasses import dataclass, field
from typing import Protocol

from support import apps
from support.closing import Closing
from support.framepeer import FramePeer, frame
from support.sidecars import PATIENCE_S, ControlledSidecar, Mesh, listen, port_of

from meshrun.proxy.framing import Frame
from meshrun.proxy.leaf import Leaf

__all__ = ["Answer", "Wire", "WireApp", "call", "call_as_peer", "call_over_tunnel"]


@dataclass
class Answer:
    """A response as it was heard, the chunks of its body joined; `raw` is every byte of it."""

    status: int
    fields: list[tuple[str, str]] = field(default_factory=list)
    body: bytes = b""
    raw: bytes = b""
    trailers: list[tuple[str, str]] = field(default_factory=list)

    def values(self, name: str) -> list[str]:
        """Return the values of the fields of this name."""
        return [value for known, value in self.fields if known.lower() == name.lower()]


class Stream(Protocol):
    """What a wire needs of a socket."""

    def sendall(self, data: bytes, /) -> None: ...
    def recv(self, size: int, /) -> bytes: ...
    def close(self) -> None: ...


class Wire(Closing):
    """One end of a connection; `heard` is every byte that ever came.

    Hearing raises EOFError where an orderly end comes too early, OSError where the connection
    breaks, and TimeoutError after the patience of tests.
    """

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.heard = bytearray()
        self._at = 0

    def say(self, data: bytes) -> None:
        """Send."""
        self._stream.sendall(data)

    def hear(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        while len(self.heard) < self._at + count:
            self._receive()
        return self._take(count)

    def hear_any(self) -> bytes:
        """Return what comes next, however much it is."""
        if not self.unheard:
            self._receive()
        return self._take(len(self.unheard))

    def hear_head(self) -> bytes:
        """Return what comes up to an empty line, that included."""
        while (end := self.heard.find(b"\r\n\r\n", self._at)) < 0:
            self._receive()
        return self._take(end + 4 - self._at)

    def hear_request(self) -> bytes:
        """Return a whole request, byte for byte."""
        head = self.hear_head()
        fields = _fields(head)
        if _value(fields, "transfer-encoding"):
            raw, _, _ = self._hear_chunks()
            return head + raw
        return head + self.hear(int(_value(fields, "content-length") or 0))

    def hear_answer(self, method: str = "GET") -> Answer:
        """Return a whole response to a request of `method`, interim ones one by one."""
        raw = self.hear_head()
        line = raw.split(b"\r\n", 1)[0]
        assert line.startswith(b"HTTP/1.1 "), line
        answer = Answer(status=int(line.split()[1]), fields=_fields(raw))
        if method == "HEAD" or answer.status < 200 or answer.status in (204, 304):
            body = b""
        elif _value(answer.fields, "transfer-encoding"):
            body, answer.body, answer.trailers = self._hear_chunks()
        elif length := _value(answer.fields, "content-length"):
            answer.body = body = self.hear(int(length))
        else:
            answer.body = body = self.hear_rest()
        answer.raw = raw + body
        return answer

    def hear_rest(self) -> bytes:
        """Return everything up to an orderly end."""
        try:
            while True:
                self._receive()
        except EOFError:
            return self._take(len(self.heard) - self._at)

    def hear_break(self) -> bytes:
        """Return everything up to where the connection breaks; an orderly end is an EOFError."""
        try:
            while True:
                self._receive()
        except TimeoutError:
            raise
        except OSError:
            return self._take(len(self.heard) - self._at)

    @property
    def unheard(self) -> bytes:
        """What has come and was not heard yet."""
        return bytes(self.heard[self._at :])

    def pending(self) -> bytes:
        """Return what has come and was not heard, without waiting for more; plain only."""
        sock = self._stream
        assert isinstance(sock, socket.socket)
        if not isinstance(sock, ssl.SSLSocket) and select.select([sock], [], [], 0)[0]:
            self._receive()
        return self.unheard

    def end(self) -> None:
        """Send nothing more."""
        assert isinstance(self._stream, socket.socket)
        self._stream.shutdown(socket.SHUT_WR)

    def reset(self) -> None:
        """Close so that the other side sees a reset."""
        assert isinstance(self._stream, socket.socket)
        apps.reset(self._stream)

    def close(self) -> None:
        """Close."""
        self._stream.close()

    def _receive(self) -> None:
        data = self._stream.recv(65536)
        if not data:
            raise EOFError(f"the end came behind {self.unheard!r}")
        self.heard += data

    def _take(self, count: int) -> bytes:
        taken = bytes(self.heard[self._at : self._at + count])
        self._at += count
        return taken

    def _hear_line(self) -> bytes:
        while (end := self.heard.find(b"\r\n", self._at)) < 0:
            self._receive()
        return self._take(end + 2 - self._at)

    def _hear_chunks(self) -> tuple[bytes, bytes, list[tuple[str, str]]]:
        raw, body = bytearray(), bytearray()
        while True:
            line = self._hear_line()
            size = int(line, 16)
            raw += line
            if not size:
                break
            piece = self.hear(size + 2)
            assert piece.endswith(b"\r\n"), piece
            raw += piece
            body += piece[:-2]
        trailers = bytearray()
        while not trailers.endswith(b"\r\n\r\n") and trailers != b"\r\n":
            trailers += self._hear_line()
        return bytes(raw + trailers), bytes(body), _fields(b"\r\n" + bytes(trailers))


class WireApp(Closing):
    """An app whose connections the test takes and answers by hand."""

    def __init__(self) -> None:
        self._listener = listen()
        self._listener.settimeout(PATIENCE_S)
        self.port = port_of(self._listener)
        self.accepted = 0
        self._sockets: list[socket.socket] = []

    def accept(self) -> Wire:
        """Return the next connection."""
        sock, _ = self._listener.accept()
        return self._adopt(sock)

    def untouched(self) -> bool:
        """Whether no connection waits to be accepted."""
        return not select.select([self._listener], [], [], 0)[0]

    def drop(self) -> None:
        """Reset every connection, also those that were never accepted."""
        while not self.untouched():
            self.accept()
        sockets, self._sockets = self._sockets, []
        for sock in sockets:
            if sock.fileno() >= 0:
                apps.reset(sock)

    def close(self) -> None:
        """Close, with all that belongs to it."""
        self.drop()
        self._listener.close()

    def _adopt(self, sock: socket.socket) -> Wire:
        self.accepted += 1
        sock.settimeout(PATIENCE_S)
        self._sockets.append(sock)
        return Wire(sock)


def call(sidecar: ControlledSidecar, upstream: str = "server") -> Wire:
    """Connect to an upstream port of `sidecar`, as its app does."""
    return Wire(sidecar.call(upstream))


def call_as_peer(mesh: Mesh, sidecar: ControlledSidecar, leaf: Leaf) -> Wire:
    """Connect to the inbound side of `sidecar` as a peer that shows `leaf` and knows no tunnels."""
    context = mesh.client_context(leaf)
    plain = socket.create_connection(("127.0.0.1", sidecar.endpoint.port), timeout=PATIENCE_S)
    # Else what is said first waits for the acknowledgement of the handshake's last flight.
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Wire(context.wrap_socket(plain, suppress_ragged_eofs=False))


def call_over_tunnel(mesh: Mesh, sidecar: ControlledSidecar, leaf: Leaf) -> Wire:
    """Connect to the inbound side of `sidecar` as another sidecar does, that of `client`."""
    return Wire(_TunnelStream(FramePeer.dial(mesh, sidecar, leaf=leaf)))


class _TunnelStream:
    """A stream of a tunnel, as if it were a socket."""

    def __init__(self, peer: FramePeer) -> None:
        self._peer = peer
        self._ended = False
        peer.say(frame(Frame.OPEN))

    def sendall(self, data: bytes, /) -> None:
        self._peer.say(frame(Frame.DATA, data))

    def recv(self, size: int, /) -> bytes:
        while not self._ended:
            kind, payload = self._peer.hear()
            if kind == Frame.DATA:
                return payload
            if kind == Frame.FINISH:
                self._ended = True
            elif kind != Frame.ACCEPTED:
                raise ConnectionResetError(f"the stream ended with frame {kind}: {payload!r}")
        return b""

    def close(self) -> None:
        self._peer.close()


def _fields(head: bytes) -> list[tuple[str, str]]:
    """Return the fields behind the first line of a head."""
    lines = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")[1:]
    return [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]


def _value(fields: list[tuple[str, str]], name: str) -> str:
    return next((value for known, value in fields if known.lower() == name), "")
