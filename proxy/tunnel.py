"""One mutual-TLS connection between two sidecars that carries one stream after another.

A new connection of an app so costs no handshake. docs/tunnel.md is the specification, `framing` the
frames. Each side ends its direction of a stream with exactly one frame (FINISH, RESET or REFUSED);
when both have, nothing of that stream can come any more, and the tunnel is idle.
"""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from meshrun.proxy.caller import Caller
from meshrun.proxy.errors import FramingError
from meshrun.proxy.framing import (
    HEADER_BYTES,
    MOST_EARLY_BYTES,
    Decoder,
    Frame,
    Hearing,
    Refusal,
    after,
    encode,
    encode_refusal,
    pack_data_header,
    read_refusal,
)
from meshrun.proxy.identity import Credentials
from meshrun.proxy.messages import Endpoint
from meshrun.proxy.pump import Pump
from meshrun.proxy.splice import DATA_AT, Rider, outward

__all__ = ["InboundOwner", "InboundTunnel", "Leftover", "OutboundOwner", "OutboundTunnel"]

OPEN = encode(Frame.OPEN)
ACCEPTED = encode(Frame.ACCEPTED)
FINISH = encode(Frame.FINISH)
RESET = encode(Frame.RESET)

AT_REST = (Hearing.UNOPENED, Hearing.UNCALLED)
FLOWING = (Hearing.CALLED, Hearing.OPENED)

# A side that heard RESET answers at once; one that does not keeps the tunnel from its next stream.
RESET_TIMEOUT_S = 10.0

# Of frames that came at once, how many are obeyed before other connections have their turn: a read
# has room for fifty thousand that carry a byte.
BATCH = 512


@dataclass(frozen=True, slots=True)
class Leftover:
    """What the app had sent into a stream that was not accepted; `ended`: and then its end."""

    data: bytes = b""
    ended: bool = False


