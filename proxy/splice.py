"""Joins a connection of the app to whatever carries its bytes to a peer and back.

Each direction ends for itself, and a reset is passed on. What one side does not take is at most one
read of the other.
"""

import select
import socket
from collections.abc import Callable
from typing import Protocol

from meshrun.proxy import sockets
from meshrun.proxy.flow import READS, WATCHES, Event, Flow, after
from meshrun.proxy.framing import HEADER_BYTES, MOST_EARLY_BYTES
from meshrun.proxy.poller import BROKEN, ONCE, READABLE, WRITABLE, Poller
from meshrun.proxy.pump import BUFFER_BYTES

__all__ = ["DATA_AT", "Carrier", "NoCarrier", "Rider", "Splice", "outward"]

# Shared by all splices, as are the buffers of `pump`: what the app sent, with room around it for a
# carrier's own headers, so that both are sealed at once.
DATA_AT = 2 * HEADER_BYTES  # OPEN and the header of DATA
TAIL_BYTES = HEADER_BYTES  # FINISH
outward = memoryview(bytearray(BUFFER_BYTES))
_room = outward[DATA_AT:-TAIL_BYTES]

# Two first reads are what a tunnel may have under way before it is accepted. One that is full is a
# sign of bulk, and makes the next as large as there is room.
FIRST_READ_BYTES = MOST_EARLY_BYTES // 2

# Of the app's side: bytes, or the end of them.
INCOMING = READABLE | select.EPOLLRDHUP
ENDINGS = select.EPOLLRDHUP | select.EPOLLERR


class Carrier(Protocol):
    """Takes a splice's bytes to the peer; calls its `deliver`, `end`, `drained` and `broken`."""

    def send(self, count: int, *, last: bool) -> bool:
        """Send `count` bytes from `outward[DATA_AT:]`, then the end if these are the `last`.

        Returns whether more may come at once; if not, `drained` follows. Raises OSError.
        """

    def hold(self) -> None:
        """Deliver no more, but for what has been received already."""

    def resume(self) -> None:
        """Deliver again."""

    def finish(self) -> None:
        """Both directions have ended in order."""

    def abort(self) -> None:
        """Break the connection off: the peer sees a reset."""

    def fail(self, error: OSError) -> None:
        """Give up after an error that `send` raised; tells the splice that it is broken."""


class Rider(Protocol):
    """What a carrier carries: it takes what the peer sends, and gives the carrier bytes."""

    def start(self, carrier: Carrier) -> None:
        """Begin to give bytes to `carrier`, which may deliver from now on."""

    def look(self) -> None:
        """Give at once what there may have been before `start`."""

    def resend(self, data: bytes, *, last: bool) -> None:
        """Give again what another carrier has taken already; after `start`."""

    def deliver(self, data: memoryview) -> None:
        """Take what the peer sent."""

    def end(self) -> None:
        """The peer will send nothing more."""

    def drained(self) -> None:
        """The carrier takes more again."""

    def broken(self, reason: str) -> None:
        """The carrier is gone."""

    def disown(self) -> None:
        """Both directions have ended; the carrier goes elsewhere."""


