"""Who may call the app, and who is calling it: every caller passes here, and stays known."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from meshrun.proxy.framing import Refusal
from meshrun.proxy.idleness import Cuttable, IdleWatch
from meshrun.proxy.intentions import Decision, decide
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.messages import ConnectionFailed, Denied, Inbound, Record, Snapshot
from meshrun.proxy.reports import Report

__all__ = ["GONE", "Call", "Gate", "Live"]

# Why a call failed that nobody waited for.
GONE = "the caller left before the app was reached"


class Live(Cuttable, Protocol):
    """A connection to the app."""

    def traffic(self) -> tuple[int, int]:
        """Return how many bytes the app was sent and sent itself, also when it is over."""


@dataclass(slots=True, eq=False)
class Call:
    """A caller that was let in; `cut` ends its connection whatever state it is in.

    `live` is its connection to the app, once there is one. `identity` is the SPIFFE ID that it
    proved, `began` a time of the monotonic clock.
    """

    source: str
    cut: Callable[[str], object]
    identity: str
    began: float
    live: Live | None = None


class Gate:
    """Lets callers in as long as `apply` said that they may call."""

    def __init__(self, report: Callable[[Report], None], ledger: Ledger) -> None:
        self._report = report
        self._ledger = ledger
        self._snapshot: Snapshot | None = None
        self._calls: set[Call] = set()
        self._idle = IdleWatch(self._live, self._idle_cut)

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
        self._idle.set(None if snapshot.inbound is None else snapshot.inbound.idle_timeout_s)
        for call in list(self._calls):
            decision = self._decide(call.source)
            if not decision.allowed:
                self._report(_denied(call.source, decision, live=call.live is not None))
                self._ledger.judged(call.source, allowed=False)
                self.leave(call, denied=True)
                call.cut(decision.reason)

    def enter(self, source: str, cut: Callable[[str], object], identity: str) -> Call | Refusal:
        """Let a caller in, or return and report why not."""
        decision = self._decide(source)
        self._ledger.judged(source, allowed=decision.allowed)
        call = Call(source, cut, identity, time.monotonic())
        if not decision.allowed:
            self._report(_denied(source, decision, live=False))
            self._record(call, denied=True)
            return Refusal.DENIED
        most = self.app.max_connections
        if len(self._calls) >= most:
            reason = f"{most} connections are open, and no more are allowed (max_connections)"
            self._report(ConnectionFailed(upstream=None, reason=reason))
            self._record(call, failure=reason)
            return Refusal.BUSY
        self._calls.add(call)
        return call

    def connected(self, call: Call, live: Live) -> None:
        """The app has been reached for `call`: from now on to cut it is to reset `live`."""
        call.cut, call.live = live.reset, live
        self._ledger.connected(call.source)
        self._idle.connected()

    def leave(self, call: Call, failure: str | None = None, *, denied: bool = False) -> None:
        """Forget a caller, whose connection is over: in order, or with a `failure`."""
        if call not in self._calls:
            return
        self._calls.discard(call)
        if call.live is not None:
            self._ledger.disconnected(call.source, *call.live.traffic())
        self._record(call, failure or "", denied=denied)

    def traffic(self) -> Iterator[tuple[str, int, int]]:
        """Yield source, received and sent bytes of each open connection."""
        for call in self._calls:
            if call.live is not None:
                yield call.source, *call.live.traffic()

    def close(self) -> None:
        """Cut every call."""
        self._idle.close()
        for call in list(self._calls):
            call.cut("the sidecar stops")

    def _record(self, call: Call, failure: str = "", *, denied: bool = False) -> None:
        if not self._ledger.recording:
            return
        received_bytes, sent_bytes = (0, 0) if call.live is None else call.live.traffic()
        duration_s = time.monotonic() - call.began
        self._ledger.record(
            Record(
                at=time.time() - duration_s,
                kind="connection",
                source=call.source,
                identity=call.identity,
                destination=self.snapshot.service,
                duration_s=duration_s,
                protocol="tcp",
                received_bytes=received_bytes,
                sent_bytes=sent_bytes,
                denied=denied,
                failure=failure,
            )
        )

    def _live(self) -> list[Cuttable]:
        return [call.live for call in self._calls if call.live is not None]

    def _idle_cut(self, reason: str) -> None:
        self._report(ConnectionFailed(upstream=None, reason=reason))

    def _decide(self, source: str) -> Decision:
        snapshot = self.snapshot
        return decide(snapshot.intentions, source, snapshot.service, snapshot.default_action)


def _denied(source: str, decision: Decision, *, live: bool) -> Denied:
    return Denied(
        kind="intention",
        source=source,
        reason=decision.reason,
        by_default=decision.intention is None,
        live=live,
    )
