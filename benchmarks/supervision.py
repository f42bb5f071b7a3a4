"""The suite of the process manager: meshrun, supervisord and honcho with the same apps."""

import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks import collection, usage
from benchmarks.collection import FAILURES, Collection, Figures, installed, turns
from benchmarks.managers import MANAGERS, Manager
from benchmarks.managers.running import Running, start, voluntary_switches
from benchmarks.programs import BenchmarkError
from benchmarks.results import Aims, Figure, Measurement, Settings

__all__ = ["AIMS", "CONTENDERS", "DESCRIPTIONS", "SUITE", "WORKLOADS", "run", "versions"]

SUITE = "supervisors"
APPS = 20
UP, CRASH, STOP = f"up-{APPS}", "crash-restart", f"stop-{APPS}"
HELD = "crash-held"
WAKEUPS, MEMORY = f"idle-wakeups-{APPS}", f"memory-{APPS}"
STATUS, RELOAD, DECISION = f"status-{APPS}", f"reload-{APPS}", f"intention-{APPS}"
GROWTH = (1, 50, 100)
# How often each thing is done in one round; the figure is the median.
CRASHES, STATUSES, RELOADS, DECISIONS = 10, 10, 5, 20
QUICK_TIMES = 3
# The apps whose output is held, and for how long after the crash.
HOLDERS = 3
HELD_S = 8.0

UP_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 60.0
RESTART_TIMEOUT_S = 20.0
# supervisord holds an app for started after 1 s (startsecs), and one that is killed before it
# starts more slowly.
SETTLED_S = 2.0
MIB = 1 << 20

CONTENDERS = tuple(manager.name for manager in MANAGERS)
WORKLOADS = (
    *(UP, CRASH, HELD, STOP, RELOAD, STATUS, DECISION, WAKEUPS, MEMORY),
    *(f"grow-{number}" for number in GROWTH),
)

