"""The sidecar's inbound side: who calls, whether it may, and only then the app.

A connection passes through: TLS handshake, authentication, then for each of its streams (a peer
without tunnels has one) intention, dial, splice. The app hears of it at the dial, so of a refused
peer it hears nothing.
"""

import asyncio
import hashlib
import socket
import weakref
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from meshrun.proxy import callee, dial, handshake, sockets, tasks, tls
from meshrun.proxy.caller import Caller
from meshrun.proxy.direct import Direct
from meshrun.proxy.errors import IdentityError, PeerError
from meshrun.proxy.framing import Refusal
from meshrun.proxy.gate import GONE, Call, Gate
from meshrun.proxy.handshake import Secured
from meshrun.proxy.http.inbound import HttpInbound
from meshrun.proxy.http.link import StreamLink
from meshrun.proxy.identity import EXPIRED, Credentials, Identity
from meshrun.proxy.inbound_tunnels import InboundTunnels
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.messages import ConnectionFailed, Denied, Snapshot
from meshrun.proxy.poller import Poller
from meshrun.proxy.pump import Pump
from meshrun.proxy.reports import Report
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.splice import Splice

__all__ = ["Inbound"]

# Envoy's and Consul's; against a peer that would hold its place for ever.
HANDSHAKE_TIMEOUT_S = 10.0

# A handshake takes up to 100 KiB, and anyone may begin one.
MOST_HANDSHAKES = 1024

# What is said of a caller that proved no identity.
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class _Peer:
    """Who is at the other end of `secured`, and what was shown to it."""

    secured: Secured
    caller: Caller
    credentials: Credentials


