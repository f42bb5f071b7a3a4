"""Both ends of a TLS connection within the test, and sockets for them."""

import asyncio
import socket
import ssl
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from typing import TypeVar

from support.certificates import TRUST_DOMAIN, issue

from meshrun.proxy import sockets, tls
from meshrun.proxy.handshake import Secured
from meshrun.proxy.poller import Poller
from meshrun.supervisor.ca import create_root

__all__ = ["PATIENCE_S", "TlsPairs", "run", "tcp_pair", "unix_pair", "until"]

PATIENCE_S = 20.0

T = TypeVar("T")


def run(main: Callable[[Poller], Coroutine[object, object, T]]) -> T:
    """Run `main` on a sidecar's loop, whose poller must watch nothing at the end."""

    poller = Poller()
    with asyncio.Runner(loop_factory=poller.new_loop) as runner:
        return runner.run(main(poller))


async def until(condition: Callable[[], bool], what: str) -> None:
    """Let the loop turn until `condition` holds; fails, saying `what`, if late."""
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110  # what is waited for has no event
                await asyncio.sleep(0)
    except TimeoutError:
        raise AssertionError(f"after {PATIENCE_S:g} s still not: {what}") from None


def tcp_pair(buffer_bytes: int | None = None) -> tuple[socket.socket, socket.socket]:
    """Return two connected TCP sockets, non-blocking, maybe with small buffers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.socket()
        if buffer_bytes is not None:
            for sock in (listener, near):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
        near.connect(listener.getsockname())
        far, _ = listener.accept()
    return sockets.set_up(near), sockets.set_up(far)


def unix_pair() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets that hold much less than TCP's."""
    near, far = socket.socketpair()
    near.setblocking(False)
    far.setblocking(False)
    return near, far


class TlsPairs:
    """Makes connections whose handshake is done, between the services `client` and `server`."""

    def __init__(self) -> None:
        now = datetime.now(UTC)
        root = create_root(TRUST_DOMAIN, now)
        trusted = [root.certificate_der]
        self._client = tls.client_context(issue(root, "client", now), trusted, tunnels=True)
        self._server = tls.server_context(issue(root, "server", now), trusted, tunnels=True)

    def join(self, near: socket.socket, far: socket.socket) -> tuple[Secured, Secured]:
        """Return the client over `near` and the server over `far`; nothing has passed there yet."""
        client = _state(near, self._client, server_side=False)
        server = _state(far, self._server, server_side=True)
        open_ends = [client, server]
        while open_ends:
            for one, other in ((client, server), (server, client)):
                if one in open_ends and _shaken(one):
                    open_ends.remove(one)
                other.incoming.write(one.outgoing.read())
        return client, server


def _state(sock: socket.socket, context: ssl.SSLContext, *, server_side: bool) -> Secured:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    return Secured(
        sock, context.wrap_bio(incoming, outgoing, server_side=server_side), incoming, outgoing
    )


def _shaken(end: Secured) -> bool:
    try:
        end.tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True
