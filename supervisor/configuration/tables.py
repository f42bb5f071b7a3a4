"""The tables of a mesh.toml while they are read: typed values out, findings with places aside.

Reading never stops at a mistake: the finding is kept, the default stands in, and whoever reads the
whole file hears of everything that is wrong with it.
"""

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

from meshrun.supervisor.configuration.toml_positions import KeyPath, Position, Positions
from meshrun.supervisor.configuration.values import Fit, UnfitError, kind, quoted, text
from meshrun.supervisor.errors import Finding
from meshrun.supervisor.suggest import hint

__all__ = ["Document", "Place", "Table", "dotted"]

T = TypeVar("T")
D = TypeVar("D")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a file, as messages call it."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


def dotted(path: KeyPath) -> str:
    """Return a path as a user would write it: `apps.web.upstreams[1].port`, elements from 0."""
    shown = ""
    for part in path:
        if isinstance(part, int):
            shown += f"[{part}]"
        else:
            name = part if _BARE_KEY.fullmatch(part) and len(part) <= 64 else quoted(part)
            shown += f".{name}" if shown else name
    return shown


@dataclass(slots=True)
class Document:
    """A file that is being read, and what was found wrong so far.

    `elsewhere` has the places of what this file does not say itself, by the path that it would
    have here: what a Procfile says, and names in arrays that stand for a table's keys.
    """

    file: str
    positions: Positions
    findings: list[Finding] = field(default_factory=list)
    elsewhere: dict[KeyPath, Place] = field(default_factory=dict)

    def key(self, path: KeyPath) -> Place:
        """Return where the key at `path` stands."""
        return self._place(path, self.positions.key)

    def value(self, path: KeyPath) -> Place:
        """Return where the value at `path` stands."""
        return self._place(path, self.positions.value)

    def report_key(self, path: KeyPath, message: str) -> None:
        """Keep a finding about the key at `path`."""
        self._report(self.key(path), message)

    def report_value(self, path: KeyPath, message: str) -> None:
        """Keep a finding about the value at `path`; it may be missing: then about its table."""
        self._report(self.value(path), message)

    def _report(self, place: Place, message: str) -> None:
        # Names come from the file as they are: no escape sequence of theirs may reach a terminal.
        shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)
        self.findings.append(Finding(place.file, place.line, place.column, shown))

    def _place(self, path: KeyPath, position: Callable[[KeyPath], Position]) -> Place:
        for length in range(len(path), 0, -1):
            if path[:length] in self.positions:
                break
            if path[:length] in self.elsewhere:
                return self.elsewhere[path[:length]]
        found = position(path)
        return Place(self.file, found.line, found.column)


@dataclass(frozen=True, slots=True)
class Table:
    """One table of a document, and the path to it."""

    document: Document
    path: KeyPath
    values: Mapping[str, object]

    def __contains__(self, key: str) -> bool:
        return key in self.values

    def read(self, key: str, fit: Fit[T], default: D) -> T | D:
        """Return the value of `key`; where it is missing, or reported as unfit, the default."""
        if key not in self.values:
            return default
        return self.fitted(self.values[key], (*self.path, key), fit, default)

    def fitted(self, value: object, path: KeyPath, fit: Fit[T], default: D) -> T | D:
        """Return `value`, found at `path`, as `fit` sees it; else report, and the default."""
        try:
            return fit(value)
        except UnfitError as error:
            self.document.report_value(path, f"{dotted(path)} {error}")
            return default

    def required(self, key: str, fit: Fit[T], default: D) -> T | D:
        """Return the value of `key` like `read`, and report where it is missing."""
        if key not in self.values:
            self.document.report_key(self.path, f"{dotted(self.path)} needs {key}")
        return self.read(key, fit, default)

    def table(self, key: str, example: str = "") -> "Table | None":
        """Return the table under `key`, None where there is none or it is not one."""
        if key not in self.values:
            return None
        return self.nested(self.values[key], (*self.path, key), example)

    def nested(self, value: object, path: KeyPath, example: str = "") -> "Table | None":
        """Return `value`, which stands at `path`, as a table, or report that it is not one."""
        if isinstance(value, dict):
            return Table(self.document, path, value)
        such = f" such as {example}" if example else ""
        self.document.report_value(path, f"{dotted(path)} must be a table{such}, not {kind(value)}")
        return None

    def tables(self, key: str) -> Iterable["Table"]:
        """Return the tables in the table under `key`, one a name."""
        outer = self.table(key)
        for name, value in outer.values.items() if outer else ():
            inner = self.nested(value, (*self.path, key, name))
            if inner is not None:
                yield inner

    def array(self, key: str, example: str) -> list[object]:
        """Return the array under `key`; empty where there is none or it is not one."""
        value = self.values.get(key, [])
        if isinstance(value, list):
            return value
        path = (*self.path, key)
        self.document.report_value(
            path, f"{dotted(path)} must be an array such as {example}, not {kind(value)}"
        )
        return []

    def strings(self, key: str, example: str) -> list[tuple[KeyPath, str]]:
        """Return the strings in the array under `key` with their paths, unfit ones reported."""
        found = []
        for index, value in enumerate(self.array(key, example)):
            path = (*self.path, key, index)
            string = self.fitted(value, path, text, None)
            if string is not None:
                found.append((path, string))
        return found

    def allow(
        self,
        known: Collection[str],
        later: Collection[str] = (),
        elsewhere: Mapping[str, str] | None = None,
    ) -> None:
        """Report the keys that are not `known`.

        Those that a `later` version brings are reported as such, and those that belong `elsewhere`
        with what they are keys of.
        """
        where = f"in {dotted(self.path)}" if self.path else "at the top"
        for key in self.values:
            path = (*self.path, key)
            if key in later:
                self.document.report_key(path, f"{dotted(path)} is not supported yet")
            elif elsewhere and key in elsewhere:
                self.document.report_key(path, f"{dotted(path)} is a key of {elsewhere[key]}")
            elif key not in known:
                self.document.report_key(
                    path, f"unknown key {quoted(key)} {where}{hint(key, [*known, *later])}"
                )
