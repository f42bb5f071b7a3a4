"""The way to the instances of one service: which one, and the tunnels that lead there.

Whoever has something to bring there takes an idle tunnel, at once; or else searches: choice of an
endpoint, TCP and TLS, check of its identity, round after round until one takes it. How long that
may go on is for the caller to say.
"""

import asyncio
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random
from typing import Protocol

from meshrun.proxy import sockets, tasks
from meshrun.proxy.backoff import delay_s
from meshrun.proxy.balance import Balancer
from meshrun.proxy.connector import Connection, Connector
from meshrun.proxy.errors import IdentityError, PeerError
from meshrun.proxy.framing import Refusal
from meshrun.proxy.identity import EXPIRED, Credentials, Identity
from meshrun.proxy.messages import Ejection, Endpoint
from meshrun.proxy.poller import Poller
from meshrun.proxy.pool import Pool
from meshrun.proxy.pump import Pump
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.splice import Rider
from meshrun.proxy.tunnel import Leftover, OutboundTunnel, Unaccepted

__all__ = ["Found", "OutboundTunnels", "Search", "Target"]

# How long an endpoint may keep a connection from the next one. The last has all the time left.
ATTEMPT_TIMEOUT_S = 1.0

# For an answer that a stream gets at the last moment.
ANSWER_GRACE_S = 0.5

# Between rounds through all endpoints.
FIRST_ROUND_S = 0.05
LONGEST_ROUND_S = 1.0

# A tunnel, or the connection to a peer without tunnels, which carries one rider.
Found = OutboundTunnel | Connection


class Target(Protocol):
    """The service to reach: every one of its endpoints must prove `identity`, a SPIFFE ID."""

    @property
    def service(self) -> str:
        """What messages call it."""

    @property
    def identity(self) -> str:
        """Its SPIFFE ID."""

    @property
    def endpoints(self) -> tuple[Endpoint, ...]:
        """Its instances that are ready."""


@dataclass(slots=True, eq=False)
class Search:
    """How the search for an endpoint has gone so far; `trouble` is the last that it met.

    `rounds` is how often all endpoints, or a stream, were tried in vain.
    """

    trouble: str = ""
    rounds: int = 0
    tried_again: bool = False


