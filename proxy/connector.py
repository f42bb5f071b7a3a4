"""Connects to endpoints of one upstream, and insists on their identity."""

from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from meshrun.proxy import dial, handshake, sockets, tls
from meshrun.proxy.errors import NoProtocolError, PeerError
from meshrun.proxy.handshake import Secured
from meshrun.proxy.identity import Credentials
from meshrun.proxy.messages import Endpoint
from meshrun.proxy.poller import Poller
from meshrun.proxy.spiffe import SpiffeId

__all__ = ["Connection", "Connector"]


@dataclass(frozen=True, slots=True)
class Connection:
    """A peer that proved the identity of the upstream, and what was shown to it.

    `not_after` (wall clock) is when the first of both leaves expires.
    """

    endpoint: Endpoint
    secured: Secured
    credentials: Credentials
    not_after: float

    @property
    def tunnel(self) -> bool:
        """Whether it carries streams; else it is one itself."""
        return tls.speaks_tunnel(self.secured.tls)


class Connector:
    """Connects to whoever proves to be `identity`."""

    def __init__(self, poller: Poller, identity: SpiffeId) -> None:
        self._poller = poller
        self.identity = identity
        # Endpoints that break a handshake off in which they are offered only what they do not know.
        self._direct: set[Endpoint] = set()

    async def connect(self, endpoint: Endpoint, credentials: Credentials) -> Connection:
        """Return a connection to `endpoint`; raises OSError, PeerError, IdentityError."""
        if not endpoint.tunnels or endpoint in self._direct:
            return await self._connect(endpoint, credentials, tunnels=False)
        try:
            return await self._connect(endpoint, credentials, tunnels=True)
        except NoProtocolError:
            self._direct.add(endpoint)
            return await self._connect(endpoint, credentials, tunnels=False)

    async def _connect(
        self, endpoint: Endpoint, credentials: Credentials, *, tunnels: bool
    ) -> Connection:
        with ExitStack() as stack:
            sock = await dial.connect(self._poller, endpoint.host, endpoint.port)
            stack.callback(sockets.reset, sock)
            context = credentials.client_context if tunnels else credentials.direct_context
            secured = await handshake.connect(self._poller, sock, context)
            peer = tls.authenticate(secured.tls, self.identity.trust_domain, datetime.now(UTC))
            if peer != self.identity:
                raise PeerError(f"it is {peer}, not {self.identity}")
            not_after = min(credentials.leaf.not_after, tls.peer_not_after(secured.tls))
            stack.pop_all()
        return Connection(endpoint, secured, credentials, not_after)
