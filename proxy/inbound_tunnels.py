"""The tunnels that other sidecars have opened to this one: each stream is judged for itself."""

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass

from meshrun.proxy import callee, dial, sockets, tasks
from meshrun.proxy.caller import Caller
from meshrun.proxy.fanout import to_each
from meshrun.proxy.framing import Refusal
from meshrun.proxy.gate import GONE, Call, Gate
from meshrun.proxy.http.inbound import HttpInbound
from meshrun.proxy.http.link import StreamLink
from meshrun.proxy.identity import Credentials, Identity
from meshrun.proxy.messages import ConnectionFailed
from meshrun.proxy.poller import Poller
from meshrun.proxy.pump import Pump
from meshrun.proxy.reports import Report
from meshrun.proxy.splice import Splice
from meshrun.proxy.tunnel import InboundTunnel

__all__ = ["InboundTunnels"]

# The other side closes its idle tunnels sooner; this is for one that does not.
IDLE_S = 300.0
MOST_IDLE = 4096

# What the other side is told, which is neither a rule nor an identity.
TEXTS = {
    Refusal.DENIED: "denied",
    Refusal.UNREACHABLE: "its app does not answer",
    Refusal.BUSY: "it has too many connections",
    Refusal.LEAVING: "the leaf of this tunnel has been replaced",
}


@dataclass(slots=True, eq=False)
class _Opening:
    """A stream that was let in and has no answer yet; `task` waits for the app."""

    call: Call
    task: asyncio.Task[None] | None = None


class InboundTunnels:
    """Takes streams for the app, and keeps the tunnels between them."""

    def __init__(
        self,
        poller: Poller,
        identity: Identity,
        gate: Gate,
        http: HttpInbound,
        report: Callable[[Report], None],
    ) -> None:
        self._poller = poller
        self._identity = identity
        self._gate = gate
        self._http = http
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._tunnels: set[InboundTunnel] = set()
        self._openings: dict[InboundTunnel, _Opening] = {}
        # Those without a stream, the longest so in front.
        self._idle: dict[InboundTunnel, float] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, pump: Pump, caller: Caller, credentials: Credentials, not_after: float) -> None:
        """Take streams from `caller` over `pump`, until `not_after` (wall clock)."""
        tunnel = InboundTunnel(pump, self, caller, credentials, not_after)
        self._tunnels.add(tunnel)
        self.tunnel_idle(tunnel)
        if not tunnel.closed:
            tunnel.start()

    def rotate(self) -> None:
        """Close what is idle under a leaf that is not served any more."""
        to_each([tunnel for tunnel in self._idle if not self._lasts(tunnel)], InboundTunnel.close)

    def close(self) -> None:
        """Close all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        # In order: the other side may still have to take the end of what an idle one carried.
        for tunnel in list(self._idle):
            tunnel.close()
        for tunnel in list(self._tunnels):
            tunnel.cut("the sidecar stops")

    # The tunnels' owner.

    def stream_opened(self, tunnel: InboundTunnel) -> None:
        """Judge a stream, and reach the app for it."""
        self._idle.pop(tunnel, None)
        if not self._lasts(tunnel):
            tunnel.refuse(Refusal.LEAVING, TEXTS[Refusal.LEAVING])
            return
        if self._gate.app.protocol != "tcp":
            self._serve_requests(tunnel)
            return
        call = self._gate.enter(tunnel.caller, lambda _: self._refuse(tunnel, Refusal.DENIED))
        if isinstance(call, Refusal):
            tunnel.refuse(call, TEXTS[call])
            return
        self._openings[tunnel] = _Opening(call)
        try:
            app = dial.at_once(self._gate.app.host, self._gate.app.port)
        except OSError as error:
            self._wait_for_app(tunnel, error)
            return
        if app is None:
            self._wait_for_app(tunnel, None)
        else:
            self._accept(tunnel, app)

    def stream_abandoned(self, tunnel: InboundTunnel) -> None:
        """Reach the app no longer for a stream that nobody wants any more."""
        opening = self._openings.pop(tunnel, None)
        if opening is not None:
            self._gate.leave(opening.call, GONE)
            if opening.task is not None:
                opening.task.cancel()

    def tunnel_idle(self, tunnel: InboundTunnel) -> None:
        """Keep a tunnel for its next stream, if it may have one."""
        if not self._lasts(tunnel):
            tunnel.close()
            return
        self._idle[tunnel] = self._loop.time()
        if len(self._idle) > MOST_IDLE:
            next(iter(self._idle)).close()
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_S, self._sweep)

    def tunnel_closed(self, tunnel: InboundTunnel) -> None:
        """Forget it."""
        self._tunnels.discard(tunnel)
        self._idle.pop(tunnel, None)

    def _lasts(self, tunnel: InboundTunnel) -> bool:
        return self._identity.serves(tunnel.credentials, tunnel.not_after)

    def _serve_requests(self, tunnel: InboundTunnel) -> None:
        # Who calls is judged with each request, and the app dialled for the first that is let in.
        call = self._gate.admit(tunnel.caller, tunnel.cut, self._http.make_room)
        if isinstance(call, Refusal):
            tunnel.refuse(call, TEXTS[call])
            return
        link = StreamLink(early=False)
        self._http.serve(link, tunnel.caller, call)
        rider = link.rider()
        tunnel.accept(rider)
        rider.look()  # a server of HTTP/2 speaks first

    def _wait_for_app(self, tunnel: InboundTunnel, failed: OSError | None) -> None:
        opening = self._openings[tunnel]

        async def wait() -> None:
            try:
                app = await callee.reach(self._poller, self._gate.app, failed)
            except OSError as error:
                reason = error.strerror or str(error)
                self._report(ConnectionFailed(upstream=None, reason=reason))
                self._gate.leave(opening.call, reason)
                opening.task = None  # it ends here by itself
                self._refuse(tunnel, Refusal.UNREACHABLE)
            else:
                self._accept(tunnel, app)

        opening.task = tasks.start(wait(), "stream")

    def _accept(self, tunnel: InboundTunnel, app: socket.socket) -> None:
        call = self._openings.pop(tunnel).call
        sockets.guard(app)
        splice = Splice(
            self._poller, app, lambda failure: self._gate.leave(call, failure), counted=True
        )
        self._gate.connected(call, splice)
        tunnel.accept(splice)

    def _refuse(self, tunnel: InboundTunnel, refusal: Refusal) -> None:
        self.stream_abandoned(tunnel)
        tunnel.refuse(refusal, TEXTS[refusal])

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        for tunnel, since in list(self._idle.items()):
            if now - since < IDLE_S:
                self._timer = self._loop.call_later(since + IDLE_S - now, self._sweep)
                return
            tunnel.close()
