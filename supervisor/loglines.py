"""A line of a log file: what an app wrote, or that it started or ended, as bytes and back.

A line is its time (UTC, microseconds), a letter, how often the instance had been restarted, and
the bytes that the app wrote:

    2026-11-24T12:00:00.000000Z O0 listening on port 8080

`O` and `E` are stdout and stderr; small letters say that the line goes on with the next one of the
same stream. `M` is a marker, of which the text is meshrun's. `F` is the first line of each file:
its number, by which a reader knows whether it has missed one between two.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import Literal

from meshrun.supervisor.lines import Piece, Stream

__all__ = ["Header", "Line", "Source", "encode", "header", "parse", "parse_header"]

Source = Stream | Literal["marker"]

_LETTERS: dict[Source, bytes] = {"stdout": b"O", "stderr": b"E", "marker": b"M"}
_SOURCES: dict[bytes, tuple[Source, bool]] = {
    **{letter: (source, False) for source, letter in _LETTERS.items()},
    **{letter.lower(): (source, True) for source, letter in _LETTERS.items()},
}
_STAMP = rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z)"
_LINE = re.compile(_STAMP + rb" ([OEMoe])(\d{0,9}) (.*)", re.DOTALL)
_HEADER = re.compile(_STAMP + rb" F(\d{1,18})")


@dataclass(frozen=True, slots=True)
class Header:
    """When a file was begun, and how many were before it."""

    at: float
    number: int


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a log; `at` in wall-clock seconds, taken when it was read from the app.

    `restarts` is how often the instance had been started again in its run. A `partial` line goes on
    with the next one of its stream.
    """

    at: float
    instance: str
    source: Source
    content: bytes
    restarts: int = 0
    partial: bool = False

    @property
    def text(self) -> str:
        """The content as text; what is not UTF-8 is replaced."""
        return self.content.decode(errors="replace")


def _stamp(at: float) -> bytes:
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()


def encode(at: float, source: Source, restarts: int, contents: Sequence[bytes]) -> bytes:
    """Return whole lines, with their ends; there must be one at least."""
    head = b"%s %s%d " % (_stamp(at), _LETTERS[source], restarts)
    if Piece not in map(type, contents):
        return head + (b"\n" + head).join(contents) + b"\n"
    goes_on = b"%s %s%d " % (_stamp(at), _LETTERS[source].lower(), restarts)
    heads = (goes_on if isinstance(content, Piece) else head for content in contents)
    return b"".join(head + content + b"\n" for head, content in zip(heads, contents, strict=True))


def header(at: float, number: int) -> bytes:
    """Return the first line of a file."""
    return b"%s F%d\n" % (_stamp(at), number)


def parse_header(raw: bytes) -> Header | None:
    """Return what a first line says, None if it is no such line."""
    match = _HEADER.fullmatch(raw)
    if match is None:
        return None
    try:
        return Header(_moment(match[1]), int(match[2]))
    except ValueError:
        return None


def parse(instance: str, raw: bytes) -> Line | None:
    """Return what a line of a file says, None if it is none of an app's and no marker."""
    match = _LINE.fullmatch(raw)
    if match is None:
        return None
    try:
        at = _moment(match[1])
    except ValueError:  # digits that are no time: not a line of ours
        return None
    source, partial = _SOURCES[match[2]]
    return Line(at, instance, source, match[4], int(match[3] or 0), partial)


@lru_cache(maxsize=64)  # the lines of a batch have the same
def _moment(stamp: bytes) -> float:
    return datetime.fromisoformat(stamp.decode()).timestamp()
