"""The right name nearest to a wrong one."""

import difflib
from collections.abc import Iterable

__all__ = ["hint", "nearest"]

_LONGEST_NAME = 64
"""difflib's cost grows with the product of the lengths, and no right name is longer."""


def nearest(name: str, candidates: Iterable[str]) -> str | None:
    """Return the candidate most like `name`, or None where none is like it."""
    if len(name) > _LONGEST_NAME:
        return None
    by_folded = {_folded(candidate): candidate for candidate in candidates if candidate != name}
    matches = difflib.get_close_matches(_folded(name), by_folded, n=1, cutoff=0.6)
    return by_folded[matches[0]] if matches else None


def hint(name: str, candidates: Iterable[str]) -> str:
    """Return ` (did you mean "…"?)` to end a message with, or nothing where no name is near."""
    match = nearest(name, candidates)
    return f' (did you mean "{match}"?)' if match is not None else ""


def _folded(name: str) -> str:
    return name.lower().replace("_", "-")
