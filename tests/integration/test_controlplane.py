"""The control plane against workers that the test plays: dead ones, disobedient ones."""

import asyncio
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from meshrun.proxy import channel, leaf, messages, tasks
from meshrun.proxy.channel import Channel
from meshrun.proxy.intentions import HeaderMatch, Intention, Permission
from meshrun.supervisor import ca, plan
from meshrun.supervisor.bell import Bell
from meshrun.supervisor.configuration.model import (
    App,
    Configuration,
    External,
    Mesh,
    UpstreamReference,
)
from meshrun.supervisor.controlplane import ControlPlane
from meshrun.supervisor.plan import Plan, Selection, Worker

PATIENCE_S = 20.0
# How long is waited for what must not come.
SHORT_S = 0.1

WEB = App(name="web", command=("true",))


class Notes:
    """Whoever is told what workers report, and keeps whose it was."""

    def __init__(self) -> None:
        self.broke: list[str] = []
        self.closed: list[str] = []
        self.drained: list[str] = []
        self.ready: list[str] = []
        self.serving: list[str] = []
        self.bell = Bell()

    def denied(self, worker: Worker, report: messages.Denied) -> None: ...

    def connection_failed(self, worker: Worker, report: messages.ConnectionFailed) -> None: ...

    def rotated(self, worker: Worker, leaf: ca.IssuedLeaf, *, first: bool) -> None:
        self.serving.append(worker.name)
        self.bell.ring()

    def worker_ready(self, worker: Worker) -> None:
        self.ready.append(worker.name)
        self.bell.ring()

    def recorded(self, worker: Worker, message: messages.Recorded) -> None: ...

    def worker_said(self, worker: Worker, report: messages.Logged) -> None: ...

    def worker_broke(self, worker: Worker, reason: str) -> None:
        self.broke.append(worker.name)

    def worker_drained(self, worker: Worker) -> None:
        self.drained.append(worker.name)
        self.bell.ring()

    def worker_closed(self, worker: Worker, reason: str) -> None:
        self.closed.append(worker.name)


class Played:
    """A worker played by the test: does what it is told only while it is `obedient`."""

    def __init__(self, control: ControlPlane, worker: Worker) -> None:
        self.worker = worker
        self.obedient = True
        self.counted = 0
        self.snapshots: list[messages.Snapshot] = []
        self.heard = Bell()
        self._key = leaf.new_key()
        self._requests = 0
        self._asked = 0
        ours, theirs = socket.socketpair()
        self._channel = Channel(theirs, channel.to_sidecar(), self._received, lambda _: None)
        control.attach(worker, ours)

    def _received(self, message: messages.ToSidecar) -> None:
        match message:
            case messages.Snapshot():
                self.snapshots.append(message)
                if self.obedient:
                    self.acknowledge()
            case messages.Renew():
                if self.obedient:
                    self.renew()
            case messages.LeafIssued(chain=chain, issued_at=issued_at):
                serial = leaf.assemble(self._key, chain, issued_at).serial
                self._channel.send(messages.Serving(serial=serial))
            case messages.StatsRequested(number=number):
                self._asked = number
                if self.obedient:
                    self.tell()
        self.heard.ring()

    @property
    def asked(self) -> bool:
        """Whether it was asked what it has counted."""
        return self._asked != 0

    def acknowledge(self) -> None:
        """Say that the newest snapshot is enforced."""
        self._channel.send(messages.Enforced(version=self.snapshots[-1].version))

    def tell(self) -> None:
        """Say what was counted: connections, of which one is open."""
        one = messages.Connections(
            source="api", opened=self.counted, open=1, received_bytes=0, sent_bytes=0
        )
        self._channel.send(messages.Stats(number=self._asked, connections=(one,)))

    def drained(self) -> None:
        """Say that nothing goes to the app any more."""
        self._channel.send(messages.Drained(version=self.snapshots[-1].version))

    def renew(self) -> None:
        """Ask for a leaf, and serve it."""
        self._requests += 1
        csr = leaf.request(self._key, self.worker.instance.identity)
        self._channel.send(messages.LeafRequested(request=self._requests, csr=csr))

    def end(self) -> None:
        """Close the channel, as a process does that ends."""
        self._channel.close()


