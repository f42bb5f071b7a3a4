"""The tables of docs/benchmarks.md, from a run: pure.

A run's part stands between two marks; the text around them is people's.
"""

import math
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.numbers import shown
from benchmarks.results import PRODUCT, REFERENCE, Aims, Measurement, Run, compare, unique

__all__ = ["MissingMarksError", "chart_name", "headline", "insert", "render", "summary"]

MIB = 1 << 20
EMPTY = "-"
# What stands in summary and charts beside the first metric of a workload.
HEADLINES = frozenset({"p99", "CPU", "pair before", "ready", "without sidecars", "a sidecar"})


NO_AIMS: Aims = {}


class MissingMarksError(ValueError):
    """The document has no place for the part of a suite."""


def insert(document: str, suite: str, part: str) -> str:
    """Return the document with `part` between the marks of the suite."""
    begin, end = (f"<!-- results of {suite}: {place} -->\n" for place in ("begin", "end"))
    before, found_begin, rest = document.partition(begin)
    _, found_end, after = rest.partition(end)
    if not found_begin or not found_end:
        raise MissingMarksError(
            f"cannot write the results of {suite}: the document lacks the lines"
            f" {begin.strip()!r} and {end.strip()!r}"
        )
    return f"{before}{begin}\n{part.strip()}\n\n{end}{after}"


def render(run: Run, descriptions: Mapping[str, str], charts: str, aims: Aims = NO_AIMS) -> str:
    """Return the part of a run: where it ran, how the product stands, and every workload.

    `descriptions` has a paragraph a workload; `charts` is the folder of the charts, from the
    document.
    """
    table = summary(run.measurements, aims)
    blocks = [_setting(run), _notes(run), "### Summary", SUMMARY, table]
    for workload in unique(m.workload for m in run.measurements):
        measurements = [m for m in run.measurements if m.workload == workload]
        blocks += [
            f"### {workload}",
            descriptions.get(workload, ""),
            f"![{workload}]({charts}/{chart_name(run.suite, workload)})",
            _table(measurements),
        ]
    return "\n\n".join(filter(None, blocks)) + "\n"


def chart_name(suite: str, workload: str) -> str:
    """Return the file name of a workload's chart."""
    return f"{suite}-{workload}.svg"


def headline(measurements: Iterable[Measurement]) -> Sequence[str]:
    """Return the metrics of a workload that count most: its first, and those of HEADLINES."""
    metrics = unique(measurement.metric for measurement in measurements)
    return (*metrics[:1], *(metric for metric in metrics[1:] if metric in HEADLINES))


def _setting(run: Run) -> str:
    machine = run.machine
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    return (
        f"Measured {run.at} with meshrun {run.meshrun} on {machine.cores} cores of {machine.cpu},"
        f" {machine.memory_bytes / 1024 / MIB:.0f} GiB, {machine.system}, Linux {machine.kernel},"
        f" Python {machine.python}, {machine.openssl}. {run.rounds} rounds of {run.seconds:g} s."
        f" Versions: {versions}."
    )


def _notes(run: Run) -> str:
    return "\n".join(f"- {note}." for note in run.notes)


SUMMARY = (
    "Medians. The ratio says how many times better meshrun is: over 1 it wins, under 1 it"
    " **loses**. *Even* means that the rounds of the two overlap."
)


def summary(measurements: Sequence[Measurement], aims: Aims = NO_AIMS) -> str:
    """Return a table of what counts most: the product's medians, and how it stands to each peer.

    Where there are aims, it says beside each whether it is reached.
    """
    peers = _peers(measurements)
    rows = []
    for workload in unique(m.workload for m in measurements):
        of_workload = [m for m in measurements if m.workload == workload]
        for metric in headline(of_workload):
            by_contender = {m.contender: m for m in of_workload if m.metric == metric}
            ours = by_contender.get(PRODUCT)
            if ours is not None:
                against = [_verdict(ours, by_contender.get(peer)) for peer in peers]
                aim = [_aim(ours, aims.get((workload, metric)))] if aims else []
                rows.append([workload, metric, f"{shown(ours.median)} {ours.unit}", *aim, *against])
    titles = ["aim"] if aims else []
    return _markdown(["workload", "", PRODUCT, *titles, *(f"to {peer}" for peer in peers)], rows)


def _aim(ours: Measurement, aim: float | None) -> str:
    if aim is None:
        return EMPTY
    reached = ours.median <= aim if ours.better == "lower" else ours.median >= aim
    return f"{shown(aim)} reached" if reached else f"**{shown(aim)} missed**"


def _peers(measurements: Iterable[Measurement]) -> Sequence[str]:
    contenders = unique(m.contender for m in measurements)
    return [name for name in contenders if name not in (PRODUCT, REFERENCE)]


def _verdict(ours: Measurement, theirs: Measurement | None) -> str:
    comparison = None if theirs is None else compare(ours, theirs)
    if comparison is None:
        return EMPTY
    # Against zero there is no number of times.
    ratio = f"{comparison.ratio:.2f} " if 0 < comparison.ratio < math.inf else ""
    if not comparison.apart:
        return f"{ratio}even"
    return f"{ratio}wins" if comparison.ratio > 1 else f"**{ratio}loses**"


def _table(measurements: Sequence[Measurement]) -> str:
    first = headline(measurements)[0]
    metrics = unique(m.metric for m in measurements)
    units = {m.metric: m.unit for m in measurements}
    found = {(m.contender, m.metric): m for m in measurements}
    ours = found.get((PRODUCT, first))
    rows = []
    for contender in unique(m.contender for m in measurements):
        its = [found.get((contender, metric)) for metric in metrics]
        to = (
            EMPTY
            if ours is None or contender in (PRODUCT, REFERENCE)
            else _verdict(ours, found.get((contender, first)))
        )
        rows.append([contender, *map(_cell, its[:1]), to, *map(_cell, its[1:])])
    titles = [_title(metric, units[metric]) for metric in metrics]
    return _markdown(["", *titles[:1], f"{PRODUCT} to it", *titles[1:]], rows)


def _title(metric: str, unit: str) -> str:
    return unit if unit.startswith(metric) else f"{metric}, {unit}"


def _cell(measurement: Measurement | None) -> str:
    if measurement is None:
        return EMPTY
    median = shown(measurement.median)
    if len(measurement.rounds) == 1:
        return median
    return f"{median} ({shown(measurement.lowest)} - {shown(measurement.highest)})"


def _markdown(titles: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rule = ["---", *("--:" for _ in titles[1:])]
    return "\n".join(f"| {' | '.join(row)} |" for row in (titles, rule, *rows))
