"""TLS handshakes over non-blocking sockets, to the point where a pump takes over."""

import re
import socket
import ssl
from dataclasses import dataclass

from meshrun.proxy import sockets
from meshrun.proxy.errors import NoProtocolError, PeerError
from meshrun.proxy.poller import READABLE, WRITABLE, Poller

__all__ = ["Secured", "accept", "connect", "send_all"]

# A flight of the peer with a chain of a few certificates; more comes with the next read.
FLIGHT_BYTES = 16 * 1024

# OpenSSL's words for the alert no_application_protocol. Words, since Python has no name of its own
# for it (`reason` is None) where its table of errors is older than the OpenSSL it runs with.
NO_PROTOCOL = "alert no application protocol"

# Of a reason that Python's own table lacks, as it does of most alerts, only a sentence is left.
_sentence = re.compile(r"(?:\[.*?\] )?(.*?)(?: \(_ssl\.c:\d+\))?")


@dataclass(frozen=True, slots=True, eq=False)
class Secured:
    """A socket whose handshake is done, with the TLS state over it.

    `incoming` may hold bytes that came behind the peer's last flight.
    """

    sock: socket.socket
    tls: ssl.SSLObject
    incoming: ssl.MemoryBIO
    outgoing: ssl.MemoryBIO


async def accept(poller: Poller, sock: socket.socket, context: ssl.SSLContext) -> Secured:
    """Do the server's part; raise PeerError. The deadline is the caller's."""
    return await _shake(poller, sock, context, server_side=True)


async def connect(poller: Poller, sock: socket.socket, context: ssl.SSLContext) -> Secured:
    """Do the client's part; raise PeerError. The deadline is the caller's.

    In TLS 1.3 the client is done before the server has judged its certificate: a refusal shows at
    the first read.
    """
    return await _shake(poller, sock, context, server_side=False)


async def send_all(poller: Poller, sock: socket.socket, data: bytes) -> None:
    """Send all of `data`; raise OSError."""
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[sock.send(rest) :]
        except (BlockingIOError, InterruptedError):
            await poller.wait(sock.fileno(), WRITABLE)


async def _shake(
    poller: Poller, sock: socket.socket, context: ssl.SSLContext, *, server_side: bool
) -> Secured:
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing, server_side=server_side)
    secured = Secured(sock, tls, incoming, outgoing)
    try:
        while not _advanced(secured):
            await send_all(poller, sock, outgoing.read())
            incoming.write(await _receive(poller, sock))
        await send_all(poller, sock, outgoing.read())
    except ssl.SSLError as error:
        _send_alert(secured)
        why = _why(error)
        kind = NoProtocolError if NO_PROTOCOL in why else PeerError
        raise kind(f"the TLS handshake failed: {why}") from error
    except OSError as error:
        raise PeerError(f"the connection broke in the TLS handshake: {error}") from error
    return secured


def _advanced(secured: Secured) -> bool:
    try:
        secured.tls.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


async def _receive(poller: Poller, sock: socket.socket) -> bytes:
    while True:
        try:
            data = sock.recv(FLIGHT_BYTES)
        except (BlockingIOError, InterruptedError):
            await poller.wait(sock.fileno(), READABLE)
            continue
        if not data:
            raise PeerError("the other side closed the connection in the TLS handshake")
        return data


def _send_alert(secured: Secured) -> None:
    # Tells the peer why, if it still listens; nothing more can be done for it.
    try:
        secured.sock.send(secured.outgoing.read())
        sockets.end(secured.sock)
    except OSError:
        pass


def _why(error: ssl.SSLError) -> str:
    # OpenSSL's own words without its file and line, which say nothing about the peer.
    detail = getattr(error, "verify_message", "") or ""
    if error.reason:
        reason = error.reason.lower().replace("_", " ")
    else:
        said = _sentence.fullmatch(str(error.args[-1]))
        reason = said[1] if said else str(error)
    return f"{reason} ({detail})" if detail else reason
