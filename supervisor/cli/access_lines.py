"""Entries of the access log as people read them: a line of columns for each."""

import sys
from collections.abc import Iterable, Iterator
from datetime import datetime

import click
import msgspec

from meshrun.supervisor import access
from meshrun.supervisor.access import Entry, Lost
from meshrun.supervisor.cli.columns import age, size
from meshrun.supervisor.errors import MeshrunError

__all__ = ["print_access"]

# A column is as wide as what most have in it; more moves the rest of its line.
_WIDTHS = (14, 16, 7, 6, 8, 32)
_HEADING = ("SOURCE", "INSTANCE", "METHOD", "STATUS", "LATENCY", "PATH")


def print_access(lines: Iterable[bytes], *, as_json: bool, dates: bool) -> None:
    """Print entries of the access log as they come: as JSON as they are, else a line of columns."""
    shown = (line + b"\n" for line in lines) if as_json else _rows(lines, dates=dates)
    for line in shown:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()


def _rows(lines: Iterable[bytes], *, dates: bool) -> Iterator[bytes]:
    time = "TIME".ljust(len(_time(datetime.now().astimezone(), dates=dates)))
    yield (_row(time, *_HEADING, "IDENTITY", "") + "\n").encode()
    colour = sys.stdout.isatty()
    for raw in lines:
        text = _shown(_decoded(raw), dates=dates)
        yield ((text if colour else click.unstyle(text)) + "\n").encode(errors="replace")


def _decoded(raw: bytes) -> Entry | Lost:
    try:
        return access.read(raw)
    except msgspec.DecodeError as error:
        raise MeshrunError(f"cannot understand an entry of the access log: {error}") from error


def _shown(line: Entry | Lost, *, dates: bool) -> str:
    at = line.time if isinstance(line, Lost) else line.at
    time = click.style(_time(at.astimezone(), dates=dates), dim=True)
    if isinstance(line, Lost):
        return f"{time}  {line.lost} more of {line.instance} are missing: too many at once"
    latency = age(line.duration_s) if line.duration_s >= 1 else f"{line.duration_s * 1000:.1f}ms"
    if line.kind == "request":
        method, status = line.method or "-", str(line.status or "-")
        what = line.path or "-"
    else:
        method = line.protocol
        status = "denied" if line.denied else "failed" if line.failure else "ok"
        what = f"in {size(line.received_bytes)}, out {size(line.sent_bytes)}"
    row = _row(time, line.source, line.instance, method, status, latency, what, line.identity, "")
    notes = [
        *(["denied"] if line.denied and line.kind == "request" else []),
        *(["would be denied (dry run)"] if line.dry_run else []),
        *([line.failure] if line.failure else []),
    ]
    bad = line.denied or line.failure or line.status >= 500
    return click.style(row, fg="red" if bad else None) + "".join(f"  ({note})" for note in notes)


def _row(time: str, *cells: str) -> str:
    *columns, identity, _ = cells
    padded = (cell.ljust(width) for cell, width in zip(columns, _WIDTHS, strict=True))
    return "  ".join((time, *padded, identity)).rstrip()


def _time(moment: datetime, *, dates: bool) -> str:
    shown = "%Y-%m-%d %H:%M:%S." if dates else "%H:%M:%S."
    return moment.strftime(shown) + f"{moment.microsecond // 1000:03d}"
