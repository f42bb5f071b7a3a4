"""The control plane's side of every sidecar: signs its leaf and tells it what the mesh is."""

import socket
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import chain
from typing import Protocol

import msgspec

from meshrun.proxy import messages
from meshrun.proxy.channel import Channel, from_sidecar
from meshrun.proxy.errors import ChannelError, IdentityError
from meshrun.proxy.intentions import WILDCARD, Action, Intention
from meshrun.supervisor import ca
from meshrun.supervisor.bell import Bell
from meshrun.supervisor.counters import Counters, summed
from meshrun.supervisor.listeners import HOST
from meshrun.supervisor.plan import Instance, Plan, PlannedUpstream, Worker

__all__ = ["ControlPlane", "Observer"]

# A sidecar that lets so much pile up is stuck; it is ended and started again.
BACKLOG_LIMIT_BYTES = 64 * 1024 * 1024


class Observer(Protocol):
    """Who is told what the workers of the sidecars report."""

    def denied(self, worker: Worker, report: messages.Denied) -> None:
        """A caller was refused."""

    def connection_failed(self, worker: Worker, report: messages.ConnectionFailed) -> None:
        """A connection found no counterpart."""

    def rotated(self, worker: Worker, leaf: ca.IssuedLeaf, *, first: bool) -> None:
        """A worker serves a new leaf."""

    def worker_ready(self, worker: Worker) -> None:
        """A worker serves and enforces for the first time since it was started."""

    def recorded(self, worker: Worker, message: messages.Recorded) -> None:
        """A worker tells of requests and connections."""

    def worker_said(self, worker: Worker, report: messages.Logged) -> None:
        """A worker has a line for the log."""

    def worker_broke(self, worker: Worker, reason: str) -> None:
        """A worker is out of control and must be ended."""

    def worker_drained(self, worker: Worker) -> None:
        """Nothing goes through a worker to its app any more, as was asked for."""

    def worker_closed(self, worker: Worker, reason: str) -> None:
        """A worker closed its channel, as it does when it ends; one that goes on must be ended."""


@dataclass(slots=True)
class _Link:
    """One worker of a sidecar; `channel` is None while it does not run.

    It was asked at the version `drain_from` to say when it is drained, and did so last at the
    version `drained`.
    """

    worker: Worker
    channel: Channel[messages.FromSidecar] | None = None
    sent: messages.Snapshot | None = None
    enforced: int = 0
    serving: ca.IssuedLeaf | None = None
    ready: bool = False
    drain_from: int = 0
    drained: int = 0
    gone: bool = False
    issued: dict[str, ca.IssuedLeaf] = field(default_factory=dict)
    counters: Counters = field(default_factory=Counters)