class OutboundTunnels:
    """Chooses among the endpoints of `target`, and keeps the tunnels to them.

    The caller counts what is in flight (`opened`, `closed`). Where it `judges_answers`, as HTTP
    does, it alone says who `succeeded`: that a stream is accepted says nothing of the answer.
    """

    def __init__(
        self,
        poller: Poller,
        identity: Identity,
        rng: Random,
        target: Target,
        ejection: Ejection,
        *,
        judges_answers: bool = False,
    ) -> None:
        self._poller = poller
        self._identity = identity
        self._rng = rng
        self._judges_answers = judges_answers
        self._loop = asyncio.get_running_loop()
        self._balancer = Balancer(ejection)
        self._pool = Pool()
        self._tunnels: set[OutboundTunnel] = set()
        self._warming: dict[Endpoint, asyncio.Task[None]] = {}
        # Streams without an answer, and until when it may come.
        self._awaiting: dict[OutboundTunnel, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._attempts: dict[asyncio.Timeout, Endpoint] = {}
        self._target = target
        self._connector = Connector(poller, SpiffeId.parse(target.identity))
        self.changed = asyncio.Event()
        self.apply(target, ejection)

    def apply(self, target: Target, ejection: Ejection) -> None:
        """Use the endpoints of `target` from now on; who searches tries them at once."""
        identity = SpiffeId.parse(target.identity)
        if self._connector.identity != identity:
            self._connector = Connector(self._poller, identity)
            self._forget_peers()
        self._target = target
        self._balancer.ejection = ejection
        self._balancer.update(target.endpoints)
        self._pool.keep_to(set(target.endpoints))
        self._give_up_attempts()
        self.changed.set()
        self.changed = asyncio.Event()

    def rotate(self) -> None:
        """Begin no more streams under an old leaf; those under way go on."""
        self._pool.close()

    def close(self) -> None:
        """Cut every tunnel."""
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._warming.values()):
            task.cancel()
        self._pool.close()
        for tunnel in list(self._tunnels):
            tunnel.cut("the sidecar stops")

    # What is known of endpoints.

    def pick(self, tried: Collection[Endpoint] = ()) -> Endpoint | None:
        """Return the endpoint to take next, outside `tried`, or None."""
        return self._balancer.pick(self._loop.time(), self._rng, tried)

    def opened(self, endpoint: Endpoint) -> None:
        """Count something as in flight."""
        self._balancer.opened(endpoint)

    def closed(self, endpoint: Endpoint) -> None:
        """Count it no longer."""
        self._balancer.closed(endpoint)

    def succeeded(self, endpoint: Endpoint) -> None:
        """Forget the failures of `endpoint`."""
        self._balancer.succeeded(endpoint)

    def failed(self, endpoint: Endpoint) -> None:
        """Note a failure of `endpoint`."""
        self._balancer.failed(endpoint, self._loop.time())

    # Tunnels.

    def take(self, endpoint: Endpoint) -> OutboundTunnel | None:
        """Return an idle tunnel to `endpoint`, if there is one, and make another in its place."""
        tunnel = self._pool.take(endpoint)
        while tunnel is not None and not self.lasts(tunnel):
            tunnel.close()
            tunnel = self._pool.take(endpoint)
        if tunnel is not None and not self._pool.count(endpoint):
            self._warm(endpoint)
        return tunnel

    def open(
        self,
        tunnel: OutboundTunnel,
        rider: Rider,
        leftover: Leftover,
        deadline: float,
        unaccepted: Unaccepted,
    ) -> None:
        """Carry `rider` as a stream of `tunnel`, which is idle; see `OutboundTunnel.open`.

        An answer must come by `deadline` (the loop's clock), or the tunnel is cut, which calls
        `unaccepted`.
        """
        # The other side says within that time that it cannot reach its app: a moment more.
        due = deadline + ANSWER_GRACE_S
        self._awaiting[tunnel] = due
        if self._timer is None or due < self._timer.when():
            self._wake_at(due)
        tunnel.open(rider, leftover, unaccepted)

    def unaccepted(
        self, search: Search, endpoint: Endpoint, refusal: Refusal | None, reason: str
    ) -> None:
        """Note in `search`, which goes on, that `endpoint` did not accept a stream."""
        if refusal in (Refusal.UNREACHABLE, Refusal.BUSY):
            self.failed(endpoint)
        search.trouble = f"{endpoint.instance}: {reason}"
        # What a rotation closed is made anew at once; but only once, or it could be a spin.
        if search.tried_again or refusal not in (None, Refusal.LEAVING):
            search.rounds += 1
        search.tried_again = True

    def lasts(self, found: Found) -> bool:
        """Return whether something new may begin on it: both leaves are still served."""
        return self._identity.serves(found.credentials, found.not_after)

    # The tunnels' owner.

    def stream_accepted(self, tunnel: OutboundTunnel) -> None:
        """The endpoint has proved that it can take calls."""
        self._awaiting.pop(tunnel, None)
        if not self._judges_answers:
            self._balancer.succeeded(tunnel.endpoint)

    def tunnel_idle(self, tunnel: OutboundTunnel) -> None:
        """Keep a tunnel for the next stream, if it may carry one."""
        self._awaiting.pop(tunnel, None)
        known = tunnel in self._tunnels and tunnel.endpoint in self._target.endpoints
        if known and self.lasts(tunnel):
            self._pool.put(tunnel)
        else:
            tunnel.close()

    def tunnel_closed(self, tunnel: OutboundTunnel) -> None:
        """Forget it."""
        self._awaiting.pop(tunnel, None)
        self._tunnels.discard(tunnel)
        self._pool.forget(tunnel)

    def _wake_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._cut_overdue)

    def _cut_overdue(self) -> None:
        self._timer = None
        now = self._loop.time()
        for tunnel, due in list(self._awaiting.items()):
            # No sooner, also not where the endpoint is withdrawn: what was accepted a moment ago
            # would be sent again elsewhere.
            if due <= now:
                self._awaiting.pop(tunnel, None)
                if tunnel.awaited:
                    self._balancer.failed(tunnel.endpoint, now)
                    tunnel.cut("no answer")
        if self._awaiting:
            self._wake_at(min(self._awaiting.values()))

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

    async def reach(self, search: Search) -> Found:
        """Search for an endpoint, counted as in flight, until there is one.

        A tunnel has been started, and may have closed since; raises nothing but what cancels it.
        """
        while True:
            if search.rounds:
                await self._park(search.rounds)
            found = await self.round(search)
            if found is not None:
                return found

    async def round(self, search: Search) -> Found | None:
        """Try every endpoint once, until one takes it, as `reach` does."""
        found = await self._try_all(search)
        if found is None:
            search.rounds += 1
        elif isinstance(found, Connection) and found.tunnel:
            tunnel = self._adopt(found)
            tunnel.start()
            return tunnel
        return found

    def explain(self, search: Search) -> str:
        """Return why `search` has found nothing."""
        if search.trouble:
            return search.trouble
        if self._identity.expired:
            return EXPIRED
        if not len(self._balancer):
            return f"no instance of {self._target.service} is ready"
        return f"no instance of {self._target.service} answered"

    async def _park(self, rounds: int) -> None:
        # Without any endpoint only a snapshot can help; with some, time may.
        helpless = not len(self._balancer)
        delay = None if helpless else delay_s(rounds, FIRST_ROUND_S, LONGEST_ROUND_S)
        try:
            async with asyncio.timeout(delay):
                await self.changed.wait()
        except TimeoutError:
            pass

    async def _try_all(self, search: Search) -> Found | None:
        tried: set[Endpoint] = set()
        while (endpoint := self.pick(tried)) is not None:
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
                    search.trouble = f"{endpoint.instance} did not answer in time"
                except (PeerError, IdentityError) as error:
                    search.trouble = f"{endpoint.instance}: {error}"
                except OSError as error:
                    search.trouble = f"{endpoint.instance}: {error.strerror or error}"
                    if error.errno in sockets.STARVED:
                        return None  # our own trouble, not the endpoint's
                else:
                    if isinstance(found, Connection) and not found.tunnel:
                        self._connected(endpoint)  # others when they accept
                    # Stays counted as in flight; whoever carries it on gives it back.
                    stack.pop_all()
                    return found
            self.failed(endpoint)
        return None

    def _connected(self, endpoint: Endpoint) -> None:
        if not self._judges_answers:
            self._balancer.succeeded(endpoint)

    async def _attempt(self, endpoint: Endpoint, credentials: Credentials, *, last: bool) -> Found:
        async with asyncio.timeout(None if last else ATTEMPT_TIMEOUT_S) as limit:
            self._attempts[limit] = endpoint
            try:
                return self.take(endpoint) or await self._connector.connect(endpoint, credentials)
            finally:
                del self._attempts[limit]

    def _give_up_attempts(self) -> None:
        # An endpoint that was withdrawn may accept and never answer: its listener outlives it.
        for limit, endpoint in self._attempts.items():
            if endpoint not in self._target.endpoints and not limit.expired():
                limit.reschedule(self._loop.time())
