"""What an intention may say of a request: its methods, paths and headers, a value at a time.

For mesh.toml and for the JSON of Consul's API alike. Whatever could match no request is refused: a
deny that never matches is one that everybody gets past.
"""

import re
from typing import Literal

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.head1 import CONNECTION_FIELDS
from meshrun.proxy.http.target import normalise_path
from meshrun.proxy.permissions import HOST
from meshrun.proxy.regex import RegexError, full_match
from meshrun.supervisor.configuration.values import Fit, UnfitError, quoted, text
from meshrun.supervisor.suggest import hint

__all__ = [
    "METHODS",
    "MOST_HEADERS",
    "MOST_PERMISSIONS",
    "exact_path",
    "header_name",
    "header_text",
    "method",
    "path_prefix",
    "regular_expression",
]

# Consul's.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE")

# Each costs every request time, and every sidecar concerned memory.
MOST_PERMISSIONS = 64
MOST_HEADERS = 32
LONGEST_TEXT = 1024

# Put in by the sidecar, in place of what a caller sends.
_FROM_THE_SIDECAR = ("x-forwarded-client-cert", "x-mesh-client-id")

_VISIBLE = re.compile(r"[!-~]+")
# RFC 9110 5.6.2 without the underscore, with which no request is taken.
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^`|~0-9A-Za-z]+")
# RFC 9110 5.5: no value has these.
_NOT_IN_VALUE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


def _bounded(value: object) -> str:
    written = text(value)
    if len(written) > LONGEST_TEXT:
        raise UnfitError(f"must have at most {LONGEST_TEXT} characters, not {len(written)}")
    return written


def method(value: object) -> str:
    """Fit one of METHODS."""
    written = text(value)
    if written in METHODS:
        return written
    if written.upper() in METHODS:
        raise UnfitError(f'must be in capitals: "{written.upper()}", not {quoted(written)}')
    meant = hint(written.upper(), METHODS)
    raise UnfitError(f"must be one of {', '.join(METHODS)}, not {quoted(written)}{meant}")


def exact_path(value: object) -> str:
    """Fit a path in its normal form."""
    return _normal(_path(value), "")


def path_prefix(value: object) -> str:
    """Fit what paths in their normal form may begin with."""
    # Followed by something: `/.` is no normal path, but begins the path of every hidden file.
    return _normal(_path(value), "x")


def _path(value: object) -> str:
    written = _bounded(value)
    if not written.startswith("/"):
        raise UnfitError(f'must begin with "/", not {quoted(written)}')
    if "?" in written or "#" in written:
        raise UnfitError(f"must be a path without query and fragment, not {quoted(written)}")
    if not _VISIBLE.fullmatch(written):
        raise UnfitError(
            f"must be printable ASCII without blanks, not {quoted(written)}: "
            "percent-encode the rest"
        )
    return written


def _normal(written: str, followed_by: str) -> str:
    try:
        normal = normalise_path(written + followed_by)
    except HttpError as error:
        why = str(error).removeprefix("cannot take the path: ")
        raise UnfitError(f"matches no request, {quoted(written)}: {why}") from error
    normal = normal.removesuffix(followed_by)
    if normal != written:
        raise UnfitError(
            f"matches no request: paths are compared in their normal form, which is "
            f"{quoted(normal)}, not {quoted(written)}"
        )
    return written


def regular_expression(value: object) -> str:
    """Fit a regular expression of RE2."""
    written = _bounded(value)
    if not written.isascii():
        raise UnfitError(
            r"must be ASCII: write another character as its bytes in UTF-8, such as \xC3\xA9"
        )
    try:
        full_match(written)
    except RegexError as error:
        raise UnfitError(f"must be a regular expression of RE2: {error}") from error
    return written


def header_name(value: object) -> str:
    """Fit the name of a header that a rule can be about."""
    written = _bounded(value)
    name = written.lower()
    if "_" in name:
        right = quoted(name.replace("_", "-"))
        raise UnfitError(
            f"matches no request: one with an underscore in a header's name is refused "
            f"(did you mean {right}?)"
        )
    if name not in HOST and not _FIELD_NAME.fullmatch(name):
        raise UnfitError(f'must be the name of a header such as "x-role", not {quoted(written)}')
    if name in CONNECTION_FIELDS:
        raise UnfitError(f"must not be {quoted(written)}, which is about the connection only")
    if name in _FROM_THE_SIDECAR:
        raise UnfitError(f"must not be {quoted(written)}, which is set by the sidecar")
    return written


def header_text(kind: Literal["exact", "prefix", "suffix", "contains"]) -> Fit[str]:
    """Fit what the value of a header is compared with."""

    def fit(value: object) -> str:
        written = _bounded(value)
        if _NOT_IN_VALUE.search(written):
            raise UnfitError("matches no request: no value of a header has control characters")
        begins = written[0] in " \t" and kind in ("exact", "prefix")
        ends = written[-1] in " \t" and kind in ("exact", "suffix")
        if begins or ends:
            where = "begins" if begins else "ends"
            raise UnfitError(f"matches no request: no value of a header {where} with a blank")
        return written

    return fit
