"""The way to the instances of one service: an idle tunnel at once, else a new connection.

Where no instance takes a connection it is parked: it tries again when time has passed, or at once
when a snapshot brings other instances. Whoever waits has the deadline.
"""

import asyncio
from collections.abc import Collection
from contextlib import ExitStack
from dataclasses import dataclass
from random import Random

from meshrun.proxy import sockets, tasks
from meshrun.proxy.backoff import delay_s
from meshrun.proxy.balance import Balancer, Standing
from meshrun.proxy.connector import Connection, Connector
from meshrun.proxy.errors import IdentityError, PeerError
from meshrun.proxy.framing import Refusal
from meshrun.proxy.identity import EXPIRED, Credentials, Identity
from meshrun.proxy.messages import Endpoint
from meshrun.proxy.poller import Poller
from meshrun.proxy.pool import Pool
from meshrun.proxy.pump import Pump
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.splice import Rider
from meshrun.proxy.tunnel import Leftover, OutboundTunnel, Unaccepted

__all__ = ["Journey", "OutboundTunnels"]

# How long an endpoint may keep a connection from the next one. The last has all the time left.
ATTEMPT_TIMEOUT_S = 1.0

# For an answer that a stream gets at the last moment.
ANSWER_GRACE_S = 0.5

# Between rounds through all endpoints.
FIRST_ROUND_S = 0.05
LONGEST_ROUND_S = 1.0


@dataclass(slots=True, eq=False)
class Journey:
    """Somebody on the way to an endpoint, until `deadline` (the loop's clock).

    `first` is what is tried first, if it was chosen already. `trouble` is what was met last,
    `rounds` how often all endpoints, or a stream, were tried in vain.
    """

    deadline: float
    first: Endpoint | None = None
    trouble: str = ""
    rounds: int = 0
    tried_again: bool = False