class Inbound:
    """Serves callers as long as `apply` said that they may call.

    `drained` is called when nothing goes to the app any more, if the snapshot asks for that.
    """

    def __init__(
        self,
        poller: Poller,
        identity: Identity,
        report: Callable[[Report], None],
        ledger: Ledger,
        rng: Random,
        drained: Callable[[], None],
    ) -> None:
        self._poller = poller
        self._identity = identity
        self._report = report
        self._gate = Gate(report, ledger, drained)
        self._http = HttpInbound(poller, self._gate, ledger, report, rng)
        self._tunnels = InboundTunnels(poller, identity, self._gate, self._http, report)
        self._handshakes: dict[asyncio.Task[None], None] = {}

    def apply(self, snapshot: Snapshot) -> None:
        """Obey `snapshot`: on return no connection is left that it forbids."""
        self._gate.apply(snapshot)

    def rotate(self) -> None:
        """Take no more streams and requests under an old leaf; those under way go on."""
        self._tunnels.rotate()
        self._http.rotate()

    def traffic(self) -> Iterator[tuple[str, int, int]]:
        """Yield source, received and sent bytes of each open connection."""
        return self._gate.traffic()

    def serve(self, sock: socket.socket) -> None:
        """Take over a connection that was accepted."""
        if len(self._handshakes) >= MOST_HANDSHAKES:
            # The oldest: an honest peer is done in milliseconds, a slow one blocks nobody else.
            oldest = next(iter(self._handshakes))
            del self._handshakes[oldest]
            oldest.cancel()
        task = tasks.start(self._serve(sock), "inbound connection")
        self._handshakes[task] = None
        # Also where the task is cancelled before its first step.
        task.add_done_callback(self._forget)

    def close(self) -> None:
        """Reset every connection."""
        for task in list(self._handshakes):
            task.cancel()
        self._gate.close()
        self._http.close()
        self._tunnels.close()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)

    async def _serve(self, sock: socket.socket) -> None:
        with ExitStack() as stack:
            stack.callback(sockets.reset, sock)
            try:
                peer = await self._welcome(sock)
            except TimeoutError:
                self._report_silence()
                sockets.close(sock)
                return
            except (PeerError, IdentityError) as error:
                self._report(Denied(kind="peer", source=UNKNOWN, reason=str(error)))
                sockets.close(sock)  # in the ordinary way: a reset would overtake the TLS alert
                return
            finally:
                # In no variable: the traceback of a cancelled task holds this frame, which would
                # hold the task, and a stranger's TLS state would stay until the collector comes.
                self._forget(tasks.current())
            if tls.speaks_tunnel(peer.secured.tls):
                self._start_tunnel(peer)
            elif self._gate.app.protocol != "tcp":
                self._serve_requests(peer)
            elif not await self._serve_directly(peer):
                return
            stack.pop_all()

    async def _welcome(self, sock: socket.socket) -> _Peer:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            credentials = await self._identity.credentials()
            secured = await handshake.accept(self._poller, sock, credentials.server_context)
        own = SpiffeId.parse(self._gate.snapshot.identity)
        proved = tls.authenticate(secured.tls, own.trust_domain, datetime.now(UTC))
        if proved.service is None:
            raise IdentityError(f"{proved} is not the identity of a service")
        caller = Caller(
            service=proved.service,
            identity=str(proved),
            fingerprint=hashlib.sha256(tls.peer_chain(secured.tls)[0]).hexdigest(),
            not_after=tls.peer_not_after(secured.tls),
        )
        return _Peer(secured, caller, credentials)

    def _report_silence(self) -> None:
        if self._identity.expired:  # the caller did nothing wrong
            self._report(ConnectionFailed(upstream=None, reason=EXPIRED))
        else:
            reason = f"no TLS handshake within {HANDSHAKE_TIMEOUT_S:.0f} s"
            self._report(Denied(kind="peer", source=UNKNOWN, reason=reason))

    def _start_tunnel(self, peer: _Peer) -> None:
        not_after = min(peer.credentials.leaf.not_after, peer.caller.not_after)
        pump = Pump(self._poller, peer.secured)
        self._tunnels.add(pump, peer.caller, peer.credentials, not_after)

    def _serve_requests(self, peer: _Peer) -> None:
        link = StreamLink(early=False)
        call = self._gate.admit(peer.caller, lambda _: link.reset(), self._http.make_room)
        if isinstance(call, Refusal):
            sockets.reset(peer.secured.sock)
            return
        self._http.serve(link, peer.caller, call)
        rider = link.rider()
        Direct(Pump(self._poller, peer.secured), rider).start()
        rider.look()

    async def _serve_directly(self, peer: _Peer) -> bool:
        # Known before it is judged: a change of the intentions finds either the call or none.
        call = self._gate.enter(peer.caller, _canceller())
        if isinstance(call, Refusal):
            return False
        try:
            app = await self._reach_app(peer.secured)
        except OSError as error:
            reason = error.strerror or str(error)
            self._gate.leave(call, reason)
            self._report(ConnectionFailed(upstream=None, reason=reason))
            return False
        except BaseException:  # also a cut: whoever is not connected leaves
            self._gate.leave(call, GONE)
            raise
        self._join(call, app, peer)
        return True

    async def _reach_app(self, peer: Secured) -> socket.socket:
        # What the caller sends meanwhile stays in the kernel; what came with its last flight does
        # not.
        cancel = tasks.current().cancel
        with dial.watched(self._poller, peer.sock, cancel, asked=bool(peer.incoming.pending)):
            return await callee.reach(self._poller, self._gate.app)

    def _join(self, call: Call, app: socket.socket, peer: _Peer) -> None:
        sockets.guard(app)
        splice = Splice(
            self._poller, app, lambda failure: self._gate.leave(call, failure), counted=True
        )
        self._gate.connected(call, splice)
        Direct(Pump(self._poller, peer.secured), splice).start()


def _canceller() -> Callable[[str], None]:
    # Weak: the call is in a frame of the task itself, which its traceback would keep.
    task = weakref.ref(tasks.current())

    def cancel(_reason: str) -> None:
        living = task()
        if living is not None:
            living.cancel()

    return cancel
