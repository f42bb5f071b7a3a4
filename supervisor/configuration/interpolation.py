"""`${NAME}`, `${NAME:-default}` and `$$` in the strings of a configuration.

A `$` before anything else is literal, and so is a `${` that is never closed. As in a shell, the
default also stands in for an empty variable, and may hold references of its own; a value that was
put in is not looked at again. One pass, no recursion: linear in the text.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from meshrun.proxy.errors import MeshrunError

__all__ = [
    "ExpansionTooLongError",
    "UnsetVariableError",
    "expand",
    "has_unclosed",
    "names",
    "unset",
]

_TOKEN = re.compile(
    r"(?P<escape>\$\$)|\$\{(?P<name>[A-Za-z_][A-Za-z0-9_]*)(?P<end>\}|:-)|(?P<close>\})", re.ASCII
)

_LONGEST_RESULT = 1 << 20
"""A process could not take more: Linux bounds one argument or variable to 128 KiB."""


class UnsetVariableError(MeshrunError):
    """A `${NAME}` without a default names a variable that is not set; `name` is that one."""

    def __init__(self, name: str) -> None:
        self.name = name
        super().__init__(f"${{{name}}} is not set and has no default")


class ExpansionTooLongError(MeshrunError):
    """The variables in a text are so long that no process could take the result."""


@dataclass(frozen=True, slots=True)
class _Open:
    """A `${name:-` that waits for its `}`: how much was put out, and missed, before it."""

    name: str
    parts: int
    unset: int


class _Reader:
    """Expands a text from left to right, keeping the names that were seen and those not set."""

    def __init__(self, lookup: Mapping[str, str]) -> None:
        self.names: list[str] = []
        self.open: list[_Open] = []
        self.unset: list[str] = []
        self._lookup = lookup
        self._parts: list[str] = []
        self._length = 0

    def read(self, text: str) -> str:
        end = 0
        for token in _TOKEN.finditer(text):
            self._put(text[end : token.start()])
            end = token.end()
            if token["escape"]:
                self._put("$")
            elif token["close"]:
                self._close()
            else:
                self._reference(token)
        self._put(text[end:])
        return "".join(self._parts)

    def _put(self, text: str) -> None:
        self._length += len(text)
        if self._length > _LONGEST_RESULT:
            raise ExpansionTooLongError(
                f"expands to more than {_LONGEST_RESULT} characters: shorten the variables in it"
            )
        self._parts.append(text)

    def _reference(self, token: re.Match[str]) -> None:
        name = token["name"]
        self.names.append(name)
        if token["end"] == ":-":
            self.open.append(_Open(name, len(self._parts), len(self.unset)))
            self._put(token[0])  # what it is if it is never closed
        elif (value := self._lookup.get(name)) is not None:
            self._put(value)
        else:
            self.unset.append(name)

    def _close(self) -> None:
        if not self.open:
            self._put("}")
            return
        opened = self.open.pop()
        value = self._lookup.get(opened.name)
        if value:
            del self._parts[opened.parts :]
            del self.unset[opened.unset :]
            self._put(value)
        else:
            self._parts[opened.parts] = ""


def expand(text: str, lookup: Mapping[str, str]) -> str:
    """Return `text` with its variables put in.

    Raises UnsetVariableError for the first one that is not set and has no default, and
    ExpansionTooLongError.
    """
    reader = _Reader(lookup)
    expanded = reader.read(text)
    if reader.unset:
        raise UnsetVariableError(reader.unset[0])
    return expanded


def unset(text: str, lookup: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names that `expand` would miss, in order, each once."""
    reader = _Reader(lookup)
    reader.read(text)
    return tuple(dict.fromkeys(reader.unset))


def names(text: str) -> tuple[str, ...]:
    """Return the name of every reference in `text`, in order, whether or not it has a default."""
    reader = _Reader({})
    reader.read(text)
    return tuple(reader.names)


def has_unclosed(text: str) -> bool:
    """Whether there is a `${NAME:-` in `text` without its `}`."""
    reader = _Reader({})
    reader.read(text)
    return bool(reader.open)
