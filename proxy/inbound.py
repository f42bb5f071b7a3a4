"""The sidecar's inbound side: who calls, whether it may, and only then the app.

A connection passes through: TLS handshake, authentication, intention, dial, splice. The app hears
of it at the dial, so of a refused peer it hears nothing.
"""

import asyncio
import socket
import weakref
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime

from meshrun.proxy import dial, handshake, sockets, tasks, tls
from meshrun.proxy.errors import IdentityError, PeerError
from meshrun.proxy.handshake import Secured
from meshrun.proxy.identity import EXPIRED, Identity
from meshrun.proxy.intentions import Decision, decide
from meshrun.proxy.messages import ConnectionFailed, Denied, Snapshot
from meshrun.proxy.messages import Inbound as AppAddress
from meshrun.proxy.poller import Poller
from meshrun.proxy.reports import Report
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.splice import Splice

__all__ = ["Inbound"]

# Envoy's and Consul's; against a peer that would hold its place for ever.
HANDSHAKE_TIMEOUT_S = 10.0

# A handshake takes up to 100 KiB, and anyone may begin one.
MOST_HANDSHAKES = 1024

FIRST_REDIAL_S = 0.005
LONGEST_REDIAL_S = 0.05

# What is said of a caller that proved no identity.
UNKNOWN = "unknown"


@dataclass(slots=True, eq=False)
class _Call:
    """An authenticated caller; `cut` ends its connection whatever state it is in."""

    source: str
    cut: Callable[[str], object]
    live: bool = False


class Inbound:
    """Serves callers as long as `apply` said that they may call."""

    def __init__(
        self, poller: Poller, identity: Identity, report: Callable[[Report], None]
    ) -> None:
        self._poller = poller
        self._identity = identity
        self._report = report
        self._loop = asyncio.get_running_loop()
        self._snapshot: Snapshot | None = None
        self._handshakes: dict[asyncio.Task[None], None] = {}
        self._calls: set[_Call] = set()

    def apply(self, snapshot: Snapshot) -> None:
        """Obey `snapshot`: on return no connection is left that it forbids."""
        self._snapshot = snapshot
        for call in list(self._calls):
            decision = self._decide(call.source)
            if not decision.allowed:
                self._deny(call.source, decision, live=call.live)
                call.cut(decision.reason)

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
        for call in list(self._calls):
            call.cut("the sidecar stops")

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._handshakes.pop(task, None)

    async def _serve(self, sock: socket.socket) -> None:
        with ExitStack() as stack:
            stack.callback(sockets.reset, sock)
            try:
                secured, source = await self._welcome(sock)
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
                self._forget(_current_task())
            # Known before it is judged: a change of the intentions finds either the call or none.
            call = _Call(source, _canceller())
            self._calls.add(call)
            stack.callback(self._calls.discard, call)
            decision = self._decide(source)
            if not decision.allowed:
                self._deny(source, decision, live=False)
                return
            app = await self._reach_app(secured)
            if app is None:
                return
            stack.pop_all()
            self._join(call, app, secured)

    async def _welcome(self, sock: socket.socket) -> tuple[Secured, str]:
        async with asyncio.timeout(HANDSHAKE_TIMEOUT_S):
            credentials = await self._identity.credentials()
            secured = await handshake.accept(self._poller, sock, credentials.server_context)
        snapshot = self._known()
        own = SpiffeId.parse(snapshot.identity)
        caller = tls.authenticate(secured.tls, own.trust_domain, datetime.now(UTC))
        if caller.service is None:
            raise IdentityError(f"{caller} is not the identity of a service")
        return secured, caller.service

    def _report_silence(self) -> None:
        if self._identity.expired:  # the caller did nothing wrong
            self._report(ConnectionFailed(upstream=None, reason=EXPIRED))
        else:
            reason = f"no TLS handshake within {HANDSHAKE_TIMEOUT_S:.0f} s"
            self._report(Denied(kind="peer", source=UNKNOWN, reason=reason))

    async def _reach_app(self, secured: Secured) -> socket.socket | None:
        address = self._known().inbound
        assert address is not None
        try:
            return await dial.connect(self._poller, address.host, address.port)
        except OSError as error:
            first = error
        try:
            return await self._redial(address, secured, first)
        except OSError as error:
            reason = f"{error.strerror or error} for {address.connect_timeout_s:g} s"
            self._report(ConnectionFailed(upstream=None, reason=reason))
            return None

    async def _redial(self, address: AppAddress, secured: Secured, error: OSError) -> socket.socket:
        # What the caller sends meanwhile stays in the kernel.
        deadline = self._loop.time() + address.connect_timeout_s
        delay = FIRST_REDIAL_S
        with dial.watched(self._poller, secured.sock, _current_task().cancel):
            while self._loop.time() + delay < deadline:
                await asyncio.sleep(delay)
                delay = min(delay * 2, LONGEST_REDIAL_S)
                try:
                    async with asyncio.timeout_at(deadline):
                        return await dial.connect(self._poller, address.host, address.port)
                except OSError as again:  # a TimeoutError is one too
                    error = again
        raise error

    def _join(self, call: _Call, app: socket.socket, secured: Secured) -> None:
        splice = Splice(self._poller, app, secured, lambda _: self._calls.discard(call))
        call.cut = splice.reset
        call.live = True
        splice.start()

    def _decide(self, source: str) -> Decision:
        snapshot = self._known()
        return decide(snapshot.intentions, source, snapshot.service, snapshot.default_action)

    def _deny(self, source: str, decision: Decision, *, live: bool) -> None:
        self._report(
            Denied(
                kind="intention",
                source=source,
                reason=decision.reason,
                by_default=decision.intention is None,
                live=live,
            )
        )

    def _known(self) -> Snapshot:
        assert self._snapshot is not None, "the listener runs only once there is a snapshot"
        return self._snapshot


def _canceller() -> Callable[[str], None]:
    # Weak: the call is in a frame of the task itself, which its traceback would keep.
    task = weakref.ref(_current_task())

    def cancel(_reason: str) -> None:
        living = task()
        if living is not None:
            living.cancel()

    return cancel


def _current_task() -> asyncio.Task[None]:
    task = asyncio.current_task()
    assert task is not None
    return task
