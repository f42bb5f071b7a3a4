"""What an intention says of HTTP requests, and whether a request is one that it means.

Semantics are Consul's (service-intentions: Permissions), as Envoy's RBAC filter enforces them: the
parts of a permission must all match; `path_prefix` is a plain prefix, so `/admin` is one of
`/administrator` too; regular expressions match the whole. Beyond them, what a caller does with a
header must never open a rule, so:

- A header that was sent several times, or holds a list, is read as each of its values, as each part
  between commas, and as all values joined (RFC 9110 5.3, for cookies RFC 9113 8.2.3): nobody knows
  which of them an app takes. A matcher matches where any of these does.
- Some apps take more for a header than HTTP does: `X.Role` for `x-role`, or `admin` with a blank of
  Latin-1 or Unicode around it for `admin` (`str.strip` does). What only they would read is looked
  at where it counts against the caller: by a deny, and by an inverted allow.
- `invert` is read against the caller. A deny matches unless every reading is what it wants, also
  where the header is absent; an allow matches only where none is, and the header is there. To Envoy
  an inverted matcher never matches an absent header: who left out `x-role` passed by a deny of all
  whose `x-role` is not `admin`. An inverted `present` is about absence itself, and matches it.
- What cannot be judged, such as a header of hundreds of parts, counts as matched by a deny and not
  by an allow.
"""

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import msgspec

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.heads import folded
from meshrun.proxy.http.target import normalise_authority

__all__ = [
    "HOST",
    "MOST_PARTS",
    "Action",
    "Asked",
    "Fields",
    "HeaderMatch",
    "Matcher",
    "Permission",
]

Action = Literal["allow", "deny"]

# The field that is a request's authority, and Envoy's name for it.
HOST = ("host", ":authority")

# A header with more commas is not taken apart: each part costs time, which the caller chooses.
MOST_PARTS = 256


class HeaderMatch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A condition on the header `name`: exactly one of `present` and the texts that are not empty.

    `ignore_case` is for texts but the regular expression, and for ASCII only.
    """

    name: str
    present: bool = False
    exact: str = ""
    prefix: str = ""
    suffix: str = ""
    contains: str = ""
    regex: str = ""
    invert: bool = False
    ignore_case: bool = False


class Permission(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What to do with the requests that fit all conditions given; of the paths at most one is."""

    action: Action
    methods: tuple[str, ...] = ()
    path_exact: str = ""
    path_prefix: str = ""
    path_regex: str = ""
    headers: tuple[HeaderMatch, ...] = ()


class Asked(Protocol):
    """A request as far as rules look at it (`meshrun.proxy.http.heads.Request`).

    `path` is normalised and without query. Text is Latin-1, a character for a byte.
    """

    @property
    def method(self) -> str: ...

    @property
    def path(self) -> str: ...

    @property
    def authority(self) -> str: ...

    @property
    def fields(self) -> Sequence[tuple[str, str]]: ...


class Readings(NamedTuple):
    """The values of one header: as HTTP has them, and with those that only some apps would read.

    Each is empty where the header is absent. Where it has more parts than are looked at, it is not
    `clear`, and only whether it is there is told.
    """

    said: tuple[str, ...]
    taken: tuple[str, ...]
    clear: bool = True


class Fields:
    """The header fields of one request, taken apart once for each name that is asked for."""

    __slots__ = ("_known", "_request")

    def __init__(self, request: Asked) -> None:
        self._request = request
        self._known: dict[str, Readings] = {}

    def readings(self, name: str) -> Readings:
        """Return what an app may take for the value of `name` (in lower case)."""
        try:
            return self._known[name]
        except KeyError:
            found = self._known[name] = self._read(name)
            return found

    def _read(self, name: str) -> Readings:
        if name in HOST:
            hosts = _hosts(self._request.authority)
            return Readings(hosts, hosts)
        alike = folded(name)
        named = [
            (field.lower() == name, value.strip(" \t"))
            for field, value in self._request.fields
            if folded(field) == alike
        ]
        said = [value for exactly, value in named if exactly]
        taken = [value for _, value in named]
        if sum(value.count(",") + 1 for value in taken) > MOST_PARTS:
            return Readings(tuple(said[:1]), tuple(taken[:1]), clear=False)
        # RFC 9113 8.2.3: HTTP/2 sends a cookie in pieces, which are one with this between them.
        joint = "; " if name == "cookie" else ", "
        readings = _parts(said, joint)
        others = {} if len(said) == len(taken) else _parts(taken, joint)
        everything = readings | others
        everything |= dict.fromkeys(map(_trimmed, everything))
        return Readings(tuple(readings), tuple(everything))


def _parts(values: list[str], joint: str) -> dict[str, None]:
    """Return each of the values, each part between commas, and all of them as one."""
    readings = dict.fromkeys(values)
    for value in values:
        if "," in value:
            readings |= dict.fromkeys(part.strip(" \t") for part in value.split(","))
    if len(values) > 1:
        readings[joint.join(values)] = None
    return readings


