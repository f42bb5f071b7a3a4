"""`python -m benchmarks`: measures, and writes JSON and the tables of docs/benchmarks.md."""

import resource
import signal
import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from types import FrameType

import click

from benchmarks import document, machine, report, results, suites
from benchmarks.collection import FAILURES
from benchmarks.programs import BenchmarkError
from benchmarks.results import PRODUCT, Run, Settings, unique
from benchmarks.suites import MODULES, Suite
from meshrun.supervisor import suggest

RESULTS = Path(__file__).parent / "results"
QUICK_SECONDS = 1.0


def _names(
    context: click.Context, option: click.Parameter, value: str | None
) -> frozenset[str] | None:
    if value is None:
        return None
    names = frozenset(filter(None, map(str.strip, value.split(","))))
    if not names:
        raise click.BadParameter("it names nothing")
    return names


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(1), help="Rounds.")
@click.option(
    "--seconds",
    default=5.0,
    show_default=True,
    type=click.FloatRange(1),
    help="Of one measurement.",
)
@click.option("--only", callback=_names, help="These workloads, by name, with commas.")
@click.option("--contenders", callback=_names, help="These contenders, by name, with commas.")
@click.option("--suite", "chosen", callback=_names, help=f"These suites: {', '.join(MODULES)}.")
@click.option("--quick", is_flag=True, help="One round of one second: does it all work?")
@click.option(
    "--output", default=RESULTS, type=click.Path(path_type=Path, file_okay=False), help="For JSON."
)
@click.option("--no-docs", is_flag=True, help="Leave docs/benchmarks.md as it is.")
@click.option(
    "--report",
    "from_file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Measure nothing: write the tables and charts from this JSON.",
)
def main(
    rounds: int,
    seconds: float,
    only: frozenset[str] | None,
    contenders: frozenset[str] | None,
    chosen: frozenset[str] | None,
    quick: bool,
    output: Path,
    no_docs: bool,
    from_file: Path | None,
) -> None:
    """Compare meshrun with what people use today.

    A whole run rewrites its part of docs/benchmarks.md; --only, --contenders and --quick write JSON
    and leave the document alone. A suite that cannot be measured is named at the end.
    """
    found = suites.available()
    if from_file is not None:
        _document(results.decode(from_file.read_bytes()), found)
        return
    signal.signal(signal.SIGTERM, _interrupt)
    _allow_many_descriptors()
    failed: list[str] = []
    for suite in select(found, chosen, only, contenders):
        notes: list[str] = []
        settings = Settings(
            rounds=1 if quick else rounds,
            seconds=QUICK_SECONDS if quick else seconds,
            quick=quick,
            contenders=contenders,
            say=click.echo,
            only=only,
            note=notes.append,
        )
        try:
            run = _run(suite, settings, notes, output)
            if any(measurement.contender == PRODUCT for measurement in run.measurements):
                click.echo(report.summary(run.measurements, suite.aims))
            if not (quick or only or contenders or no_docs):
                _document(run, found)
        except FAILURES as error:
            click.echo(f"{suite.name}: {error}", err=True)
            failed.append(suite.name)
    if failed:
        raise click.ClickException(f"cannot measure {' and '.join(failed)}: see above")


def select(
    found: Mapping[str, Suite],
    chosen: frozenset[str] | None,
    only: frozenset[str] | None,
    contenders: frozenset[str] | None,
) -> Sequence[Suite]:
    """Return the suites that have something of what is asked for; None asks for everything.

    Raises click.UsageError for a name that nothing of what is asked for has.
    """
    _refuse_unknown("suite", chosen, found)
    suites = [suite for suite in found.values() if chosen is None or suite.name in chosen]
    _refuse_unknown("workload", only, (name for suite in suites for name in suite.workloads))
    suites = [suite for suite in suites if only is None or not only.isdisjoint(suite.workloads)]
    _refuse_unknown("contender", contenders, (c for suite in suites for c in suite.contenders))
    return [s for s in suites if contenders is None or not contenders.isdisjoint(s.contenders)]


def _refuse_unknown(what: str, names: frozenset[str] | None, known: Iterable[str]) -> None:
    there = unique(known)
    for name in sorted((names or frozenset()).difference(there)):
        hint = suggest.hint(name, there)
        raise click.UsageError(f'no {what} "{name}"{hint}; there are {", ".join(there)}')


def _document(run: Run, found: Mapping[str, Suite]) -> None:
    suite = found.get(run.suite)
    if suite is None:
        document.write(run, {}, {})
    else:
        document.write(run, suite.descriptions, suite.aims)
    click.echo(f"{run.suite}: tables and charts written to {document.DOCUMENT}")


def _run(suite: Suite, settings: Settings, notes: list[str], output: Path) -> Run:
    """Run a suite and keep what it measured."""
    begun = time.monotonic()
    at = datetime.now(UTC)
    measurements = suite.run(settings)
    if not measurements:
        raise BenchmarkError(
            f"nothing was measured: {'; '.join(notes) or 'nothing that was asked for is here'}"
        )
    run = Run(
        suite=suite.name,
        at=at.isoformat(timespec="seconds"),
        meshrun=version("meshrun"),
        machine=machine.describe(),
        versions=suite.versions(),
        rounds=settings.rounds,
        seconds=settings.seconds,
        measurements=measurements,
        notes=notes,
    )
    output.mkdir(parents=True, exist_ok=True)
    file = output / f"{at:%Y-%m-%dT%H%M%SZ}-{suite.name}.json"
    file.write_bytes(results.encode(run))
    click.echo(f"{suite.name}: {time.monotonic() - begun:.0f} s; written to {file}")
    return run


def _allow_many_descriptors() -> None:
    # Inherited by whatever is started: a thousand connections are two thousand sockets in a proxy.
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
