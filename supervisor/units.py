"""Durations and sizes as people write them: `500ms`, `24h`, `64KiB`."""

import re

from meshrun.proxy.errors import MeshrunError

__all__ = ["UnitError", "bytes_of", "seconds"]

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}
_DURATION = re.compile(r"(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ms|s|m|h))+", re.ASCII)
_DURATION_PART = re.compile(r"([0-9.]+)(ms|s|m|h)", re.ASCII)

_BYTES = {"B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "TiB": 1 << 40}
_SIZE = re.compile(r"([0-9]{1,15})(B|KiB|MiB|GiB|TiB)", re.ASCII)

_LONGEST_TEXT = 40
"""More than any sensible duration or size has; bounds what is parsed and what is quoted back."""


class UnitError(MeshrunError):
    """A text is not a duration, or not a size; the message says what one looks like."""


def seconds(text: str) -> float:
    """Return the seconds in a duration such as `500ms`, `1.5s`, `10s`, `5m`, `24h` or `1h30m`.

    Raises UnitError.
    """
    if len(text) > _LONGEST_TEXT or not _DURATION.fullmatch(text):
        raise UnitError('must be a duration such as "500ms", "10s", "5m" or "24h"')
    return sum(float(number) * _SECONDS[unit] for number, unit in _DURATION_PART.findall(text))


def bytes_of(text: str) -> int:
    """Return the bytes in a size such as `512B`, `64KiB`, `10MiB` or `2GiB`. Raises UnitError."""
    size = _SIZE.fullmatch(text) if len(text) <= _LONGEST_TEXT else None
    if size is None:
        raise UnitError('must be a size such as "512B", "64KiB" or "10MiB"')
    return int(size[1]) * _BYTES[size[2]]