class Site:
    """A control plane, and the workers of its first sidecar."""

    def __init__(self, folder: Path, *apps: App, **services: External) -> None:
        self.plan = planned(folder, *apps, **services)
        self.notes = Notes()
        self.intentions: list[Intention] = []
        self.recording = False
        root = ca.create_root("shop.mesh", datetime.now(tz=UTC))
        self.control = ControlPlane(
            lambda: self.plan,
            root,
            lambda: list(self.intentions),
            lambda _: self.recording,
            self.notes,
            time.time,
        )
        for instance in self.plan.instances:
            self.control.add(instance)
        self.workers: list[Played] = []

    async def start(self) -> None:
        """Play every worker until each serves."""
        self.workers = [Played(self.control, w) for w in self.plan.instances[0].sidecar]
        for worker in self.workers:
            worker.renew()
        await self.reached(lambda: self.control.is_ready("web.1"))

    async def reached(self, condition: Callable[[], bool]) -> None:
        """Wait until something has come of what workers said."""
        assert await self.notes.bell.until(condition, PATIENCE_S)

    def end(self) -> None:
        """Close both ends of every channel."""
        self.control.close()
        for worker in self.workers:
            worker.end()


def planned(folder: Path, *apps: App, **services: External) -> Plan:
    configuration = Configuration(
        file="mesh.toml",
        folder=folder,
        mesh=Mesh(name="shop"),
        apps={app.name: app for app in apps},
        services=services,
        intentions=(),
    )
    return plan.make(configuration, Selection(), {}, lambda _wish, _port: True, {}, None)


def play(site: Site, scenario: Callable[[], Awaitable[None]]) -> None:
    """Run a scenario with every worker of the first sidecar in service."""

    async def run() -> None:
        await site.start()
        await scenario()
        assert site.notes.broke == []
        site.end()

    asyncio.run(run())


def pair(folder: Path) -> Site:
    """A sidecar of two workers."""
    return Site(folder, App(name="web", command=("true",), workers=2))


def test_a_sidecar_that_is_dead_when_it_is_told_breaks_nobody_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        site = Site(tmp_path, WEB)
        ours, theirs = socket.socketpair()
        theirs.close()
        site.control.attach(site.plan.instances[0].sidecar[0], ours)
        assert site.notes.closed == ["web.1"]
        assert not site.control.is_ready("web.1")
        assert await site.control.enforced(SHORT_S) == []
        site.control.set_ready({"web.1"})
        site.control.close()

    asyncio.run(scenario())


def test_a_sidecar_is_ready_when_every_worker_serves_and_not_while_one_is_gone(
    tmp_path: Path,
) -> None:
    async def scenario() -> None:
        site = pair(tmp_path)
        first, second = site.workers = [
            Played(site.control, worker) for worker in site.plan.instances[0].sidecar
        ]
        first.renew()
        await site.reached(lambda: site.notes.ready == ["web.1/1"])
        assert not site.control.is_ready("web.1")
        second.renew()
        await site.reached(lambda: site.notes.ready == ["web.1/1", "web.1/2"])
        assert site.control.is_ready("web.1")
        site.control.detach(second.worker)
        assert not site.control.is_ready("web.1")
        assert [worker.number for worker, _ in site.control.leaves()] == [1]
        again = Played(site.control, second.worker)
        again.renew()
        await site.reached(lambda: site.control.is_ready("web.1"))
        again.end()
        site.end()

    asyncio.run(scenario())


def test_each_worker_has_a_leaf_of_its_own_for_the_same_identity(tmp_path: Path) -> None:
    site = pair(tmp_path)

    async def scenario() -> None:
        leaves = site.control.leaves()
        assert [worker.name for worker, _ in leaves] == ["web.1/1", "web.1/2"]
        assert len({leaf.serial for _, leaf in leaves}) == 2
        assert len({str(leaf.identity) for _, leaf in leaves}) == 1

    play(site, scenario)


def test_a_change_is_enforced_when_every_worker_has_acknowledged_it(tmp_path: Path) -> None:
    site = pair(tmp_path)

    async def scenario() -> None:
        assert await site.control.enforced(PATIENCE_S) == []
        _, second = site.workers
        second.obedient = False
        site.intentions.append(Intention(source="*", destination="web", action="allow"))
        assert second.worker in await site.control.enforced(SHORT_S)
        assert await second.heard.until(lambda: bool(second.snapshots[-1].intentions), PATIENCE_S)
        second.acknowledge()
        assert await site.control.enforced(PATIENCE_S) == []

    play(site, scenario)


