"""Non-blocking TCP sockets: how they are set up, and how they are let go."""

import errno
import fcntl
import socket
import struct
import termios

__all__ = [
    "adopt_listener",
    "close",
    "close_guarded",
    "connecting",
    "end",
    "guard",
    "hung_up",
    "idle_s",
    "reset",
    "set_up",
    "traffic",
    "unheard",
    "unsent_bytes",
]

# Nothing that the other side did: this process or machine is out of something.
STARVED = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})

_INT = struct.Struct("i")

# l_onoff, l_linger: closing sends a reset and throws away what is unsent.
RESET_ON_CLOSE = struct.pack("ii", 1, 0)
END_ON_CLOSE = struct.pack("ii", 0, 0)

# tcpi_last_data_sent and tcpi_last_data_recv in struct tcp_info (linux/tcp.h), in milliseconds.
LAST_DATA = struct.Struct("44x I 4x I")

# tcpi_state, tcpi_bytes_received, tcpi_bytes_sent and tcpi_bytes_retrans of the same (Linux 4.19).
# Not tcpi_bytes_acked: that lacks what was not acknowledged yet, and counts the SYN and the FIN.
TRAFFIC = struct.Struct("=B 127x Q 64x Q Q")

# tcpi_state and tcpi_bytes_acked of the same.
ACKNOWLEDGED = struct.Struct("=B 119x Q")

ESTABLISHED = 1  # TCP_ESTABLISHED
CLOSED = 7  # TCP_CLOSE

# TCP_TIME_WAIT, TCP_CLOSE_WAIT, TCP_LAST_ACK, TCP_CLOSING: the other side's FIN has come.
FIN_CAME = frozenset({6, 8, 9, 11})


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


def hung_up(sock: socket.socket) -> bool:
    """Return whether the other side's end or reset has come, read or not (tcp(7), TCP_INFO)."""
    try:
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
    except OSError:
        return True
    # Where a kernel does not say (gVisor), nothing is known of an end.
    return bool(state) and state[0] not in (0, ESTABLISHED)


def traffic(sock: socket.socket, *, ended: bool) -> tuple[int, int]:
    """Return how many bytes were sent and received; raises OSError (tcp(7), TCP_INFO).

    `ended` says that the end of what the other side sends has been read.
    """
    info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TRAFFIC.size)
    # Where a kernel knows less (gVisor), nothing is counted, and the connection is none the worse.
    state, received, sent, sent_again = TRAFFIC.unpack(info.ljust(TRAFFIC.size, b"\0"))
    # A FIN takes one number of the sequence, and is counted as if it were a byte.
    fin = 1 if ended or state in FIN_CAME else 0
    return sent - sent_again, max(0, received - fin)


def unheard(sock: socket.socket, before: int) -> bool:
    """Return whether the other side closed before anything behind the first `before` bytes came.

    To be asked where its end has been read: it said that end when it had no more than these (the
    end acknowledges what has come), and has refused what came later with a reset.
    """
    try:
        info = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, ACKNOWLEDGED.size)
    except OSError:
        return False
    # Where a kernel knows less (gVisor), nothing is known.
    state, acknowledged = ACKNOWLEDGED.unpack(info.ljust(ACKNOWLEDGED.size, b"\0"))
    return bool(state == CLOSED and acknowledged <= before + 1)  # the SYN counts


def unsent_bytes(sock: socket.socket) -> int:
    """Return how much the other side has not acknowledged; raises OSError (tcp(7), SIOCOUTQ)."""
    return int(_INT.unpack(fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, bytes(_INT.size)))[0])


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
