"""External services: what meshrun knows of programs that it does not run."""

from collections.abc import Callable, Iterable
from functools import partial

from meshrun.supervisor.plan import Instance
from meshrun.supervisor.probes import Prober

__all__ = ["Externals"]


class Externals:
    """Asks the probe of every external service that has one; one without counts as ready.

    `on_change` is called with the instance whenever one becomes ready or is no longer.
    """

    def __init__(
        self, instances: Iterable[Instance], on_change: Callable[[Instance], None]
    ) -> None:
        self._instances = {i.name: i for i in instances if i.app is None}
        self._on_change = on_change
        self._ready = {name for name, i in self._instances.items() if i.probe is None}
        self._reasons: dict[str, str] = {}
        self._probers: list[Prober] = []

    def start(self) -> None:
        """Begin to ask."""
        for instance in self._instances.values():
            if instance.probe is not None and instance.target is not None:
                host, port = instance.target
                self._probers.append(
                    Prober(
                        instance.probe,
                        host,
                        port,
                        partial(self._succeeded, instance),
                        partial(self._failed, instance),
                    )
                )

    def stop(self) -> None:
        """Ask no more."""
        for prober in self._probers:
            prober.stop()
        self._probers = []

    @property
    def ready(self) -> set[str]:
        """The names of the instances that take calls."""
        return set(self._ready)

    def reason(self, name: str) -> str:
        """Say why an instance is not ready, nothing where it is."""
        return self._reasons.get(name, "")

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
