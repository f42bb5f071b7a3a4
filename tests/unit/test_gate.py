"""Who may call the app, who is calling it, and what becomes of those who no longer may."""

from collections.abc import Sequence

import pytest
from support.callers import caller

from meshrun.proxy import ledger
from meshrun.proxy.framing import Refusal
from meshrun.proxy.gate import Call, Gate
from meshrun.proxy.intentions import Action, Intention
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.messages import (
    ConnectionFailed,
    Connections,
    Denied,
    Inbound,
    Record,
    Recorded,
    Snapshot,
    Verdicts,
)
from meshrun.proxy.reports import Report


def intention(source: str, action: Action) -> Intention:
    return Intention(source=source, destination="server", action=action)


class Live:
    """A connection that notes that it was cut."""

    def __init__(self, cuts: list[tuple[str, str]]) -> None:
        self._cuts = cuts

    def idle_s(self) -> float:
        return 0.0

    def reset(self, reason: str) -> None:
        self._cuts.append(("live", reason))

    def traffic(self) -> tuple[int, int]:
        return 10, 20


class Watched:
    """A gate, what it reported, and whom it cut."""

    def __init__(self, *intentions: Intention, most: int = 10) -> None:
        self.reports: list[Report] = []
        self.cuts: list[tuple[str, str]] = []
        self.sent: list[Recorded] = []
        self.ledger = Ledger(self.sent.append, lambda: 0)
        self.gate = Gate(self.reports.append, self.ledger, lambda: None)
        self.most = most
        self.apply(*intentions)

    def apply(self, *intentions: Intention) -> None:
        self.gate.apply(snapshot(intentions, self.most))

    def enter(self, source: str, name: str = "") -> Call:
        call = self.gate.enter(
            caller(source), lambda reason: self.cuts.append((name or source, reason))
        )
        assert isinstance(call, Call)
        return call

    def refusal(self, source: str) -> Refusal:
        refusal = self.gate.enter(caller(source), lambda _: None)
        assert isinstance(refusal, Refusal)
        return refusal

    def records(self) -> list[Record]:
        """Return what was recorded; nothing is after that."""
        self.ledger.close()
        return [record for message in self.sent for record in message.records]


def snapshot(intentions: Sequence[Intention], most: int) -> Snapshot:
    return Snapshot(
        version=1,
        service="server",
        instance="server.1",
        identity="spiffe://shop.mesh/ns/default/dc/local/svc/server",
        roots=(),
        default_action="deny",
        intentions=tuple(intentions),
        inbound=Inbound(host="127.0.0.1", port=1, connect_timeout_s=1.0, max_connections=most),
        upstreams=(),
    )


def test_an_allowed_caller_is_let_in_without_a_word() -> None:
    gate = Watched(intention("web", "allow"))
    call = gate.enter("web")
    assert (call.caller.service, call.live) == ("web", None)
    assert not gate.reports


def test_a_denied_caller_is_refused_and_reported_once() -> None:
    gate = Watched(intention("web", "deny"))
    assert gate.refusal("web") is Refusal.DENIED
    (report,) = gate.reports
    assert isinstance(report, Denied)
    assert (report.source, report.by_default, report.live) == ("web", False, False)


def test_a_caller_without_an_intention_is_refused_by_the_default() -> None:
    gate = Watched()
    assert gate.refusal("web") is Refusal.DENIED
    (report,) = gate.reports
    assert isinstance(report, Denied)
    assert report.by_default


def test_a_deny_cuts_those_inside_whom_it_forbids_and_no_others() -> None:
    gate = Watched(intention("*", "allow"))
    gate.gate.connected(gate.enter("web"), Live(gate.cuts))
    gate.enter("web", "waiting")
    gate.enter("api")
    gate.apply(intention("web", "deny"), intention("*", "allow"))
    assert sorted(name for name, _ in gate.cuts) == ["live", "waiting"]
    assert all("deny" in reason for _, reason in gate.cuts)
    denied = [report for report in gate.reports if isinstance(report, Denied)]
    assert sorted(report.live for report in denied) == [False, True]
    gate.apply(intention("web", "deny"), intention("*", "allow"))
    assert len(gate.cuts) == len(gate.reports) == 2, "nobody is cut twice"


