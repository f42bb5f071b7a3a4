"""The other side of a tunnel, written by hand: says and hears single frames, right or wrong."""

import socket
import ssl
from collections.abc import Iterator
from typing import Self

from support.closing import Closing
from support.sidecars import PATIENCE_S, ControlledSidecar, Mesh, listen, port_of

from meshrun.proxy.framing import ALPN, Frame
from meshrun.proxy.leaf import Leaf
from meshrun.proxy.messages import Endpoint

__all__ = ["FramePeer", "FrameServer", "frame", "joined"]


def frame(kind: int, payload: bytes = b"") -> bytes:
    """Return a frame of any type, as docs/tunnel.md has it and not as the code does."""
    return bytes([kind]) + len(payload).to_bytes(3, "big") + payload


def joined(*frames: bytes) -> bytes:
    """Return frames one behind the other."""
    return b"".join(frames)


class FramePeer(Closing):
    """A TLS connection on which frames are said and heard, with a deadline for each."""

    def __init__(self, secured: ssl.SSLSocket) -> None:
        self._secured = secured
        secured.settimeout(PATIENCE_S)
        self._received = b""

    @classmethod
    def dial(
        cls,
        mesh: Mesh,
        sidecar: ControlledSidecar,
        *,
        ttl_s: float = 60,
        leaf: Leaf | None = None,
    ) -> Self:
        """Connect to `sidecar` as the sidecar of `client` would.

        It shows `leaf`, or one that lives so long.
        """
        context = mesh.client_context(leaf or mesh.leaf("client", ttl_s=ttl_s))
        context.set_alpn_protocols([ALPN])
        plain = socket.create_connection(("127.0.0.1", sidecar.endpoint.port), timeout=PATIENCE_S)
        # Else what is said first waits for the acknowledgement of the handshake's last flight.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        secured = context.wrap_socket(plain, suppress_ragged_eofs=False)
        assert secured.selected_alpn_protocol() == ALPN
        return cls(secured)

    def say(self, *frames: bytes) -> None:
        """Send these bytes."""
        self._secured.sendall(joined(*frames))

    def hear(self) -> tuple[int, bytes]:
        """Return the type and the payload of the next frame; raise EOFError at the end."""
        kind, *length = self._take(4)
        return kind, self._take(int.from_bytes(bytes(length), "big"))

    def hear_stream(self) -> Iterator[tuple[int, bytes]]:
        """Yield frames up to the one that ends a direction, that one included."""
        while True:
            kind, payload = self.hear()
            yield kind, payload
            if kind in (Frame.FINISH, Frame.RESET, Frame.REFUSED):
                return

    def is_cut(self) -> bool:
        """Whether the connection is broken off: neither a frame nor an orderly end comes."""
        try:
            while self._secured.recv(65536):
                pass
        except (ConnectionResetError, ssl.SSLEOFError):
            return True
        return False

    def is_closed(self) -> bool:
        """Whether an orderly end comes, and no frame before it."""
        return not self._received and self._secured.recv(1) == b""

    def close(self) -> None:
        """Close without a word."""
        self._secured.close()

    def _take(self, count: int) -> bytes:
        while len(self._received) < count:
            data = self._secured.recv(65536)
            if not data:
                raise EOFError(f"the tunnel ended after {self._received!r}")
            self._received += data
        taken, self._received = self._received[:count], self._received[count:]
        return taken


class FrameServer(Closing):
    """An endpoint of `service` whose tunnels the test takes and answers by hand."""

    def __init__(self, mesh: Mesh, service: str = "server") -> None:
        self._context = mesh.server_context(mesh.leaf(service))
        self._context.set_alpn_protocols([ALPN])
        self._service = service
        self._listener = listen()
        self._listener.settimeout(PATIENCE_S)

    @property
    def endpoint(self) -> Endpoint:
        """Where sidecars reach it."""
        return Endpoint(
            instance=f"{self._service}.9", host="127.0.0.1", port=port_of(self._listener)
        )

    def accept(self) -> FramePeer:
        """Return the next tunnel."""
        plain, _ = self._listener.accept()
        plain.settimeout(PATIENCE_S)
        return FramePeer(
            self._context.wrap_socket(plain, server_side=True, suppress_ragged_eofs=False)
        )

    def close(self) -> None:
        """Close, with all that belongs to it."""
        self._listener.close()
