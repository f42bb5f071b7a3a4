"""Moves bytes between an app's plain connection and a peer's TLS connection.

The hot path of the product. A message costs one receive and one send: no buffer is kept between
them unless the sink is full, and no stream protocol, task or future stands in between. Plain and
TLS end alike in both directions (a FIN on one side is a close_notify on the other), and so does a
reset, as which also counts a TLS connection that ends without close_notify: its end could be an
attacker's (RFC 8446 6.1).
"""

import socket
import ssl
from collections.abc import Callable
from typing import cast

from meshrun.proxy import sockets
from meshrun.proxy.flow import READS, WATCHES, Event, Flow, after
from meshrun.proxy.handshake import Secured
from meshrun.proxy.poller import BROKEN, ONCE, READABLE, WRITABLE, Poller

__all__ = ["Splice"]

READ_BYTES = 64 * 1024

# TLS 1.3's largest record: what it carries, and with the header, content type and tag.
RECORD_BYTES = 16 * 1024
SEALED_RECORD_BYTES = RECORD_BYTES + 22

# What may wait for the peer: one read of the app, and some 64 KiB of answers to the peer itself.
MOST_WAITING_BYTES = 2 * READ_BYTES

# Shared by all splices: the loop runs one callback at a time, and each leaves nothing behind.
# Opened records are as long as what was read and the rest of one record from before.
_sealed = memoryview(bytearray(READ_BYTES))
_clear = memoryview(bytearray(READ_BYTES + 2 * RECORD_BYTES))
_readable_clear = _clear[:READ_BYTES]


