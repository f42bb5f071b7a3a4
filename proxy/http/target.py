"""Where a request goes: the target's path and query, and the host, in one spelling each. Pure.

What the rules of an intention see is what the app gets, so it must be what the app will make of it:
a path is rewritten to the one spelling that no decoding and no dot segment turns into another.
"""

import re

from meshrun.proxy.errors import HttpError

__all__ = ["normalise_authority", "normalise_path", "split_target"]

# RFC 3986 3.3: what may stand in a segment as it is.
_PCHAR = r"A-Za-z0-9\-._~!$&'()*+,;=:@"
_PCHAR_BUT_DOT = _PCHAR.replace(".", "")

# A path in which nothing is encoded, empty or a dot: most are. Fit for `fullmatch` only.
_PLAIN_PATH = rf"(?:/[{_PCHAR_BUT_DOT}][{_PCHAR}]*+)*/?+"
# All of ASCII that can be seen, but for the `#` of a fragment, which is no part of a request.
_PLAIN_QUERY = r"\?[!-\"$-~]*+"

_plain_path = re.compile(_PLAIN_PATH)
_plain_target = re.compile(rf"({_PLAIN_PATH})({_PLAIN_QUERY})?")
_query = re.compile(_PLAIN_QUERY)
_absolute = re.compile(r"https?://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)

_invisible = re.compile(r"[^!-~]")
_respelled = re.compile(r"%(?:[0-9A-Fa-f]{2})?|[\\\"<>\[\]^`{|}]")
# Servlet containers take parameters off a segment before they look for dots: `/public/..;/admin`.
_dots_with_parameter = re.compile(r"\.{1,2};")

_HEX = "0123456789ABCDEFabcdef"


def _spelling(octet: int) -> str:
    """Return how an octet is spelled in a normal path."""
    character = chr(octet)
    if character == "\\":  # to many servers it is a slash (WHATWG URL 4.4)
        return "/"
    return character if re.fullmatch(f"[/{_PCHAR}]", character) else f"%{octet:02X}"


# Whatever may be found in a path and spelled otherwise. %00 is missing: it ends a string in C, and
# with it what the app sees of the path.
_SPELLINGS = {
    f"%{high}{low}": _spelling(int(high + low, 16))
    for high in _HEX
    for low in _HEX
    if high + low != "00"
} | {character: _spelling(ord(character)) for character in '\\"<>[]^`{|}'}


def split_target(target: str) -> tuple[str, str, str]:
    """Return the authority (empty but in absolute form), the normal path, and the query.

    The query is empty or begins with `?`, and is as it was sent. `*` comes back as a path: only
    OPTIONS may have it. Raises HttpError (400). RFC 9112 3.2; the authority form, which only
    CONNECT has, is refused.
    """
    plain = _plain_target.fullmatch(target)
    if plain and plain[1]:
        return "", plain[1], plain[2] or ""
    if target == "*":
        return "", "*", ""
    authority = ""
    if not target.startswith("/"):
        absolute = _absolute.fullmatch(target)
        if not absolute:
            raise HttpError(400, "cannot take the target: it is neither a path nor an http URL")
        authority = absolute[1]
        normalise_authority(authority)
        target = absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
    path, mark, query = target.partition("?")
    query = mark + query
    if query and not _query.fullmatch(query):
        raise HttpError(400, "cannot take the query: a control, a space, a # or no ASCII is in it")
    return authority, normalise_path(path), query


def normalise_path(path: str) -> str:
    """Return the one spelling of a path, which begins with `/` and has no query.

    `%2F`, `%5C` and the backslash become a slash. Once, and never `%25`, every octet is decoded
    that may stand as it is; every other one is percent-encoded in capitals. Then dot segments go
    (RFC 3986 5.2.4), then repeated slashes. Raises HttpError (400).
    """
    if path and _plain_path.fullmatch(path):
        return path
    if not path.startswith("/"):
        raise HttpError(400, "cannot take the path: it does not begin with /")
    if "?" in path or "#" in path or _invisible.search(path):
        raise HttpError(
            400, "cannot take the path: a control, a space, a ?, a # or no ASCII is in it"
        )
    try:
        path = _respelled.sub(_respell, path)
    except KeyError as wrong:
        if wrong.args[0] == "%00":
            raise HttpError(400, "cannot take the path: %00 is in it") from None
        raise HttpError(400, "cannot take the path: a % without two hex digits") from None
    return path if _plain_path.fullmatch(path) else _without_dots(path)


def _respell(found: re.Match[str]) -> str:
    return _SPELLINGS[found[0]]


def _without_dots(path: str) -> str:
    kept: list[str] = []
    segment = ""
    for segment in path.split("/")[1:]:
        if segment == "..":
            if kept:
                kept.pop()
        elif segment != ".":
            if _dots_with_parameter.match(segment):
                raise HttpError(400, "cannot take the path: a dot segment with a parameter")
            kept.append(segment)
    last = "" if segment in (".", "..") else kept.pop()
    return "/".join(["", *filter(None, kept), last])


_LABEL = r"[A-Za-z0-9_~-]++"
_authority = re.compile(
    rf"({_LABEL}(?:\.{_LABEL})*\.?|\[[0-9A-Fa-f:.]{{2,45}}\])(?::([1-9][0-9]{{0,4}}))?"
)


def normalise_authority(authority: str) -> str:
    """Return a host, with its port if it has one, in the form in which two are compared.

    In lower case, without port 80, which is that of http, and without a dot at the end. Names are
    those of DNS and underscores. Raises HttpError (400). RFC 9110 7.2, RFC 3986 3.2.
    """
    found = _authority.fullmatch(authority)
    if not found or (found[2] and int(found[2]) > 65535):
        raise HttpError(400, "cannot take the host: it is no name or address, or has no good port")
    host = found[1].lower().removesuffix(".")
    return f"{host}:{found[2]}" if found[2] and found[2] != "80" else host