def test_a_rotation_is_done_when_every_worker_serves_its_new_leaf(tmp_path: Path) -> None:
    site = pair(tmp_path)

    async def scenario() -> None:
        before = {leaf.serial for _, leaf in site.control.leaves()}
        _, second = site.workers
        second.obedient = False
        assert second.worker in await site.control.rotate(["web.1"], SHORT_S)
        second.obedient = True
        assert await site.control.rotate(["web.1"], PATIENCE_S) == []
        assert not before & {leaf.serial for _, leaf in site.control.leaves()}

    play(site, scenario)


def test_each_worker_is_told_its_part_of_a_limit(tmp_path: Path) -> None:
    few = UpstreamReference(
        service="db",
        name="db",
        max_connections=7,
        requests=messages.Requests(most_in_flight=10, most_pending=4, retries=3),
    )
    web = App(name="web", command=("true",), workers=3, max_connections=100, upstreams=(few,))
    site = Site(tmp_path, web, db=External(name="db", address="127.0.0.1:5432"))

    async def scenario() -> None:
        told = [worker.snapshots[-1] for worker in site.workers]
        assert [s.inbound.max_connections for s in told if s.inbound] == [34, 33, 33]
        assert [s.upstreams[0].max_connections for s in told] == [3, 2, 2]
        requests = [s.upstreams[0].requests for s in told]
        assert [(r.most_in_flight, r.most_pending) for r in requests] == [(4, 2), (3, 1), (3, 1)]
        assert {r.retries for r in requests} == {3}

    play(site, scenario)


def test_a_sidecar_is_told_the_instances_of_each_service_that_shares_its_requests(
    tmp_path: Path,
) -> None:
    shared = UpstreamReference(service="api", name="api", split=(("api", 90), ("new", 10)))
    site = Site(
        tmp_path,
        App(name="web", command=("true",), protocol="http", upstreams=(shared,)),
        App(name="api", command=("true",), protocol="http2", instances=2),
        App(name="new", command=("true",), protocol="http2"),
    )

    async def scenario() -> None:
        site.control.set_ready({"web.1", "api.2", "new.1"})
        (worker,) = site.workers
        assert await worker.heard.until(
            lambda: bool(worker.snapshots[-1].upstreams[0].endpoints), PATIENCE_S
        )
        told = worker.snapshots[-1]
        assert told.inbound is not None
        assert told.inbound.protocol == "http"
        (upstream,) = told.upstreams
        assert (upstream.service, upstream.protocol) == ("api", "http2")
        found = [
            (share.service, share.weight, [endpoint.instance for endpoint in share.endpoints])
            for share in upstream.split
        ]
        assert found == [("api", 90, ["api.2"]), ("new", 10, ["new.1"])]
        assert [share.identity.rpartition("/")[2] for share in upstream.split] == ["api", "new"]
        assert upstream.endpoints == upstream.split[0].endpoints

    play(site, scenario)


def counted(stats: messages.Stats | None) -> tuple[int, int]:
    """How many connections were opened, and how many are open."""
    assert stats is not None
    return (sum(c.opened for c in stats.connections), sum(c.open for c in stats.connections))


def test_what_a_sidecar_has_counted_is_the_sum_of_its_workers_dead_ones_included(
    tmp_path: Path,
) -> None:
    site = pair(tmp_path)

    async def scenario() -> None:
        first, second = site.workers
        first.counted, second.counted = 10, 5
        assert counted((await site.control.stats(PATIENCE_S))["web.1"]) == (15, 2)
        second.counted = 6
        site.control.detach(second.worker)
        second.end()
        # What it counted since it was asked is lost with it; nothing of the rest is.
        assert counted((await site.control.stats(PATIENCE_S))["web.1"]) == (15, 1)
        again = Played(site.control, second.worker)
        again.counted = 2
        assert counted((await site.control.stats(PATIENCE_S))["web.1"]) == (17, 2)
        again.end()

    play(site, scenario)


def test_a_sidecar_of_which_a_worker_does_not_answer_is_left_out_until_it_does(
    tmp_path: Path,
) -> None:
    site = pair(tmp_path)

    async def scenario() -> None:
        first, second = site.workers
        first.counted, second.counted = 10, 5
        second.obedient = False
        assert await site.control.stats(SHORT_S) == {"web.1": None}
        assert await site.control.stats(SHORT_S) == {"web.1": None}
        second.obedient = True
        second.tell()
        assert counted((await site.control.stats(PATIENCE_S))["web.1"]) == (15, 2)

    play(site, scenario)


def test_a_worker_that_ends_instead_of_answering_keeps_nobody_waiting(tmp_path: Path) -> None:
    site = pair(tmp_path)

    async def scenario() -> None:
        first, second = site.workers
        first.counted = 10
        second.obedient = False
        asked = tasks.start(site.control.stats(PATIENCE_S), "ask")
        assert await second.heard.until(lambda: second.asked, PATIENCE_S)
        second.end()
        assert counted((await asked)["web.1"]) == (10, 1)

    play(site, scenario)


