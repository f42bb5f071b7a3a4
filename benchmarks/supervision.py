"""The suite of the process manager: meshrun, supervisord and honcho with the same apps."""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import usage
from benchmarks.collection import FAILURES, Collection, installed, rotated
from benchmarks.managers import MANAGERS, Manager
from benchmarks.managers.running import Running, start, voluntary_switches
from benchmarks.results import Figure, Measurement, Settings

__all__ = ["CONTENDERS", "DESCRIPTIONS", "SUITE", "WORKLOADS", "run", "versions"]

SUITE = "supervisors"
APPS = 20
UP, CRASH, STOP = f"up-{APPS}", "crash-restart", f"stop-{APPS}"
WAKEUPS, MEMORY = f"idle-wakeups-{APPS}", f"memory-{APPS}"
GROWTH = (1, 10, 50, 100)
CRASHES = 10
QUICK_CRASHES = 3

UP_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
RESTART_TIMEOUT_S = 10.0
# supervisord holds an app for started after 1 s (startsecs), and one that is killed before it
# starts more slowly.
SETTLED_S = 2.0
MIB = 1 << 20

CONTENDERS = tuple(manager.name for manager in MANAGERS)
WORKLOADS = (UP, CRASH, STOP, WAKEUPS, MEMORY, *(f"grow-{number}" for number in GROWTH))

DESCRIPTIONS = {
    UP: (
        f"From the start of the command until the last of {APPS} apps has said that it runs."
        f" `ready` is when meshrun's {APPS} sidecars have their certificates and serve, too: work"
        " that the others do not do, for every app another process, a key and a certificate. It is"
        " done while the apps start, so with few cores `up` pays for it. supervisord starts its"
        " apps when its loop has waited for one second."
    ),
    CRASH: (
        "From `kill -9` of an app until the process that replaces it says that it runs: the median"
        f" and the slowest of {CRASHES} apps, each killed once, at moments spread over a second."
        " meshrun keeps the app's sidecar, and first ends what the app has left of its session."
        " supervisord sees the end at once, but starts the app when its loop has waited for one"
        " more second, or two, with startsecs=0 too. honcho restarts nothing: when one app ends, it"
        " ends all."
    ),
    STOP: (
        f"From SIGTERM to the manager until {APPS} apps, which all end at SIGTERM, and every"
        " process of the manager are gone, meshrun's sidecars among them."
    ),
    WAKEUPS: (
        f"How often the manager's processes go to sleep in a second while {APPS} apps do nothing:"
        " voluntary context switches of all their threads, not of the apps. With meshrun the"
        " sidecars are in it; `without sidecars` is its supervisor and launcher. honcho has a"
        " process for every app."
    ),
    MEMORY: (
        f"PSS of the manager's processes while {APPS} apps do nothing, the apps left out: a page"
        " that n processes share counts for a nth in each, and the benchmark is one of those that"
        " share the interpreter's. With meshrun the sidecars are in it; `without sidecars` is its"
        " supervisor and launcher, which would be larger alone, since the sidecars share pages with"
        " the launcher; `a sidecar` is their mean. honcho has a process for every app."
    ),
    **{
        f"grow-{number}": (
            f"The same with {number} app{'s' if number > 1 else ''}: start, stop, and memory of the"
            " manager's processes, meshrun's sidecars included."
        )
        for number in GROWTH
    },
}