class _Tunnel:
    """What both sides share: frames in and out, and the stream under way."""

    __slots__ = (
        "_decoder",
        "_ended",
        "_going_on",
        "_hearing",
        "_held",
        "_idle",
        "_pump",
        "_rider",
        "_speaking",
        "_timer",
        "closed",
    )

    def __init__(self, pump: Pump, hearing: Hearing) -> None:
        self._pump = pump
        self._decoder = Decoder()
        self._going_on = False  # with frames that came, in the next turn of the loop
        self._ended = False  # close_notify came behind them
        self._held = False  # by the rider
        self._hearing = hearing
        self._speaking = False  # within a stream, and its end is still to be said
        self._rider: Rider | None = None
        self._idle = True
        self._timer: asyncio.TimerHandle | None = None
        self.closed = False

    def start(self) -> None:
        """Begin to receive."""
        self._pump.start(self)

    def close(self) -> None:
        """Close while idle: the peer sees an orderly end."""
        if not self.closed:
            self._give_up()
            self._pump.close_in_order()

    def cut(self, reason: str) -> None:
        """Reset the connection, and with it the stream under way."""
        if not self.closed:
            rider = self._rider
            self._give_up()
            self._pump.reset()
            if rider is not None:
                self._break(rider, reason)

    @property
    def hung_up(self) -> bool:
        """Whether the peer has closed the connection, also where that was not read yet."""
        return self._pump.hung_up

    # The rider's carrier.

    def send(self, count: int, *, last: bool) -> bool:
        """Send what the app sent as a DATA frame."""
        return self._pump.write(self._framed(DATA_AT, count, last=last))

    def hold(self) -> None:
        """Leave to the kernel what the peer sends."""
        self._held = True
        self._pump.listen(False)

    def resume(self) -> None:
        """Receive again."""
        self._held = False
        self._pump.listen(not self._going_on)

    def finish(self) -> None:
        """The stream is over in both directions."""
        self._rider = None
        self.resume()
        self._settle()

    def abort(self) -> None:
        """Break the stream off, and have the tunnel back once the peer has heard of it."""
        self._rider = None
        if self.closed:
            return
        # A RESET behind the FINISH could be taken for one of the next stream; one behind bytes that
        # the peer does not take would be heard when its app reads on, if ever.
        finished = not self._speaking and self._in_stream()
        if finished or (self._speaking and not self._pump.empty):
            self._speaking = False  # a stream without a rider is else one without an answer
            self.cut("")
            return
        self.resume()
        self._obey_or_break(self._say_reset)

    def fail(self, error: OSError) -> None:
        """The connection is of no use any more."""
        self.broken(error)

    # The pump's owner.

    def received(self, data: memoryview, *, ended: bool) -> None:
        """Obey the frames in `data`, some of them in a later turn of the loop if they are many."""
        if self._going_on:
            self._decoder.keep(data)
            self._ended = ended
            return
        if self._rider is not None and self._hearing in FLOWING and not ended:
            payload = self._decoder.sole_payload(data)
            if payload is not None:
                self._rider.deliver(payload)
                return
        self._ended = ended
        self._obey_frames(data)

    def _go_on(self) -> None:
        self._going_on = False
        if not self.closed:
            self._obey_frames(b"")
        if not (self._going_on or self._held):
            self._pump.listen(True)

    def _obey_frames(self, data: memoryview | bytes) -> None:
        try:
            for frame, payload in self._decoder.feed(data, BATCH):
                self._hearing = after(self._hearing, frame)
                if frame is Frame.DATA:
                    self._deliver(payload)
                else:
                    self._obey(frame, payload)
                if self.closed:
                    return
        except FramingError as error:
            self.cut(str(error))
            return
        if self._decoder.more:
            self._going_on = True
            self._pump.listen(False)
            asyncio.get_running_loop().call_soon(self._go_on)
        elif self._ended:
            if self._in_stream() or self._speaking or not self._pump.empty:
                self.cut("the other side closed the connection within a stream")
            else:
                self._disown()
                self.close()

    def drained(self) -> None:
        """Let the app send again."""
        if self._rider is not None:
            self._rider.drained()
        else:
            self._settle()

    def broken(self, error: OSError) -> None:
        """The connection is of no use any more."""
        self.cut(str(error) or type(error).__name__)

    def _disown(self) -> None:
        # Both sides have ended the stream, but the app may not have taken all of it yet.
        rider, self._rider = self._rider, None
        if rider is not None:
            rider.disown()
            self.resume()

    def _deliver(self, payload: memoryview) -> None:
        # Without a rider it belongs to a stream that was broken off here.
        if self._rider is not None:
            self._rider.deliver(payload)

    def _obey(self, frame: Frame, payload: memoryview) -> None:
        """Obey a frame that is not DATA; `_hearing` is the state behind it."""
        rider = self._rider
        if frame is Frame.RESET:
            self._rider = None
            if rider is not None:
                rider.broken("the other side reset the connection")
            self.resume()
            self._say_reset()
        elif rider is not None:
            rider.end()
        else:
            self._settle()

    def _break(self, rider: Rider, reason: str) -> None:
        rider.broken(reason)

    def _framed(self, start: int, count: int, *, last: bool) -> memoryview:
        end = start + count
        if count:
            start -= HEADER_BYTES
            pack_data_header(outward, start, count)
        if last:
            self._speaking = False
            outward[end : end + HEADER_BYTES] = FINISH
            end += HEADER_BYTES
        return outward[start:end]

    def _say_reset(self) -> None:
        if self._speaking:
            self._speaking = False
            self._pump.write(RESET)
        self._settle()

    def _obey_or_break(self, step: Callable[[], None]) -> None:
        # Steps that the rider asks for, where nobody above could handle an error of the pump.
        try:
            step()
        except OSError as error:
            self.broken(error)

    def _in_stream(self) -> bool:
        return self._hearing not in AT_REST

    def _settle(self) -> None:
        # A stream that is over here, but maybe not there.
        if self.closed or self._idle or self._speaking or self._rider is not None:
            return
        if self._in_stream() or not self._pump.empty:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(
                    RESET_TIMEOUT_S, self.cut, "the other side does not hear or answer a reset"
                )
        else:
            self._stop_timer()
            self._idle = True
            self._rest()

    def _rest(self) -> None:
        """The tunnel has become idle."""
        raise NotImplementedError

    def _gone(self) -> None:
        """The tunnel has been closed."""
        raise NotImplementedError

    def _give_up(self) -> None:
        self.closed = True
        self._rider = None
        self._stop_timer()
        self._gone()

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class OutboundOwner(Protocol):
    """Whom an outbound tunnel tells of itself."""

    def stream_accepted(self, tunnel: "OutboundTunnel") -> None:
        """The app at the other end has been reached."""

    def tunnel_idle(self, tunnel: "OutboundTunnel") -> None:
        """It may carry another stream."""

    def tunnel_closed(self, tunnel: "OutboundTunnel") -> None:
        """It is closed."""


