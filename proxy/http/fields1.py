"""The field lines of HTTP/1: read, understood where they are about the connection, written. Pure.

What is about the connection, or says how a message is cut out of it, is special: it is not passed
on, and means something together with the other special fields of its head. See `head1`.
"""

import re
from collections.abc import Set

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.heads import CONNECTION_FIELDS, COUNTED, NO_BODY, STREAMED, Fields, Framing
from meshrun.proxy.http.known_lines import LINE_LIMIT, KnownLines
from meshrun.proxy.http.own_fields import tells_who_calls
from meshrun.proxy.http.semantics import (
    FIELD_LIMIT,
    NOT_KEPT,
    check_count,
    read_length,
    too_many_fields,
)
from meshrun.proxy.http.target import normalise_authority

__all__ = [
    "MOST_LOOKED_UP",
    "OF_REQUESTS",
    "OF_RESPONSES",
    "VALUE",
    "Special",
    "field_line",
    "framing_of",
    "is_token",
    "members_of",
    "parse_fields",
    "take_options",
    "upgrade_of",
    "write_fields",
    "write_lines",
]

# Field lines of a head as it comes, with those that go no further.
MOST_LINES = FIELD_LIMIT + 28

# Of a list in a field that is understood here, such as Connection, empty ones included: each is
# compared with all that must not stand there, and an honest sender names three or four.
MOST_MEMBERS = 32

# So many lines of one head are looked up among those that are known, and so many are read by
# themselves that are not: that costs more than to read them together. Few honest senders have more,
# and a flood must not become dearer.
MOST_LOOKED_UP = 32
MOST_READ_SINGLY = 4

# What is an attribute of a request, or may have to go.
_REQUEST_FIELDS = CONNECTION_FIELDS | {"expect", "host"}

# What a special field is called that tells who calls, which only the sidecar may: it is dropped.
_FORGED = "forged"

# Naming one of these in Connection would take from a message what others decide by.
_INDISPENSABLE = frozenset(
    {
        "authorization",
        "content-encoding",
        "content-length",
        "content-location",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "host",
        "location",
        "origin",
        "proxy-authenticate",
        "proxy-authorization",
        "set-cookie",
        "transfer-encoding",
        "www-authenticate",
    }
)

_NO_OPTIONS: Set[str] = frozenset()
# What Connection names of what is never in the fields.
_OPTIONS = frozenset({"close", "http2-settings", "keep-alive", "te", "upgrade"})

# After these the connection could carry requests that no rule is asked about.
_PROTOCOLS_OF_REQUESTS = frozenset({"h2", "h2c", "http", "tls"})

# RFC 9110 5.6.2. To CGI and WSGI an underscore is a hyphen: `x_user` would be `x-user` to the app,
# and to the rules another field.
_TCHAR_BUT_UNDERSCORE = r"!#$%&'*+\-.^`|~0-9A-Za-z"
_TCHAR = _TCHAR_BUT_UNDERSCORE + "_"
VALUE = r"[\t -~\x80-\xff]*+"

_token = re.compile(rf"[{_TCHAR}]+")
_protocol = re.compile(rf"([{_TCHAR}]+)(?:/[{_TCHAR}]+)?")


def is_token(word: str) -> bool:
    """Tell whether a word is a token (RFC 9110 5.6.2)."""
    return _token.fullmatch(word) is not None


# Reading.


class Special:
    """A field that is not passed on as it is; with what it says, as far as one line says it."""

    __slots__ = ("comparable", "length", "name", "options", "value")

    def __init__(
        self,
        name: str,
        value: str,
        *,
        comparable: str = "",
        length: int | None = None,
        options: Set[str] | None = None,
    ) -> None:
        self.name = name  # in small letters
        self.value = value
        self.comparable = comparable
        self.length = length
        self.options = options  # where Connection came in several lines, not understood yet


def _special(name: str, value: str, status: int) -> Special:
    if name == "host":
        return Special(name, value, comparable=normalise_authority(value))
    if name == "content-length":
        return Special(name, value, length=read_length(value, status))
    if name == "connection":
        return Special(name, value, options=_read_options(value, status))
    return Special(name, value)


def _read_options(value: str, status: int) -> Set[str]:
    options = frozenset(members_of("Connection", value.lower(), status))
    for option in options:
        if not is_token(option):
            raise HttpError(status, "cannot take the head: Connection is no list of tokens")
        if option in _INDISPENSABLE:
            raise HttpError(status, f"cannot take the head: Connection names {option}")
    return options


