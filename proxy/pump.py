"""TLS over one non-blocking socket: seals and sends what it is given, receives and opens the rest.

The hot path of the product, together with `splice`. A message costs one receive and one send: no
buffer is kept between them unless the socket is full, and no stream protocol, task or future stands
in between. A connection that ends without close_notify counts as broken: its end could be an
attacker's (RFC 8446 6.1).
"""

import socket
import ssl
from collections.abc import Callable
from typing import Protocol, cast

from meshrun.proxy import sockets
from meshrun.proxy.handshake import Secured
from meshrun.proxy.poller import BROKEN, ONCE, READABLE, WRITABLE, Poller

__all__ = ["BUFFER_BYTES", "Owner", "Pump"]

# Bulk costs the less the more is moved at once: system calls, wake-ups, turns of the loop.
BUFFER_BYTES = 256 * 1024

# TLS 1.3's largest record: what it carries, and with the header, content type and tag.
RECORD_BYTES = 16 * 1024
SEALED_RECORD_BYTES = RECORD_BYTES + 22

# What may wait for the peer: one read of the app, and some 64 KiB of answers to the peer itself.
MOST_WAITING_BYTES = BUFFER_BYTES + 64 * 1024

# Shared by all pumps: the loop runs one callback at a time, and each leaves nothing behind. Opened
# records are as long as what was read and the rest of one record from before.
_sealed = memoryview(bytearray(BUFFER_BYTES))
_clear = memoryview(bytearray(BUFFER_BYTES + 2 * RECORD_BYTES))


class Owner(Protocol):
    """Whom a pump tells what happens, never within a call of the pump's, but for `start`.

    Its methods may close the pump, and may raise OSError.
    """

    def received(self, data: memoryview, *, ended: bool) -> None:
        """Take `data`, which is valid during the call; `ended`: close_notify came behind it."""

    def drained(self) -> None:
        """Everything written has been taken."""

    def broken(self, error: OSError) -> None:
        """The connection is of no use any more; the pump is to be reset."""


