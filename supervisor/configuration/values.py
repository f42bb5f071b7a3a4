"""What a single value of mesh.toml may be.

A `Fit` takes what tomli read and returns what meshrun uses, or raises `UnfitError`, whose message
continues the sentence that begins with the key's name.
"""

import json
import math
import re
import shlex
import signal
from collections.abc import Callable, Collection
from typing import TypeVar

from meshrun.proxy.errors import MeshrunError
from meshrun.supervisor import units
from meshrun.supervisor.configuration import interpolation
from meshrun.supervisor.configuration.model import PortRange
from meshrun.supervisor.suggest import hint

__all__ = [
    "HIGHEST_LIMIT",
    "HIGHEST_PORT",
    "Fit",
    "UnfitError",
    "address",
    "as_service_name",
    "boolean",
    "bounded_text",
    "choice",
    "duration",
    "environment_value",
    "idleness",
    "integer",
    "kind",
    "limit",
    "port_range",
    "quoted",
    "request_path",
    "service_name",
    "signal_named",
    "split_command",
    "text",
    "upstream_name",
    "wait",
    "word",
    "words",
]

T = TypeVar("T")
Name = TypeVar("Name", bound=str)
Fit = Callable[[object], T]

HIGHEST_PORT = 65535
LONGEST_TEXT = 1024
HIGHEST_LIMIT = 30_000
"""About as many as a loopback address has ports to call one listener from."""

_LONGEST_DURATION_S = 10 * 365 * 86400.0
_LONGEST_QUOTE = 60

_SERVICE_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_NOT_IN_SERVICE_NAME = re.compile(r"[^a-z0-9-]")
_UPSTREAM_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?", re.ASCII)
_PORT_RANGE = re.compile(r"([0-9]{1,5})-([0-9]{1,5})", re.ASCII)
_ADDRESS = re.compile(r"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([0-9]{1,5})", re.ASCII)
_NOT_IN_PATH = re.compile(r"[\x00-\x20\x7f]|[^\x00-\x7f]")


class UnfitError(MeshrunError):
    """A value is not one that its key can have; the message begins with a verb."""


def kind(value: object) -> str:
    """Return what TOML calls the type of a value, with its article."""
    for python_type, name in (
        (bool, "a boolean"),
        (str, "a string"),
        (int, "an integer"),
        (float, "a float"),
        (list, "an array"),
        (dict, "a table"),
    ):
        if isinstance(value, python_type):
            return name
    return "a date or time"


def quoted(value: str) -> str:
    """Return a string as a message shows it: in quotes, on one line, of bounded length."""
    shortened = value if len(value) <= _LONGEST_QUOTE else value[: _LONGEST_QUOTE - 1] + "…"
    return json.dumps(shortened, ensure_ascii=False)


def text(value: object) -> str:
    """Fit a string that is not empty and that a process can be given."""
    if not isinstance(value, str):
        raise UnfitError(f"must be a string, not {kind(value)}")
    if not value:
        raise UnfitError("must not be empty")
    if "\0" in value:
        raise UnfitError("must not hold a NUL character")
    return value


def bounded_text(value: object) -> str:
    """Fit a string that every request may be compared with, or be given."""
    written = text(value)
    if len(written) > LONGEST_TEXT:
        raise UnfitError(f"must have at most {LONGEST_TEXT} characters, not {len(written)}")
    return written


def boolean(value: object) -> bool:
    """Fit true or false."""
    if not isinstance(value, bool):
        raise UnfitError(f"must be true or false, not {kind(value)}")
    return value


def integer(lowest: int, highest: int) -> Fit[int]:
    """Fit an integer from `lowest` to `highest`."""

    def fit(value: object) -> int:
        if isinstance(value, bool) or not isinstance(value, int):
            meant = _number_in(value)
            raise UnfitError(f"must be an integer, not {kind(value)}{meant}")
        if not lowest <= value <= highest:
            found = f", not {value}" if abs(value) < 10**12 else ""
            raise UnfitError(f"must be from {lowest} to {highest}{found}")
        return value

    return fit


def _number_in(value: object) -> str:
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value, re.ASCII):
        return f" (did you mean {int(value)}?)"
    return ""


def choice(names: tuple[Name, ...]) -> Fit[Name]:
    """Fit one of the strings in `names`."""
    known = _enumerated(names)

    def fit(value: object) -> Name:
        if not isinstance(value, str):
            raise UnfitError(f"must be {known}, not {kind(value)}")
        for name in names:
            if name == value:
                return name
        raise UnfitError(f"must be {known}, not {quoted(value)}{hint(value, names)}")

    return fit


def _enumerated(names: Collection[str]) -> str:
    *first, last = (f'"{name}"' for name in names)
    return f"{', '.join(first)} or {last}" if first else last


def duration(shortest: str = "0s", longest: str | None = None) -> Fit[float]:
    """Fit a duration, in seconds, of at least `shortest` and at most `longest`."""
    lowest_s = units.seconds(shortest)
    highest_s = units.seconds(longest) if longest else _LONGEST_DURATION_S

    def fit(value: object) -> float:
        if not isinstance(value, str):
            meant = f' (did you mean "{value}s"?)' if _is_plain_number(value) else ""
            raise UnfitError(f'must be a duration such as "10s", not {kind(value)}{meant}')
        try:
            length_s = units.seconds(value)
        except units.UnitError as error:
            raise UnfitError(f"{error}, not {quoted(value)}") from error
        if length_s < lowest_s:
            raise UnfitError(f"must be at least {shortest}, not {value}")
        if length_s > highest_s:
            raise UnfitError(f"must be at most {longest or '10 years'}, not {value}")
        return length_s

    return fit


