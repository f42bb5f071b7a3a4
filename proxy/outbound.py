"""The sidecar's outbound side: one upstream of the app.

A connection passes through: choice of an endpoint, TCP and TLS, check of its identity, splice.
Where no endpoint takes it, it is parked; what the app sends meanwhile stays in the kernel.
"""

import asyncio
import socket
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from random import Random

from meshrun.proxy import dial, handshake, sockets, tasks, tls
from meshrun.proxy.backoff import delay_s
from meshrun.proxy.balance import Balancer
from meshrun.proxy.errors import IdentityError, PeerError
from meshrun.proxy.handshake import Secured
from meshrun.proxy.identity import EXPIRED, Credentials, Identity
from meshrun.proxy.listener import STARVED
from meshrun.proxy.messages import ConnectionFailed, Endpoint, Upstream
from meshrun.proxy.poller import Poller
from meshrun.proxy.reports import Report
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.splice import Splice

__all__ = ["Outbound"]

# How long an endpoint may keep a connection from the next one. The last has all the time left.
ATTEMPT_TIMEOUT_S = 1.0

# Between rounds through all endpoints.
FIRST_ROUND_S = 0.05
LONGEST_ROUND_S = 1.0


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
        self._changed = asyncio.Event()
        self._parked: set[asyncio.Task[None]] = set()
        self._live: set[Splice] = set()
        self.apply(upstream)

    def apply(self, upstream: Upstream) -> None:
        """Use the endpoints of `upstream` from now on; parked connections try them at once."""
        self._upstream = upstream
        self._trust_domain = SpiffeId.parse(upstream.identity).trust_domain
        self._balancer.update(upstream.endpoints)
        self._changed.set()
        self._changed = asyncio.Event()

    def serve(self, sock: socket.socket) -> None:
        """Take over a connection that was accepted."""
        task = tasks.start(self._serve(sock), f"connection to {self._upstream.name}")
        self._parked.add(task)
        task.add_done_callback(self._parked.discard)

    def close(self) -> None:
        """Reset every connection."""
        for task in list(self._parked):
            task.cancel()
        for splice in list(self._live):
            splice.reset("the sidecar stops")

    async def _serve(self, app: socket.socket) -> None:
        trouble: list[str] = []
        with ExitStack() as stack:
            stack.callback(sockets.reset, app)
            timeout_s = self._upstream.connect_timeout_s
            try:
                async with asyncio.timeout(timeout_s):
                    endpoint, secured = await self._reach(app, trouble)
            except TimeoutError:
                why = trouble[-1] if trouble else self._nobody()
                self._report(
                    ConnectionFailed(
                        upstream=self._upstream.name, reason=f"{why} (waited {timeout_s:g} s)"
                    )
                )
                return
            stack.pop_all()
        self._join(app, endpoint, secured)

    def _nobody(self) -> str:
        if self._identity.expired:
            return EXPIRED
        if not len(self._balancer):
            return f"no instance of {self._upstream.service} is ready"
        return f"no instance of {self._upstream.service} answered"

    async def _reach(self, app: socket.socket, trouble: list[str]) -> tuple[Endpoint, Secured]:
        found = await self._round(trouble)
        if found is not None:
            return found
        task = asyncio.current_task()
        assert task is not None
        rounds = 1
        with dial.watched(self._poller, app, task.cancel):
            del task  # the traceback of a cancelled task holds this frame: it would be a cycle
            while True:
                await self._park(rounds)
                found = await self._round(trouble)
                if found is not None:
                    return found
                rounds += 1

    async def _park(self, rounds: int) -> None:
        # Without any endpoint only a snapshot can help; with some, time may.
        helpless = not len(self._balancer)
        delay = None if helpless else delay_s(rounds, FIRST_ROUND_S, LONGEST_ROUND_S)
        try:
            async with asyncio.timeout(delay):
                await self._changed.wait()
        except TimeoutError:
            pass

    async def _round(self, trouble: list[str]) -> tuple[Endpoint, Secured] | None:
        tried: set[Endpoint] = set()
        while (endpoint := self._balancer.pick(self._loop.time(), self._rng, tried)) is not None:
            tried.add(endpoint)
            # Outside the attempt: to wait for a leaf of its own is no failure of an endpoint.
            credentials = await self._identity.credentials()
            last = len(tried) >= len(self._balancer)
            try:
                async with asyncio.timeout(None if last else ATTEMPT_TIMEOUT_S):
                    return endpoint, await self._attempt(endpoint, credentials)
            except TimeoutError:
                trouble.append(f"{endpoint.instance} did not answer in time")
            except (PeerError, IdentityError) as error:
                trouble.append(f"{endpoint.instance}: {error}")
            except OSError as error:
                trouble.append(f"{endpoint.instance}: {error.strerror or error}")
                if error.errno in STARVED:
                    return None  # our own trouble, not the endpoint's
            self._balancer.failed(endpoint, self._loop.time())
        return None

    async def _attempt(self, endpoint: Endpoint, credentials: Credentials) -> Secured:
        with ExitStack() as stack:
            self._balancer.opened(endpoint)
            stack.callback(self._balancer.closed, endpoint)
            sock = await dial.connect(self._poller, endpoint.host, endpoint.port)
            stack.callback(sockets.reset, sock)
            secured = await handshake.connect(self._poller, sock, credentials.client_context)
            peer = tls.authenticate(secured.tls, self._trust_domain, datetime.now(UTC))
            if str(peer) != self._upstream.identity:
                raise PeerError(f"it is {peer}, not {self._upstream.identity}")
            self._balancer.succeeded(endpoint)
            # Stays counted as in flight; whoever joins it gives it back.
            stack.pop_all()
        return secured

    def _join(self, app: socket.socket, endpoint: Endpoint, secured: Secured) -> None:
        def ended(_: str | None) -> None:
            self._live.discard(splice)
            self._balancer.closed(endpoint)

        splice = Splice(self._poller, app, secured, ended)
        self._live.add(splice)
        splice.start()
