"""Outgoing TCP connections, and the watch over those who wait for one."""

import asyncio
import errno
import ipaddress
import os
import select
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from meshrun.proxy import sockets
from meshrun.proxy.poller import BROKEN, ONCE, WRITABLE, Poller

__all__ = ["at_once", "connect", "watched"]


async def connect(poller: Poller, host: str, port: int) -> socket.socket:
    """Connect to `host`, an IP address or a name; raise OSError. The deadline is the caller's.

    Of a name with several addresses the first that answers is taken.
    """
    error = OSError(errno.EHOSTUNREACH, f"{host} has no address")
    for family, address in await _addresses(host, port):
        try:
            return await _connect(poller, family, address)
        except OSError as failed:
            error = failed
    raise error


def at_once(host: str, port: int) -> socket.socket | None:
    """Connect to a numeric address if that takes no waiting, as on the loopback; else return None.

    Raises OSError if it was refused.
    """
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        return None
    sock = sockets.connecting(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))
    # The kernel has shaken hands with itself by now: a second call says how that went.
    code = sock.connect_ex((host, port))
    if code in (0, errno.EISCONN):
        return sock
    sock.close()
    if code in (errno.EALREADY, errno.EINPROGRESS):
        return None
    raise OSError(code, f"cannot connect to {host}:{port}: {os.strerror(code)}")


async def _addresses(host: str, port: int) -> list[tuple[int, tuple[str, int]]]:
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        # Only an external service has a name; its sidecar may ask the resolver, in a thread.
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        return [(family, (str(target[0]), port)) for family, _, _, _, target in found]
    return [(socket.AF_INET if version == 4 else socket.AF_INET6, (host, port))]


async def _connect(poller: Poller, family: int, address: tuple[str, int]) -> socket.socket:
    sock = sockets.connecting(family, address)
    try:
        await poller.wait(sock.fileno(), WRITABLE)
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            host, port = address
            raise OSError(code, f"cannot connect to {host}:{port}: {os.strerror(code)}")
    except BaseException:
        sock.close()
        raise
    return sock


@contextmanager
def watched(
    poller: Poller, sock: socket.socket, on_gone: Callable[[], object], *, asked: bool = False
) -> Iterator[None]:
    """Call `on_gone`, at most once, if the other side of `sock` hangs up within the block.

    Nothing is read. An end behind bytes that wait, or that have been read already (`asked`), is a
    request whose sender has finished writing, and no hang-up; an end behind nothing is taken for
    one.
    """
    descriptor = sock.fileno()

    def came(events: int) -> None:
        if events & BROKEN or not (asked or _has_bytes(sock)):
            on_gone()
        else:
            poller.change(descriptor, ONCE)

    poller.add(descriptor, select.EPOLLRDHUP | ONCE, came)
    try:
        yield
    finally:
        poller.remove(descriptor)


def _has_bytes(sock: socket.socket) -> bool:
    try:
        return bool(sock.recv(1, socket.MSG_PEEK))
    except BlockingIOError:
        return True
    except OSError:
        return False
