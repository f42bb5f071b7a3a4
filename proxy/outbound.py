"""The sidecar's outbound side: one upstream of the app.

A connection of the app takes an idle tunnel to an endpoint, at once; else it goes the long way
(choice of an endpoint, TCP and TLS, check of its identity), for which it is parked; what the app
sends meanwhile stays in the kernel.
"""

import asyncio
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

from meshrun.proxy import dial, sockets, tasks
from meshrun.proxy.balance import Balancer
from meshrun.proxy.connector import Connection
from meshrun.proxy.direct import Direct
from meshrun.proxy.framing import Refusal
from meshrun.proxy.identity import Identity
from meshrun.proxy.idleness import IdleWatch
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.messages import ConnectionFailed, Record, Upstream
from meshrun.proxy.outbound_tunnels import Journey, OutboundTunnels
from meshrun.proxy.poller import Poller
from meshrun.proxy.pump import Pump
from meshrun.proxy.reports import Report
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.splice import Splice
from meshrun.proxy.tunnel import Leftover, OutboundTunnel

__all__ = ["Outbound"]


@dataclass(slots=True, eq=False)
class _Call(Journey):
    """A connection of the app on its way to an endpoint, since `began` (the loop's clock).

    `leftover` is what a stream that was not accepted had taken from it.
    """

    app: socket.socket = field(kw_only=True)
    began: float = field(kw_only=True)
    leftover: Leftover = field(default_factory=Leftover, kw_only=True)


class Outbound:
    """Brings the connections of the app, which is `source`, to the endpoints of one upstream."""

    def __init__(
        self,
        poller: Poller,
        identity: Identity,
        ledger: Ledger,
        report: Callable[[Report], None],
        rng: Random,
        source: SpiffeId,
        upstream: Upstream,
    ) -> None:
        self._poller = poller
        self._ledger = ledger
        self._report = report
        self._source = source
        self._loop = asyncio.get_running_loop()
        self._parked: set[asyncio.Task[None]] = set()
        self._live: set[Splice] = set()
        self._idle = IdleWatch(lambda: self._live, self._failed)
        self._upstream = upstream
        self._tunnels = OutboundTunnels(
            poller,
            identity,
            rng,
            Balancer(),
            upstream.service,
            SpiffeId.parse(upstream.identity),
        )
        self.apply(upstream)

    def apply(self, upstream: Upstream) -> None:
        """Use the endpoints of `upstream` from now on; parked connections try them at once."""
        self._upstream = upstream
        self._idle.set(upstream.idle_timeout_s)
        self._tunnels.apply(SpiffeId.parse(upstream.identity), upstream.endpoints)

    def rotate(self) -> None:
        """Begin no more streams under an old leaf; those under way go on."""
        self._tunnels.rotate()

    def serve(self, sock: socket.socket) -> None:
        """Take over a connection that was accepted."""
        most = self._upstream.max_connections
        now = self._loop.time()
        if len(self._live) + len(self._parked) >= most:
            reason = f"{most} connections are open, and no more are allowed (max_connections)"
            self._failed(reason)
            self._record(now, reason)
            sockets.reset(sock)
            return
        call = _Call(now + self._upstream.connect_timeout_s, app=sock, began=now)
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

    def _ride(self, call: _Call, tunnel: OutboundTunnel) -> None:
        endpoint = tunnel.endpoint
        if tunnel.closed:
            self._tunnels.closed(endpoint)
            self._tunnels.refused(call, endpoint, None, "it closed the connection")
            self._start(call)
            return

        def ended(_: str | None) -> None:
            self._tunnels.gave_up(tunnel)
            self._live.discard(splice)
            self._tunnels.closed(endpoint)

        def unaccepted(refusal: Refusal | None, reason: str, leftover: Leftover) -> None:
            ended(None)
            call.app = splice.detach()
            call.leftover = leftover
            if refusal is Refusal.DENIED:
                # The other side has reported who was denied, and by what.
                sockets.reset(call.app)
                return
            self._tunnels.refused(call, endpoint, refusal, reason)
            self._start(call)

        splice = Splice(self._poller, call.app, ended)
        self._live.add(splice)
        self._idle.connected()
        self._tunnels.ride(tunnel, splice, call.leftover, unaccepted, call.deadline)

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
                why = self._tunnels.excuse(call)
                reason = f"{why} (waited {self._upstream.connect_timeout_s:g} s)"
                self._failed(reason)
                self._record(call.began, reason)
                return
            stack.pop_all()
        # Counts as live from here on, and not twice until this task is seen to be done.
        self._parked.discard(tasks.current())
        if isinstance(found, OutboundTunnel):
            self._ride(call, found)
        elif found.tunnel:
            tunnel = self._tunnels.adopt(found)
            tunnel.start()
            self._ride(call, tunnel)
        else:
            self._join(call, found)

    def _failed(self, reason: str) -> None:
        self._report(ConnectionFailed(upstream=self._upstream.name, reason=reason))

    def _record(self, began: float, reason: str) -> None:
        # What got further is told by the other side.
        if not self._ledger.recording:
            return
        duration_s = self._loop.time() - began
        self._ledger.record(
            Record(
                at=time.time() - duration_s,
                kind="connection",
                source=self._source.service or "",
                identity=str(self._source),
                destination=self._upstream.service,
                duration_s=duration_s,
                reporter="source",
                protocol="tcp",
                failure=reason,
            )
        )

    async def _reach(self, call: _Call) -> Connection | OutboundTunnel:
        if not call.rounds:
            found = await self._tunnels.round(call)
            if found is not None:
                return found
        task = tasks.current()
        # What was read already is no hang-up.
        asked = call.leftover != Leftover()
        with dial.watched(self._poller, call.app, task.cancel, asked=asked):
            del task  # the traceback of a cancelled task holds this frame: it would be a cycle
            while True:
                await self._tunnels.park(call)
                found = await self._tunnels.round(call)
                if found is not None:
                    return found

    # Peers without tunnels: one connection, one stream.

    def _join(self, call: _Call, connection: Connection) -> None:
        def ended(_: str | None) -> None:
            self._live.discard(splice)
            self._tunnels.closed(connection.endpoint)

        splice = Splice(self._poller, call.app, ended)
        self._live.add(splice)
        self._idle.connected()
        direct = Direct(Pump(self._poller, connection.secured), splice)
        direct.start()
        leftover = call.leftover
        if leftover.data or leftover.ended:
            splice.resend(leftover.data, last=leftover.ended)
