"""Tables of aligned columns; rich's would cost more time than all of `meshrun ps` may take."""

from collections.abc import Sequence
from typing import Literal

import click

__all__ = ["RIGHT", "age", "size", "table"]

# A column whose heading is in here is one of numbers.
RIGHT = frozenset({"PID", "PORT", "RESTARTS", "UPTIME", "CPU", "MEMORY", "SIDECAR MEM"})

_GAP = "  "


def table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return lines with aligned columns; an empty cell is shown as `-`.

    Cells may be coloured (`click.style`): the colour does not count as width.
    """
    shown = [[cell or "-" for cell in row] for row in rows]
    widths = [
        max(len(click.unstyle(cell)) for cell in column)
        for column in zip(heading, *shown, strict=True)
    ]
    sides: list[Literal["left", "right"]] = [
        "right" if name in RIGHT else "left" for name in heading
    ]
    return "\n".join(
        _GAP.join(map(_padded, row, widths, sides)).rstrip() for row in (heading, *shown)
    )


def _padded(cell: str, width: int, side: Literal["left", "right"]) -> str:
    padding = " " * (width - len(click.unstyle(cell)))
    return cell + padding if side == "left" else padding + cell


def age(seconds: float) -> str:
    """Return a duration in its two largest units: `850ms`, `12s`, `3m04s`, `2h10m`, `5d03h`."""
    if seconds < 1:
        return f"{max(0, round(seconds * 1000))}ms"
    minutes, whole_s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days}d{hours:02}h"
    if hours:
        return f"{hours}h{minutes:02}m"
    return f"{minutes}m{whole_s:02}s" if minutes else f"{whole_s}s"


def size(count_bytes: float) -> str:
    """Return a size in binary units: `512B`, `6.1MiB`."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count_bytes < 1024 or unit == "GiB":
            break
        count_bytes /= 1024
    return f"{count_bytes:.0f}{unit}" if unit == "B" else f"{count_bytes:.1f}{unit}"