class OutboundTunnels:
    """Reaches the endpoints of `service`, which must prove to be `peer`.

    Whoever `judges_answers`, as HTTP does, says alone what has `succeeded`: that a stream is
    accepted would else hide that all its answers are errors.
    """

    def __init__(
        self,
        poller: Poller,
        identity: Identity,
        rng: Random,
        balancer: Balancer,
        service: str,
        peer: SpiffeId,
        *,
        judges_answers: bool = False,
    ) -> None:
        self._poller = poller
        self._judges_answers = judges_answers
        self._identity = identity
        self._rng = rng
        self._loop = asyncio.get_running_loop()
        self._service = service
        self._balancer = balancer
        self._connector = Connector(poller, peer)
        self._pool: Pool[OutboundTunnel] = Pool()
        self._endpoints: frozenset[Endpoint] = frozenset()
        self._changed = asyncio.Event()
        self._tunnels: set[OutboundTunnel] = set()
        self._warming: dict[Endpoint, asyncio.Task[None]] = {}
        # Streams without an answer, and until when it may come.
        self._awaiting: dict[OutboundTunnel, float] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._attempts: dict[asyncio.Timeout, Endpoint] = {}

    def apply(self, peer: SpiffeId, endpoints: Collection[Endpoint]) -> None:
        """Use these endpoints from now on; whoever is parked tries them at once."""
        if self._connector.identity != peer:
            self._connector = Connector(self._poller, peer)
            self._forget_peers()
        self._endpoints = frozenset(endpoints)
        self._balancer.update(endpoints)
        self._pool.keep_to(self._endpoints)
        self._give_up_attempts()
        self._changed.set()
        self._changed = asyncio.Event()

    def rotate(self) -> None:
        """Begin no more streams under an old leaf; those under way go on."""
        self._pool.close()

    def close(self) -> None:
        """Cut every tunnel, and what goes over it."""
        if self._timer is not None:
            self._timer.cancel()
        for task in list(self._warming.values()):
            task.cancel()
        self._pool.close()
        for tunnel in list(self._tunnels):
            tunnel.cut("the sidecar stops")

    def knows(self, endpoint: Endpoint) -> bool:
        """Return whether `endpoint` is still one of the service's."""
        return endpoint in self._endpoints

    def lasts(self, credentials: Credentials, not_after: float) -> bool:
        """Return whether what was connected with `credentials` may carry more."""
        return self._identity.serves(credentials, not_after)

    # Choosing, and what came of it.

    def pick(self, tried: Collection[Endpoint] = ()) -> Endpoint | None:
        """Choose an endpoint."""
        return self._balancer.pick(self._loop.time(), self._rng, tried)

    def standing(self, endpoint: Endpoint) -> Standing:
        """Return what is known of `endpoint`, and counts what is in flight there."""
        return self._balancer.standing(endpoint)

    def opened(self, endpoint: Endpoint) -> None:
        """Count a connection."""
        self._balancer.opened(endpoint)

    def closed(self, endpoint: Endpoint) -> None:
        """Count it no longer."""
        self._balancer.closed(endpoint)

    def succeeded(self, endpoint: Endpoint) -> None:
        """It has served one."""
        self._balancer.succeeded(endpoint)

    def failed(self, endpoint: Endpoint) -> None:
        """It has failed one."""
        self._balancer.failed(endpoint, self._loop.time())

    # The short way: an idle tunnel.

    def take(self, endpoint: Endpoint) -> OutboundTunnel | None:
        """Return an idle tunnel to `endpoint`, if there is one."""
        tunnel = self._pool.take(endpoint)
        while tunnel is not None and not self._lasts(tunnel):
            tunnel.close()
            tunnel = self._pool.take(endpoint)
        if tunnel is not None and not self._pool.count(endpoint):
            self._warm(endpoint)
        return tunnel

    def ride(
        self,
        tunnel: OutboundTunnel,
        rider: Rider,
        leftover: Leftover,
        unaccepted: Unaccepted,
        deadline: float,
    ) -> None:
        """Open a stream for `rider`, which must have its answer by `deadline`.

        Without one the tunnel is cut, and `unaccepted` called as for any other refusal.
        """
        # The other side says within that time that it cannot reach its app: a moment more.
        self._awaiting[tunnel] = due = deadline + ANSWER_GRACE_S
        # What was tried elsewhere before is due sooner than what is new.
        if self._timer is None or due < self._timer.when():
            self._wake_at(due)
        tunnel.open(rider, leftover, unaccepted)

    def gave_up(self, tunnel: OutboundTunnel) -> None:
        """Nobody waits for the answer to a stream any more."""
        self._awaiting.pop(tunnel, None)

    def adopt(self, connection: Connection) -> OutboundTunnel:
        """Make a tunnel of a connection that is one; whoever takes it starts it."""
        pump = Pump(self._poller, connection.secured)
        tunnel = OutboundTunnel(
            pump, self, connection.endpoint, connection.credentials, connection.not_after
        )
        self._tunnels.add(tunnel)
        return tunnel

    def keep(self, found: Connection | OutboundTunnel) -> None:
        """Keep for the next stream what was reached, and is not needed."""
        if isinstance(found, OutboundTunnel):
            self.tunnel_idle(found)
        elif found.tunnel:
            tunnel = self.adopt(found)
            self.tunnel_idle(tunnel)
            if not tunnel.closed:
                tunnel.start()
        else:
            sockets.reset(found.secured.sock)

    # The tunnels' owner.

    def stream_accepted(self, tunnel: OutboundTunnel) -> None:
        """The endpoint has proved that it can take calls."""
        self._awaiting.pop(tunnel, None)
        if not self._judges_answers:
            self._balancer.succeeded(tunnel.endpoint)

    def tunnel_idle(self, tunnel: OutboundTunnel) -> None:
        """Keep a tunnel for the next stream, if it may carry one."""
        self._awaiting.pop(tunnel, None)
        known = tunnel in self._tunnels and tunnel.endpoint in self._endpoints
        if known and self._lasts(tunnel):
            self._pool.put(tunnel)
        else:
            tunnel.close()

    def tunnel_closed(self, tunnel: OutboundTunnel) -> None:
        """Forget it."""
        self._awaiting.pop(tunnel, None)
        self._tunnels.discard(tunnel)
        self._pool.forget(tunnel)

    def _lasts(self, tunnel: OutboundTunnel) -> bool:
        return self._identity.serves(tunnel.credentials, tunnel.not_after)

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
            self._wake_at(min(self._awaiting.values()))

    def _wake_at(self, due: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_at(due, self._cut_overdue)

    def _forget_peers(self) -> None:
        # They proved to be somebody who is not meant any more.
        self._pool.close()
        self._tunnels.clear()
        for task in self._warming.values():
            task.cancel()

    def _warm(self, endpoint: Endpoint) -> None:
        # The next connection shall find an idle tunnel too.
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
        self.keep(connection)

    # The long way.

    def refused(
        self, journey: Journey, endpoint: Endpoint, refusal: Refusal | None, reason: str
    ) -> None:
        """Note that a stream to `endpoint` was not accepted, before the journey goes on."""
        if refusal in (Refusal.UNREACHABLE, Refusal.BUSY):
            self._balancer.failed(endpoint, self._loop.time())
        journey.trouble = f"{endpoint.instance}: {reason}"
        # What a rotation closed is made anew at once; but only once, or it could be a spin.
        if journey.tried_again or refusal not in (None, Refusal.LEAVING):
            journey.rounds += 1
        journey.tried_again = True

    def excuse(self, journey: Journey) -> str:
        """Return why a journey that is over its deadline has come nowhere."""
        if journey.trouble:
            return journey.trouble
        if self._identity.expired:
            return EXPIRED
        if not len(self._balancer):
            return f"no instance of {self._service} is ready"
        return f"no instance of {self._service} answered"

    async def reach(self, journey: Journey) -> Connection | OutboundTunnel:
        """Try all endpoints again and again; return what was reached.

        It is not counted as in flight any more: whoever goes there counts what it brings.
        """
        while True:
            found = await self.round(journey)
            if found is not None:
                self._balancer.closed(found.endpoint)
                return found
            await self.park(journey)

    async def round(self, journey: Journey) -> Connection | OutboundTunnel | None:
        """Try each endpoint once; return what was reached, counted as in flight."""
        tried: set[Endpoint] = set()
        while (endpoint := self._next(journey, tried)) is not None:
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
                    journey.trouble = f"{endpoint.instance} did not answer in time"
                except (PeerError, IdentityError) as error:
                    journey.trouble = f"{endpoint.instance}: {error}"
                except OSError as error:
                    journey.trouble = f"{endpoint.instance}: {error.strerror or error}"
                    if error.errno in sockets.STARVED:
                        break  # our own trouble, not the endpoint's
                else:
                    if not self.knows(endpoint):
                        # Withdrawn in the moment in which it was reached: nothing begins there.
                        journey.trouble = f"{endpoint.instance} takes no more calls"
                        self.keep(found)
                        continue
                    direct = isinstance(found, Connection) and not found.tunnel
                    if direct and not self._judges_answers:
                        self._balancer.succeeded(endpoint)  # others when they accept
                    # Stays counted as in flight; whoever carries it on gives it back.
                    stack.pop_all()
                    return found
            self._balancer.failed(endpoint, self._loop.time())
        journey.rounds += 1
        return None

    def _next(self, journey: Journey, tried: Collection[Endpoint]) -> Endpoint | None:
        first, journey.first = journey.first, None
        return first if first is not None and self.knows(first) else self.pick(tried)

    async def park(self, journey: Journey) -> None:
        """Wait until it is worth another round."""
        # Without any endpoint only a snapshot can help; with some, time may.
        helpless = not len(self._balancer)
        delay = None if helpless else delay_s(journey.rounds, FIRST_ROUND_S, LONGEST_ROUND_S)
        try:
            async with asyncio.timeout(delay):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _attempt(
        self, endpoint: Endpoint, credentials: Credentials, *, last: bool
    ) -> Connection | OutboundTunnel:
        async with asyncio.timeout(None if last else ATTEMPT_TIMEOUT_S) as limit:
            self._attempts[limit] = endpoint
            try:
                return self.take(endpoint) or await self._connector.connect(endpoint, credentials)
            finally:
                del self._attempts[limit]

    def _give_up_attempts(self) -> None:
        # An endpoint that was withdrawn may accept and never answer: its listener outlives it.
        for limit, endpoint in self._attempts.items():
            if endpoint not in self._endpoints and not limit.expired():
                limit.reschedule(self._loop.time())
        for endpoint, task in self._warming.items():
            if endpoint not in self._endpoints:
                task.cancel()
