"""Sockets that belong to the supervisor: sidecar listeners, and leases of the apps' ports.

A sidecar's listener is bound here, stays open here and is passed on: while a sidecar restarts,
connections wait in its backlog. An app binds its own port, which nobody can hold for it; a lease
keeps other runs of this machine from giving the same number away meanwhile.
"""

import errno
import socket
from dataclasses import dataclass, field

from meshrun.supervisor import processes

__all__ = ["HOST", "Leases", "Listeners", "is_free", "owner_of"]

HOST = "127.0.0.1"
BACKLOG = 1024


def is_free(port: int) -> bool:
    """Tell whether an app could listen on this port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
            # Bound is not enough: two may be bound with SO_REUSEADDR, only one can listen.
            probe.listen(1)
        except OSError:
            return False
    return True


def owner_of(port: int) -> str:
    """Say for people who listens on a port, as far as it can be seen."""
    import psutil

    try:
        connections = psutil.net_connections("tcp")
    except psutil.Error:
        return "somebody"
    for connection in connections:
        local = connection.laddr
        if connection.status == psutil.CONN_LISTEN and local and local.port == port:
            if connection.pid is None:
                return "a process of another user"
            return f"pid {connection.pid} ({processes.command_line(connection.pid)})"
    return "somebody"


@dataclass(slots=True)
class Listeners:
    """Listening sockets by port; `handed` were opened by somebody else, and wait for a claim."""

    sockets: dict[int, socket.socket] = field(default_factory=dict)
    handed: dict[int, socket.socket] = field(default_factory=dict)

    def claim(self, port: int) -> bool:
        """Bind and listen on a port; False if it is taken."""
        if port in self.handed:
            self.sockets[port] = self.handed.pop(port)
            return True
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((HOST, port))
            listener.listen(BACKLOG)
        except OSError as error:
            listener.close()
            if error.errno in (errno.EADDRINUSE, errno.EACCES):
                return False
            raise
        listener.setblocking(False)
        self.sockets[port] = listener
        return True

    def refuse_handed(self) -> list[int]:
        """Close what was handed over and is not claimed; return the ports."""
        ports = sorted(self.handed)
        for port in ports:
            self.handed.pop(port).close()
        return ports

    def release(self, port: int) -> None:
        """Stop listening on a port."""
        self.sockets.pop(port).close()

    def close(self) -> None:
        """Stop listening everywhere."""
        for listener in self.sockets.values():
            listener.close()
        self.sockets.clear()


@dataclass(slots=True)
class Leases:
    """Ports promised to apps, each held by a name that only one process can have at a time.

    The names are abstract Unix socket addresses: they live in the same network namespace as the
    ports, belong to no file system, and go with their holder, however it ends.
    """

    sockets: dict[int, socket.socket] = field(default_factory=dict)

    def claim(self, port: int) -> bool:
        """Lease a port; False if it is leased by another run or somebody listens on it."""
        lease = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        try:
            lease.bind(f"\0meshrun/port/{port}")
        except OSError:
            lease.close()
            return False
        if not is_free(port):
            lease.close()
            return False
        self.sockets[port] = lease
        return True

    def release(self, port: int) -> None:
        """Give the lease of a port back."""
        self.sockets.pop(port).close()

    def close(self) -> None:
        """Give every lease back."""
        for lease in self.sockets.values():
            lease.close()
        self.sockets.clear()
