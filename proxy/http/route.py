"""Where a request goes: to one of the services that share them, and to an instance of that.

Of HTTP/1 each request that finds no idle connection makes one. Of HTTP/2 all that wait for the same
instance share what comes of the first one's journey.
"""

import asyncio
import math
from collections.abc import Callable, Collection
from functools import partial
from random import Random
from typing import Protocol

from meshrun.proxy import tasks
from meshrun.proxy.balance import Balancer, InFlight
from meshrun.proxy.connector import Connection
from meshrun.proxy.http.circuit import Circuit
from meshrun.proxy.http.deadlines import Deadlines
from meshrun.proxy.http.exchange import Failure
from meshrun.proxy.http.heads import NO_BODY, Request
from meshrun.proxy.http.line import Line
from meshrun.proxy.http.retries import may_retry
from meshrun.proxy.http.semantics import MULTIPLEXED
from meshrun.proxy.http.split import choose
from meshrun.proxy.identity import Identity
from meshrun.proxy.messages import Endpoint, Share, Upstream
from meshrun.proxy.outbound_tunnels import Journey, OutboundTunnels
from meshrun.proxy.poller import Poller
from meshrun.proxy.pool import Pool
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.tunnel import OutboundTunnel

__all__ = ["Outgoing", "Route", "Routes"]

# To one instance; as many as there may be requests at the same time, or a busy app would shake
# hands for ever.
MOST_IDLE_LINES = 1024


class Outgoing(Protocol):
    """A request on its way: it is sent over a line, or fails, but for one that was forgotten."""

    request: Request
    route: "Route | None"

    def send_over(self, line: Line) -> None:
        """Send the request over `line`, and count it there."""

    def flush_request(self) -> None:
        """Send now what there is of it."""

    def fail(self, status: int, text: str, reason: str) -> None:
        """Answer `text` for an instance that cannot, for a `reason` that is not the caller's."""


class Routes:
    """The ways to the services that share the requests to one upstream."""

    def __init__(
        self,
        poller: Poller,
        identity: Identity,
        rng: Random,
        circuit: Circuit,
        failed: Callable[[str], None],
    ) -> None:
        self._rng = rng
        self._new_route = partial(Route, poller, identity, rng, circuit, failed)
        self._routes: dict[str, Route] = {}
        self._shares: list[tuple[str, int]] = []
        self._leaving: list[Route] = []

    def apply(self, upstream: Upstream) -> None:
        """Use the services and endpoints of `upstream` from now on.

        What is under way to a service that is not among them goes on: it ends by itself, or by the
        other side's intentions. What has not been sent yet goes to another.
        """
        shares = upstream.split or (
            Share(
                service=upstream.service,
                identity=upstream.identity,
                weight=1,
                endpoints=upstream.endpoints,
            ),
        )
        before, self._routes = self._routes, {}
        for share in shares:
            route = before.pop(share.service, None)
            if route is None:
                route = self._new_route(share)
            route.apply(upstream, share)
            self._routes[share.service] = route
        self._shares = [(share.service, share.weight) for share in shares]
        self._leaving = [route for route in self._leaving if route.busy]
        for route in before.values():
            self._leaving.append(route)
            for outgoing in route.leave():
                self.send(outgoing)
                outgoing.flush_request()

    def rotate(self) -> None:
        """Begin no more requests over connections under an old leaf; those under way go on."""
        for route in self._routes.values():
            route.rotate()

    def close(self) -> None:
        """Cut everything."""
        for route in (*self._routes.values(), *self._leaving):
            route.close()

    def send(self, outgoing: Outgoing, tried: Collection[Endpoint] = ()) -> None:
        """Send a request to an instance, outside `tried` if there are others."""
        route = outgoing.route
        if route is None or route.left:
            outgoing.route = route = self._routes[choose(self._shares, self._rng)]
        route.send(outgoing, tried)


class _Wait:
    """Requests that wait for the same journey, which began towards `key`."""

    __slots__ = ("in_flight", "journey", "key", "outgoing", "task")

    def __init__(self, key: Endpoint | None) -> None:
        self.key = key
        # Each request has a deadline of its own.
        self.journey = Journey(math.inf, key)
        self.outgoing: dict[Outgoing, None] = {}  # the first in front
        # Where they want to go, but for one: the journey itself counts there.
        self.in_flight = InFlight()
        self.task: asyncio.Task[None] | None = None

    def join(self, outgoing: Outgoing) -> None:
        """Wait with the others."""
        if self.outgoing:
            self.in_flight.began()
        self.outgoing[outgoing] = None

    def leave(self, outgoing: Outgoing) -> None:
        """Wait no more."""
        del self.outgoing[outgoing]
        if self.outgoing:
            self.in_flight.ended()


