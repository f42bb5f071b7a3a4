"""Who the sidecar is: its leaf, the TLS contexts made of it, and its renewal.

The wall clock decides, since a leaf's life goes on while a laptop sleeps: a timer looks at it, and
so does every handshake.
"""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from ssl import SSLContext

from cryptography.hazmat.primitives.asymmetric import ec

from meshrun.proxy import leaf, tls
from meshrun.proxy.backoff import delay_s
from meshrun.proxy.errors import IdentityError
from meshrun.proxy.intentions import Protocol
from meshrun.proxy.leaf import Leaf
from meshrun.proxy.messages import (
    FromSidecar,
    LeafIssued,
    LeafRefused,
    LeafRequested,
    Logged,
    Serving,
)
from meshrun.proxy.spiffe import SpiffeId

__all__ = ["EXPIRED", "Credentials", "Identity"]

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 30.0

# A control plane that signs for many sidecars at once may need a moment.
ANSWER_WITHIN_S = 5.0

# A timer of the loop stands still while the machine sleeps, so none is set for longer.
LONGEST_TIMER_S = 600.0

# What is said of a connection that waited for a new leaf in vain.
EXPIRED = "this sidecar's leaf has expired, and the control plane gives no new one"


@dataclass(frozen=True, slots=True)
class Credentials:
    """A leaf and the contexts that show it; new ones for each leaf and each change of the roots.

    `client_context` offers tunnels, `direct_context` does not.
    """

    leaf: Leaf
    server_context: SSLContext
    client_context: SSLContext
    direct_context: SSLContext


@dataclass(frozen=True, slots=True)
class _Request:
    number: int
    key: ec.EllipticCurvePrivateKey


class Identity:
    """Holds the current credentials and replaces them in time.

    `send` reaches the control plane, `now` is the wall clock, `on_serving` is called whenever new
    credentials are in use.
    """

    def __init__(
        self,
        send: Callable[[FromSidecar], None],
        now: Callable[[], float],
        rng: Random,
        on_serving: Callable[[], None],
    ) -> None:
        self._send = send
        self._now = now
        self._rng = rng
        self._on_serving = on_serving
        self._loop = asyncio.get_running_loop()
        self._spiffe_id: SpiffeId | None = None
        self._roots: tuple[bytes, ...] = ()
        self._app: Protocol = "tcp"
        self._current: Credentials | None = None
        self._renewed = asyncio.Event()
        self._requests = 0
        self._pending: _Request | None = None
        self._failures = 0
        self._ask_at = float("inf")
        self._timer: asyncio.TimerHandle | None = None

    @property
    def ready(self) -> bool:
        """Whether there ever was a leaf."""
        return self._current is not None

    @property
    def expired(self) -> bool:
        """Whether there is no leaf that may be shown now."""
        return self._current is None or self._now() >= self._current.leaf.not_after

    def serves(self, credentials: Credentials, not_after: float) -> bool:
        """Return whether `credentials` are the current ones, and it is before `not_after`."""
        return self._current is credentials and self._now() < not_after

    def expect(self, spiffe_id: SpiffeId, roots: Sequence[bytes], app: Protocol = "tcp") -> None:
        """Be `spiffe_id` and trust `roots` (DER) from now on, in front of an app that speaks so."""
        roots = tuple(roots)
        if spiffe_id != self._spiffe_id:
            self._spiffe_id, self._roots, self._app = spiffe_id, roots, app
            self._current = None
            self.renew()
        elif roots != self._roots or app != self._app:
            self._roots, self._app = roots, app
            if self._current is not None and self._try_to_equip(self._current.leaf):
                self._on_serving()

    def renew(self) -> None:
        """Ask for a leaf for a new key, now."""
        if self._spiffe_id is None:
            return
        self._requests += 1
        self._pending = _Request(self._requests, leaf.new_key())
        csr = leaf.request(self._pending.key, self._spiffe_id)
        # Before the send: its answer may already be there, and sets another time.
        self._ask_again(max(ANSWER_WITHIN_S, self._retry_s()))
        self._failures += 1
        self._send(LeafRequested(request=self._requests, csr=csr))

    def issued(self, message: LeafIssued) -> None:
        """Use the leaf of `message`, if it answers the last request."""
        request = self._pending
        if request is None or request.number != message.request:
            return
        self._pending = None
        try:
            new = leaf.assemble(request.key, message.chain, message.issued_at)
        except IdentityError as error:
            self._failed(str(error))
            return
        if not self._try_to_equip(new):
            return
        self._failures = 0
        self._ask_at = leaf.renew_at(new.issued_at, new.not_after, self._rng.random())
        self._set_timer()
        self._send(Serving(serial=new.serial))
        self._on_serving()

    def refused(self, message: LeafRefused) -> None:
        """Try again later; the old leaf serves until it expires."""
        if self._pending is not None and self._pending.number == message.request:
            self._pending = None
            self._failed(message.reason)

    async def credentials(self) -> Credentials:
        """Return what to show in a handshake now; where that has expired, wait for a new leaf.

        The caller has the deadline.
        """
        while True:
            if self._now() >= self._ask_at:
                self.renew()
            if self._current is not None and not self.expired:
                return self._current
            await self._renewed.wait()

    def close(self) -> None:
        """Stop the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _try_to_equip(self, with_leaf: Leaf) -> bool:
        # Contexts are never changed, only replaced: live connections keep theirs. The key passes
        # through a memfd, for which there may be no descriptor left.
        try:
            self._current = Credentials(
                leaf=with_leaf,
                server_context=tls.server_context(
                    with_leaf, self._roots, tunnels=True, app=self._app
                ),
                client_context=tls.client_context(with_leaf, self._roots, tunnels=True),
                direct_context=tls.client_context(with_leaf, self._roots, tunnels=False),
            )
        except (IdentityError, OSError) as error:
            self._failed(str(error))
            return False
        self._renewed.set()
        self._renewed = asyncio.Event()
        return True

    def _failed(self, reason: str) -> None:
        self._ask_again(self._retry_s())
        message = f"cannot get a leaf for {self._spiffe_id}: {reason}"
        self._send(Logged(level="warning", message=message))

    def _retry_s(self) -> float:
        return delay_s(self._failures, FIRST_RETRY_S, LONGEST_RETRY_S)

    def _ask_again(self, delay: float) -> None:
        self._ask_at = self._now() + delay
        self._set_timer()

    def _set_timer(self) -> None:
        self.close()
        wait = min(max(self._ask_at - self._now(), 0.0), LONGEST_TIMER_S)
        self._timer = self._loop.call_later(wait, self._look)

    def _look(self) -> None:
        if self._now() >= self._ask_at:
            self.renew()
        else:
            self._set_timer()
