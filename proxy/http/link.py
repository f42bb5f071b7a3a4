"""Connections as the codecs of HTTP see them: bytes in both directions, each with its own end.

A `SocketLink` is a plain connection to an app, a `StreamLink` one to a peer, carried by a tunnel or
by a TLS connection of its own.
"""

import asyncio
import select
import socket
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from meshrun.proxy import sockets
from meshrun.proxy.framing import MOST_EARLY_BYTES
from meshrun.proxy.poller import BROKEN, ONCE, READABLE, WRITABLE, Poller
from meshrun.proxy.pump import BUFFER_BYTES
from meshrun.proxy.splice import DATA_AT, Carrier, NoCarrier, outward

__all__ = ["Link", "LinkOwner", "SocketLink", "StreamLink", "StreamRider", "Timer", "end_lingering"]

# Shared by all: the loop runs one callback at a time, and each leaves nothing behind.
_room = memoryview(bytearray(BUFFER_BYTES))

# How much a carrier takes at once, with room for its own headers; half of what may be under way in
# a stream before it is accepted, as with a splice.
PIECE_BYTES = len(outward) - 2 * DATA_AT
EARLY_PIECE_BYTES = MOST_EARLY_BYTES // 2

# Envoy's delayed_close_timeout: how long a peer may still send after its last answer.
LINGER_S = 1.0

# How long a peer may take nothing of what was written before the link was closed.
STALLED_S = 60.0

# What is kept without a word before there is a carrier.
PATIENT_BYTES = EARLY_PIECE_BYTES

# Closed by their owners, and not gone yet; the longest so in front. No other limit counts them, and
# a peer could have a new one for each connection that it has closed for it.
MOST_LINGERING = 1024
_lingering: "dict[SocketLink | StreamLink, None]" = {}

INCOMING = READABLE | select.EPOLLRDHUP


class LinkOwner(Protocol):
    """Whom a link tells what happens. Its methods may close or reset the link."""

    def received(self, data: memoryview) -> None:
        """Take `data`, which is valid during the call."""

    def ended(self) -> None:
        """The other side will send nothing more; it may still read."""

    def drained(self) -> None:
        """Everything written has been taken, after `clogged` was true."""

    def broken(self, reason: str) -> None:
        """The connection is of no use any more, and the link closed: the last event."""


class Timer(Protocol):
    """Something that is to be called later."""

    def cancel(self) -> None:
        """Do not call it."""