class ControlPlane:
    """Whole snapshots go out, acknowledgements come in.

    A change is enforced when every running worker of a sidecar that it concerns has acknowledged
    it; one that does not run gets the newest snapshot before it accepts anything.

    `plan` returns the plan as it is now; the sidecars of its instances come and go by `add`,
    `update` and `remove`.
    """

    def __init__(
        self,
        plan: Callable[[], Plan],
        root: ca.Root,
        intentions: Callable[[], Sequence[Intention]],
        records: Callable[[Instance], bool],
        observer: Observer,
        clock: Callable[[], float],
    ) -> None:
        self._plan = plan
        self._root = root
        self._intentions = intentions
        self._records = records
        self._observer = observer
        self._clock = clock
        self._version = 0
        self._ready: frozenset[str] = frozenset()
        self._withdrawn: set[str] = set()
        self._draining: set[str] = set()
        self._sidecars: dict[str, tuple[_Link, ...]] = {}
        self._bell = Bell()

    @property
    def default_action(self) -> Action:
        """What happens where no intention matches."""
        return self._plan().configuration.mesh.default_intention

    def add(self, instance: Instance) -> None:
        """Take up the sidecar of an instance; `attach` brings its workers."""
        self._sidecars[instance.name] = tuple(_Link(worker) for worker in instance.sidecar)

    def update(self, instance: Instance) -> None:
        """Take an instance as it is now; `publish` tells its sidecar.

        The workers may be fewer or more than before where none of them runs.
        """
        before = self._sidecars[instance.name]
        kept = before[: instance.workers]
        for link, worker in zip(kept, instance.sidecar, strict=False):
            link.worker = worker
        new = [_Link(worker) for worker in instance.sidecar[len(kept) :]]
        for link in before[len(kept) :]:
            self._drop(link)
            kept[0].counters.take_over(link.counters)
        self._sidecars[instance.name] = (*kept, *new)

    def remove(self, name: str) -> None:
        """Forget the sidecar of an instance, which has ended."""
        for link in self._sidecars.pop(name):
            self._drop(link)
        self._withdrawn.discard(name)
        self._draining.discard(name)

    def _drop(self, link: _Link) -> None:
        link.gone = True
        self._forget(link)

    @property
    def _links(self) -> tuple[_Link, ...]:
        return tuple(chain.from_iterable(self._sidecars.values()))

    def _link(self, worker: Worker) -> _Link:
        return self._sidecars[worker.instance.name][worker.number - 1]

    def attach(self, worker: Worker, sock: socket.socket) -> None:
        """Take over the channel of a worker that was just started."""
        link = self._link(worker)
        self._forget(link)
        link.channel = Channel(
            sock, from_sidecar(), partial(self._received, link), partial(self._closed, link)
        )
        link.sent = None
        link.issued.clear()
        self._publish_to(link, self._intentions())

    def detach(self, worker: Worker) -> None:
        """Forget the channel of a worker that has ended."""
        self._forget(self._link(worker))

    def _forget(self, link: _Link) -> None:
        if link.channel is not None:
            link.channel.close()
        link.channel, link.serving, link.ready = None, None, False
        link.counters.ended()
        self._bell.ring()

    def is_ready(self, name: str) -> bool:
        """Tell whether every worker of an instance's sidecar serves and enforces."""
        return all(link.ready for link in self._sidecars[name])

    def leaves(self) -> list[tuple[Worker, ca.IssuedLeaf]]:
        """Return the leaf that each running worker serves."""
        return [(k.worker, k.serving) for k in self._links if k.serving is not None]

    def set_ready(self, names: Collection[str]) -> None:
        """Say which instances take calls, and tell the sidecars that call them."""
        ready = frozenset(names)
        if ready != self._ready:
            self._ready = ready
            self.publish()

    def withdraw(self, names: Iterable[str]) -> None:
        """Send no more calls to instances, however ready they are; `restore` ends that."""
        self._withdrawn.update(names)
        self.publish()

    def is_withdrawn(self, name: str) -> bool:
        """Tell whether an instance gets no calls because somebody wants that."""
        return name in self._withdrawn

    def drain(self, names: Iterable[str]) -> None:
        """Have instances that were withdrawn say when the last call to them is over.

        Only once every caller's sidecar enforces the withdrawal: `is_drained` would be true between
        two calls.
        """
        chosen = [name for name in names if name in self._sidecars]
        self._draining.update(chosen)
        self.publish()
        for link in chain.from_iterable(self._sidecars[name] for name in chosen):
            link.drain_from = self._version if link.sent is None else link.sent.version

    def is_drained(self, name: str) -> bool:
        """Tell whether no call goes through any worker to an instance, after `drain`."""
        return all(
            link.channel is None
            or link.worker.instance.inbound_port is None
            or link.drained >= link.drain_from
            for link in self._sidecars.get(name, ())
        )

    def restore(self, names: Iterable[str]) -> None:
        """Send calls again to instances that were withdrawn, when they are ready."""
        chosen = set(names)
        self._withdrawn -= chosen
        self._draining -= chosen
        self.publish()

    def publish(self) -> None:
        """Send every running worker its snapshot if it differs from what that one has."""
        intentions = self._intentions()  # once for all of them: it asks the database
        for link in self._links:
            self._publish_to(link, intentions)

    def _publish_to(self, link: _Link, intentions: Sequence[Intention]) -> None:
        # Kept by name: sending may find the sidecar dead, and then the link has no channel.
        channel = link.channel
        if channel is None:
            return
        version = link.sent.version if link.sent is not None else 0
        snapshot = self._snapshot(link.worker, version, intentions)
        if snapshot == link.sent:
            return
        self._version += 1
        # Noted before it is sent: one that cannot be sent is never acknowledged, and not obeyed.
        link.sent = self._snapshot(link.worker, self._version, intentions)
        try:
            channel.send(link.sent)
        except ChannelError as error:
            self._observer.worker_broke(link.worker, str(error))
            return
        if channel.pending_bytes > BACKLOG_LIMIT_BYTES:
            self._observer.worker_broke(link.worker, "it does not read its snapshots")

    def _snapshot(
        self, worker: Worker, version: int, intentions: Sequence[Intention]
    ) -> messages.Snapshot:
        instance = worker.instance
        inbound = None
        if instance.target is not None and instance.inbound_port is not None:
            host, port = instance.target
            inbound = messages.Inbound(
                host=host,
                port=port,
                connect_timeout_s=instance.connect_timeout_s,
                max_connections=worker.part(instance.max_connections),
                idle_timeout_s=instance.idle_timeout_s,
                protocol=instance.protocol,
                draining=instance.name in self._draining,
            )
        return messages.Snapshot(
            version=version,
            service=instance.service,
            instance=instance.name,
            identity=str(instance.identity),
            roots=(self._root.certificate_der,),
            default_action=self.default_action,
            intentions=tuple(
                _bare(i) for i in intentions if i.destination in (instance.service, WILDCARD)
            ),
            inbound=inbound,
            upstreams=tuple(self._upstream(worker, upstream) for upstream in instance.upstreams),
            records=self._records(instance),
        )

    def _upstream(self, worker: Worker, upstream: PlannedUpstream) -> messages.Upstream:
        requests = upstream.requests
        return messages.Upstream(
            name=upstream.name,
            service=upstream.service,
            identity=str(upstream.identity),
            connect_timeout_s=upstream.connect_timeout_s,
            max_connections=worker.part(upstream.max_connections),
            idle_timeout_s=upstream.idle_timeout_s,
            endpoints=self._endpoints(upstream.service),
            protocol=upstream.protocol,
            requests=msgspec.structs.replace(
                requests,
                most_in_flight=worker.part(requests.most_in_flight),
                most_pending=worker.part(requests.most_pending),
            ),
            split=tuple(
                messages.Share(
                    service=share.service,
                    identity=str(share.identity),
                    weight=share.weight,
                    endpoints=self._endpoints(share.service),
                )
                for share in upstream.split
            ),
        )

    def _endpoints(self, service: str) -> tuple[messages.Endpoint, ...]:
        return tuple(
            messages.Endpoint(instance=instance.name, host=HOST, port=instance.inbound_port)
            for instance in self._plan().of(service)
            if instance.name in self._ready
            and instance.name not in self._withdrawn
            and instance.inbound_port is not None
        )

    # What comes back.

    def _received(self, link: _Link, message: messages.FromSidecar) -> None:
        match message:
            case messages.LeafRequested():
                self._sign(link, message)
            case messages.Serving(serial=serial):
                self._serves(link, serial)
            case messages.Enforced(version=version):
                link.enforced = version
                self._check_ready(link)
                self._bell.ring()
            case messages.Drained(version=version):
                link.drained = version
                self._observer.worker_drained(link.worker)
            case messages.Denied():
                self._observer.denied(link.worker, message)
            case messages.ConnectionFailed():
                self._observer.connection_failed(link.worker, message)
            case messages.Logged():
                self._observer.worker_said(link.worker, message)
            case messages.Recorded():
                self._observer.recorded(link.worker, message)
            case messages.Stats():
                link.counters.answered(message)
                self._bell.ring()

    def _sign(self, link: _Link, request: messages.LeafRequested) -> None:
        """Sign for the identity that the channel belongs to, whatever the request says."""
        assert link.channel is not None
        now = datetime.fromtimestamp(self._clock(), tz=UTC)
        ttl_s = self._plan().configuration.mesh.leaf_ttl_s
        try:
            leaf = ca.sign(self._root, request.csr, link.worker.instance.identity, now, ttl_s)
        except IdentityError as error:
            refusal = messages.LeafRefused(request=request.request, reason=str(error))
            link.channel.send(refusal)
            return
        # Two are enough: the one being installed, and one that overtook it.
        while len(link.issued) > 1:
            link.issued.pop(next(iter(link.issued)))
        link.issued[leaf.serial] = leaf
        link.channel.send(
            messages.LeafIssued(
                request=request.request,
                chain=leaf.chain_der,
                issued_at=leaf.issued_at,
                not_after=leaf.not_after,
            )
        )

    def _serves(self, link: _Link, serial: str) -> None:
        leaf = link.issued.pop(serial, None)
        if leaf is None:
            self._observer.worker_broke(link.worker, f"it serves an unknown leaf {serial}")
            return
        first = link.serving is None
        link.serving = leaf
        self._observer.rotated(link.worker, leaf, first=first)
        self._check_ready(link)
        self._bell.ring()

    def _check_ready(self, link: _Link) -> None:
        if not link.ready and link.serving is not None and self._has_enforced(link):
            link.ready = True
            self._observer.worker_ready(link.worker)

    def _closed(self, link: _Link, error: Exception | None) -> None:
        self._forget(link)
        self._observer.worker_closed(link.worker, "" if error is None else str(error))

    # Waiting for it.

    @staticmethod
    def _has_enforced(link: _Link) -> bool:
        return link.channel is None or (
            link.sent is not None and link.enforced >= link.sent.version
        )

    async def enforced(self, timeout_s: float) -> list[Worker]:
        """Publish, and wait until everybody enforces it; return the workers that do not."""
        self.publish()
        links = [link for link in self._links if link.channel is not None]
        await self._bell.until(lambda: all(self._has_enforced(link) for link in links), timeout_s)
        return [link.worker for link in links if not self._has_enforced(link)]

    async def rotate(self, names: Iterable[str], timeout_s: float) -> list[Worker]:
        """Give the sidecars of instances new leaves; return the workers that serve none in time."""
        links = [link for name in names for link in self._sidecars[name]]
        before = {link.worker.name: link.serving for link in links}
        for link in links:
            if link.channel is not None and link.serving is not None:
                link.channel.send(messages.Renew())

        def served(link: _Link) -> bool:
            new = link.serving is not None and link.serving is not before[link.worker.name]
            return new or link.gone

        await self._bell.until(lambda: all(served(link) for link in links), timeout_s)
        return [link.worker for link in links if not served(link)]

    async def stats(self, timeout_s: float) -> dict[str, messages.Stats | None]:
        """Ask the sidecars what they have counted, and return it by instance.

        What its workers counted that have ended is in it, but for what they counted last. It is
        None where a worker does not answer in time: a sum without it would be one that falls.
        """
        links = [link for link in self._links if link.channel is not None]
        for link in links:
            question = link.counters.ask()
            if question is not None and link.channel is not None:
                link.channel.send(question)
        await self._bell.until(lambda: not any(link.counters.waiting for link in links), timeout_s)
        return {
            name: None
            if any(link.counters.waiting for link in sidecar)
            else summed(link.counters.total() for link in sidecar)
            for name, sidecar in self._sidecars.items()
        }

    def close(self) -> None:
        """Close every channel: each sidecar ends."""
        for link in self._links:
            self._forget(link)


def _bare(intention: Intention) -> Intention:
    """Leave out what only people read: a sidecar decides by the rest and says where it stands."""
    return Intention(
        source=intention.source,
        destination=intention.destination,
        action=intention.action,
        permissions=intention.permissions,
        dry_run=intention.dry_run,
        origin=intention.origin,
        where=intention.where,
    )
