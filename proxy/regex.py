"""Regular expressions of intentions and probes: RE2's, so that no text makes one slow.

Bytes of others are matched one by one, as Latin-1: an expression that read them as UTF-8 would not
match at all where somebody puts in a byte that is none, and a deny would be passed by.
"""

from collections.abc import Callable

import re2

__all__ = ["RegexError", "full_match", "search"]

# Of one expression, for its program and what matching makes of it; RE2's own limit is 8 MiB.
MEMORY_BYTES = 1024 * 1024


class RegexError(ValueError):
    """It is no regular expression of RE2, or one that takes too much memory."""


def full_match(expression: str) -> Callable[[str], bool]:
    """Return whether `expression` matches the whole of a Latin-1 text; `.` matches every byte.

    Raises RegexError, in RE2's words.
    """
    fullmatch = _compiled(expression).fullmatch
    return lambda text: fullmatch(text.encode("latin-1")) is not None


def search(expression: str) -> Callable[[bytes], bool]:
    """Return whether `expression` matches anywhere in bytes; `.` matches every byte.

    Raises RegexError, in RE2's words.
    """
    found = _compiled(expression).search
    return lambda content: found(content) is not None


def _compiled(expression: str) -> "re2._Regexp":
    options = re2.Options()
    options.encoding = re2.Options.Encoding.LATIN1
    options.max_mem = MEMORY_BYTES
    options.never_capture = True
    options.dot_nl = True
    options.log_errors = False  # to stderr, past our log
    try:
        return re2.compile(expression.encode(), options)
    except re2.error as error:
        said = error.args[0]
        words = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise RegexError(words) from error