class Pump:
    """Moves bytes over `peer`, whose socket it owns from now on; watches it once started."""

    __slots__ = (
        "_ended",
        "_incoming",
        "_listening",
        "_outgoing",
        "_owner",
        "_poller",
        "_read_sealed",
        "_recv_into",
        "_send",
        "_sock",
        "_tls",
        "_tls_read_into",
        "_tls_write",
        "_unsent",
        "_unwritable",
        "_write_sealed",
    )

    def __init__(self, poller: Poller, peer: Secured) -> None:
        self._poller = poller
        self._owner: Owner = _NOBODY
        self._sock = peer.sock
        self._recv_into = peer.sock.recv_into
        self._send = peer.sock.send
        self._tls = peer.tls
        # With a buffer it returns the length, whatever its annotation says.
        self._tls_read_into = cast(Callable[[int, memoryview], int], peer.tls.read)
        self._tls_write = peer.tls.write
        self._incoming = peer.incoming
        self._write_sealed = peer.incoming.write
        self._outgoing = peer.outgoing
        self._read_sealed = peer.outgoing.read
        self._unsent = bytearray()
        self._unwritable: OSError | None = None  # why nothing can be sent any more
        self._listening = True
        self._ended = False

    @property
    def empty(self) -> bool:
        """Whether everything written has been taken."""
        return not self._unsent

    @property
    def hung_up(self) -> bool:
        """Whether the peer has closed the connection, also where that was not read yet."""
        return sockets.hung_up(self._sock)

    def start(self, owner: Owner) -> None:
        """Tell `owner` from now on, first of what the handshake read too far."""
        self._owner = owner
        self._poller.add(self._sock.fileno(), READABLE, self._event)
        if self._incoming.pending:
            try:
                length, ended = self._open(0)
                self._owner.received(_clear[:length], ended=ended)
            except OSError as error:
                self._break(error)

    def write(self, data: memoryview | bytes) -> bool:
        """Seal and send; return whether all is taken, else `drained` follows. Raises OSError.

        Where the peer has broken the connection, what it said before is received yet, and `broken`
        follows.
        """
        if len(data) <= RECORD_BYTES:
            self._tls_write(data)
            return self._put(self._read_sealed())
        # A record at a time: a MemoryBIO never shrinks, and keeps for ever what it once held.
        records = []
        for start in range(0, len(data), RECORD_BYTES):
            self._tls_write(data[start : start + RECORD_BYTES])
            records.append(self._read_sealed())
        return self._put_all(records)

    def write_end(self, data: memoryview | bytes = b"") -> bool:
        """Write `data` and close_notify, after which nothing may be written."""
        if len(data) > RECORD_BYTES:
            self.write(data)
        elif data:
            self._tls_write(data)
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # close_notify is written; the peer's own comes when it comes
        self._ended = True
        return self._put(self._read_sealed())

    def listen(self, wanted: bool) -> None:
        """Receive, or leave to the kernel what comes."""
        if wanted is not self._listening:
            self._listening = wanted
            self._watch()

    def close(self) -> None:
        """Close in the ordinary way what both sides have ended."""
        self._release()
        sockets.close(self._sock)

    def close_in_order(self) -> None:
        """Say close_notify and close, at once; what the peer said meanwhile is not heard."""
        try:
            self._tls.unwrap()
        except ssl.SSLError:
            pass  # as in `write_end`
        try:
            self._send(self._outgoing.read())
        except OSError:
            pass  # it is gone, which was wanted
        self.close()

    def reset(self) -> None:
        """Close so that the peer sees a reset."""
        self._release()
        sockets.reset(self._sock)

    # What the poller calls. An SSLError is an OSError too.

    def _event(self, events: int) -> None:
        try:
            if events & WRITABLE and self._unsent and self._unwritable is None:
                self._drain()
            if events & (READABLE | BROKEN) and self._listening:
                self._read()
            elif events & BROKEN:
                self._check()
        except OSError as error:
            self._break(error)

    def _read(self) -> None:
        try:
            count = self._recv_into(_sealed)
        except (BlockingIOError, InterruptedError):
            return
        self._take(count)

    def _take(self, count: int) -> None:
        if not count:
            # The error of a write was the reset, and used up what a read would have met.
            raise self._unwritable or ConnectionResetError("the peer closed without close_notify")
        if count <= SEALED_RECORD_BYTES:
            self._write_sealed(_sealed[:count])
            length, ended = self._open(0)
        else:
            length, ended = self._open_records(count)
        if self._outgoing.pending:
            self._answer()
        if length or ended:
            self._owner.received(_clear[:length], ended=ended)

    def _open_records(self, count: int) -> tuple[int, bool]:
        length, ended = 0, False  # a record at a time, as in `write`
        for start in range(0, count, SEALED_RECORD_BYTES):
            self._write_sealed(_sealed[start : min(start + SEALED_RECORD_BYTES, count)])
            length, ended = self._open(length)
            if ended:
                break
        return length, ended

    def _open(self, length: int) -> tuple[int, bool]:
        # Puts the whole records of `incoming` behind the first `length` bytes of `_clear`; says how
        # long that is now, and whether close_notify followed. There is always room for a record, so
        # none stays half read inside OpenSSL, where no `pending` of ours would show it.
        read_into, incoming = self._tls_read_into, self._incoming
        try:
            while incoming.pending:
                count = read_into(BUFFER_BYTES, _clear[length:])
                if not count:
                    return length, True
                length += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            return length, True
        return length, False

    def _answer(self) -> None:
        # OpenSSL answers a KeyUpdate; after our close_notify there is nothing left to say.
        answer = self._outgoing.read()
        if not self._ended:
            self._put(answer)
        # A peer that asks for answers and reads none would fill the memory with them.
        if len(self._unsent) > MOST_WAITING_BYTES:
            raise ConnectionResetError("the peer does not read the answers it asks for")

    def _put(self, sealed: bytes) -> bool:
        if self._unsent:
            self._unsent += sealed
            return False
        try:
            sent = self._send(sealed)
        except OSError as error:
            sent = self._not_sent(error)
        if sent == len(sealed):
            return True
        self._unsent += memoryview(sealed)[sent:]
        self._watch()
        return False

    def _put_all(self, records: list[bytes]) -> bool:
        # As `_put`, without a copy to join what is sent at once.
        if self._unsent:
            self._unsent += b"".join(records)
            return False
        try:
            sent = self._sock.sendmsg(records)
        except OSError as error:
            sent = self._not_sent(error)
        for record in records:
            if sent < len(record):
                self._unsent += memoryview(record)[sent:]
            sent = max(0, sent - len(record))
        if not self._unsent:
            return True
        self._watch()
        return False

    def _not_sent(self, error: OSError) -> int:
        if isinstance(error, BlockingIOError | InterruptedError):
            return 0
        if not isinstance(error, ConnectionError):
            raise error
        # What the peer said before it broke the connection may lie here unread: it comes with the
        # next events, and then its end.
        self._unwritable = error
        self._watch()
        return 0

    def _drain(self) -> None:
        try:
            sent = self._send(self._unsent)
        except OSError as error:
            sent = self._not_sent(error)
        del self._unsent[:sent]
        if not self._unsent:
            self._watch()
            self._owner.drained()

    def _watch(self) -> None:
        if self._sock.fileno() < 0:
            return
        events = READABLE if self._listening else 0
        if self._unsent and self._unwritable is None:
            events |= WRITABLE
        # A hang-up of both directions stands for ever: it is wanted once, not in a spin.
        self._poller.change(self._sock.fileno(), events or ONCE)

    def _check(self) -> None:
        # A hang-up without an error is only that both directions of this socket have ended; and the
        # same event may have closed it a moment ago.
        if self._sock.fileno() < 0:
            return
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if self._unwritable is not None:
            raise self._unwritable
        if code:
            raise OSError(code, "the connection was reset")

    def _break(self, error: OSError) -> None:
        if isinstance(error, ssl.SSLError):
            self._send_alert()
        self._owner.broken(error)

    def _send_alert(self) -> None:
        try:
            self._send(self._outgoing.read())
        except OSError:
            pass

    def _release(self) -> None:
        if self._sock.fileno() >= 0 and self._owner is not _NOBODY:
            self._poller.forget(self._sock.fileno())
        # Its owner knows this pump: kept, the two would be a cycle, and its TLS state would stay in
        # memory until the collector comes.
        self._owner = _NOBODY
        self._unsent.clear()


class _Nobody:
    """The owner of a pump that is not started yet, or is closed."""

    def received(self, data: memoryview, *, ended: bool) -> None:
        """Nobody is there to take it."""

    def drained(self) -> None:
        """Nobody waits."""

    def broken(self, error: OSError) -> None:
        """Nobody is left to be told."""


_NOBODY = _Nobody()