def test_an_allow_that_stays_an_allow_cuts_nobody() -> None:
    gate = Watched(intention("web", "allow"))
    gate.enter("web")
    gate.apply(intention("*", "allow"))
    assert not gate.cuts


def test_one_who_left_is_not_cut() -> None:
    gate = Watched(intention("web", "allow"))
    call = gate.enter("web")
    gate.gate.leave(call)
    gate.gate.leave(call)
    gate.apply()
    assert not gate.cuts
    assert not gate.reports


@pytest.mark.parametrize("most", [1, 3])
def test_more_than_the_app_may_have_are_refused_until_one_leaves(most: int) -> None:
    gate = Watched(intention("*", "allow"), most=most)
    calls = [gate.enter("web") for _ in range(most)]
    assert gate.refusal("api") is Refusal.BUSY
    assert gate.reports == [
        ConnectionFailed(
            upstream=None,
            reason=f"{most} connections are open, and no more are allowed (max_connections)",
        )
    ]
    gate.gate.leave(calls[0])
    gate.enter("api")


def test_a_caller_that_is_denied_hears_nothing_of_the_limit() -> None:
    gate = Watched(intention("web", "allow"), most=1)
    gate.enter("web")
    assert gate.refusal("api") is Refusal.DENIED


def test_at_the_end_everybody_is_cut() -> None:
    gate = Watched(intention("*", "allow"))
    gate.enter("web")
    gate.gate.connected(gate.enter("api"), Live(gate.cuts))
    gate.gate.close()
    assert sorted(gate.cuts) == [("live", "the sidecar stops"), ("web", "the sidecar stops")]
    assert not gate.reports


def test_every_decision_and_every_connection_to_the_app_is_counted_once() -> None:
    gate = Watched(intention("web", "allow"))
    over, live, waiting = (gate.enter("web") for _ in range(3))
    gate.gate.connected(over, Live(gate.cuts))
    gate.gate.connected(live, Live(gate.cuts))
    gate.gate.leave(over)
    gate.gate.leave(over)
    gate.gate.leave(waiting, "its app does not answer")
    gate.refusal("api")
    stats = gate.ledger.stats(1, gate.gate.traffic())
    assert stats.connections == (
        Connections(source="web", opened=2, open=1, received_bytes=20, sent_bytes=40),
    )
    assert stats.verdicts == (
        Verdicts(source="web", allowed=3, denied=0, dry_run_denied=0),
        Verdicts(source="api", allowed=0, denied=1, dry_run_denied=0),
    )
    gate.apply()
    stats = gate.ledger.stats(2, gate.gate.traffic())
    assert stats.connections[0].open == 0
    assert stats.verdicts[0].denied == 1, "the live one was cut"


def test_what_is_over_is_recorded_with_who_it_was_and_how_it_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate = Watched(intention("web", "allow"), intention("db", "allow"), most=2)
    gate.enter("web")  # before anybody wants to know
    monkeypatch.setattr(ledger, "BATCH_RECORDS", 1)
    gate.ledger.recording = True
    gate.refusal("api")
    broken = gate.enter("web")
    gate.gate.connected(broken, Live(gate.cuts))
    gate.refusal("db")
    gate.gate.leave(broken, "it was reset")
    gate.gate.connected(gate.enter("db"), Live(gate.cuts))
    gate.apply(intention("web", "allow"))
    api, full, reset, cut = gate.records()
    assert {r.identity for r in (api, full, reset, cut)} == {
        caller(service).identity for service in ("api", "web", "db")
    }
    assert {(r.kind, r.destination, r.protocol) for r in (api, cut)} == {
        ("connection", "server", "tcp")
    }
    assert (api.denied, api.failure) == (True, "")
    assert "max_connections" in full.failure
    assert (reset.failure, reset.received_bytes, reset.sent_bytes) == ("it was reset", 10, 20)
    assert (cut.source, cut.denied, cut.sent_bytes) == ("db", True, 20)
