"""Bar charts as SVG, readable on light and dark pages: pure.

A bar is the median; the thin line over it goes from the lowest round to the highest.
"""

from collections.abc import Sequence
from xml.sax.saxutils import escape, quoteattr

from benchmarks.numbers import shown
from benchmarks.report import headline
from benchmarks.results import PRODUCT, REFERENCE, Measurement, unique

__all__ = ["draw"]

WIDTH = 720
LABEL_WIDTH = 90
VALUE_WIDTH = 150
ROW = 26
BAR = 16
TITLE = 30
GAP = 14

# Colours of the page where it is light, and where it is dark.
STYLE = """\
text { font: 13px system-ui, sans-serif; fill: #24292f }
.title { font-weight: 600 }
.ours { fill: #1f6feb }
.theirs { fill: #8c959f }
.spread { stroke: #24292f; stroke-width: 1.5 }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .ours { fill: #4493f8 }
  .theirs { fill: #6e7681 }
  .spread { stroke: #e6edf3 }
}"""


def draw(workload: str, measurements: Sequence[Measurement]) -> str:
    """Return the chart of a workload: a panel for each of its headline metrics, peers in order.

    The reference without a proxy is left out: beside it all bars would look alike.
    """
    compared = [m for m in measurements if m.contender != REFERENCE]
    parts: list[str] = []
    top = 0
    for metric in headline(compared):
        panel = [m for m in compared if m.metric == metric]
        parts += _panel(panel, top)
        top += TITLE + ROW * len(panel) + GAP
    label = quoteattr(f"{workload}: {', '.join(unique(m.contender for m in compared))}")
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}"'
            f' width="{WIDTH}" height="{top}" role="img" aria-label={label}>',
            f"<style>\n{STYLE}\n</style>",
            *parts,
            "</svg>\n",
        ]
    )


def _panel(measurements: Sequence[Measurement], top: int) -> list[str]:
    first = measurements[0]
    scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / (max(m.highest for m in measurements) or 1)
    title = f"{first.metric}, {first.unit} ({first.better} is better)"
    lines = [f'<text class="title" x="0" y="{top + 19}">{escape(title)}</text>']
    for row, measurement in enumerate(measurements):
        lines += _bar(measurement, top + TITLE + ROW * row, scale)
    return lines


def _bar(measurement: Measurement, top: int, scale: float) -> list[str]:
    kind = "ours" if measurement.contender == PRODUCT else "theirs"
    middle = top + BAR / 2
    end = LABEL_WIDTH + measurement.median * scale
    low, high = (LABEL_WIDTH + v * scale for v in (measurement.lowest, measurement.highest))
    name = escape(measurement.contender)
    return [
        f'<text x="{LABEL_WIDTH - 8}" y="{middle + 4.5}" text-anchor="end">{name}</text>',
        f'<rect class="{kind}" x="{LABEL_WIDTH}" y="{top}" width="{end - LABEL_WIDTH:.1f}"'
        f' height="{BAR}" rx="2"/>',
        f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>',
        f'<text x="{max(high, end) + 8:.1f}" y="{middle + 4.5}">{shown(measurement.median)}</text>',
    ]