def test_workers_record_as_long_as_that_is_wanted(tmp_path: Path) -> None:
    site = pair(tmp_path)

    async def scenario() -> None:
        for wanted in (True, False):
            site.recording = wanted
            assert await site.control.enforced(PATIENCE_S) == []
            assert [worker.snapshots[-1].records for worker in site.workers] == [wanted] * 2


def test_a_worker_is_told_permissions_and_dry_runs_but_nothing_for_people(tmp_path: Path) -> None:
    site = pair(tmp_path)
    match = HeaderMatch(name="x-role", regex="a.*", invert=True)
    made = Intention(
        source="*",
        destination="web",
        action="deny",
        permissions=(Permission(action="allow", methods=("GET",), headers=(match,)),),
        dry_run=True,
        where="mesh.toml:3",
    )

    async def scenario() -> None:
        site.intentions.append(msgspec.structs.replace(made, description="why", id="1"))
        assert await site.control.enforced(PATIENCE_S) == []
        for worker in site.workers:
            assert worker.snapshots[-1].intentions == (made,)

    play(site, scenario)


def callers(folder: Path) -> Site:
    """Two instances of a service, the first with two workers, and somebody who calls it."""
    return Site(
        folder,
        App(name="web", command=("true",), workers=2, instances=2),
        App(
            name="caller",
            command=("true",),
            upstreams=(UpstreamReference(service="web", name="web"),),
        ),
    )


def test_who_is_withdrawn_gets_no_calls_however_ready_until_it_is_restored(tmp_path: Path) -> None:
    site = callers(tmp_path)

    async def scenario() -> None:
        caller = Played(site.control, site.plan.by_name["caller.1"].sidecar[0])

        async def endpoints() -> list[str]:
            assert await site.control.enforced(PATIENCE_S) == []
            (upstream,) = caller.snapshots[-1].upstreams
            return [endpoint.instance for endpoint in upstream.endpoints]

        site.control.set_ready({"web.1", "web.2"})
        assert await endpoints() == ["web.1", "web.2"]
        site.control.withdraw(["web.1"])
        assert await endpoints() == ["web.2"]
        site.control.set_ready({"web.2"})
        site.control.set_ready({"web.1", "web.2"})
        assert await endpoints() == ["web.2"]
        site.control.restore(["web.1"])
        assert await endpoints() == ["web.1", "web.2"]
        caller.end()

    play(site, scenario)


def test_a_sidecar_is_drained_when_every_worker_says_so_of_this_time(tmp_path: Path) -> None:
    site = callers(tmp_path)

    async def scenario() -> None:
        first, second = site.workers
        for _ in range(2):
            site.control.withdraw(["web.1"])
            site.control.drain(["web.1"])
            assert not site.control.is_drained("web.1")
            assert await site.control.enforced(PATIENCE_S) == []
            told = [worker.snapshots[-1].inbound for worker in site.workers]
            assert all(inbound is not None and inbound.draining for inbound in told)
            first.drained()
            await site.reached(lambda: site.notes.drained[-1:] == ["web.1/1"])
            assert not site.control.is_drained("web.1")
            second.drained()
            await site.reached(lambda: site.control.is_drained("web.1"))
            site.control.restore(["web.1"])
            assert await site.control.enforced(PATIENCE_S) == []
        # Who has ended has no calls.
        site.control.withdraw(["web.1"])
        site.control.drain(["web.1"])
        assert await site.control.enforced(PATIENCE_S) == []
        second.drained()
        site.control.detach(first.worker)
        await site.reached(lambda: site.control.is_drained("web.1"))

    play(site, scenario)


def test_a_sidecar_with_fewer_workers_goes_on_counting_what_the_others_had_counted(
    tmp_path: Path,
) -> None:
    site = pair(tmp_path)

    async def scenario() -> None:
        first, second = site.workers
        first.counted, second.counted = 3, 4
        before = (await site.control.stats(PATIENCE_S))["web.1"]
        for worker in site.workers:
            site.control.detach(worker.worker)
        site.control.update(replace(site.plan.instances[0], workers=1))
        after = (await site.control.stats(PATIENCE_S))["web.1"]
        assert before is not None
        assert after is not None
        assert [part.connections[0].opened for part in (before, after)] == [7, 7]

    play(site, scenario)
