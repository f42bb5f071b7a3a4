"""Who may call the app, and who is calling it: every caller passes here, and stays known."""

from collections.abc import Callable
from dataclasses import dataclass

from meshrun.proxy.framing import Refusal
from meshrun.proxy.idleness import Cuttable, IdleWatch
from meshrun.proxy.intentions import Decision, decide
from meshrun.proxy.messages import ConnectionFailed, Denied, Inbound, Snapshot
from meshrun.proxy.reports import Report

__all__ = ["Call", "Gate"]


@dataclass(slots=True, eq=False)
class Call:
    """A caller that was let in; `cut` ends its connection whatever state it is in.

    `live` is its connection to the app, once there is one.
    """

    source: str
    cut: Callable[[str], object]
    live: Cuttable | None = None


class Gate:
    """Lets callers in as long as `apply` said that they may call."""

    def __init__(self, report: Callable[[Report], None]) -> None:
        self._report = report
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
                self.leave(call)
                call.cut(decision.reason)

    def enter(self, source: str, cut: Callable[[str], object]) -> Call | Refusal:
        """Let a caller in, or return and report why not."""
        decision = self._decide(source)
        if not decision.allowed:
            self._report(_denied(source, decision, live=False))
            return Refusal.DENIED
        most = self.app.max_connections
        if len(self._calls) >= most:
            reason = f"{most} connections are open, and no more are allowed (max_connections)"
            self._report(ConnectionFailed(upstream=None, reason=reason))
            return Refusal.BUSY
        call = Call(source, cut)
        self._calls.add(call)
        return call

    def connected(self, call: Call, live: Cuttable) -> None:
        """The app has been reached for `call`: from now on to cut it is to reset `live`."""
        call.cut, call.live = live.reset, live
        self._idle.connected()

    def leave(self, call: Call) -> None:
        """Forget a caller, whose connection is over."""
        self._calls.discard(call)

    def close(self) -> None:
        """Cut every call."""
        self._idle.close()
        for call in list(self._calls):
            call.cut("the sidecar stops")

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