Figures = Mapping[str, Sequence[Figure]]


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a manager with so many apps, which gives figures for each of its workloads."""

    workloads: Sequence[str]
    apps: int
    measure: Callable[[Running, Settings], Figures]
    needs_restarts: bool = False


def versions() -> dict[str, str]:
    """Return the version of every manager that is installed."""
    found = {manager.name: manager.version() for manager in MANAGERS}
    return {name: version for name, version in found.items() if version is not None}


def run(settings: Settings) -> list[Measurement]:
    """Measure what is asked for; what is not installed or fails is noted and left out."""
    managers = installed(MANAGERS, settings)
    collection = Collection(SUITE, settings, WORKLOADS, CONTENDERS)
    trials = [trial for trial in TRIALS if _is_wanted(trial, settings)]
    for manager in managers if trials else ():
        _warm_up(manager, settings)
    for number in range(settings.rounds):
        for trial in trials:
            for manager in rotated(managers, number):
                if manager.restarts or not trial.needs_restarts:
                    _measure(trial, manager, number, settings, collection)
    return collection.measurements()


def _is_wanted(trial: Trial, settings: Settings) -> bool:
    asked = settings.only is None or not settings.only.isdisjoint(trial.workloads)
    return asked and not (settings.quick and trial.apps > APPS)


def _warm_up(manager: Manager, settings: Settings) -> None:
    """Have it compiled, and its files in memory: who comes first must not pay for that."""
    try:
        _fresh(WARM_UP, manager, settings)
    except FAILURES as error:
        settings.say(f"warm-up         {manager.name:<12}failed: {error}")


def _measure(
    trial: Trial, manager: Manager, number: int, settings: Settings, into: Collection
) -> None:
    try:
        found = _fresh(trial, manager, settings)
    except FAILURES as error:
        into.fail(", ".join(trial.workloads), manager.name, number, error)
        return
    for workload, figures in found.items():
        if settings.only is None or workload in settings.only:
            into.add(workload, manager.name, number, figures)


def _fresh(trial: Trial, manager: Manager, settings: Settings) -> Figures:
    with (
        tempfile.TemporaryDirectory(prefix="meshrun-bench-") as folder,
        start(manager, trial.apps, Path(folder)) as running,
    ):
        return trial.measure(running, settings)


def _whole(running: Running, settings: Settings) -> Figures:
    up = _up(running)
    running.rest(SETTLED_S)
    wakeups = _wakeups(running, settings.seconds)
    memory = _memory(running)
    return {UP: up, WAKEUPS: wakeups, MEMORY: memory, STOP: [_stop(running)]}


def _crash(running: Running, settings: Settings) -> Figures:
    _up(running)
    running.rest(SETTLED_S)
    names = running.crew.names[: QUICK_CRASHES if settings.quick else CRASHES]
    took_ms = []
    for k, name in enumerate(names):
        # A manager that looks at its apps once a second would otherwise always just have looked.
        running.rest((k + 0.5) / len(names))
        begun_s = time.monotonic()
        running.crew.running[name].kill()
        took_ms.append((running.await_apps([name], RESTART_TIMEOUT_S) - begun_s) * 1000)
    return {
        CRASH: [
            Figure("restart", "ms", "lower", statistics.median(took_ms)),
            Figure("slowest", "ms", "lower", max(took_ms)),
        ]
    }


def _grow(running: Running, _settings: Settings) -> Figures:
    up = _up(running)[:1]
    running.rest(SETTLED_S)
    memory = _memory(running)[:1]
    return {f"grow-{len(running.crew.names)}": [*up, _stop(running), *memory]}


def _up(running: Running) -> list[Figure]:
    up_s = running.await_apps(running.crew.names, UP_TIMEOUT_S) - running.begun_s
    ready_s = running.await_sidecars(UP_TIMEOUT_S) - running.begun_s
    figures = [Figure("up", "s", "lower", up_s)]
    if running.manager.sidecar_name is not None:
        figures.append(Figure("ready", "s", "lower", ready_s))
    return figures


def _stop(running: Running) -> Figure:
    return Figure("stop", "s", "lower", running.stop(STOP_TIMEOUT_S))


def _wakeups(running: Running, seconds: float) -> list[Figure]:
    own = running.own()
    begun_s = time.monotonic()
    before = [voluntary_switches(pids) for pids in (own.everything, own.core)]
    running.rest(seconds)
    after = [voluntary_switches(pids) for pids in (own.everything, own.core)]
    elapsed_s = time.monotonic() - begun_s
    everything, core = ((b - a) / elapsed_s for a, b in zip(before, after, strict=True))
    return [
        Figure("wake-ups", "1/s", "lower", everything),
        Figure("without sidecars", "1/s", "lower", core),
    ]


def _memory(running: Running) -> list[Figure]:
    own = running.own()
    core_mib, sidecars_mib = (usage.pss_bytes(pids) / MIB for pids in (own.core, own.sidecars))
    figures = [
        Figure("memory", "MiB", "lower", core_mib + sidecars_mib),
        Figure("without sidecars", "MiB", "lower", core_mib),
    ]
    if own.sidecars:
        figures.append(Figure("a sidecar", "MiB", "lower", sidecars_mib / len(own.sidecars)))
    return figures


GROWING = tuple(Trial([f"grow-{number}"], number, _grow) for number in GROWTH)
WARM_UP = GROWING[0]
TRIALS = (
    Trial([UP, STOP, WAKEUPS, MEMORY], APPS, _whole),
    Trial([CRASH], APPS, _crash, needs_restarts=True),
    *GROWING,
)