Unaccepted = Callable[[Refusal | None, str, Leftover], None]


class OutboundTunnel(_Tunnel):
    """The side that opens streams. `not_after` is when the first of both leaves expires."""

    __slots__ = (
        "_leftover",
        "_opening",
        "_owner",
        "_unaccepted",
        "credentials",
        "endpoint",
        "not_after",
    )

    def __init__(
        self,
        pump: Pump,
        owner: OutboundOwner,
        endpoint: Endpoint,
        credentials: Credentials,
        not_after: float,
    ) -> None:
        super().__init__(pump, Hearing.UNCALLED)
        self._owner = owner
        self._opening = False  # OPEN is to go with the first bytes
        self._leftover = Leftover()
        self._unaccepted: Unaccepted | None = None
        self.endpoint = endpoint
        self.credentials = credentials
        self.not_after = not_after

    def open(self, rider: Rider, leftover: Leftover, unaccepted: Unaccepted) -> None:
        """Carry `rider` as a stream, in which `leftover` is sent again.

        If the stream is not accepted, `unaccepted` is called instead of `rider.broken`: with the
        refusal, or None where the tunnel broke, the reason, and what the app had sent.
        """
        assert self._idle
        assert not self.closed
        self._idle = False
        self._rider = rider
        self._hearing = Hearing.AWAITING
        self._speaking = True
        self._opening = True
        self._leftover = Leftover()
        self._unaccepted = unaccepted
        rider.start(self)
        if leftover.data or leftover.ended:
            rider.resend(leftover.data, last=leftover.ended)
        else:
            rider.look()
        # An app that waits for the other to speak first.
        self._obey_or_break(self._say_open)

    def send(self, count: int, *, last: bool) -> bool:
        """Send what the app sent; until the stream is accepted not much, and keep a copy."""
        frames = self._framed(DATA_AT, count, last=last)
        if self._hearing is not Hearing.AWAITING:
            return self._pump.write(frames)
        kept = self._leftover.data + outward[DATA_AT : DATA_AT + count]
        self._leftover = Leftover(kept, last)
        if self._opening:
            self._opening = False
            start = DATA_AT - HEADER_BYTES * (2 if count else 1)
            outward[start : start + HEADER_BYTES] = OPEN
            frames = outward[start : start + HEADER_BYTES + len(frames)]
        # Room for another first read of the rider, which is half of what may be under way.
        return self._pump.write(frames) and (last or len(kept) < MOST_EARLY_BYTES // 2)

    def drained(self) -> None:
        """Let the app send again, once it may."""
        if self._hearing is not Hearing.AWAITING:
            super().drained()

    def _say_reset(self) -> None:
        if self._opening:  # the other side has not heard of this stream
            self._opening = self._speaking = False
            self._hearing = Hearing.UNCALLED
        super()._say_reset()

    def _say_open(self) -> None:
        if self._opening and not self.closed:
            self._opening = False
            self._pump.write(OPEN)

    def _obey(self, frame: Frame, payload: memoryview) -> None:
        if frame is Frame.ACCEPTED:
            self._leftover = Leftover()
            self._unaccepted = None
            self._owner.stream_accepted(self)
            if self._rider is not None and self._pump.empty:
                self._rider.drained()
        elif frame is Frame.REFUSED:
            refusal, text = read_refusal(payload)
            rider, self._rider = self._rider, None
            if rider is not None:
                self._call_back(refusal, text)
            self._say_reset()
        else:
            super()._obey(frame, payload)

    def _break(self, rider: Rider, reason: str) -> None:
        if self._unaccepted is not None:
            self._call_back(None, reason)
        else:
            super()._break(rider, reason)

    def _call_back(self, refusal: Refusal | None, reason: str) -> None:
        unaccepted, self._unaccepted = self._unaccepted, None
        leftover, self._leftover = self._leftover, Leftover()
        if unaccepted is not None:
            unaccepted(refusal, reason, leftover)

    def _rest(self) -> None:
        if self._unaccepted is not None:  # given up here, before there was an answer
            self._unaccepted, self._leftover = None, Leftover()
        self._owner.tunnel_idle(self)

    def _gone(self) -> None:
        self._owner.tunnel_closed(self)


class InboundOwner(Protocol):
    """Whom an inbound tunnel tells of itself; `stream_opened` answers with accept or refuse."""

    def stream_opened(self, tunnel: "InboundTunnel") -> None:
        """The other side wants a stream."""

    def stream_abandoned(self, tunnel: "InboundTunnel") -> None:
        """It wants it no longer, before there was an answer."""

    def tunnel_idle(self, tunnel: "InboundTunnel") -> None:
        """No stream is under way any more."""

    def tunnel_closed(self, tunnel: "InboundTunnel") -> None:
        """It is closed."""


class InboundTunnel(_Tunnel):
    """The side that takes streams from `caller`.

    `not_after` is when the first of both leaves expires.
    """

    __slots__ = (
        "_early",
        "_early_end",
        "_may_open",
        "_owner",
        "caller",
        "credentials",
        "not_after",
    )

    def __init__(
        self,
        pump: Pump,
        owner: InboundOwner,
        caller: Caller,
        credentials: Credentials,
        not_after: float,
    ) -> None:
        super().__init__(pump, Hearing.UNOPENED)
        self._owner = owner
        self._early = bytearray()  # what came before the answer
        self._early_end = False
        self._may_open = True
        self.caller = caller
        self.credentials = credentials
        self.not_after = not_after

    def accept(self, rider: Rider) -> None:
        """Carry the stream that was opened to `rider`."""
        self._rider = rider
        rider.start(self)
        self._obey_or_break(self._say_accepted)
        early, self._early = self._early, bytearray()
        if early and self._rider is rider:
            rider.deliver(memoryview(early))
        if self._early_end and self._rider is rider:
            rider.end()

    def refuse(self, refusal: Refusal, text: str) -> None:
        """Refuse the stream that was opened."""
        self._early = bytearray()
        self._speaking = False
        self._obey_or_break(lambda: self._say_refused(refusal, text))

    def _obey_frames(self, data: memoryview | bytes) -> None:
        self._may_open = True
        super()._obey_frames(data)

    def _say_accepted(self) -> None:
        # Before the app hears anything: what is not accepted is sent again to another instance.
        self._pump.write(ACCEPTED)

    def _say_refused(self, refusal: Refusal, text: str) -> None:
        self._pump.write(encode_refusal(refusal, text))
        self._settle()

    @property
    def _unanswered(self) -> bool:
        return self._speaking and self._rider is None

    def _deliver(self, payload: memoryview) -> None:
        if self._unanswered:
            if len(self._early) + len(payload) > MOST_EARLY_BYTES:
                raise FramingError("cannot keep so much of a stream that is not accepted yet")
            self._early += payload
        else:
            super()._deliver(payload)

    def _obey(self, frame: Frame, payload: memoryview) -> None:
        if frame is Frame.OPEN:
            self._open()
        elif self._unanswered and frame is Frame.FINISH:
            self._early_end = True
        else:
            if self._unanswered:
                self._early = bytearray()
                self._owner.stream_abandoned(self)
            super()._obey(frame, payload)

    def _open(self) -> None:
        # The end of the last stream has been heard before the next is opened: none of it waits here
        # any more, and two never come at once. A flood of them would else be one turn of the loop.
        if self._speaking or not self._pump.empty or not self._may_open:
            raise FramingError("cannot take a stream before the end of the last one was heard")
        self._may_open = False
        self._disown()
        self._stop_timer()
        self._idle = False
        self._speaking = True
        self._early_end = False
        self._owner.stream_opened(self)

    def _give_up(self) -> None:
        if self._unanswered and not self.closed:
            self._owner.stream_abandoned(self)
        super()._give_up()

    def _rest(self) -> None:
        self._owner.tunnel_idle(self)

    def _gone(self) -> None:
        self._owner.tunnel_closed(self)