def _trimmed(value: str) -> str:
    """Return a value without what is white space in UTF-8, or where it is none, in Latin-1 first.

    To HTTP only blanks and tabs are (RFC 9110 5.6.3), and any other octet is sent on.
    """
    if value.isascii():
        return value
    for text in (value, value.strip()):
        try:
            return _latin1(text.encode("latin-1").decode().strip())
        except UnicodeDecodeError:
            pass
    return value.strip()


def _hosts(authority: str) -> tuple[str, ...]:
    """Return the spellings of one host: as it was sent, as compared, and with and without port."""
    if not authority:
        return ()
    try:
        normal = normalise_authority(authority)
    except HttpError:
        return (authority,)
    host, colon, port = normal.rpartition(":")
    if colon and port.isdigit():
        return tuple(dict.fromkeys((authority, normal, host)))
    return tuple(dict.fromkeys((authority, normal, f"{normal}:80")))


class _UnclearError(ValueError):
    """A permission cannot be understood."""


Test = Callable[[str], bool]


class _HeaderMatcher:
    """A `HeaderMatch`, read in favour of what a permission of `action` is there for."""

    __slots__ = ("_denies", "_every", "_invert", "_name", "_test")

    def __init__(self, wanted: HeaderMatch, action: Action) -> None:
        self._name = wanted.name.lower()
        self._invert = wanted.invert
        self._denies = action == "deny"
        # The readings of a host are spellings of one value: one that is right makes all right.
        self._every = self._denies and self._name not in HOST
        self._test = _header_test(wanted)

    def matches(self, fields: Fields) -> bool:
        said, taken, clear = fields.readings(self._name)
        test, denies, invert = self._test, self._denies, self._invert
        if test is None:
            return bool(taken if denies is not invert else said) is not invert
        if not clear:
            return denies
        if not invert:
            return any(map(test, taken if denies else said))
        if not said:
            return denies
        right = all if self._every else any
        return not right(map(test, taken))


def _header_test(wanted: HeaderMatch) -> Test | None:
    """Return the test of one reading, None for presence. Raises _UnclearError."""
    tests: list[Test | None] = [None] if wanted.present else []
    lower = _lower if wanted.ignore_case else str
    for kind, written in (
        (_exact, wanted.exact),
        (_prefix, wanted.prefix),
        (_suffix, wanted.suffix),
        (_contains, wanted.contains),
    ):
        if written:
            tests.append(kind(lower(_latin1(written)), lower))
    if wanted.regex:
        tests.append(_regex(wanted.regex))
    if len(tests) != 1:
        raise _UnclearError(f"{len(tests)} conditions on one header")
    return tests[0]


def _latin1(text: str) -> str:
    """Return the characters that the bytes of `text` are to whom reads them as Latin-1."""
    return text.encode().decode("latin-1")


def _lower(text: str) -> str:
    """Return `text` with A-Z in lower case: other letters are bytes of UTF-8."""
    return text.encode("latin-1").lower().decode("latin-1")


def _exact(wanted: str, lower: Callable[[str], str]) -> Test:
    return lambda text: lower(text) == wanted


def _prefix(wanted: str, lower: Callable[[str], str]) -> Test:
    return lambda text: lower(text).startswith(wanted)


def _suffix(wanted: str, lower: Callable[[str], str]) -> Test:
    return lambda text: lower(text).endswith(wanted)


def _contains(wanted: str, lower: Callable[[str], str]) -> Test:
    return lambda text: wanted in lower(text)


def _regex(expression: str) -> Test:
    # Its library takes a tenth of the time that a short command may take.
    from meshrun.proxy.regex import RegexError, full_match

    try:
        return full_match(expression)
    except RegexError as error:
        raise _UnclearError(str(error)) from error


class Matcher:
    """A permission, compiled.

    One that cannot be understood, which no checked intention has, or has no condition at all,
    counts against the caller: a deny matches every request, an allow none.
    """

    __slots__ = ("_always", "_exact", "_headers", "_methods", "_path", "_prefix")

    def __init__(self, permission: Permission) -> None:
        self._methods = frozenset(permission.methods)
        self._exact = permission.path_exact
        self._prefix = permission.path_prefix
        self._path: Test | None = None
        self._headers: tuple[_HeaderMatcher, ...] = ()
        self._always: bool | None = None
        try:
            if permission.path_regex:
                self._path = _regex(permission.path_regex)
            self._headers = tuple(_HeaderMatcher(h, permission.action) for h in permission.headers)
            if not (self._methods or self._exact or self._prefix or self._path or self._headers):
                raise _UnclearError("no condition")
        except _UnclearError:
            self._always = permission.action == "deny"
        if self._prefix == "/" and permission.action == "deny":
            self._prefix = ""  # every request is meant, and the target of `OPTIONS *` is no path

    def matches(self, request: Asked, fields: Fields) -> bool:
        """Tell whether the permission is about `request`, whose `fields` are given apart."""
        if self._always is not None:
            return self._always
        if self._methods and request.method not in self._methods:
            return False
        path = request.path
        if self._exact and path != self._exact:
            return False
        if self._prefix and not path.startswith(self._prefix):
            return False
        if self._path is not None and not self._path(path):
            return False
        headers = self._headers  # `all` of nothing costs as much as the rest of this
        return not headers or all(header.matches(fields) for header in headers)
