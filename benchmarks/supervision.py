"""The suite of the process manager: meshrun, supervisord and honcho with the same apps, in turns.

Alone: `python -m benchmarks.supervision --quick`.
"""

import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import click

from benchmarks import usage
from benchmarks.managers import MANAGERS, Manager
from benchmarks.managers.running import Running, start, voluntary_switches
from benchmarks.numbers import shown
from benchmarks.programs import BenchmarkError
from benchmarks.results import Measurement, Settings, unique
from benchmarks.workloads import Figure

__all__ = ["DESCRIPTIONS", "SUITE", "WORKLOADS", "run", "versions"]

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
# Of idleness, where the suite runs alone.
SECONDS = 5.0
QUICK_SECONDS = 1.0

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
    return _Suite(settings).run()


class _Suite:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._managers = self._present_managers()
        # By workload and contender, then by metric.
        self._values: dict[tuple[str, str], dict[str, list[Figure]]] = {}

    def run(self) -> list[Measurement]:
        trials = [trial for trial in TRIALS if self._is_wanted(trial)]
        for manager in self._managers if trials else ():
            self._warm_up(manager)
        for number in range(self._settings.rounds):
            for trial in trials:
                for manager in rotated(self._managers, number):
                    if manager.restarts or not trial.needs_restarts:
                        self._measure(trial, manager, number)
        return self._measurements()

    def _is_wanted(self, trial: Trial) -> bool:
        only = self._settings.only
        asked = only is None or not only.isdisjoint(trial.workloads)
        return asked and not (self._settings.quick and trial.apps > APPS)

    def _present_managers(self) -> Sequence[Manager]:
        settings = self._settings
        wanted = [manager for manager in MANAGERS if settings.wants(manager.name)]
        missing = [manager.name for manager in wanted if manager.version() is None]
        for name in missing:
            settings.say(f"{name} is not installed and left out; `make peers` installs it")
            settings.note(f"{name} was not installed")
        return [manager for manager in wanted if manager.name not in missing]

    def _warm_up(self, manager: Manager) -> None:
        """Have it compiled, and its files in memory: who comes first must not pay for that."""
        try:
            _fresh(WARM_UP, manager, self._settings)
        except (BenchmarkError, OSError) as error:
            self._settings.say(f"warm-up         {manager.name:<12}failed: {error}")

    def _measure(self, trial: Trial, manager: Manager, number: int) -> None:
        settings = self._settings
        place = f"{number + 1}/{settings.rounds}  {manager.name:<12}"
        try:
            found = _fresh(trial, manager, settings)
        # What dies under way is an OSError to whoever reads its memory: one failure must not lose
        # what the others did.
        except (BenchmarkError, OSError) as error:
            what = ", ".join(trial.workloads)
            settings.say(f"{what} {place}failed: {error}")
            settings.note(f"{manager.name} failed in {what}, round {number + 1}: {error}")
            return
        for workload, figures in found.items():
            if settings.only is None or workload in settings.only:
                kept = self._values.setdefault((workload, manager.name), {})
                for figure in figures:
                    kept.setdefault(figure.metric, []).append(figure)
                said = "   ".join(f"{f.metric} {shown(f.value)} {f.unit}" for f in figures)
                settings.say(f"{workload:<16}{place}{said}")

    def _measurements(self) -> list[Measurement]:
        order = [(w, m.name) for w in WORKLOADS for m in MANAGERS]
        return [
            Measurement(
                suite=SUITE,
                workload=workload,
                contender=contender,
                metric=metric,
                unit=figures[0].unit,
                better=figures[0].better,
                rounds=tuple(figure.value for figure in figures),
            )
            for workload, contender in order
            for metric, figures in self._values.get((workload, contender), {}).items()
        ]


def rotated(managers: Sequence[Manager], number: int) -> Sequence[Manager]:
    """Return the order of a round, so that nobody is always the first or the last."""
    shift = number % max(1, len(managers))
    return [*managers[shift:], *managers[:shift]]


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


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds.")
@click.option("--quick", is_flag=True, help="One short round, at most 20 apps: does it all work?")
@click.option("--only", multiple=True, type=click.Choice(WORKLOADS), help="This workload.")
@click.option("--contenders", multiple=True, type=click.Choice([m.name for m in MANAGERS]))
def main(rounds: int, quick: bool, only: tuple[str, ...], contenders: tuple[str, ...]) -> None:
    """Compare the process managers alone and print medians; `python -m benchmarks` keeps them."""
    signal.signal(signal.SIGTERM, _interrupt)
    settings = Settings(
        rounds=1 if quick else rounds,
        seconds=QUICK_SECONDS if quick else SECONDS,
        quick=quick,
        contenders=frozenset(contenders) or None,
        say=lambda text: click.echo(text, err=True),
        only=frozenset(only) or None,
    )
    for row in rows(run(settings)):
        click.echo(row)


def rows(measurements: Sequence[Measurement]) -> list[str]:
    """Return a small table: a row for each metric of a workload, a column for each contender."""
    contenders = unique(m.contender for m in measurements)
    medians = {(m.workload, m.metric, m.unit, m.contender): m.median for m in measurements}
    lines = [f"{'':<37}" + "".join(f"{name:>14}" for name in contenders)]
    for workload, metric, unit in dict.fromkeys(key[:3] for key in medians):
        cells = [medians.get((workload, metric, unit, name)) for name in contenders]
        shown_cells = ("-" if cell is None else shown(cell) for cell in cells)
        title = f"{workload:<16}{metric}, {unit}"
        lines.append(f"{title:<37}" + "".join(f"{cell:>14}" for cell in shown_cells))
    return lines


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