# What meshrun is to reach, by workload and metric.
AIMS: Aims = {
    (UP, "ready"): 1.0,
    (CRASH, "restart"): 50.0,
    (STOP, "stop"): 0.3,
    (STATUS, "answer"): 150.0,
    (DECISION, "enforced"): 50.0,
    (WAKEUPS, "wake-ups"): 1.0,
    (MEMORY, "a sidecar"): 6.0,
}

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
    HELD: (
        f"From `kill -9` of an app until the manager has acted, where the app has started a helper"
        f" that lives {HELD_S:g} s longer and holds the app's output open, as children of npm or"
        " of a shell do. meshrun and supervisord act by starting the app again, and meshrun ends"
        " the helper first; honcho acts by ending the other apps, once it has read the end of the"
        " output."
    ),
    STOP: (
        f"From SIGTERM to the manager until {APPS} apps, which all end at SIGTERM, and every"
        " process of the manager are gone, meshrun's sidecars among them."
    ),
    RELOAD: (
        f"One app of {APPS} gets another command in the file, then `meshrun reload` or"
        " `supervisorctl update`: from the start of that command until the app says that it runs"
        " anew, and until the command returns. That the others have not been touched is checked."
        f" The median of {RELOADS} apps. supervisord starts what it has stopped when its loop"
        " turns, which is at once or a second later. honcho must be restarted whole."
    ),
    STATUS: (
        f"How long `meshrun ps` and `supervisorctl status` take with {APPS} apps, from their start"
        f" to their end; most of it is Python. The median of {STATUSES}. honcho has nothing like"
        " it."
    ),
    DECISION: (
        "An intention of everybody towards everybody, changed from allow to deny or back: from the"
        " request to meshrun's API until its answer, which comes when every sidecar enforces the"
        f" change. The median and the slowest of {DECISIONS}. The others know no such thing."
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


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of a manager with so many apps, which gives figures for each of its workloads.

    Only of managers that are `able`. With `helper_s` each app has a helper that lives so long.
    """

    workloads: Sequence[str]
    apps: int
    measure: Callable[[Running, Settings], Figures]
    able: Callable[[Manager], bool] = lambda manager: True
    helper_s: float | None = None


def versions() -> dict[str, str]:
    """Return the version of every manager that is installed."""
    return collection.versions(MANAGERS)


def run(settings: Settings) -> list[Measurement]:
    """Measure what is asked for; what is not installed or fails is noted and left out."""
    managers = installed(MANAGERS, settings)
    found = Collection(SUITE, settings, WORKLOADS, CONTENDERS)
    trials = [(trial, wanted) for trial in TRIALS if (wanted := _wanted(trial, settings))]
    for manager in managers if trials else ():
        _warm_up(manager, settings)
    for trial, wanted in trials:
        able = [manager for manager in managers if trial.able(manager)]
        for number, manager in turns(able, settings.rounds):
            found.take(wanted, manager.name, number, partial(_fresh, trial, manager, settings))
    return found.measurements()


def _wanted(trial: Trial, settings: Settings) -> Sequence[str]:
    """Return what is asked for of the workloads of a trial."""
    if settings.quick and trial.apps > APPS:
        return []
    return [w for w in trial.workloads if settings.only is None or w in settings.only]


def _warm_up(manager: Manager, settings: Settings) -> None:
    """Have it compiled, and its files in memory: who comes first must not pay for that."""
    try:
        _fresh(WARM_UP, manager, settings)
    except FAILURES as error:
        settings.say(f"warm-up         {manager.name:<12}failed: {error}")


def _fresh(trial: Trial, manager: Manager, settings: Settings) -> Figures:
    with (
        tempfile.TemporaryDirectory(prefix="meshrun-bench-") as folder,
        start(manager, trial.apps, Path(folder), trial.helper_s) as running,
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
    names = running.crew.names[: _times(CRASHES, settings)]
    took_ms = []
    for k, name in enumerate(names):
        # A manager that looks at its apps once a second would otherwise always just have looked.
        running.rest((k + 0.5) / len(names))
        begun_s = time.monotonic()
        running.crew.running[name].kill()
        took_ms.append((running.await_apps([name], RESTART_TIMEOUT_S) - begun_s) * 1000)
    return {CRASH: _median_and_slowest("restart", took_ms)}


def _held(running: Running, _settings: Settings) -> Figures:
    _up(running)
    running.rest(SETTLED_S)
    name, *others = running.crew.names
    begun_s = time.monotonic()
    running.crew.running[name].kill()
    if running.manager.restarts:
        acted_s = running.await_apps([name], RESTART_TIMEOUT_S)
    else:
        acted_s = running.await_end(others, RESTART_TIMEOUT_S)
    return {HELD: [Figure("acted", "ms", "lower", (acted_s - begun_s) * 1000)]}


def _changes(running: Running, settings: Settings) -> Figures:
    _up(running)
    running.rest(SETTLED_S)
    return {
        STATUS: _status(running, _times(STATUSES, settings)),
        DECISION: _decisions(running, _times(DECISIONS, settings)),
        RELOAD: _reloads(running, _times(RELOADS, settings)),
    }


def _status(running: Running, times: int) -> list[Figure]:
    command = running.manager.status_command()
    if command is None:
        return []
    took_ms = []
    for _ in range(times):
        begun_s = time.monotonic()
        with running.command(command):
            pass
        took_ms.append((time.monotonic() - begun_s) * 1000)
    return [Figure("answer", "ms", "lower", statistics.median(took_ms))]


def _decisions(running: Running, times: int) -> list[Figure]:
    if not running.manager.decides:
        return []
    took_ms = []
    for k in range(times):
        begun_s = time.monotonic()
        running.decide(allowed=k % 2 == 0)
        took_ms.append((time.monotonic() - begun_s) * 1000)
    return _median_and_slowest("enforced", took_ms)


def _reloads(running: Running, times: int) -> list[Figure]:
    command = running.manager.reload_command()
    if command is None:
        return []
    changed_ms, returned_ms = [], []
    for name in running.crew.names[:times]:
        before = {other: app.pid for other, app in running.crew.running.items() if other != name}
        running.change(name)
        begun_s = time.monotonic()
        with running.command(command):
            changed_ms.append((running.await_apps([name], RESTART_TIMEOUT_S) - begun_s) * 1000)
        returned_ms.append((time.monotonic() - begun_s) * 1000)
        running.crew.listen()
        touched = [other for other, pid in before.items() if running.crew.running[other].pid != pid]
        if touched:
            raise BenchmarkError(f"cannot count this: {', '.join(touched)} had not changed")
    return [
        Figure("changed", "ms", "lower", statistics.median(changed_ms)),
        Figure("returned", "ms", "lower", statistics.median(returned_ms)),
    ]


def _times(times: int, settings: Settings) -> int:
    return min(times, QUICK_TIMES) if settings.quick else times


def _median_and_slowest(metric: str, took_ms: Sequence[float]) -> list[Figure]:
    return [
        Figure(metric, "ms", "lower", statistics.median(took_ms)),
        Figure("slowest", "ms", "lower", max(took_ms)),
    ]


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
    Trial([CRASH], APPS, _crash, able=lambda manager: manager.restarts),
    Trial([HELD], HOLDERS, _held, helper_s=SETTLED_S + HELD_S),
    Trial(
        [RELOAD, STATUS, DECISION],
        APPS,
        _changes,
        able=lambda manager: manager.reload_command() is not None,
    ),
    *GROWING,
)