class Splice:
    """A connection of the app (`app`, guarded, which it owns) joined to a carrier.

    Calls `on_end` once both are done: with None after both directions have ended, else with what
    broke. With `counted` it knows then how much there was (`traffic`).
    """

    __slots__ = (
        "_app",
        "_carrier",
        "_interest",
        "_inward",
        "_on_end",
        "_outward",
        "_poller",
        "_read_bytes",
        "_recv_into",
        "_send",
        "_to_app",
        "_traffic",
    )

    def __init__(
        self,
        poller: Poller,
        app: socket.socket,
        on_end: Callable[[str | None], None],
        *,
        counted: bool = False,
    ) -> None:
        self._poller = poller
        self._on_end = on_end
        self._app = app
        self._carrier: Carrier = _NOTHING
        self._interest = INCOMING
        self._recv_into = app.recv_into
        self._read_bytes = FIRST_READ_BYTES
        self._send = app.send
        self._outward = Flow.FLOWING  # app to peer
        self._inward = Flow.FLOWING  # peer to app
        self._to_app = bytearray()
        # What it was in the end; before that the kernel knows, so that a message costs nothing.
        self._traffic: tuple[int, int] | None = None if counted else (0, 0)

    def start(self, carrier: Carrier) -> None:
        """Begin to move the app's bytes to `carrier`, which may deliver from now on."""
        self._carrier = carrier
        self._poller.add(self._app.fileno(), INCOMING, self._app_event)

    def resend(self, data: bytes, *, last: bool) -> None:
        """Send what the app sent over another carrier already; after `start`."""
        if self._carrier is _NOTHING:
            return  # broken since
        outward[DATA_AT : DATA_AT + len(data)] = data
        self._pass_on(len(data), last=last)

    def look(self) -> None:
        """Move at once what the app may have sent before `start`."""
        self._app_event(READABLE)

    def reset(self, reason: str) -> None:
        """Cut the connection: both sides see a reset."""
        carrier = self._release()
        sockets.reset(self._app)
        carrier.abort()
        self._tell(reason)

    def idle_s(self) -> float:
        """Return how long nothing was sent to the app or received from it."""
        return sockets.idle_s(self._app)

    def traffic(self) -> tuple[int, int]:
        """Return how many bytes the app was sent and sent itself, of a splice that is `counted`."""
        if self._traffic is not None:
            return self._traffic
        ended = self._outward in (Flow.ENDING, Flow.ENDED)
        return sockets.traffic(self._app, ended=ended)

    def detach(self) -> socket.socket:
        """Give the app's connection back, before anything was delivered to it."""
        self._poller.remove(self._app.fileno())
        self._carrier = _NOTHING
        self._on_end = _nobody
        return self._app

    def disown(self) -> None:
        """Bring to the app what is left; the carrier, which has all of the rest, goes elsewhere."""
        self._carrier = _DONE

    # What the carrier calls.

    def deliver(self, data: memoryview) -> None:
        """Pass `data` on to the app."""
        if self._to_app:
            self._to_app += data
            return
        try:
            sent = self._write_app(data)
        except OSError as error:
            self.reset(str(error))
            return
        if sent != len(data):
            self._to_app += data[sent:]
            self._carrier.hold()
            self._step_inward(Event.SINK_FULL)

    def end(self) -> None:
        """The peer will send nothing more."""
        try:
            self._step_inward(Event.SOURCE_ENDED)
        except OSError as error:
            self.reset(str(error))

    def drained(self) -> None:
        """The carrier takes more again."""
        if self._outward in WATCHES:
            self._step_outward(Event.SINK_DRAINED)

    def broken(self, reason: str) -> None:
        """The carrier is gone, and the app sees a reset."""
        self._release()
        sockets.reset(self._app)
        self._tell(reason)

    # What the poller calls.

    def _app_event(self, events: int) -> None:
        try:
            if events & WRITABLE and self._to_app:
                self._drain_app()
            if events & (INCOMING | BROKEN) and self._outward is Flow.FLOWING:
                self._read_app(events)
            elif events & BROKEN:
                self._check()
        except OSError as error:
            self.reset(str(error))

    def _read_app(self, events: int) -> None:
        most = self._read_bytes
        try:
            count = self._recv_into(_room, most)
        except (BlockingIOError, InterruptedError):
            return
        if count == most:
            self._read_bytes = len(_room)
        # An end that has arrived goes with the last bytes. A reset shows as an end too, but with an
        # error.
        elif not count or (events & ENDINGS == select.EPOLLRDHUP and self._at_end()):
            self._pass_on(count, last=True)
            return
        self._pass_on(count, last=False)

    def _at_end(self) -> bool:
        # A read that leaves room may also have stopped at urgent data (tcp(7)).
        try:
            return not self._app.recv(1, socket.MSG_PEEK)
        except (BlockingIOError, InterruptedError):
            return False

    def _pass_on(self, count: int, *, last: bool) -> None:
        carrier = self._carrier
        try:
            taken = carrier.send(count, last=last)
        except OSError as error:
            carrier.fail(error)
            return
        if self._carrier is not carrier:
            return  # it was broken meanwhile
        if not taken:
            self._step_outward(Event.SINK_FULL)
        if last:
            self._step_outward(Event.SOURCE_ENDED)

    def _step_outward(self, event: Event) -> None:
        self._outward = after(self._outward, event)
        self._watch()

    def _write_app(self, data: memoryview | bytearray) -> int:
        try:
            return self._send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except ConnectionError:
            self._hear_out()
            raise

    def _hear_out(self) -> None:
        # What the app said before it broke the connection may lie here unread; but an end that
        # comes now is none, and must not look like one.
        try:
            while self._outward is Flow.FLOWING:
                count = self._recv_into(_room, self._read_bytes)
                if not count:
                    return
                self._pass_on(count, last=False)
        except OSError:
            pass  # with the error of the write the connection breaks anyway

    def _drain_app(self) -> None:
        del self._to_app[: self._write_app(self._to_app)]
        if not self._to_app:
            self._step_inward(Event.SINK_DRAINED)
            self._carrier.resume()

    def _step_inward(self, event: Event) -> None:
        self._inward = after(self._inward, event)
        if self._inward is Flow.ENDED and self._outward is not Flow.ENDED:
            sockets.end(self._app)
        self._watch()

    def _watch(self) -> None:
        if self._outward is Flow.ENDED and self._inward is Flow.ENDED:
            carrier = self._release()
            sockets.close_guarded(self._app)
            carrier.finish()
            self._tell(None)
            return
        events = INCOMING if self._outward in READS else 0
        if self._inward in WATCHES:
            events |= WRITABLE
        # With both directions ended a hang-up stands for ever: it is wanted once, not in a spin.
        if events != self._interest or not events:
            self._interest = events
            self._poller.change(self._app.fileno(), events or ONCE)

    def _check(self) -> None:
        # A hang-up without an error is only that both directions of this socket have ended; and the
        # same event may have ended the splice a moment ago.
        if self._app.fileno() < 0:
            return
        code = self._app.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise OSError(code, "the connection was reset")

    def _tell(self, reason: str | None) -> None:
        # Whoever is told knows this splice: kept, the two would be a cycle, and its TLS state would
        # stay in memory until the collector comes.
        on_end, self._on_end = self._on_end, _nobody
        on_end(reason)

    def _release(self) -> Carrier:
        if self._carrier is not _NOTHING:
            self._poller.forget(self._app.fileno())
        carrier, self._carrier = self._carrier, _NOTHING
        self._traffic = self.traffic()
        self._to_app.clear()
        return carrier


class NoCarrier:
    """The carrier of a rider that has none: not yet, or not any more."""

    def send(self, count: int, *, last: bool) -> bool:
        """Nothing is sent."""
        return True

    def hold(self) -> None:
        """Nothing is delivered."""

    def resume(self) -> None:
        """Nothing is delivered."""

    def finish(self) -> None:
        """It is over."""

    def abort(self) -> None:
        """It is over."""

    def fail(self, error: OSError) -> None:
        """It is over."""


_NOTHING = NoCarrier()
_DONE = NoCarrier()


def _nobody(_reason: str | None) -> None:
    """Stand in for an `on_end` that has been called."""
