"""The suites by name, each a module with `run`; one whose module is not there is left out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

from benchmarks.results import Measurement, Settings

__all__ = ["MODULES", "Suite", "available"]

MODULES: Mapping[str, str] = {
    "proxies": "benchmarks.proxies",
    "supervisors": "benchmarks.supervision",
}


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite: what measures, which versions it measured, and a paragraph on each workload.

    `workloads` are those that can be asked for one by one, if any can.
    """

    name: str
    run: Callable[[Settings], list[Measurement]]
    versions: Callable[[], dict[str, str]]
    descriptions: Mapping[str, str]
    workloads: Sequence[str]


def available() -> dict[str, Suite]:
    """Return the suites whose module is there."""
    return {name: _load(name, module) for name, module in MODULES.items() if find_spec(module)}


def _load(name: str, module_name: str) -> Suite:
    module = import_module(module_name)
    # A suite has to have `run` alone.
    return Suite(
        name,
        module.run,
        getattr(module, "versions", dict),
        getattr(module, "DESCRIPTIONS", {}),
        getattr(module, "WORKLOADS", ()),
    )
