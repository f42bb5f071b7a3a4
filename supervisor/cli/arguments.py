"""Long options with one dash, as Consul has them: `-replace` is `--replace`.

Pure: knows of a command only which options it has, and which of them take a value.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Spelling", "with_two_dashes"]

_NUMBER = re.compile(r"-[0-9]+(?:\.[0-9]+)?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Spelling:
    """The options of a command as written, such as `--json` and `-f`; `valued` take a value.

    Arguments end the options where `interspersed` is false: what follows is another command's.
    """

    flags: frozenset[str]
    valued: frozenset[str]
    interspersed: bool = True


def with_two_dashes(arguments: Sequence[str], spelling: Spelling) -> list[str]:
    """Return the arguments with every long option written with two dashes.

    Left as they are: what stands after `--`, the values of options, short options and their
    bundles, numbers. What is nothing of all this is taken for a long option with a slip of the pen.
    """
    written: list[str] = []
    rest = list(arguments)
    while rest:
        word = rest.pop(0)
        if word == "--" or (not _is_option(word) and not spelling.interspersed):
            return [*written, word, *rest]
        if not _is_option(word):
            written.append(word)
            continue
        option = _long(word, spelling)
        written.append(option)
        if rest and _wants_value(option, spelling):
            written.append(rest.pop(0))
    return written


def _is_option(word: str) -> bool:
    return len(word) > 1 and word.startswith("-") and not _NUMBER.fullmatch(word)


def _long(word: str, spelling: Spelling) -> str:
    if word.startswith("--"):
        return word
    name = word.partition("=")[0]
    if len(name) == 2:
        return word
    if f"-{name}" in spelling.flags | spelling.valued or not _is_bundle(word, spelling):
        return f"-{word}"
    return word


def _is_bundle(word: str, spelling: Spelling) -> bool:
    """Tell whether this is `-fn5`: short flags, and maybe one option with its value."""
    for letter in word[1:]:
        if f"-{letter}" in spelling.valued:
            return True
        if f"-{letter}" not in spelling.flags:
            return False
    return True


def _wants_value(option: str, spelling: Spelling) -> bool:
    if option.startswith("--"):
        return option in spelling.valued
    flags, last = option[1:-1], option[-1]
    return f"-{last}" in spelling.valued and all(f"-{letter}" in spelling.flags for letter in flags)
