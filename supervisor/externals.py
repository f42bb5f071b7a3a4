"""External services: what meshrun knows of programs that it does not run."""

import asyncio
from collections.abc import Callable
from functools import partial

from meshrun.supervisor.configuration.model import HttpCheck, TcpCheck
from meshrun.supervisor.lifecycle_events import Event, ProbeFailed, ProbeSucceeded
from meshrun.supervisor.plan import Instance
from meshrun.supervisor.probes.asking import Asking
from meshrun.supervisor.probes.connections import asker
from meshrun.supervisor.probes.tally import Readiness

__all__ = ["Externals"]


class Externals:
    """Asks the probe of every external service that has one; one without counts as ready.

    `on_change` is called with the instance whenever one becomes ready or is no longer.
    """

    def __init__(self, on_change: Callable[[Instance], None]) -> None:
        self._instances: dict[str, Instance] = {}
        self._on_change = on_change
        self._ready: set[str] = set()
        self._reasons: dict[str, str] = {}
        self._asked: dict[str, Asking] = {}

    def add(self, instance: Instance) -> None:
        """Take up an external service; `start_of` begins to ask."""
        self._instances[instance.name] = instance
        if instance.ready is None:
            self._ready.add(instance.name)

    def update(self, instance: Instance) -> None:
        """Take an external service as it is now; one that must be asked is asked anew.

        Until it has answered it is what it was.
        """
        before = self._instances[instance.name]
        self._instances[instance.name] = instance
        if (before.ready, before.target) != (instance.ready, instance.target):
            self._ask_no_more(instance.name)
            if instance.ready is None:
                self._succeeded(instance)
            self.start_of(instance.name)

    def remove(self, name: str) -> None:
        """Forget an external service, if it is one."""
        self._ask_no_more(name)
        self._instances.pop(name, None)
        self._reasons.pop(name, None)
        self._ready.discard(name)

    def start(self) -> None:
        """Begin to ask."""
        for name in self._instances:
            self.start_of(name)

    def start_of(self, name: str) -> None:
        """Begin to ask one, if it has a probe."""
        instance = self._instances[name]
        probe = instance.ready
        if probe is None or instance.target is None:
            return
        assert isinstance(probe.check, HttpCheck | TcpCheck), "the configuration refuses that"
        self._asked[name] = Asking(
            Readiness(probe, asyncio.get_running_loop().time()),
            asker(probe.check, probe, *instance.target),
            partial(self._answered, instance),
            f"ask whether {instance.name} is ready",
        )

    def _ask_no_more(self, name: str) -> None:
        asked = self._asked.pop(name, None)
        if asked is not None:
            asked.stop()

    def stop(self) -> None:
        """Ask no more."""
        for asked in self._asked.values():
            asked.stop()
        self._asked = {}

    @property
    def ready(self) -> set[str]:
        """The names of the instances that take calls."""
        return set(self._ready)

    def reason(self, name: str) -> str:
        """Say why an instance is not ready, nothing where it is."""
        return self._reasons.get(name, "")

    def tries(self, name: str) -> int:
        """Return how often an instance has been asked."""
        asked = self._asked.get(name)
        return 0 if asked is None else asked.tries

    def _answered(self, instance: Instance, event: Event) -> None:
        if isinstance(event, ProbeSucceeded):
            self._succeeded(instance)
        elif isinstance(event, ProbeFailed):
            self._failed(instance, event.reason)

    def _succeeded(self, instance: Instance) -> None:
        self._reasons.pop(instance.name, None)
        if instance.name not in self._ready:
            self._ready.add(instance.name)
            self._on_change(instance)

    def _failed(self, instance: Instance, why: str) -> None:
        self._reasons[instance.name] = why
        if instance.name in self._ready:
            self._ready.discard(instance.name)
            self._on_change(instance)
