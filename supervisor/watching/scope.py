"""Which files of the file system count as files of one app. Pure: nothing is looked at here."""

import fnmatch
import os
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from meshrun.supervisor.configuration.model import Watch

__all__ = ["Parts", "Root", "Scope"]

Parts = tuple[str, ...]

# What programs keep beside what people write: version control, installed packages, caches.
_FOLDERS = (
    *(".git", ".hg", ".svn", ".bzr", ".jj", "node_modules", ".venv", "venv", ".tox", ".nox"),
    *("__pycache__", ".mypy_cache", ".pytest_cache", ".ruff_cache", ".hypothesis", ".meshrun"),
    *(".idea", ".vscode", ".direnv"),
)
# What editors write on the way: swap files, backups, locks, and the probe of Vim (4913).
_FILES = (
    *("*.sw[a-p]", "*~", "#*#", ".#*", "4913", "*.kate-swp", "*___jb_???___", ".goutputstream-*"),
    *("*.py[co]", ".DS_Store"),
)
_ANY = "**"


@dataclass(frozen=True, slots=True)
class Root:
    """A file or folder that an app names; with `pattern` the files in it that match."""

    path: str
    pattern: Parts = ()


class Scope:
    """What an app wants to hear of: what is in its roots, but for what is ignored.

    `folder` is where the app runs, `spared` are absolute paths that do not count either, with all
    that is in them: what a run itself writes. A root counts whatever it is called: it was named.
    """

    def __init__(self, folder: str, watch: Watch, spared: Collection[str] = ()) -> None:
        self.folder = folder
        self.roots = tuple(
            Root(os.path.normpath(os.path.join(folder, each.base)), each.pattern)
            for each in watch.paths
        )
        names = (each for each in watch.ignore if not each.startswith("/"))
        paths = (each for each in watch.ignore if each.startswith("/"))
        self._ignored_names = _any_of((*_FOLDERS, *_FILES, *names))
        self._ignored_paths = [tuple(each.split("/")[1:]) for each in paths]
        self._spared = tuple(spared)

    def enters(self, root: Root, parts: Parts) -> bool:
        """Tell whether files that count may be in a folder; `parts` lead to that from `root`."""
        if self._is_ignored(root, parts):
            return False
        reached = _reached(root.pattern, parts)
        return not root.pattern or any(n < len(root.pattern) for n in reached)

    def counts(self, root: Root, parts: Parts) -> bool:
        """Tell whether a file counts; `parts` lead to it from `root`."""
        if self._is_ignored(root, parts):
            return False
        return not root.pattern or len(root.pattern) in _reached(root.pattern, parts)

    def called(self, path: str) -> str:
        """Return what a person would call a file, in characters that a terminal only shows."""
        below = path.removeprefix(self.folder.rstrip("/") + "/")
        return "".join(c if c.isprintable() else "?" for c in below)

    def _is_ignored(self, root: Root, parts: Parts) -> bool:
        if any(self._ignored_names.match(part) for part in parts):
            return True
        if not parts:
            return False
        path = os.path.join(root.path, *parts)
        if any(path == spared or path.startswith(f"{spared}/") for spared in self._spared):
            return True
        if not self._ignored_paths:
            return False
        from_folder = tuple(os.path.relpath(path, self.folder).split("/"))
        return any(_has_prefix(pattern, from_folder) for pattern in self._ignored_paths)


def _any_of(patterns: Iterable[str]) -> re.Pattern[str]:
    return re.compile("|".join(fnmatch.translate(pattern) for pattern in patterns))


def _reached(pattern: Parts, parts: Parts) -> set[int]:
    """Return how much of a pattern the parts of a path can have used up.

    All ways at once: however many `**` there are, it costs no more than their number per part.
    """
    reached = _skipping(pattern, {0})
    for part in parts:
        beyond = {
            n if pattern[n] == _ANY else n + 1
            for n in reached
            if n < len(pattern) and (pattern[n] == _ANY or fnmatch.fnmatchcase(part, pattern[n]))
        }
        reached = _skipping(pattern, beyond)
    return reached


def _skipping(pattern: Parts, reached: set[int]) -> set[int]:
    """Add what is reached where `**` is no folder at all."""
    found = set(reached)
    for n in range(len(pattern)):
        if n in found and pattern[n] == _ANY:
            found.add(n + 1)
    return found


def _has_prefix(pattern: Parts, parts: Parts) -> bool:
    """Tell whether a path, or a folder on the way to it, matches."""
    return any(
        len(pattern) in _reached(pattern, parts[:length]) for length in range(1, len(parts) + 1)
    )