def members_of(name: str, value: str, status: int) -> list[str]:
    """Return what a list names (RFC 9110 5.6.1)."""
    members = value.split(",", MOST_MEMBERS)
    if len(members) > MOST_MEMBERS:
        raise HttpError(status, f"cannot take the head: {name} has over {MOST_MEMBERS} members")
    return [member for each in members if (member := each.strip(" \t"))]


class _FieldLines:
    """The field lines of requests, or those of responses: a pair each, or what is special."""

    __slots__ = ("_known", "_line", "_lines", "_of_requests", "_special", "_status", "_too_many")

    def __init__(self, name: str, special: Set[str], *, of_requests: bool) -> None:
        self._line = re.compile(rf"([{name}]++):[ \t]*+({VALUE})")
        self._lines = re.compile(rf"^([{name}]++):[ \t]*+({VALUE})\r\n", re.MULTILINE)
        self._special = special
        self._of_requests = of_requests
        self._status = 400 if of_requests else 502  # of a refusal
        self._too_many = 431 if of_requests else 502
        self._known: KnownLines[tuple[str, str] | Special] = KnownLines()

    def parse(self, text: str, lines: list[str]) -> tuple[Fields, dict[str, Special]]:
        """Return the fields of a head that are passed on, and the special ones by their names.

        `lines` are those of `text` from the first one on, as far as they are looked up.
        """
        if len(lines) > MOST_LOOKED_UP or len(text) > MOST_LOOKED_UP * LINE_LIMIT:
            return self._parse_all(text, lines[0])
        if len(lines) < 3 or lines[-1] or lines[-2]:
            raise HttpError(self._status, _NO_END)
        fields: Fields = []
        special: dict[str, Special] = {}
        get = self._known.get
        unknown = 0
        for line in lines[1:-2]:
            field = get(line)
            if field is None:
                unknown += 1
                if unknown > MOST_READ_SINGLY:
                    return self._parse_all(text, lines[0])
                field = self._read_line(line)
            if isinstance(field, tuple):
                fields.append(field)
            elif field.name not in special:
                special[field.name] = field
            else:
                special[field.name] = self._joined(special[field.name], field)
        return fields, special

    def _parse_all(self, text: str, first: str) -> tuple[Fields, dict[str, Special]]:
        """Return what stands behind the `first` line, without looking up or keeping any."""
        fields: Fields = []
        special: dict[str, Special] = {}
        for pair in self._read(text, len(first) + 2, MOST_LINES):
            name = self._special_name(pair[0].lower())
            if name is None:
                fields.append(pair)
                continue
            field = _special(name, pair[1], self._status)
            special[name] = self._joined(special[name], field) if name in special else field
        check_count(fields, self._too_many)
        return fields, special

    def _read_line(self, line: str) -> tuple[str, str] | Special:
        found = self._line.fullmatch(line)
        if not found:
            raise HttpError(self._status, f"cannot take the head: {_why_no_field(line)}")
        name, value = found.groups()
        if line[-1] in " \t":
            value = self._stripped(name, value)
        lower = name.lower()
        if lower in NOT_KEPT:
            return name, value
        special = self._special_name(lower)
        field = (name, value) if special is None else _special(special, value, self._status)
        self._known.came(line, field)
        return field

    def _special_name(self, name: str) -> str | None:
        if name in self._special:
            return name
        return _FORGED if self._of_requests and tells_who_calls(name) else None

    def read(self, text: str, start: int) -> Fields:
        """Return all field lines from `start` on, to the empty line that must end `text`."""
        return self._read(text, start, FIELD_LIMIT)

    def _read(self, text: str, start: int, most: int) -> Fields:
        count = text.count("\n", start) - 1
        if count > most:
            raise too_many_fields(self._too_many)
        fields = self._lines.findall(text, start)
        # Each match is a whole line: where there are as many as lines but the empty one, all are.
        if len(fields) != count or not text.endswith("\r\n\r\n"):
            raise self._no_fields(text[start:])
        if " \r" not in text and "\t\r" not in text:
            return fields
        return [(name, self._stripped(name, value)) for name, value in fields]

    def forget(self) -> None:
        """Know no line any more."""
        self._known.forget()

    def _stripped(self, name: str, value: str) -> str:
        """Return a value without the white space behind it."""
        stripped = value.rstrip(" \t")
        # llhttp, which Node has, does not take `chunked` with a tab behind it for `chunked`.
        if stripped != value and name.lower() in ("content-length", "transfer-encoding"):
            raise HttpError(self._status, f"cannot take the head: white space is behind {name}")
        return stripped

    def _joined(self, first: Special, second: Special) -> Special:
        """Return two lines as one (RFC 9110 5.3), where there may be two."""
        name = first.name
        if name in ("content-length", "expect", "host", "transfer-encoding"):
            raise HttpError(self._status, f"cannot take the head: it has two {name} fields")
        return Special(name, f"{first.value},{second.value}")

    def _no_fields(self, text: str) -> HttpError:
        for line in text.removesuffix("\r\n\r\n").split("\r\n"):
            if not self._line.fullmatch(line):
                return HttpError(self._status, f"cannot take the head: {_why_no_field(line)}")
        return HttpError(self._status, _NO_END)


