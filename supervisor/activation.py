"""Listening sockets that a service manager has opened and passed on: sd_listen_fds(3).

Where a socket unit holds the fixed ports of upstreams, nobody else can take them between two runs,
and who connects meanwhile waits for the next one.
"""

import os
import socket
from collections.abc import Mapping

from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.listeners import HOST

__all__ = ["take"]

FIRST = 3  # SD_LISTEN_FDS_START
MOST = 1000


def take(environ: Mapping[str, str], pid: int) -> dict[int, socket.socket]:
    """Return the sockets that are meant for process `pid`, by port.

    Raises MeshrunError for what is no TCP socket that listens on 127.0.0.1: a sidecar's side of an
    app has no protection, so nobody but this machine may reach it.
    """
    count = environ.get("LISTEN_FDS", "")
    if environ.get("LISTEN_PID") != str(pid) or not (count.isascii() and count.isdecimal()):
        return {}
    if len(count) > len(str(MOST)) or int(count) > MOST:
        raise MeshrunError(f"cannot take {count[:20]} sockets (LISTEN_FDS): {MOST} are the most")
    taken: dict[int, socket.socket] = {}
    for descriptor in range(FIRST, FIRST + int(count)):
        port, listener = _listener(descriptor)
        if port in taken:
            raise MeshrunError(f"cannot take two sockets for port {port} (LISTEN_FDS)")
        taken[port] = listener
    return taken


def _listener(descriptor: int) -> tuple[int, socket.socket]:
    try:
        listener = socket.socket(fileno=descriptor)
    except OSError as error:
        raise _refused(descriptor, "it is no socket") from error
    os.set_inheritable(descriptor, False)
    tcp = listener.family == socket.AF_INET and listener.type == socket.SOCK_STREAM
    if not tcp or not listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        raise _refused(descriptor, f"it does not listen on a TCP port of {HOST}")
    host, port = listener.getsockname()
    if host != HOST:
        raise _refused(descriptor, f"it listens on {host}, not on {HOST}: others could reach it")
    listener.setblocking(False)
    return port, listener


def _refused(descriptor: int, why: str) -> MeshrunError:
    return MeshrunError(f"cannot take the socket {descriptor} of the service manager: {why}")
