"""Non-blocking TCP sockets: how they are set up, and how they are let go."""

import errno
import socket
import struct

__all__ = [
    "adopt_listener",
    "close",
    "close_guarded",
    "connecting",
    "end",
    "guard",
    "idle_s",
    "reset",
    "set_up",
]

# Nothing that the other side did: this process or machine is out of something.
STARVED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

# l_onoff, l_linger: closing sends a reset and throws away what is unsent.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
END_ON_CLOSE = struct.pack("ii", 0, 0)

# tcpi_last_data_sent and tcpi_last_data_recv in struct tcp_info (linux/tcp.h), in milliseconds.
LAST_DATA = struct.Struct("44x I 4x I")


def adopt_listener(descriptor: int) -> socket.socket:
    """Take over a listening socket that the supervisor bound."""
    listener = socket.socket(fileno=descriptor)
    # What it accepts inherits TCP_NODELAY and the guard, but not O_NONBLOCK (accept(2)).
    return set_up(listener)


def guard(sock: socket.socket) -> None:
    """Let the other side see a reset should this process be killed, not what looks like an end.

    For plain connections, where nothing else tells the two apart; on a listener, for all that it
    accepts.
    """
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)


def set_up(sock: socket.socket) -> socket.socket:
    """Make `sock` non-blocking and its small messages go at once; return it."""
    sock.setblocking(False)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


def connecting(family: int, address: tuple[str, int]) -> socket.socket:
    """Begin to connect to a numeric address; raise OSError if it failed at once.

    Writable means that the attempt is over: `SO_ERROR` says how.
    """
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        set_up(sock)
        sock.connect(address)
    except BlockingIOError:
        pass
    except OSError:
        sock.close()
        raise
    return sock


def idle_s(sock: socket.socket) -> float:
    """Return how long nothing was sent or received; raises OSError (tcp(7), TCP_INFO)."""
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, LAST_DATA.size)
    sent_ms, received_ms = LAST_DATA.unpack(info)
    return float(min(sent_ms, received_ms)) / 1000


def close(sock: socket.socket) -> None:
    """Close in the ordinary way; a reset that came meanwhile changes nothing."""
    try:
        sock.close()
    except ConnectionError:
        pass


def close_guarded(sock: socket.socket) -> None:
    """Close in the ordinary way what was guarded."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, END_ON_CLOSE)
    close(sock)


def end(sock: socket.socket) -> None:
    """Tell the other side that nothing more will come; raise OSError if it is gone."""
    sock.shutdown(socket.SHUT_WR)


def reset(sock: socket.socket) -> None:
    """Close so that the other side sees a reset, not an end."""
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
    except OSError:
        pass
    close(sock)
