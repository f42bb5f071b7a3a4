"""The sidecar's outbound side: one upstream of the app.

A connection of the app takes an idle tunnel to an endpoint, at once; else it passes through: choice
of an endpoint, TCP and TLS, check of its identity, splice. Where no endpoint takes it, it is
parked; what the app sends meanwhile stays in the kernel.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from random import Random

from meshrun.proxy import dial, sockets, tasks
from meshrun.proxy.backoff import delay_s
from meshrun.proxy.balance import Balancer
from meshrun.proxy.connector import Connection, Connector
from meshrun.proxy.direct import Direct
from meshrun.proxy.errors import IdentityError, PeerError
from meshrun.proxy.framing import Refusal
from meshrun.proxy.identity import EXPIRED, Credentials, Identity
from meshrun.proxy.idleness import IdleWatch
from meshrun.proxy.messages import ConnectionFailed, Endpoint, Upstream
from meshrun.proxy.poller import Poller
from meshrun.proxy.pool import Pool
from meshrun.proxy.pump import Pump
from meshrun.proxy.reports import Report
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.splice import Splice
from meshrun.proxy.tunnel import Leftover, OutboundTunnel

__all__ = ["Outbound"]

# How long an endpoint may keep a connection from the next one. The last has all the time left.
ATTEMPT_TIMEOUT_S = 1.0

# For an answer that a stream gets at the last moment.
ANSWER_GRACE_S = 0.5

# Between rounds through all endpoints.
FIRST_ROUND_S = 0.05
LONGEST_ROUND_S = 1.0


@dataclass(slots=True, eq=False)
class _Call:
    """A connection of the app on its way to an endpoint, until `deadline` (the loop's clock).

    `leftover` is what a stream that was not accepted had taken from it, `rounds` how often all
    endpoints, or a stream, were tried in vain.
    """

    app: socket.socket
    deadline: float
    leftover: Leftover = field(default_factory=Leftover)
    trouble: str = ""
    rounds: int = 0
    tried_again: bool = False


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
        self._identity = identity
        self._report = report
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._balancer = Balancer()
        self._pool = Pool()
        self._changed = asyncio.Event()
        self._parked: set[asyncio.Task[None]] = set()
        self._live: set[Splice] = set()
        self._idle = IdleWatch(lambda: self._live, self._failed)
        self._tunnels: set[OutboundTunnel] = set()
        self._warming: dict[Endpoint, asyncio.Task[None]] = {}
        # Streams without an answer, and until when it may come.
        self._awaiting: dict[OutboundTunnel, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._attempts: dict[asyncio.Timeout, Endpoint] = {}
        self._upstream = upstream
        self._connector = Connector(poller, SpiffeId.parse(upstream.identity))
        self.apply(upstream)

    def apply(self, upstream: Upstream) -> None:
        """Use the endpoints of `upstream` from now on; parked connections try them at once."""
        identity = SpiffeId.parse(upstream.identity)
        if self._connector.identity != identity:
            self._connector = Connector(self._poller, identity)
            self._forget_peers()
        self._upstream = upstream
        self._idle.set(upstream.idle_timeout_s)
        self._balancer.update(upstream.endpoints)
        self._pool.keep_to(set(upstream.endpoints))
        self._give_up_attempts()
        self._changed.set()
        self._changed = asyncio.Event()

    def rotate(self) -> None:
        """Begin no more streams under an old leaf; those under way go on."""
        self._pool.close()

    def serve(self, sock: socket.socket) -> None:
        """Take over a connection that was accepted."""
        most = self._upstream.max_connections
        if len(self._live) + len(self._parked) >= most:
            self._failed(f"{most} connections are open, and no more are allowed (max_connections)")
            sockets.reset(sock)
            return
        call = _Call(sock, self._loop.time() + self._upstream.connect_timeout_s)
        endpoint = self._balancer.pick(self._loop.time(), self._rng)
        tunnel = None if endpoint is None else self._take(endpoint)
        if tunnel is None:
            self._start(call)
        else:
            self._balancer.opened(tunnel.endpoint)
            self._ride(call, tunnel)

    def close(self) -> None:
        """Reset every connection."""
        self._idle.close()
        if self._timer is not None:
            self._timer.cancel()
        for task in [*self._parked, *self._warming.values()]:
            task.cancel()
        for splice in list(self._live):
            splice.reset("the sidecar stops")
        self._pool.close()
        for tunnel in list(self._tunnels):
            tunnel.cut("the sidecar stops")

    # The tunnels' owner.

    def stream_accepted(self, tunnel: OutboundTunnel) -> None:
        """The endpoint has proved that it can take calls."""
        self._awaiting.pop(tunnel, None)
        self._balancer.succeeded(tunnel.endpoint)

    def tunnel_idle(self, tunnel: OutboundTunnel) -> None:
        """Keep a tunnel for the next connection, if it may carry one."""
        known = tunnel in self._tunnels and tunnel.endpoint in self._upstream.endpoints
        if known and self._lasts(tunnel):
            self._pool.put(tunnel)
        else:
            tunnel.close()

    def tunnel_closed(self, tunnel: OutboundTunnel) -> None:
        """Forget it."""
        self._tunnels.discard(tunnel)
        self._pool.forget(tunnel)

    def _lasts(self, tunnel: OutboundTunnel) -> bool:
        return self._identity.serves(tunnel.credentials, tunnel.not_after)

    # The short way: an idle tunnel.

    def _take(self, endpoint: Endpoint) -> OutboundTunnel | None:
        tunnel = self._pool.take(endpoint)
        while tunnel is not None and not self._lasts(tunnel):
            tunnel.close()
            tunnel = self._pool.take(endpoint)
        if tunnel is not None and not self._pool.count(endpoint):
            self._warm(endpoint)
        return tunnel

    def _ride(self, call: _Call, tunnel: OutboundTunnel) -> None:
        endpoint = tunnel.endpoint
        if tunnel.closed:
            self._balancer.closed(endpoint)
            self._try_again(call, endpoint, None, "it closed the connection")
            return

        def ended(_: str | None) -> None:
            self._awaiting.pop(tunnel, None)
            self._live.discard(splice)
            self._balancer.closed(endpoint)

        def unaccepted(refusal: Refusal | None, reason: str, leftover: Leftover) -> None:
            ended(None)
            call.app = splice.detach()
            call.leftover = leftover
            self._try_again(call, endpoint, refusal, reason)

        splice = Splice(self._poller, call.app, ended)
        self._live.add(splice)
        self._idle.connected()
        # The other side says within that time that it cannot reach its app: a moment more.
        self._awaiting[tunnel] = call.deadline + ANSWER_GRACE_S
        if self._timer is None:
            self._timer = self._loop.call_at(self._awaiting[tunnel], self._cut_overdue)
        tunnel.open(splice, call.leftover, unaccepted)

    def _cut_overdue(self) -> None:
        self._timer = None
        now = self._loop.time()
        for tunnel, due in list(self._awaiting.items()):
            # No sooner, also not where the endpoint is withdrawn: what was accepted a moment ago
            # would be sent again elsewhere.
            if due <= now:
                self._balancer.failed(tunnel.endpoint, now)
                tunnel.cut("no answer")
        if self._awaiting:
            self._timer = self._loop.call_at(min(self._awaiting.values()), self._cut_overdue)

    def _try_again(
        self, call: _Call, endpoint: Endpoint, refusal: Refusal | None, reason: str
    ) -> None:
        if refusal is Refusal.DENIED:
            sockets.reset(call.app)  # the other side has reported who was denied, and by what
            return
        if refusal in (Refusal.UNREACHABLE, Refusal.BUSY):
            self._balancer.failed(endpoint, self._loop.time())
        call.trouble = f"{endpoint.instance}: {reason}"
        # What a rotation closed is made anew at once; but only once, or it could be a spin.
        if call.tried_again or refusal not in (None, Refusal.LEAVING):
            call.rounds += 1
        call.tried_again = True
        self._start(call)

    def _forget_peers(self) -> None:
        # They proved to be somebody who is not meant any more.
        self._pool.close()
        self._tunnels.clear()
        for task in self._warming.values():
            task.cancel()

    def _warm(self, endpoint: Endpoint) -> None:
        # The next connection of the app shall find an idle tunnel too.
        if endpoint in self._warming:
            return
        task = tasks.start(self._make_spare(endpoint), f"spare tunnel to {endpoint.instance}")
        self._warming[endpoint] = task
        task.add_done_callback(lambda _: self._warming.pop(endpoint, None))

    async def _make_spare(self, endpoint: Endpoint) -> None:
        try:
            async with asyncio.timeout(ATTEMPT_TIMEOUT_S):
                credentials = await self._identity.credentials()
                connection = await self._connector.connect(endpoint, credentials)
        except (OSError, PeerError, IdentityError):
            return  # the next connection meets the same, and tells of it
        if connection.tunnel:
            tunnel = self._adopt(connection)
            self.tunnel_idle(tunnel)
            if not tunnel.closed:
                tunnel.start()
        else:
            sockets.reset(connection.secured.sock)

    def _adopt(self, connection: Connection) -> OutboundTunnel:
        pump = Pump(self._poller, connection.secured)
        tunnel = OutboundTunnel(
            pump, self, connection.endpoint, connection.credentials, connection.not_after
        )
        self._tunnels.add(tunnel)
        return tunnel

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
                why = call.trouble or self._nobody()
                self._failed(f"{why} (waited {self._upstream.connect_timeout_s:g} s)")
                return
            stack.pop_all()
        # Counts as live from here on, and not twice until this task is seen to be done.
        self._parked.discard(tasks.current())
        if isinstance(found, OutboundTunnel):
            self._ride(call, found)
        elif found.tunnel:
            tunnel = self._adopt(found)
            tunnel.start()
            self._ride(call, tunnel)
        else:
            self._join(call, found)

    def _failed(self, reason: str) -> None:
        self._report(ConnectionFailed(upstream=self._upstream.name, reason=reason))

    def _nobody(self) -> str:
        if self._identity.expired:
            return EXPIRED
        if not len(self._balancer):
            return f"no instance of {self._upstream.service} is ready"
        return f"no instance of {self._upstream.service} answered"

    async def _reach(self, call: _Call) -> Connection | OutboundTunnel:
        if not call.rounds:
            found = await self._round(call)
            if found is not None:
                return found
            call.rounds += 1
        task = tasks.current()
        # What was read already is no hang-up.
        asked = call.leftover != Leftover()
        with dial.watched(self._poller, call.app, task.cancel, asked=asked):
            del task  # the traceback of a cancelled task holds this frame: it would be a cycle
            while True:
                await self._park(call.rounds)
                found = await self._round(call)
                if found is not None:
                    return found
                call.rounds += 1

    async def _park(self, rounds: int) -> None:
        # Without any endpoint only a snapshot can help; with some, time may.
        helpless = not len(self._balancer)
        delay = None if helpless else delay_s(rounds, FIRST_ROUND_S, LONGEST_ROUND_S)
        try:
            async with asyncio.timeout(delay):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _round(self, call: _Call) -> Connection | OutboundTunnel | None:
        tried: set[Endpoint] = set()
        while (endpoint := self._balancer.pick(self._loop.time(), self._rng, tried)) is not None:
            tried.add(endpoint)
            # Outside the attempt: to wait for a leaf of its own is no failure of an endpoint.
            credentials = await self._identity.credentials()
            last = len(tried) >= len(self._balancer)
            self._balancer.opened(endpoint)
            with ExitStack() as stack:
                stack.callback(self._balancer.closed, endpoint)
                try:
                    found = await self._attempt(endpoint, credentials, last=last)
                except TimeoutError:
                    call.trouble = f"{endpoint.instance} did not answer in time"
                except (PeerError, IdentityError) as error:
                    call.trouble = f"{endpoint.instance}: {error}"
                except OSError as error:
                    call.trouble = f"{endpoint.instance}: {error.strerror or error}"
                    if error.errno in sockets.STARVED:
                        return None  # our own trouble, not the endpoint's
                else:
                    if isinstance(found, Connection) and not found.tunnel:
                        self._balancer.succeeded(endpoint)  # others when they accept
                    # Stays counted as in flight; whoever carries it on gives it back.
                    stack.pop_all()
                    return found
            self._balancer.failed(endpoint, self._loop.time())
        return None

    async def _attempt(
        self, endpoint: Endpoint, credentials: Credentials, *, last: bool
    ) -> Connection | OutboundTunnel:
        async with asyncio.timeout(None if last else ATTEMPT_TIMEOUT_S) as limit:
            self._attempts[limit] = endpoint
            try:
                return self._take(endpoint) or await self._connector.connect(endpoint, credentials)
            finally:
                del self._attempts[limit]

    def _give_up_attempts(self) -> None:
        # An endpoint that was withdrawn may accept and never answer: its listener outlives it.
        for limit, endpoint in self._attempts.items():
            if endpoint not in self._upstream.endpoints and not limit.expired():
                limit.reschedule(self._loop.time())

    # Peers without tunnels: one connection, one stream.

    def _join(self, call: _Call, connection: Connection) -> None:
        def ended(_: str | None) -> None:
            self._live.discard(splice)
            self._balancer.closed(connection.endpoint)

        splice = Splice(self._poller, call.app, ended)
        self._live.add(splice)
        self._idle.connected()
        direct = Direct(Pump(self._poller, connection.secured), splice)
        direct.start()
        leftover = call.leftover
        if leftover.data or leftover.ended:
            splice.resend(leftover.data, last=leftover.ended)
