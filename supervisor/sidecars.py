"""The sidecars of a run: each one worker or several, which live and end one by one.

A worker that crashes is started again alone; the others of its sidecar go on with the same
listeners, which stay open all the time.
"""

import asyncio
import random
import socket
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from itertools import chain

from meshrun.supervisor import bodies
from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor.controlplane import ControlPlane
from meshrun.supervisor.journal import Journal
from meshrun.supervisor.launching import Launcher
from meshrun.supervisor.lifecycle import Phase, Policy, Status
from meshrun.supervisor.lifecycle_events import Event
from meshrun.supervisor.plan import Instance, Worker
from meshrun.supervisor.reporter import Reporter
from meshrun.supervisor.runner import Runner

__all__ = ["POLICY", "OnChange", "Sidecars"]

POLICY = Policy(restart="always", stop_timeout_s=1.0)
# How long a worker may live without its channel; the end of it is seen long before, usually.
LINGER_S = 0.5

# Called after each change with the status before and after it, and the event.
OnChange = Callable[[Worker, Status, Status, Event], None]


class Sidecars:
    """Keeps the workers of every sidecar running."""

    def __init__(
        self,
        launcher: Launcher,
        cgroup: str | None,
        listeners: Mapping[int, socket.socket],
        control: ControlPlane,
        reporter: Reporter,
        journal: Journal,
        on_change: OnChange,
    ) -> None:
        self._launcher = launcher
        self._cgroup = cgroup
        self._listeners = listeners
        self._control = control
        self._reporter = reporter
        self._journal = journal
        self._on_change = on_change
        self._workers: dict[str, tuple[Runner, ...]] = {}
        self._bodies: dict[str, list[bodies.SidecarBody]] = {}

    def add(self, instance: Instance) -> None:
        """Take up the sidecar of an instance; `start` or `start_of` starts it."""
        named = {upstream.name: self._listeners[upstream.port] for upstream in instance.upstreams}
        if instance.inbound_port is not None:
            named = {"": self._listeners[instance.inbound_port], **named}
        self._workers[instance.name] = tuple(
            self._runner(worker, named) for worker in instance.sidecar
        )

    def _runner(self, worker: Worker, listeners: Mapping[str, socket.socket]) -> Runner:
        body = bodies.SidecarBody(
            self._launcher,
            worker,
            self._cgroup,
            listeners,
            self._control.attach,
            partial(self._reporter.worker_wrote, worker),
        )
        self._bodies.setdefault(worker.instance.name, []).append(body)
        return Runner(worker.name, POLICY, body, partial(self._changed, worker), random.random)

    def _changed(
        self, worker: Worker, runner: Runner, before: Status, after: Status, event: Event
    ) -> None:
        if isinstance(event, events.Exited):
            self._control.detach(worker)
        if after.phase is Phase.WAITING:
            runner.feed(events.DependenciesMet())
        self._on_change(worker, before, after, event)

    def start(self) -> None:
        """Start every worker."""
        for name in self._workers:
            self.start_of(name)

    def start_of(self, instance: str) -> None:
        """Start the workers of one instance's sidecar."""
        for runner in self._workers[instance]:
            runner.feed(events.Start())
            runner.feed(events.DependenciesMet())

    @property
    def runners(self) -> Iterator[Runner]:
        """The workers of all sidecars."""
        return chain.from_iterable(self._workers.values())

    def of(self, instance: str) -> list[Status]:
        """Return the statuses of the workers of an instance's sidecar."""
        return [runner.status for runner in self._workers[instance]]

    def broke(self, worker: Worker, reason: str) -> None:
        """End a worker that cannot be controlled; it is started again."""
        if worker.instance.name in self._workers:
            self._journal.warning(f"the {worker.title} is killed: {reason}")
            self._of(worker).kill_process()

    def closed(self, worker: Worker, reason: str) -> None:
        """See that a worker without a channel ends: nobody could tell it anything any more."""
        runner = self._of(worker)
        pid = runner.status.pid

        def still_there() -> None:
            if runner.status.alive and runner.status.pid == pid:
                self.broke(worker, reason or "it has closed its channel and goes on")

        asyncio.get_running_loop().call_later(LINGER_S, still_there)

    def _of(self, worker: Worker) -> Runner:
        return self._workers[worker.instance.name][worker.number - 1]

    def stop(self) -> None:
        """Begin to end every worker; `ended` says when that is done."""
        for name in self._workers:
            self.stop_of(name)

    def stop_of(self, instance: str) -> None:
        """Begin to end the workers of one instance's sidecar."""
        for runner in self._workers[instance]:
            runner.feed(events.Stop())

    def remove(self, instance: str) -> None:
        """Forget the sidecar of an instance; each of its workers has ended."""
        del self._workers[instance]
        del self._bodies[instance]

    def has_ended(self, instance: str) -> bool:
        """Whether every worker of one instance's sidecar has ended for good."""
        return all(runner.status.final for runner in self._workers[instance])

    @property
    def ended(self) -> bool:
        """Whether every worker has ended for good."""
        return all(runner.status.final for runner in self.runners)

    def pause_output(self) -> None:
        """Let the workers wait with what they write."""
        for body in chain.from_iterable(self._bodies.values()):
            body.output.pause()

    def resume_output(self) -> None:
        """Take the workers' output again."""
        for body in chain.from_iterable(self._bodies.values()):
            body.output.resume()
