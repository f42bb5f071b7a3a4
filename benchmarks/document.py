"""Puts a run into docs/benchmarks.md and its charts beside it."""

from collections.abc import Mapping
from pathlib import Path

from benchmarks import charts, report
from benchmarks.results import Aims, Run, unique

__all__ = ["DOCUMENT", "write"]

DOCUMENT = Path(__file__).parents[1] / "docs" / "benchmarks.md"


def write(run: Run, descriptions: Mapping[str, str], aims: Aims, document: Path = DOCUMENT) -> None:
    """Write the tables of a run between its marks, and a chart a workload; raises OSError."""
    folder = document.with_suffix("")
    folder.mkdir(exist_ok=True)
    text = report.insert(
        document.read_text(encoding="utf-8"),
        run.suite,
        report.render(run, descriptions, folder.name, aims),
    )
    for old in folder.glob(report.chart_name(run.suite, "*")):
        old.unlink()
    for workload in unique(m.workload for m in run.measurements):
        measurements = [m for m in run.measurements if m.workload == workload]
        chart = folder / report.chart_name(run.suite, workload)
        chart.write_text(charts.draw(workload, measurements), encoding="utf-8")
    document.write_text(text, encoding="utf-8")