class Link(Protocol):
    """One connection; nothing here raises, trouble comes as `broken`, never within a call of it."""

    def start(self, owner: LinkOwner) -> None:
        """Tell `owner` from now on."""

    def write(self, data: bytes | memoryview) -> None:
        """Send, or keep what is not taken at once. After `end`, `close` or `reset`: nothing."""

    @property
    def clogged(self) -> bool:
        """Whether something waits to be taken: who can should stop writing until `drained`."""

    def end(self) -> None:
        """Send nothing more: the other side sees an end behind what was written."""

    def listen(self, wanted: bool) -> None:
        """Receive, or leave to the kernel what comes."""

    def close(self, *, linger: bool = True) -> None:
        """Close in order once all written has been taken; the owner hears nothing more.

        What the peer may still be sending is read and thrown away for a moment, so that it gets the
        last answer and not a reset (RFC 9112 9.6); not without `linger`.
        """

    def reset(self) -> None:
        """Close so that the other side sees a reset; the owner hears nothing more."""

    def idle_s(self) -> float:
        """Return how long nothing moved."""

    @property
    def stale(self) -> bool:
        """Whether something has come that was not read yet: of an idle connection, its end."""

    def mark(self) -> None:
        """Ask of `unheard` what is written from now on."""

    @property
    def unheard(self) -> bool:
        """Whether the other side had closed the connection when the first of it came.

        Known once its end has come; if in doubt it is not so.
        """

    def soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` when others have had their turn."""

    def after(self, wait_s: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` in `wait_s`, unless what is returned is cancelled."""


def end_lingering() -> None:
    """Reset at once the links that were closed, and whose peers may still be sending."""
    for link in list(_lingering):
        link.reset()


def _linger(link: "SocketLink | StreamLink") -> None:
    _lingering[link] = None
    if len(_lingering) > MOST_LINGERING:
        oldest = next(iter(_lingering))
        del _lingering[oldest]
        # Its carrier may tell others of it, who are not to be called within a close.
        asyncio.get_running_loop().call_soon(oldest.reset)


class _Nobody:
    """The owner of a link that has none: not yet, or not any more."""

    def received(self, data: memoryview) -> None:
        """Nobody is there to take it."""

    def ended(self) -> None:
        """Nobody waits for it."""

    def drained(self) -> None:
        """Nobody waits for it."""

    def broken(self, reason: str) -> None:
        """Nobody is left to be told."""


_NOBODY = _Nobody()


class SocketLink:
    """A plain connection over `sock`, guarded, which it owns."""

    __slots__ = (
        "_closing",
        "_ended",
        "_ending",
        "_left",
        "_listening",
        "_marked",
        "_owner",
        "_poller",
        "_recv_into",
        "_send",
        "_sock",
        "_stalled_s",
        "_timer",
        "_unheard",
        "_unsent",
        "_unwritable",
        "_written",
    )

    def __init__(self, poller: Poller, sock: socket.socket) -> None:
        self._poller = poller
        self._owner: LinkOwner = _NOBODY
        self._sock = sock
        self._recv_into = sock.recv_into
        self._send = sock.send
        self._unsent = bytearray()
        self._unwritable = ""  # why nothing can be sent any more
        self._written = self._marked = 0
        self._unheard = False
        self._listening = True
        self._ended = False  # by the other side
        self._ending = False  # by this one, behind what is unsent
        self._closing = False
        self._left = 0  # of what was written, when it was looked at last
        self._stalled_s = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self, owner: LinkOwner) -> None:
        """Tell `owner` from now on."""
        self._owner = owner
        self._poller.add(self._sock.fileno(), INCOMING, self._event)

    @property
    def clogged(self) -> bool:
        """Whether something waits to be taken."""
        return bool(self._unsent)

    def write(self, data: bytes | memoryview) -> None:
        """Send, or keep what is not taken at once."""
        if self._ending or self._unwritable:
            return
        self._written += len(data)
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._send(data)
        except (BlockingIOError, InterruptedError):
            sent = 0
        except OSError as error:
            self._give_up_writing(error)
            return
        if sent != len(data):
            self._unsent += data[sent:]
            self._watch()

    def end(self) -> None:
        """Send nothing more."""
        if not self._ending:
            self._ending = True
            if not self._unsent:
                self._shut()

    def listen(self, wanted: bool) -> None:
        """Receive, or leave to the kernel what comes."""
        if wanted is not self._listening:
            self._listening = wanted
            if not self._ended:
                self._watch()

    def close(self, *, linger: bool = True) -> None:
        """Close in order once all written has been taken."""
        if self._sock.fileno() < 0 or self._closing:
            return
        if self._owner is _NOBODY:  # never started
            sockets.close_guarded(self._sock)
            return
        self._owner, self._closing = _NOBODY, True
        self.end()
        self._listening = True
        if not self._unsent and (self._ended or not linger):
            self._release()
        else:
            _linger(self)
            self._left = len(self._unsent) + sockets.unsent_bytes(self._sock)
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._linger_over)
            self._watch()

    def reset(self) -> None:
        """Close so that the other side sees a reset."""
        if self._sock.fileno() >= 0:
            self._forget()
            sockets.reset(self._sock)

    def idle_s(self) -> float:
        """Return how long nothing moved."""
        return sockets.idle_s(self._sock) if self._sock.fileno() >= 0 else 0.0

    @property
    def stale(self) -> bool:
        """Whether something has come that was not read yet: of an idle connection, its end."""
        try:
            self._sock.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError:
            pass
        return True

    def mark(self) -> None:
        """Ask of `unheard` what is written from now on."""
        self._marked = self._written

    @property
    def unheard(self) -> bool:
        """Whether the other side had closed the connection when the first of it came."""
        return self._unheard

    def soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` when others have had their turn."""
        asyncio.get_running_loop().call_soon(callback)

    def after(self, wait_s: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` in `wait_s`, unless what is returned is cancelled."""
        return asyncio.get_running_loop().call_later(wait_s, callback)

    # What the poller calls.

    def _event(self, events: int) -> None:
        try:
            if events & WRITABLE and self._unsent:
                self._drain()
            if self._sock.fileno() < 0:
                return
            if events & (INCOMING | BROKEN) and self._listening and not self._ended:
                self._read()
            elif events & BROKEN:
                self._check()
        except OSError as error:
            self._break(error.strerror or str(error))

    def _read(self) -> None:
        try:
            count = self._recv_into(_room)
        except (BlockingIOError, InterruptedError):
            return
        if count:
            self._owner.received(_room[:count])
            return
        self._unheard = sockets.unheard(self._sock, self._marked)
        if self._unwritable:
            # The error of a write was the reset, and used up what a read would have met.
            raise ConnectionResetError(self._unwritable)
        self._ended = True
        if self._closing and not self._unsent:
            self._release()
            return
        self._watch()
        self._owner.ended()

    def _drain(self) -> None:
        try:
            sent = self._send(self._unsent)
        except (BlockingIOError, InterruptedError):
            return
        except OSError as error:
            self._give_up_writing(error)
            return
        del self._unsent[:sent]
        if self._unsent:
            return
        if self._ending:
            self._shut()
        if self._closing and self._ended:
            self._release()
            return
        self._watch()
        self._owner.drained()

    def _give_up_writing(self, error: OSError) -> None:
        # What the other side said before it broke the connection may lie here unread: an answer
        # that did not wait for the whole request. What comes next is read, and then its end.
        self._unwritable = error.strerror or str(error)
        self._unsent.clear()
        self._listening = True
        self._watch()

    def _shut(self) -> None:
        try:
            sockets.end(self._sock)
        except OSError as error:
            self._unwritable = error.strerror or str(error)

    def _watch(self) -> None:
        if self._sock.fileno() < 0 or (self._owner is _NOBODY and not self._closing):
            return
        events = INCOMING if self._listening and not self._ended else 0
        if self._unsent:
            events |= WRITABLE
        # A hang-up of both directions stands for ever: it is wanted once, not in a spin.
        self._poller.change(self._sock.fileno(), events or ONCE)

    def _check(self) -> None:
        code = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code or self._unwritable:
            raise OSError(code, self._unwritable or "the connection was reset")

    def _linger_over(self) -> None:
        self._timer = None
        left = len(self._unsent) + sockets.unsent_bytes(self._sock)
        self._stalled_s = 0.0 if left < self._left else self._stalled_s + LINGER_S
        if left and self._stalled_s < STALLED_S:
            # Whoever reads slowly shall have all of it.
            self._left = left
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._linger_over)
        elif left or not self._left:
            self.reset()
        else:
            self._left = 0
            self._timer = asyncio.get_running_loop().call_later(LINGER_S, self._linger_over)

    def _break(self, reason: str) -> None:
        owner = self._owner
        self.reset()
        owner.broken(reason)

    def _release(self) -> None:
        self._forget()
        sockets.close_guarded(self._sock)

    def _forget(self) -> None:
        if self._owner is not _NOBODY or self._closing:
            self._poller.forget(self._sock.fileno())
        self._owner, self._closing = _NOBODY, False
        self._unsent.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            _lingering.pop(self, None)


_NO_CARRIER = NoCarrier()
_GONE = NoCarrier()


class StreamLink:
    """A connection over a carrier. What is written before there is one goes with its first bytes.

    `early` says that the other side may not have accepted the stream yet.
    """

    __slots__ = (
        "_backlog",
        "_carrier",
        "_ended",
        "_ending",
        "_listening",
        "_moved",
        "_owner",
        "_piece_bytes",
        "_said_end",
        "_taken",
        "_timer",
        "_writing",
    )

    def __init__(self, *, early: bool) -> None:
        self._carrier: Carrier = _NO_CARRIER
        self._owner: LinkOwner = _NOBODY
        self._backlog = bytearray()
        self._piece_bytes = EARLY_PIECE_BYTES if early else PIECE_BYTES
        self._taken = False  # whether the carrier takes more
        self._listening = True
        self._ended = False  # by the other side
        self._ending = False  # by this one, behind the backlog
        self._said_end = False
        self._writing = False
        self._moved = monotonic()
        self._timer: asyncio.TimerHandle | None = None

    # The codec's side.

    def start(self, owner: LinkOwner) -> None:
        """Tell `owner` from now on."""
        self._owner = owner

    @property
    def clogged(self) -> bool:
        """Whether something waits to be taken; a head may wait for a carrier."""
        if self._carrier is _NO_CARRIER:
            return len(self._backlog) > PATIENT_BYTES
        return not self._taken

    def write(self, data: bytes | memoryview) -> None:
        """Send, or keep what is not taken at once."""
        if self._ending:
            return
        if self._taken and not self._backlog and len(data) <= self._piece_bytes:
            self._moved = monotonic()
            count = len(data)
            outward[DATA_AT : DATA_AT + count] = data
            self._put(count, last=False)
        else:
            self._backlog += data
            if self._taken:
                self._send_backlog()

    def end(self) -> None:
        """Send nothing more."""
        if not self._ending:
            self._ending = True
            if self._taken:
                self._send_backlog()

    def listen(self, wanted: bool) -> None:
        """Receive, or leave to the kernel what comes."""
        if wanted is not self._listening:
            self._listening = wanted
            if not self._ended:
                (self._carrier.resume if wanted else self._carrier.hold)()

    def close(self, *, linger: bool = True) -> None:
        """Close in order once all written has been taken."""
        self._owner = _NOBODY  # also of what a write met, and is still to be told
        if self._carrier is _GONE or self._timer is not None:
            return
        self.listen(True)
        self.end()
        if self._carrier is not _GONE:
            _linger(self)
            self._timer = asyncio.get_running_loop().call_later(STALLED_S, self._linger_over)

    def reset(self) -> None:
        """Close so that the other side sees a reset."""
        carrier = self._release()
        carrier.abort()

    def idle_s(self) -> float:
        """Return how long nothing moved."""
        return monotonic() - self._moved

    @property
    def stale(self) -> bool:
        """Whether something has come unread: never, whoever carries it reads on."""
        return self._ended

    def mark(self) -> None:
        """Ask of `unheard` what is written from now on."""

    @property
    def unheard(self) -> bool:
        """Whether the other side had closed when it came: only whoever carries it may know."""
        return False

    def soon(self, callback: Callable[[], None]) -> None:
        """Call `callback` when others have had their turn."""
        asyncio.get_running_loop().call_soon(callback)

    def after(self, wait_s: float, callback: Callable[[], None]) -> Timer:
        """Call `callback` in `wait_s`, unless what is returned is cancelled."""
        return asyncio.get_running_loop().call_later(wait_s, callback)

    # The carrier's side.

    def rider(self) -> "StreamRider":
        """Return what a carrier knows of this link."""
        return StreamRider(self)

    def attach(self, carrier: Carrier) -> None:
        """Begin to move bytes over `carrier`, which may deliver from now on."""
        self._carrier = carrier
        self._taken = True
        if not self._listening:
            carrier.hold()

    def send_backlog(self) -> None:
        """Send what was written before there was a carrier."""
        waited = len(self._backlog) > PATIENT_BYTES
        if self._backlog or self._ending:
            self._send_backlog()
        if waited and self._taken:
            self._owner.drained()

    def send_again(self, data: bytes, *, last: bool) -> None:
        """Send what another carrier has taken already, and then what waits behind it."""
        outward[DATA_AT : DATA_AT + len(data)] = data
        self._said_end = last
        self._put(len(data), last=last)
        if self._taken:
            self._go_on()

    def deliver(self, data: memoryview) -> None:
        """Hand on what the peer sent."""
        if self._owner is not _NOBODY:  # else it may go on for as long as it likes
            self._moved = monotonic()
        self._owner.received(data)

    def peer_ended(self) -> None:
        """The peer will send nothing more."""
        self._ended = True
        self._owner.ended()
        self._settle()

    def drained(self) -> None:
        """The carrier takes more again, and the stream has been accepted."""
        self._piece_bytes = PIECE_BYTES
        if not self._taken and self._carrier is not _GONE:
            self._taken = True
            self._go_on()

    def broken(self, reason: str) -> None:
        """The carrier is gone."""
        if self._writing:  # nothing is told within a call of the owner
            self._carrier = _GONE
            self._taken = False
            asyncio.get_running_loop().call_soon(self._tell, reason)
        else:
            self._tell(reason)

    def let_go(self) -> None:
        """Forget the carrier, which goes elsewhere."""
        self._release()

    def detach(self) -> None:
        """Wait for another carrier: the stream was not accepted."""
        self._carrier = _NO_CARRIER
        self._piece_bytes = EARLY_PIECE_BYTES
        self._taken = False
        self._said_end = False

    def _linger_over(self) -> None:
        # The peer ends its side when it has all; until then something may still move.
        wait_s = STALLED_S - self.idle_s()
        if wait_s > 0.0:
            self._timer = asyncio.get_running_loop().call_later(wait_s, self._linger_over)
        else:
            self.reset()

    def _tell(self, reason: str) -> None:
        owner = self._owner
        self._release()
        owner.broken(reason)

    def _go_on(self) -> None:
        self._moved = monotonic()
        if self._backlog or self._ending:
            self._send_backlog()
            self._settle()
        if self._taken:
            self._owner.drained()

    def _send_backlog(self) -> None:
        backlog = self._backlog
        self._moved = monotonic()
        while self._taken and backlog:
            count = min(len(backlog), self._piece_bytes)
            outward[DATA_AT : DATA_AT + count] = backlog[:count]
            del backlog[:count]
            last = self._ending and not backlog
            self._said_end = self._said_end or last
            self._put(count, last=last)
        if self._taken and self._ending and not self._said_end and not backlog:
            self._said_end = True
            self._put(0, last=True)

    def _put(self, count: int, *, last: bool) -> None:
        carrier = self._carrier
        self._writing = True
        try:
            taken = carrier.send(count, last=last)
        except OSError as error:
            carrier.fail(error)
            return
        finally:
            self._writing = False
        if self._carrier is not carrier:
            return
        self._taken = taken
        if last:
            self._settle()

    def _settle(self) -> None:
        # As with a splice: the carrier is done once both directions are.
        if self._ended and self._said_end and self._taken:
            carrier = self._release()
            carrier.finish()

    def _release(self) -> Carrier:
        carrier, self._carrier = self._carrier, _GONE
        self._owner = _NOBODY
        self._taken = False
        self._ending = True
        self._backlog.clear()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
            _lingering.pop(self, None)
        return carrier


class StreamRider:
    """A link as its carrier sees it; see `meshrun.proxy.splice.Rider`."""

    __slots__ = ("_link",)

    def __init__(self, link: StreamLink) -> None:
        self._link = link

    def start(self, carrier: Carrier) -> None:
        """Begin to move bytes over `carrier`."""
        self._link.attach(carrier)

    def look(self) -> None:
        """Send what was written already."""
        self._link.send_backlog()

    def resend(self, data: bytes, *, last: bool) -> None:
        """Send what another carrier has taken already."""
        self._link.send_again(data, last=last)

    def deliver(self, data: memoryview) -> None:
        """Hand on what the peer sent."""
        self._link.deliver(data)

    def end(self) -> None:
        """The peer will send nothing more."""
        self._link.peer_ended()

    def drained(self) -> None:
        """The carrier takes more again."""
        self._link.drained()

    def broken(self, reason: str) -> None:
        """The carrier is gone."""
        self._link.broken(reason)

    def disown(self) -> None:
        """Both directions have ended, and what came was handed on: nothing is left here."""
        self._link.let_go()
