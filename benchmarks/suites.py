"""The suites by name, each a module with `run`; one whose module is not there is left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from importlib.util import find_spec

from benchmarks.results import Aims, Measurement, Settings

__all__ = ["MODULES", "Suite", "available"]

MODULES: Mapping[str, str] = {
    "proxies": "benchmarks.proxies",
    "http": "benchmarks.http_proxies",
    "supervisors": "benchmarks.supervision",
}


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite: what measures, which versions it measured, and a paragraph on each workload.

    `workloads` and `contenders` are the names by which each can be asked for alone. `aims` are what
    the product is to reach, by workload and metric.
    """

    name: str
    run: Callable[[Settings], list[Measurement]]
    versions: Callable[[], dict[str, str]]
    descriptions: Mapping[str, str]
    workloads: Sequence[str]
    contenders: Sequence[str]
    aims: Aims = field(default_factory=dict)


def available() -> dict[str, Suite]:
    """Return the suites whose module is there."""
    return {name: _load(name, module) for name, module in MODULES.items() if find_spec(module)}


def _load(name: str, module_name: str) -> Suite:
    module = import_module(module_name)
    return Suite(
        name,
        module.run,
        module.versions,
        module.DESCRIPTIONS,
        module.WORKLOADS,
        module.CONTENDERS,
        module.AIMS,
    )
