"""A connection to an instance that requests go over: a client, over a stream of a tunnel.

What is sent over it before the other side has accepted the stream is kept, and goes another way
when that fails: the line stays, and is somewhere else.
"""

import asyncio
from typing import Protocol

from meshrun.proxy import tasks
from meshrun.proxy.balance import InFlight
from meshrun.proxy.connector import Connection
from meshrun.proxy.direct import Direct
from meshrun.proxy.framing import Refusal
from meshrun.proxy.http.client1 import Http1Client
from meshrun.proxy.http.client2 import Http2Client
from meshrun.proxy.http.link import StreamLink
from meshrun.proxy.outbound_tunnels import Journey, OutboundTunnels
from meshrun.proxy.poller import Poller
from meshrun.proxy.pump import Pump
from meshrun.proxy.tunnel import Leftover, OutboundTunnel

__all__ = ["Line", "LineOwner"]


class LineOwner(Protocol):
    """Whom a line tells of itself."""

    def line_idle(self, line: "Line") -> None:
        """It carries no request any more, and may carry others."""

    def line_has_room(self, line: "Line") -> None:
        """It may carry more requests than a moment ago."""

    def line_closed(self, line: "Line") -> None:
        """It never will carry one again."""


class Line:
    """Goes to where `found` leads, once it is told to `ride` it.

    `deadline` (the loop's clock) is when some instance must have accepted it. One that is `retired`
    takes no more requests; what went over one that is `unsent` has not reached any app, nor has
    what was `turned_away`, since it came when the other side had ended the line. Whoever sends a
    request counts it `in_flight`, and says when it has `left`.
    """

    __slots__ = (
        "_carrier",
        "_journey",
        "_leftover",
        "_link",
        "_owner",
        "_poller",
        "_reaching",
        "_stays",
        "_tunnels",
        "client",
        "credentials",
        "endpoint",
        "in_flight",
        "not_after",
        "retired",
        "turned_away",
        "unsent",
    )

    def __init__(
        self,
        owner: LineOwner,
        poller: Poller,
        tunnels: OutboundTunnels,
        found: OutboundTunnel | Connection,
        deadline: float,
        *,
        multiplexed: bool,
    ) -> None:
        self._owner = owner
        self._poller = poller
        self._tunnels = tunnels
        self._link = StreamLink(early=True)
        self._journey = Journey(deadline)
        self._leftover = Leftover()
        self._carrier: OutboundTunnel | Direct | None = None
        self._reaching: asyncio.Task[None] | None = None
        self._stays = ""  # why it may not go elsewhere
        self.retired = False
        self.in_flight = InFlight()
        self.unsent = False
        self.turned_away = False
        self._go_to(found)
        self.client: Http1Client | Http2Client
        if multiplexed:
            self.client = Http2Client(self._link, self._changed)
        else:
            self.client = Http1Client(self._link, self._idle, self._closed)
        self.client.start()

    @property
    def has_room(self) -> bool:
        """Whether it takes one more request beside those under way; not while it goes nowhere."""
        client = self.client
        return self._reaching is None and isinstance(client, Http2Client) and client.capacity > 0

    @property
    def lasts(self) -> bool:
        """Whether it may carry more requests."""
        return not self.retired and self._tunnels.lasts(self.credentials, self.not_after)

    @property
    def hung_up(self) -> bool:
        """Whether the other side is known to be gone: costs a system call."""
        return self._carrier is not None and self._carrier.hung_up

    def ride(self, found: OutboundTunnel | Connection) -> None:
        """Go over a stream of a tunnel, or over a connection to a peer that knows none."""
        self._go_to(found)
        leftover, self._leftover = self._leftover, Leftover()
        if isinstance(found, OutboundTunnel):
            self._open(found, leftover)
        elif found.tunnel:
            tunnel = self._tunnels.adopt(found)
            tunnel.start()
            self._open(tunnel, leftover)
        else:
            rider = self._link.rider()
            self._carrier = direct = Direct(Pump(self._poller, found.secured), rider)
            direct.start()
            if leftover.data or leftover.ended:
                rider.resend(leftover.data, last=leftover.ended)
            else:
                rider.look()

    def left(self) -> None:
        """A request is over."""
        self.in_flight.ended()
        client = self.client
        if self.in_flight.count or not isinstance(client, Http2Client) or client.closed:
            return  # HTTP/1 says itself when it is idle
        if self._reaching is None:
            self._owner.line_idle(self)
        else:
            client.reset("nobody waits for it any more")

    def answered(self, status: int) -> None:
        """Judge the instance by a response."""
        standing = self.in_flight.standing
        if status >= 500:
            self.failed()
        elif standing is not None:
            standing.succeeded()

    def failed(self) -> None:
        """Judge the instance by there being no response, or a bad one."""
        self._tunnels.failed(self.endpoint)

    def retire(self) -> None:
        """Take no more requests; those under way go on."""
        self.retired = True
        if isinstance(self.client, Http2Client):
            self.client.retire()
        elif self.client.idle:
            self.client.close()

    def close(self) -> None:
        """Close it while it is idle."""
        self.retire()

    def reset(self, reason: str) -> None:
        """Cut it, with what is under way."""
        self.client.reset(reason)

    def stay(self, reason: str) -> None:
        """Go to no other instance: where none has accepted it by now or does, it is cut."""
        self._stays = reason
        if self._reaching is not None:
            self._reaching.cancel()
            self._lose(reason)

    def _go_to(self, found: OutboundTunnel | Connection) -> None:
        self._reaching = None
        self.endpoint = found.endpoint
        self.credentials, self.not_after = found.credentials, found.not_after
        self.in_flight.move(self._tunnels.standing(found.endpoint))

    def _open(self, tunnel: OutboundTunnel, leftover: Leftover) -> None:
        if tunnel.closed:
            self._unaccepted(None, "it closed the connection", leftover)
            return
        self._carrier = tunnel
        deadline = self._journey.deadline
        self._tunnels.ride(tunnel, self._link.rider(), leftover, self._unaccepted, deadline)

    def _unaccepted(self, refusal: Refusal | None, reason: str, leftover: Leftover) -> None:
        self._carrier = None
        self.in_flight.move(None)
        if self.client.closed:
            return
        self._link.detach()
        if not self.in_flight.count:
            self.client.reset("nobody waits for it any more")
        elif refusal is Refusal.DENIED:
            self._lose("the other side denies it")
        elif self._stays:
            self._lose(self._stays)
        else:
            journey = self._journey
            self._tunnels.refused(journey, self.endpoint, refusal, reason)
            if asyncio.get_running_loop().time() >= journey.deadline:
                self._lose(self._tunnels.excuse(journey))
            else:
                self._leftover = leftover
                self._reaching = tasks.start(self._reach(), f"line to {self.endpoint.instance}")

    async def _reach(self) -> None:
        try:
            async with asyncio.timeout_at(self._journey.deadline):
                found = await self._tunnels.reach(self._journey)
        except TimeoutError:
            self._lose(self._tunnels.excuse(self._journey))
        else:
            self.ride(found)

    def _lose(self, reason: str) -> None:
        self._reaching = None
        self.unsent = True
        self._link.broken(reason)

    # What the client tells.

    def _idle(self, _client: Http1Client) -> None:
        self._owner.line_idle(self)

    def _closed(self, _client: Http1Client) -> None:
        self._over()

    def _changed(self, client: Http2Client) -> None:
        if client.closed:
            self._over()
        elif self.has_room:
            self._owner.line_has_room(self)

    def _over(self) -> None:
        carrier, self._carrier = self._carrier, None
        client = self.client
        if isinstance(carrier, OutboundTunnel):
            self._tunnels.gave_up(carrier)
            # A sidecar answers each request that it has taken, or breaks the stream off
            # (docs/tunnel.md). Of any other peer nothing is known.
            self.turned_away = isinstance(client, Http1Client) and client.turned_away
        if self._reaching is not None:
            self._reaching.cancel()
            self._reaching = None
        self._owner.line_closed(self)