class Splice:
    """A connection of the app (`app`, plain) and one of a peer (`peer`, TLS), joined.

    Owns both sockets from `start` on, and calls `on_end` once both are closed: with None after both
    directions have ended, else with what broke. What one side does not take is at most one read of
    the other.
    """

    __slots__ = (
        "_app",
        "_app_recv_into",
        "_app_send",
        "_incoming",
        "_inward",
        "_on_end",
        "_outgoing",
        "_outward",
        "_peer",
        "_peer_recv_into",
        "_peer_send",
        "_poller",
        "_tls",
        "_tls_read_into",
        "_to_app",
        "_to_peer",
    )

    def __init__(
        self,
        poller: Poller,
        app: socket.socket,
        peer: Secured,
        on_end: Callable[[str | None], None],
    ) -> None:
        self._poller = poller
        self._on_end = on_end
        self._app = app
        self._app_recv_into = app.recv_into
        self._app_send = app.send
        self._peer = peer.sock
        self._peer_recv_into = peer.sock.recv_into
        self._peer_send = peer.sock.send
        self._tls = peer.tls
        # With a buffer it returns the length, whatever its annotation says.
        self._tls_read_into = cast(Callable[[int, memoryview], int], peer.tls.read)
        self._incoming = peer.incoming
        self._outgoing = peer.outgoing
        self._outward = Flow.FLOWING  # app to peer
        self._inward = Flow.FLOWING  # peer to app
        self._to_peer = bytearray()
        self._to_app = bytearray()

    def start(self) -> None:
        """Begin to move bytes, first those that the handshake read too far."""
        self._poller.add(self._app.fileno(), READABLE, self._app_event)
        self._poller.add(self._peer.fileno(), READABLE, self._peer_event)
        if self._incoming.pending:
            try:
                self._deliver(*self._open(0))
            except OSError as error:
                self._break(error)

    def reset(self, reason: str) -> None:
        """Cut the connection: both sides see a reset."""
        self._release()
        sockets.reset(self._app)
        sockets.reset(self._peer)
        self._tell(reason)

    # What the poller calls. An SSLError is an OSError too.

    def _app_event(self, events: int) -> None:
        try:
            if events & WRITABLE and self._to_app:
                self._drain_app()
            if events & (READABLE | BROKEN) and self._outward is Flow.FLOWING:
                self._read_app()
            elif events & BROKEN:
                self._check(self._app)
        except OSError as error:
            self._break(error)

    def _peer_event(self, events: int) -> None:
        try:
            if events & WRITABLE and self._to_peer:
                self._drain_peer()
            if events & (READABLE | BROKEN) and self._inward is Flow.FLOWING:
                self._read_peer()
            elif events & BROKEN:
                self._check(self._peer)
        except OSError as error:
            self._break(error)

    # From the app to the peer.

    def _read_app(self) -> None:
        try:
            count = self._app_recv_into(_readable_clear)
        except (BlockingIOError, InterruptedError):
            return
        if count:
            self._send_peer(self._seal(count))
        else:
            self._end_outward()

    def _seal(self, count: int) -> bytes:
        if count <= RECORD_BYTES:
            self._tls.write(_clear[:count])
            return self._outgoing.read()
        # A record at a time: a MemoryBIO never shrinks, and keeps for ever what it once held.
        records = []
        for start in range(0, count, RECORD_BYTES):
            self._tls.write(_clear[start : min(start + RECORD_BYTES, count)])
            records.append(self._outgoing.read())
        return b"".join(records)

    def _send_peer(self, data: bytes) -> None:
        if self._to_peer:
            self._to_peer += data
            return
        sent = self._write_peer(data)
        if sent != len(data):
            self._to_peer += memoryview(data)[sent:]
            self._step_outward(Event.SINK_FULL)

    def _write_peer(self, data: bytes | bytearray) -> int:
        try:
            return self._peer_send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except ConnectionError:
            self._hear_out_peer()
            raise

    def _hear_out_peer(self) -> None:
        # What it said before it broke the connection may lie here unread.
        try:
            while self._inward is Flow.FLOWING:
                self._take(self._peer_recv_into(_sealed))
        except OSError:
            pass  # with the error of the write the splice breaks anyway

    def _drain_peer(self) -> None:
        del self._to_peer[: self._write_peer(self._to_peer)]
        if not self._to_peer:
            self._step_outward(Event.SINK_DRAINED)

    def _end_outward(self) -> None:
        try:
            self._tls.unwrap()
        except ssl.SSLWantReadError:
            pass  # close_notify is written; the peer's own comes when it comes
        self._send_peer(self._outgoing.read())
        self._step_outward(Event.SOURCE_ENDED)

    def _step_outward(self, event: Event) -> None:
        self._outward = after(self._outward, event)
        self._watch()

    # From the peer to the app.

    def _read_peer(self) -> None:
        try:
            count = self._peer_recv_into(_sealed)
        except (BlockingIOError, InterruptedError):
            return
        self._take(count)

    def _take(self, count: int) -> None:
        if not count:
            raise ConnectionResetError("the peer closed without close_notify")
        if count <= SEALED_RECORD_BYTES:
            self._incoming.write(_sealed[:count])
            length, ended = self._open(0)
        else:
            length, ended = self._open_records(count)
        if self._outgoing.pending:
            self._answer()
        self._deliver(length, ended)

    def _open_records(self, count: int) -> tuple[int, bool]:
        length, ended = 0, False
        for start in range(0, count, SEALED_RECORD_BYTES):
            self._incoming.write(_sealed[start : min(start + SEALED_RECORD_BYTES, count)])
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
                count = read_into(READ_BYTES, _clear[length:])
                if not count:
                    return length, True
                length += count
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            return length, True
        return length, False

    def _deliver(self, length: int, ended: bool) -> None:
        if length:
            self._send_app(_clear[:length])
        if ended:
            self._step_inward(Event.SOURCE_ENDED)

    def _send_app(self, data: memoryview) -> None:
        sent = self._write_app(data)
        if sent != len(data):
            self._to_app += data[sent:]
            self._step_inward(Event.SINK_FULL)

    def _write_app(self, data: memoryview | bytearray) -> int:
        try:
            return self._app_send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except ConnectionError:
            self._hear_out_app()
            raise

    def _hear_out_app(self) -> None:
        # As for the peer; but an end that comes now is none, and must not look like one.
        try:
            while self._outward is Flow.FLOWING:
                count = self._app_recv_into(_readable_clear)
                if not count:
                    return
                self._send_peer(self._seal(count))
        except OSError:
            pass

    def _drain_app(self) -> None:
        del self._to_app[: self._write_app(self._to_app)]
        if not self._to_app:
            self._step_inward(Event.SINK_DRAINED)

    def _step_inward(self, event: Event) -> None:
        self._inward = after(self._inward, event)
        if self._inward is Flow.ENDED:
            sockets.end(self._app)
        self._watch()

    def _answer(self) -> None:
        # OpenSSL answers a KeyUpdate; after our close_notify there is nothing left to say.
        data = self._outgoing.read()
        if self._outward in (Flow.FLOWING, Flow.HELD):
            self._send_peer(data)
            # A peer that asks for answers and reads none would fill the memory with them.
            if len(self._to_peer) > MOST_WAITING_BYTES:
                raise ConnectionResetError("the peer does not read the answers it asks for")

    # Both.

    def _watch(self) -> None:
        if self._outward is Flow.ENDED and self._inward is Flow.ENDED:
            self._release()
            sockets.close(self._app)
            sockets.close(self._peer)
            self._tell(None)
            return
        self._poller.change(self._app.fileno(), _interest(self._outward, self._inward))
        self._poller.change(self._peer.fileno(), _interest(self._inward, self._outward))

    def _check(self, sock: socket.socket) -> None:
        # A hang-up without an error is only that both directions of this socket have ended; and the
        # same event may have ended the splice a moment ago.
        if sock.fileno() < 0:
            return
        code = sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "the connection was reset")

    def _break(self, error: OSError) -> None:
        if isinstance(error, ssl.SSLError):
            self._send_alert()
        self.reset(str(error))

    def _send_alert(self) -> None:
        try:
            self._peer_send(self._outgoing.read())
        except OSError:
            pass

    def _tell(self, reason: str | None) -> None:
        # Whoever is told knows this splice: kept, the two would be a cycle, and its TLS state would
        # stay in memory until the collector comes.
        on_end, self._on_end = self._on_end, _nothing
        on_end(reason)

    def _release(self) -> None:
        self._poller.remove(self._app.fileno())
        self._poller.remove(self._peer.fileno())
        self._to_app.clear()
        self._to_peer.clear()


def _nothing(_reason: str | None) -> None:
    """Stand in for an `on_end` that has been called."""


def _interest(as_source: Flow, as_sink: Flow) -> int:
    events = (READABLE if as_source in READS else 0) | (WRITABLE if as_sink in WATCHES else 0)
    # With both directions ended a hang-up stands for ever: it is wanted once, not in a spin.
    return events or ONCE
