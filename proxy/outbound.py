"""The sidecar's outbound side: one upstream of the app.

A connection of the app takes an idle tunnel to an endpoint, at once; else it searches for one
(`outbound_tunnels`). Where no endpoint takes it, it is parked; what the app sends meanwhile stays
in the kernel.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

from meshrun.proxy import dial, sockets, tasks
from meshrun.proxy.balance import TCP_EJECTION
from meshrun.proxy.connector import Connection
from meshrun.proxy.direct import Direct
from meshrun.proxy.framing import Refusal
from meshrun.proxy.identity import Identity
from meshrun.proxy.idleness import IdleWatch
from meshrun.proxy.messages import ConnectionFailed, Endpoint, Upstream
from meshrun.proxy.outbound_tunnels import Found, OutboundTunnels, Search
from meshrun.proxy.poller import Poller
from meshrun.proxy.pump import Pump
from meshrun.proxy.reports import Report
from meshrun.proxy.splice import Splice
from meshrun.proxy.tunnel import Leftover, OutboundTunnel

__all__ = ["Outbound"]


@dataclass(slots=True, eq=False)
class _Call:
    """A connection of the app on its way to an endpoint, until `deadline` (the loop's clock).

    `leftover` is what a stream that was not accepted had taken from it.
    """

    app: socket.socket
    deadline: float
    leftover: Leftover = field(default_factory=Leftover)
    search: Search = field(default_factory=Search)


class Outbound:
    """Brings the app's connections to the endpoints of one upstream."""

    def __init__(
        self,
        poller: Poller,
        identity: Identity,
        report: Callable[[Report], None],
        rng: Random,
        upstream: Upstream,
    ) -> None:
        self._poller = poller
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._parked: set[asyncio.Task[None]] = set()
        self._live: set[Splice] = set()
        self._idle = IdleWatch(lambda: self._live, self._failed)
        self._upstream = upstream
        self._tunnels = OutboundTunnels(poller, identity, rng, upstream, TCP_EJECTION)
        self._idle.set(upstream.idle_timeout_s)

    def apply(self, upstream: Upstream) -> None:
        """Use the endpoints of `upstream` from now on; parked connections try them at once."""
        self._upstream = upstream
        self._idle.set(upstream.idle_timeout_s)
        self._tunnels.apply(upstream, TCP_EJECTION)

    def rotate(self) -> None:
        """Begin no more streams under an old leaf; those under way go on."""
        self._tunnels.rotate()

    def serve(self, sock: socket.socket) -> None:
        """Take over a connection that was accepted."""
        most = self._upstream.max_connections
        if len(self._live) + len(self._parked) >= most:
            self._failed(f"{most} connections are open, and no more are allowed (max_connections)")
            sockets.reset(sock)
            return
        call = _Call(sock, self._loop.time() + self._upstream.connect_timeout_s)
        endpoint = self._tunnels.pick()
        tunnel = None if endpoint is None else self._tunnels.take(endpoint)
        if tunnel is None:
            self._start(call)
        else:
            self._tunnels.opened(tunnel.endpoint)
            self._ride(call, tunnel)

    def close(self) -> None:
        """Reset every connection."""
        self._idle.close()
        for task in list(self._parked):
            task.cancel()
        for splice in list(self._live):
            splice.reset("the sidecar stops")
        self._tunnels.close()

    def _failed(self, reason: str) -> None:
        self._report(ConnectionFailed(upstream=self._upstream.name, reason=reason))

    # The short way: an idle tunnel.

    def _ride(self, call: _Call, tunnel: OutboundTunnel) -> None:
        endpoint = tunnel.endpoint
        if tunnel.closed:
            self._tunnels.closed(endpoint)
            self._try_again(call, endpoint, None, "it closed the connection")
            return
        splice = self._splice(call, endpoint)

        def unaccepted(refusal: Refusal | None, reason: str, leftover: Leftover) -> None:
            self._live.discard(splice)
            self._tunnels.closed(endpoint)
            call.app = splice.detach()
            call.leftover = leftover
            self._try_again(call, endpoint, refusal, reason)

        self._tunnels.open(tunnel, splice, call.leftover, call.deadline, unaccepted)

    def _splice(self, call: _Call, endpoint: Endpoint) -> Splice:
        def ended(_: str | None) -> None:
            self._live.discard(splice)
            self._tunnels.closed(endpoint)

        splice = Splice(self._poller, call.app, ended)
        self._live.add(splice)
        self._idle.connected()
        return splice

    def _try_again(
        self, call: _Call, endpoint: Endpoint, refusal: Refusal | None, reason: str
    ) -> None:
        if refusal is Refusal.DENIED:
            sockets.reset(call.app)  # the other side has reported who was denied, and by what
            return
        self._tunnels.unaccepted(call.search, endpoint, refusal, reason)
        self._start(call)

    # The long way.

    def _start(self, call: _Call) -> None:
        task = tasks.start(self._serve(call), f"connection to {self._upstream.name}")
        self._parked.add(task)
        task.add_done_callback(self._parked.discard)

    async def _serve(self, call: _Call) -> None:
        with ExitStack() as stack:
            stack.callback(sockets.reset, call.app)
            try:
                async with asyncio.timeout_at(call.deadline):
                    found = await self._reach(call)
            except TimeoutError:
                why = self._tunnels.explain(call.search)
                self._failed(f"{why} (waited {self._upstream.connect_timeout_s:g} s)")
                return
            stack.pop_all()
        # Counts as live from here on, and not twice until this task is seen to be done.
        self._parked.discard(tasks.current())
        if isinstance(found, OutboundTunnel):
            self._ride(call, found)
        else:
            self._join(call, found)

    async def _reach(self, call: _Call) -> Found:
        if not call.search.rounds:
            found = await self._tunnels.round(call.search)
            if found is not None:
                return found
        task = tasks.current()
        # What was read already is no hang-up.
        asked = call.leftover != Leftover()
        with dial.watched(self._poller, call.app, task.cancel, asked=asked):
            del task  # the traceback of a cancelled task holds this frame: it would be a cycle
            return await self._tunnels.reach(call.search)

    # Peers without tunnels: one connection, one stream.

    def _join(self, call: _Call, connection: Connection) -> None:
        splice = self._splice(call, connection.endpoint)
        direct = Direct(Pump(self._poller, connection.secured), splice)
        direct.start()
        leftover = call.leftover
        if leftover.data or leftover.ended:
            splice.resend(leftover.data, last=leftover.ended)
