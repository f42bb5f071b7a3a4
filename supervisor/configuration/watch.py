"""Which files of an app are watched, and what follows when they change: `watch`."""

import re
import signal

from meshrun.supervisor.configuration.model import Watch, Watched
from meshrun.supervisor.configuration.tables import Table, dotted
from meshrun.supervisor.configuration.toml_positions import KeyPath
from meshrun.supervisor.configuration.values import (
    UnfitError,
    bounded_text,
    duration,
    kind,
    quoted,
    signal_named,
)

__all__ = ["KEYS", "read_watch", "written_at"]


KEYS = ("paths", "ignore", "debounce", "action")

MOST_PATTERNS = 100
_SHORTEST_DEBOUNCE, _LONGEST_DEBOUNCE = "10ms", "1m"
_RESTART = "restart"
_WILD = re.compile(r"[*?\[]")
_EXAMPLE = '["src", "templates/*.html"]'


def read_watch(table: Table) -> Watch | None:
    """Read `watch`: true, a list of paths, or a table; None where it is missing or false."""
    value = table.values.get("watch")
    path = (*table.path, "watch")
    if value is None or value is False:
        return None
    if value is True:
        return Watch()
    if isinstance(value, list):
        return Watch(paths=_read_paths(table, path, value))
    if not isinstance(value, dict):
        table.document.report_value(
            path,
            f"{dotted(path)} must be true, an array such as {_EXAMPLE}, or a table such as "
            f'{{ paths = ["src"], ignore = ["*.log"] }}, not {kind(value)}',
        )
        return None
    watch = Table(table.document, path, value)
    watch.allow(KEYS)
    patterns = enumerate(_few(watch, (*path, "ignore"), watch.array("ignore", '["*.log"]')))
    ignore = (watch.fitted(each, (*path, "ignore", i), _pattern, None) for i, each in patterns)
    return Watch(
        paths=_read_paths(watch, (*path, "paths"), watch.array("paths", _EXAMPLE)),
        ignore=tuple(pattern for pattern in ignore if pattern is not None),
        debounce_s=watch.read(
            "debounce", duration(_SHORTEST_DEBOUNCE, _LONGEST_DEBOUNCE), Watch().debounce_s
        ),
        signal=watch.read("action", _action, None),
    )


def written_at(table: Table, index: int) -> KeyPath:
    """Return where the path number `index` of `watch` stands, or what stands for it."""
    path = (*table.path, "watch")
    in_table: KeyPath = (*path, "paths", index)
    in_list: KeyPath = (*path, index)
    positions = table.document.positions
    return next((each for each in (in_table, in_list) if each in positions), path)


def _read_paths(table: Table, path: KeyPath, values: list[object]) -> tuple[Watched, ...]:
    """Return what is to be watched, in the places where it stands: the whole folder for none."""
    (whole,) = Watch().paths
    found = enumerate(_few(table, path, values))
    return tuple(table.fitted(each, (*path, i), _watched, whole) for i, each in found) or (whole,)


def _few(table: Table, path: KeyPath, values: list[object]) -> list[object]:
    if len(values) > MOST_PATTERNS:
        table.document.report_value(
            path, f"{dotted(path)} has {len(values)} entries, over {MOST_PATTERNS}"
        )
    return values[:MOST_PATTERNS]


def _watched(value: object) -> Watched:
    """Fit a path: what is before its first part with a wildcard is a folder."""
    written = bounded_text(value)
    parts = _parts(written)
    plain = next((n for n, part in enumerate(parts) if _WILD.search(part)), len(parts))
    root = "/" if written.startswith("/") else ""
    return Watched(base=root + "/".join(parts[:plain]) or ".", pattern=tuple(parts[plain:]))


def _pattern(value: object) -> str:
    written = bounded_text(value)
    if written.startswith("!"):
        raise UnfitError(f'must not begin with "!", as there are no exceptions: {quoted(written)}')
    parts = _parts(written)
    if not parts:
        raise UnfitError(f"would ignore everything: {quoted(written)}")
    anchored = len(parts) > 1 or written.startswith("/")
    return ("/" if anchored else "") + "/".join(parts)


def _parts(written: str) -> list[str]:
    return [part for part in written.split("/") if part not in ("", ".")]


def _action(value: object) -> signal.Signals | None:
    if value == _RESTART:
        return None
    try:
        return signal_named(value)
    except UnfitError as error:
        shown = quoted(value) if isinstance(value, str) else kind(value)
        raise UnfitError(
            f'must be "{_RESTART}" or the name of a signal such as "HUP", not {shown}'
        ) from error
