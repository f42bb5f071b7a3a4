"""Who may call the app, and who is calling it: every caller passes here, and stays known."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from meshrun.proxy.caller import Caller
from meshrun.proxy.drain import Drain
from meshrun.proxy.framing import Refusal
from meshrun.proxy.http.heads import Fields
from meshrun.proxy.idleness import EXCHANGE_IDLE_S, Cuttable, IdleWatch
from meshrun.proxy.intentions import Asked, Decision, Rules
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.messages import ConnectionFailed, Denied, Inbound, Record, Snapshot
from meshrun.proxy.reports import Report

__all__ = ["GONE", "Call", "Gate", "Live", "Requested"]

# Why a call failed that nobody waited for.
GONE = "the caller left before the app was reached"

# How much of a request is shown with its denial.
SHOWN_REQUEST = 256


class Live(Cuttable, Protocol):
    """A connection to the app."""

    def traffic(self) -> tuple[int, int]:
        """Return how many bytes the app was sent and sent itself, also when it is over."""


class Requested(Cuttable, Protocol):
    """A request of a connection that was admitted, on its way to the app and back."""

    @property
    def caller(self) -> Caller:
        """Who makes it."""

    @property
    def request(self) -> Asked:
        """What is decided about."""

    def forbid(self, reason: str) -> None:
        """Break it off, since it is not allowed any more."""


@dataclass(slots=True, eq=False)
class Call:
    """A connection that was let in.

    `cut` ends it whatever state it is in. `live` is its counterpart at the app, once there is one.
    `began` is a time of the monotonic clock. `dry_run` says that a rule on trial would have denied
    it.
    """

    caller: Caller
    cut: Callable[[str], object]
    dry_run: bool = False
    began: float = 0.0
    live: Live | None = None


class Gate:
    """Lets callers in as long as `apply` said that they may call.

    `drained` is called when a snapshot that asks for it finds, or leaves, nobody here.
    """

    def __init__(
        self, report: Callable[[Report], None], ledger: Ledger, drained: Callable[[], None]
    ) -> None:
        self._report = report
        self._ledger = ledger
        self._snapshot: Snapshot | None = None
        self._rules: Rules | None = None
        self._connections: set[Call] = set()
        self._requests: set[Requested] = set()
        self._admitted: set[Call] = set()
        self._idle = IdleWatch(self._live, self._idle_cut)
        self._drain = Drain(lambda: bool(self._connections or self._requests), drained)

    @property
    def snapshot(self) -> Snapshot:
        """What was applied last; the listener runs only once there is one."""
        assert self._snapshot is not None, "a caller came before there was a snapshot"
        return self._snapshot

    @property
    def app(self) -> Inbound:
        """Where the app listens."""
        address = self.snapshot.inbound
        assert address is not None, "a caller came to an app that takes no calls"
        return address

    def apply(self, snapshot: Snapshot) -> None:
        """Obey `snapshot`: on return no call is left that it forbids."""
        self._snapshot = snapshot
        inbound = snapshot.inbound
        protocol = "tcp" if inbound is None else inbound.protocol
        idle_timeout_s = None if inbound is None else inbound.idle_timeout_s
        self._idle.set(idle_timeout_s or (None if protocol == "tcp" else EXCHANGE_IDLE_S))
        self._rules = Rules(
            snapshot.intentions, snapshot.service, snapshot.default_action, protocol
        )
        for call in list(self._connections):
            decision = self._rules.decide(call.caller.service)
            if not decision.allowed:
                self._withdraw(call.caller, None, decision, live=call.live is not None)
                self.leave(call, denied=True)
                call.cut(decision.reason)
        for requested in list(self._requests):
            caller, request = requested.caller, requested.request
            decision = self._rules.decide(caller.service, request)
            if not decision.allowed:
                self._withdraw(caller, request, decision, live=True)
                requested.forbid(decision.reason)
        self._drain.set(on=inbound is not None and inbound.draining)

    def enter(self, caller: Caller, cut: Callable[[str], object]) -> Call | Refusal:
        """Let a connection in, or return and report why not."""
        decision = self._decide(caller, None)
        call = Call(caller, cut, dry_run=decision.dry_run, began=time.monotonic())
        if not decision.allowed:
            self._record(call, denied=True)
            return Refusal.DENIED
        if self._full():
            self._record(call, failure=self._complain_of_room())
            return Refusal.BUSY
        self._connections.add(call)
        return call

    def admit(
        self, caller: Caller, cut: Callable[[str], object], make_room: Callable[[], bool]
    ) -> Call | Refusal:
        """Let a connection in whose requests are judged one by one, if there is room for it.

        `make_room` is asked for the place of another, and returns whether it has cut one.
        """
        if self._full() and not make_room():
            self._complain_of_room()
            return Refusal.BUSY
        call = Call(caller, cut)
        self._admitted.add(call)
        return call

    def judge(self, requested: Requested) -> Decision:
        """Let a request in until it is `done`, or report that it may not be made."""
        decision = self._decide(requested.caller, requested.request)
        if decision.allowed:
            self._requests.add(requested)
            self._idle.connected()
        return decision

    def undecided(self, caller: Caller, fields: Fields) -> Fields:
        """Return those fields that no rule about the caller looks at."""
        rules = self._rules
        assert rules is not None, "a caller came before there was a snapshot"
        return [pair for pair in fields if not rules.looks_at(caller.service, pair[0])]

    def done(self, requested: Requested) -> None:
        """A request is over, whether or not it was let in."""
        self._requests.discard(requested)
        if self._drain.on:
            self._drain.look()

    def connected(self, call: Call, live: Live) -> None:
        """The app has been reached for `call`: from now on to cut it is to reset `live`."""
        call.cut, call.live = live.reset, live
        self._ledger.connected(call.caller.service)
        self._idle.connected()

    def leave(self, call: Call, failure: str | None = None, *, denied: bool = False) -> None:
        """Forget a connection that is over: in order, or with a `failure`."""
        self._admitted.discard(call)
        if call not in self._connections:
            return
        self._connections.discard(call)
        if call.live is not None:
            self._ledger.disconnected(call.caller.service, *call.live.traffic())
        self._record(call, failure or "", denied=denied)
        if self._drain.on:
            self._drain.look()

    def traffic(self) -> Iterator[tuple[str, int, int]]:
        """Yield source, received and sent bytes of each open connection."""
        for call in self._connections:
            if call.live is not None:
                yield call.caller.service, *call.live.traffic()

    def close(self) -> None:
        """Cut every call."""
        self._idle.close()
        self._drain.close()
        for call in [*self._connections, *self._admitted]:
            call.cut("the sidecar stops")

    def _full(self) -> bool:
        return len(self._connections) + len(self._admitted) >= self.app.max_connections

    def _complain_of_room(self) -> str:
        most = self.app.max_connections
        reason = f"{most} connections are open, and no more are allowed (max_connections)"
        self._report(ConnectionFailed(upstream=None, reason=reason))
        return reason

    def _record(self, call: Call, failure: str = "", *, denied: bool = False) -> None:
        if not self._ledger.recording:
            return
        received_bytes, sent_bytes = (0, 0) if call.live is None else call.live.traffic()
        duration_s = time.monotonic() - call.began
        self._ledger.record(
            Record(
                at=time.time() - duration_s,
                kind="connection",
                source=call.caller.service,
                identity=call.caller.identity,
                destination=self.snapshot.service,
                duration_s=duration_s,
                protocol="tcp",
                received_bytes=received_bytes,
                sent_bytes=sent_bytes,
                denied=denied,
                dry_run=call.dry_run,
                failure=failure,
            )
        )

    def _live(self) -> list[Cuttable]:
        live: list[Cuttable] = [call.live for call in self._connections if call.live is not None]
        return [*live, *self._requests]

    def _idle_cut(self, reason: str) -> None:
        self._report(ConnectionFailed(upstream=None, reason=reason))

    def _decide(self, caller: Caller, request: Asked | None) -> Decision:
        assert self._rules is not None, "a caller came before there was a snapshot"
        decision = self._rules.decide(caller.service, request)
        self._ledger.judged(caller.service, allowed=decision.allowed, dry_run=decision.dry_run)
        if not decision.allowed or decision.dry_run:
            self._say_denied(caller, request, decision, live=False)
        return decision

    def _withdraw(
        self, caller: Caller, request: Asked | None, decision: Decision, *, live: bool
    ) -> None:
        self._say_denied(caller, request, decision, live=live)
        self._ledger.judged(caller.service, allowed=False)

    def _say_denied(
        self, caller: Caller, request: Asked | None, decision: Decision, *, live: bool
    ) -> None:
        self._report(
            Denied(
                kind="intention",
                source=caller.service,
                reason=decision.reason,
                by_default=decision.intention is None,
                live=live,
                dry_run=decision.dry_run,
                request=""
                if request is None
                else f"{request.method} {request.path}"[:SHOWN_REQUEST],
            )
        )