OF_REQUESTS = _FieldLines(_TCHAR_BUT_UNDERSCORE, _REQUEST_FIELDS, of_requests=True)
OF_RESPONSES = _FieldLines(_TCHAR, CONNECTION_FIELDS, of_requests=False)


def parse_fields(text: str, start: int, *, of_response: bool = False) -> Fields:
    """Return the field lines from `start` on, to the empty line that must end `text`.

    Raises HttpError: 502 for a response, else 400 or 431.
    """
    return (OF_RESPONSES if of_response else OF_REQUESTS).read(text, start)


# What the special fields say together.


def framing_of(special: dict[str, Special], minor: int, status: int) -> tuple[Framing, int | None]:
    """Return how the body is framed, and its length if it is said (RFC 9112 6)."""
    length, coding = special.get("content-length"), special.get("transfer-encoding")
    if coding is not None:
        if not minor:
            raise HttpError(status, "cannot take the head: Transfer-Encoding on HTTP/1.0")
        if length is not None:
            raise HttpError(status, "cannot take the head: Content-Length and Transfer-Encoding")
        if coding.value.lower() != "chunked":
            raise _no_coding(coding.value, status)
        return STREAMED, None
    return (NO_BODY, None) if length is None else (COUNTED, length.length)


def _no_coding(coding: str, status: int) -> HttpError:
    codings = members_of("Transfer-Encoding", coding.lower(), status)
    if status == 400 and codings.count("chunked") == 1 < len(codings) and codings[-1] == "chunked":
        return HttpError(501, "cannot take the request: its transfer coding is not only chunked")
    return HttpError(status, "cannot take the head: Transfer-Encoding is not chunked")


def take_options(special: dict[str, Special], fields: Fields, status: int) -> Set[str]:
    """Return the options of Connection, and take the fields out that they name."""
    connection = special.get("connection")
    if connection is None:
        return _NO_OPTIONS
    options = connection.options
    if options is None:
        options = _read_options(connection.value, status)
    if not options <= _OPTIONS:
        fields[:] = [pair for pair in fields if pair[0].lower() not in options]
    return options


def upgrade_of(said: str, options: Set[str], status: int) -> str:
    """Return the protocols of Upgrade that may follow, if Connection names it (RFC 9110 7.8)."""
    if "upgrade" not in options:
        return ""
    protocols = []
    for protocol in members_of("Upgrade", said, status):
        found = _protocol.fullmatch(protocol)
        if not found:
            raise HttpError(status, "cannot take the head: Upgrade is no list of protocols")
        if found[1].lower() not in _PROTOCOLS_OF_REQUESTS:
            protocols.append(protocol)
    return ", ".join(protocols)


# What is wrong, for whoever reads the answer: found only when it is known that something is.

_NO_END = "cannot take the head: it does not end with an empty line"


def _why_no_field(line: str) -> str:
    name, colon, _ = line.partition(":")
    if "\r" in line or "\n" in line:
        return "a line does not end in CRLF"
    if line[:1] in (" ", "\t"):
        return "a line is folded, or begins with white space"
    if not colon:
        return "a line has no colon"
    if name != name.rstrip(" \t"):
        return "white space is before a colon"
    if "_" in name and is_token(name):
        return "an underscore is in the name of a field; some apps take it for a hyphen"
    if not is_token(name):
        return "the name of a field is no token"
    return "a control character is in a value"


# Writing.


def write_fields(fields: Fields) -> bytes:
    """Return field lines; raises HttpError (502) for what would read as something else."""
    return write_lines([*map(field_line, fields)], 502)[:-2] if fields else b""


field_line = ": ".join

_END = ("", "")


def write_lines(lines: list[str], status: int) -> bytes:
    """Return lines, and the empty one behind them.

    Raises HttpError (`status`) where CR, LF or NUL within one would make others of them.
    """
    count = len(lines) + 1
    lines += _END
    text = "\r\n".join(lines)
    # Over HTTP/2 these can be within a value; here it would be two (RFC 9113 10.3).
    if text.count("\n") != count or text.count("\r") != count or "\0" in text:
        raise HttpError(status, "cannot write the head: CR, LF or NUL is in it")
    return text.encode("latin-1")