def _is_plain_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) and 0 <= value < 1_000_000


limit: Fit[int] = integer(1, HIGHEST_LIMIT)
"""Fits how many of something there may be at the same time."""

wait: Fit[float] = duration("1ms")
"""Fits how long to wait for something."""

idleness: Fit[float] = duration("1s")
"""Fits how long nothing may move."""


def port_range(value: object) -> PortRange:
    """Fit a range of ports such as `21000-21999`."""
    written = text(value)
    match = _PORT_RANGE.fullmatch(written)
    if match is None:
        raise UnfitError(f'must be a range such as "21000-21999", not {quoted(written)}')
    found = PortRange(int(match[1]), int(match[2]))
    if found.first < 1 or found.last > HIGHEST_PORT:
        raise UnfitError(f"must be within 1-{HIGHEST_PORT}, not {quoted(written)}")
    if found.first > found.last:
        raise UnfitError(f"is an empty range: {found.first} is after {found.last}")
    return found


def service_name(value: object) -> str:
    """Fit the name of a service."""
    written = text(value)
    if not _SERVICE_NAME.fullmatch(written):
        right = as_service_name(written)
        meant = f' (did you mean "{right}"?)' if right else ""
        raise UnfitError(
            f"must be a name of at most 63 of a-z, 0-9 and -, with - not at an end, "
            f"not {quoted(written)}{meant}"
        )
    return written


def as_service_name(written: str) -> str:
    """Return the service name that is like `written`; empty if nothing of it can be in one."""
    return _NOT_IN_SERVICE_NAME.sub("-", written.lower())[:63].strip("-")


def upstream_name(value: object) -> str:
    """Fit the name under which an app sees an upstream; it only has to make a variable's name."""
    written = text(value)
    if not _UPSTREAM_NAME.fullmatch(written):
        raise UnfitError(
            f"must be a name of at most 63 letters, digits, -, _ and ., "
            f"with a letter or digit at both ends, not {quoted(written)}"
        )
    return written


def signal_named(value: object) -> signal.Signals:
    """Fit the name of a signal, with or without SIG."""
    names = {found.name.removeprefix("SIG"): found for found in signal.Signals}
    written = text(value)
    found = names.get(written.upper().removeprefix("SIG"))
    if found is None:
        meant = hint(written.upper().removeprefix("SIG"), names)
        raise UnfitError(f'must be a signal such as "TERM" or "INT", not {quoted(written)}{meant}')
    return found


def request_path(value: object) -> str:
    """Fit the path of an HTTP request; it may begin with a variable."""
    written = text(value)
    if not written.startswith(("/", "${")):
        raise UnfitError(f'must be a path that begins with "/", not {quoted(written)}')
    if _NOT_IN_PATH.search(written):
        raise UnfitError("must be printable ASCII without blanks: percent-encode the rest")
    return written


def address(value: str) -> None:
    """Check a `host:port`, variables already put in. Raises UnfitError."""
    match = _ADDRESS.fullmatch(value)
    if match is None:
        raise UnfitError(f'must be host:port such as "127.0.0.1:5432", not {quoted(value)}')
    if not 1 <= int(match[1]) <= HIGHEST_PORT:
        raise UnfitError(f"must have a port from 1 to {HIGHEST_PORT}, not {match[1]}")


def environment_value(value: object) -> str:
    """Fit what a variable is set to: a string, or an integer, which becomes its decimal text."""
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UnfitError(f"must be a string or an integer, not {kind(value)}: put it in quotes")
    if isinstance(value, int):
        if abs(value) >= 1 << 63:
            raise UnfitError("must be an integer of 64 bits: put it in quotes")
        return str(value)
    if "\0" in value:
        raise UnfitError("must not hold a NUL character")
    return value


def words(value: object) -> tuple[object, ...]:
    """Fit a command: words, or a string to split; each of the words is still to be fitted."""
    if isinstance(value, str):
        return split_command(text(value))
    if not isinstance(value, list):
        raise UnfitError(f"must be a string or an array of strings, not {kind(value)}")
    if not value or not value[0]:
        raise UnfitError("must not be empty")
    return tuple(value)


def word(value: object) -> str:
    """Fit one word of a command; it may be empty."""
    return value if value == "" and isinstance(value, str) else text(value)


def split_command(value: str) -> tuple[str, ...]:
    """Split a command as a shell splits. Raises UnfitError."""
    try:
        words = tuple(shlex.split(value))
    except ValueError as error:
        raise UnfitError(f"cannot be split into words: {str(error).lower()}") from error
    if not words or not words[0]:
        raise UnfitError("must not be empty")
    if not interpolation.has_unclosed(value) and any(map(interpolation.has_unclosed, words)):
        raise UnfitError("has a ${…:-default} with a blank in it: put all of it in quotes")
    return words