class Route:
    """The way to the instances of one service, and the lines to them that there are.

    One that was `left` takes no more requests.
    """

    def __init__(
        self,
        poller: Poller,
        identity: Identity,
        rng: Random,
        circuit: Circuit,
        failed: Callable[[str], None],
        share: Share,
    ) -> None:
        self._poller = poller
        self._circuit = circuit
        self._failed = failed
        self._balancer = Balancer()
        self._identity = SpiffeId.parse(share.identity)
        self._tunnels = OutboundTunnels(
            poller,
            identity,
            rng,
            self._balancer,
            share.service,
            self._identity,
            judges_answers=True,
        )
        self.service = share.service
        self.left = False
        self._multiplexed = False
        self._connect_timeout_s = 0.0
        self._idle: Pool[Line] = Pool(MOST_IDLE_LINES)
        self._lines: set[Line] = set()
        self._waiting: dict[Outgoing, _Wait] = {}
        self._shared: dict[Endpoint | None, _Wait] = {}  # those that more may join
        self._deadlines: Deadlines[Outgoing] = Deadlines(self._late)

    @property
    def busy(self) -> bool:
        """Whether something is under way."""
        return bool(self._lines)

    def apply(self, upstream: Upstream, share: Share) -> None:
        """Use the settings of `upstream` and the endpoints of `share` from now on."""
        self._multiplexed = upstream.protocol in MULTIPLEXED
        self._connect_timeout_s = upstream.connect_timeout_s
        self._deadlines.set(upstream.connect_timeout_s)
        self._balancer.ejection = upstream.requests.ejection
        self._identity = SpiffeId.parse(share.identity)
        self._lead_to(share.endpoints)

    def rotate(self) -> None:
        """Begin no more requests under an old leaf."""
        self._tunnels.rotate()
        for line in list(self._lines):
            line.retire()

    def leave(self) -> list[Outgoing]:
        """Take no more requests; return those that were not sent. Those under way go on."""
        self.left = True
        unsent = list(self._waiting)
        for outgoing in unsent:
            self.forget(outgoing)
        self._lead_to(())
        for line in list(self._lines):
            line.stay(f"{self.service} is not called any more")
        return unsent

    def close(self) -> None:
        """Cut everything."""
        self._deadlines.close()
        for wait in set(self._waiting.values()):
            self._end(wait)
        self._idle.close()
        for line in list(self._lines):
            line.reset("the sidecar stops")
        self._tunnels.close()

    def send(self, outgoing: Outgoing, tried: Collection[Endpoint] = ()) -> None:
        """Send a request to an instance, at once if there is a line or a tunnel to it."""
        tunnels, request = self._tunnels, outgoing.request
        while True:
            endpoint = tunnels.pick(tried)
            if endpoint is None and tried:
                endpoint = tunnels.pick()
            line = None if endpoint is None else self._ready(endpoint)
            # What may not be sent twice does not go where the instance is known to be gone. Else to
            # ask would cost each request a system call.
            with_body = request.framing is not NO_BODY
            if (
                line is None
                or may_retry(request.method, Failure.SILENT, body_sent=with_body)
                or not line.hung_up
            ):
                break
            line.retire()
            tried = (*tried, line.endpoint)
        if line is not None:
            outgoing.send_over(line)
            return
        tunnel = None if endpoint is None else tunnels.take(endpoint)
        if tunnel is None:
            self._wait(outgoing, endpoint)
        else:
            line = self._new_line(tunnel)
            outgoing.send_over(line)
            self._set_out(line, tunnel)

    def forget(self, outgoing: Outgoing) -> None:
        """Whoever asked does not wait for a line any more, if it did."""
        wait = self._waiting.get(outgoing)
        if wait is not None:
            self._release(outgoing, wait)
            if not wait.outgoing:
                self._end(wait)

    # The lines' owner.

    def line_idle(self, line: Line) -> None:
        """Keep it for the next request, if it may carry one."""
        if line.retired:
            line.close()
        else:
            self._idle.put(line)

    def line_has_room(self, line: Line) -> None:
        """Send what waits for another to the same instance."""
        wait = self._shared.get(line.endpoint)
        if wait is None or not line.lasts:
            return
        while wait.outgoing and line.has_room:
            self._send_first(wait, line)
        line.client.flush()
        if not wait.outgoing:
            self._end(wait)

    def line_closed(self, line: Line) -> None:
        """Forget it."""
        self._lines.discard(line)
        self._idle.forget(line)

    def _lead_to(self, endpoints: Collection[Endpoint]) -> None:
        self._tunnels.apply(self._identity, endpoints)
        for line in list(self._lines):
            if not self._tunnels.knows(line.endpoint):
                line.retire()

    def _ready(self, endpoint: Endpoint) -> Line | None:
        if not self._multiplexed:
            line = self._idle.take(endpoint)
            while line is not None and not line.lasts:
                line.close()
                line = self._idle.take(endpoint)
            return line
        for line in self._lines:
            if line.endpoint == endpoint and line.has_room and line.lasts:
                self._idle.forget(line)  # its time must not be over while it is in use
                return line
        return None

    def _new_line(self, found: OutboundTunnel | Connection) -> Line:
        deadline = asyncio.get_running_loop().time() + self._connect_timeout_s
        line = Line(
            self, self._poller, self._tunnels, found, deadline, multiplexed=self._multiplexed
        )
        self._lines.add(line)
        return line

    def _set_out(self, line: Line, found: OutboundTunnel | Connection) -> None:
        # The heads that the line has by now go with the first bytes of the stream.
        line.client.flush()
        line.ride(found)

    # Without a line.

    def _wait(self, outgoing: Outgoing, endpoint: Endpoint | None) -> None:
        if not self._circuit.take_pending():
            most = self._circuit.limits.most_pending
            reason = f"{most} requests wait for a connection already (max_pending)"
            self._failed(reason)
            outgoing.fail(503, "too many requests wait for a connection", reason)
            return
        wait = self._shared.get(endpoint)
        if wait is None:
            wait = _Wait(endpoint)
            if endpoint is not None:
                wait.in_flight.move(self._tunnels.standing(endpoint))
            if self._multiplexed:
                self._shared[endpoint] = wait
            self._start(wait)
        wait.join(outgoing)
        self._waiting[outgoing] = wait
        self._deadlines.begin(outgoing)

    def _start(self, wait: _Wait) -> None:
        wait.task = tasks.start(self._reach(wait), f"way to {self.service}")

    async def _reach(self, wait: _Wait) -> None:
        found = await self._tunnels.reach(wait.journey)
        # No await beyond this point.
        wait.task = None
        if self._send_all(wait, found):
            self._tunnels.keep(found)
        if wait.outgoing:  # more than one line carries
            wait.journey = Journey(math.inf, found.endpoint)
            self._start(wait)
        else:
            self._end(wait)

    def _send_all(self, wait: _Wait, found: OutboundTunnel | Connection) -> bool:
        """Send as many as there is room for; return whether what was found is left over."""
        spare = True
        while wait.outgoing:
            line = self._ready(found.endpoint)
            if line is not None:
                self._fill(line, wait)
                line.client.flush()
            elif spare:
                spare = False
                line = self._new_line(found)
                self._fill(line, wait)
                self._set_out(line, found)
            else:
                break
        return spare

    def _fill(self, line: Line, wait: _Wait) -> None:
        self._send_first(wait, line)
        while wait.outgoing and line.has_room:
            self._send_first(wait, line)

    def _send_first(self, wait: _Wait, line: Line) -> None:
        outgoing = next(iter(wait.outgoing))
        self._release(outgoing, wait)
        outgoing.send_over(line)

    def _release(self, outgoing: Outgoing, wait: _Wait) -> None:
        wait.leave(outgoing)
        del self._waiting[outgoing]
        self._deadlines.end(outgoing)
        self._circuit.give_back_pending()

    def _end(self, wait: _Wait) -> None:
        if self._shared.get(wait.key) is wait:
            del self._shared[wait.key]
        if wait.task is not None:
            wait.task.cancel()
            wait.task = None

    def _late(self, outgoing: Outgoing) -> None:
        wait = self._waiting[outgoing]
        excuse = self._tunnels.excuse(wait.journey)
        self.forget(outgoing)
        reason = f"{excuse} (waited {self._connect_timeout_s:g} s)"
        self._failed(reason)
        outgoing.fail(503, f"{self.service} is not available", reason)
