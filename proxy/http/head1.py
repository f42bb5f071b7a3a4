"""The heads of HTTP/1.1 and 1.0: read by the grammar and nothing beside it, and written. Pure.

Where two parsers can differ about a message, one request can be hidden in another (RFC 9112 11.2).
So there is one reading of a head or none: no leniency of RFC 9112 is taken up (2.2, 2.3, 5.2, 6.3),
and nothing is passed on as it came: what was understood is written anew.

Lines that come again and again are not read again (`KnownLines`). What a head means, or that it is
refused and with what status, does not depend on which are known: only, where several things are
wrong with it, which of them is named.
"""

import re
from collections.abc import Sequence, Set
from http import HTTPStatus

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.heads import COUNTED, NO_BODY, STREAMED, Fields, Framing, Request, Response
from meshrun.proxy.http.known_lines import LINE_LIMIT, KnownLines
from meshrun.proxy.http.own_fields import (
    REQUEST_ID_BYTES,
    REQUEST_ID_FIELD,
    request_id,
    tells_who_calls,
)
from meshrun.proxy.http.target import normalise_authority, split_target

__all__ = [
    "CONNECTION_FIELDS",
    "FIELD_LIMIT",
    "HEAD_LIMIT_BYTES",
    "METHOD_LIMIT_BYTES",
    "RAW_LIMIT_BYTES",
    "check_count",
    "check_method",
    "check_size",
    "find_head",
    "forget_lines",
    "has_odd_body",
    "parse_fields",
    "parse_request",
    "parse_response",
    "write_fields",
    "write_request",
    "write_response",
]

# Envoy's (max_request_headers_kb, max_headers_count), for requests and for responses. Only what
# goes from end to end counts, and not the request's identifier: else the second sidecar would
# refuse what the first took, for what that one has written into it.
HEAD_LIMIT_BYTES = 60 * 1024
FIELD_LIMIT = 100

# Of a head as it comes.
RAW_LIMIT_BYTES = HEAD_LIMIT_BYTES + 4 * 1024
MOST_LINES = FIELD_LIMIT + 28
# A head that is no longer is within the limit also where each octet of its path becomes three.
UNMEASURED_BYTES = HEAD_LIMIT_BYTES // 3

# RFC 9112 3: what is longer than any that is implemented gets a 501. The longest that is registered
# has 17 octets; logs and events are spared what somebody makes up.
METHOD_LIMIT_BYTES = 32

# Of a service, as of a label of DNS.
LONGEST_NAME = 63

# Of a list in a field that is understood here, such as Connection, empty ones included: each is
# compared with all that must not stand there, and an honest sender names three or four.
MOST_MEMBERS = 32

# So many lines of one head are looked up among those that are known, and so many are read by
# themselves that are not: that costs more than to read them together. Few honest senders have more,
# and a flood must not become dearer.
MOST_LOOKED_UP = 32
MOST_READ_SINGLY = 4

# What belongs to one connection (RFC 9110 7.6.1), or says how a message is cut out of it.
CONNECTION_FIELDS = frozenset(
    {
        "connection",
        "content-length",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "transfer-encoding",
        "upgrade",
    }
)
# What is an attribute of a request, or may have to go.
_REQUEST_FIELDS = CONNECTION_FIELDS | {"expect", "host"}

_TOO_MANY = f"cannot take more than {FIELD_LIMIT} fields"

# What a special field is called that tells who calls, which only the sidecar may: it is dropped.
_FORGED = "forged"

# Whose lines are not kept longer than the message they came with: secrets (RFC 7541 7.1.3), and
# what is another one in each request, so that to keep it would be in vain.
_NOT_KEPT = frozenset(
    {
        "authorization",
        "cookie",
        "proxy-authorization",
        "set-cookie",
        "traceparent",
        "x-b3-spanid",
        "x-b3-traceid",
        REQUEST_ID_FIELD,
    }
)

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

# A colon, a blank and the end of a line.
_FIELD_OVERHEAD_BYTES = 4

# After these the connection could carry requests that no rule is asked about.
_PROTOCOLS_OF_REQUESTS = frozenset({"h2", "h2c", "http", "tls"})

# RFC 9110 8.6: these say so when they have no body. Behind any other an app may expect none, leave
# it unread, and take it for its next request (RFC 9110 9.3.1; `http.server` does).
_METHODS_WITH_BODY = frozenset({"PATCH", "POST", "PUT"})

_REASONS = {status.value: status.phrase for status in HTTPStatus}

# RFC 9110 5.6.2. To CGI and WSGI an underscore is a hyphen: `x_user` would be `x-user` to the app,
# and to the rules another field.
_TCHAR_BUT_UNDERSCORE = r"!#$%&'*+\-.^`|~0-9A-Za-z"
_TCHAR = _TCHAR_BUT_UNDERSCORE + "_"
_VALUE = r"[\t -~\x80-\xff]*+"

_token = re.compile(rf"[{_TCHAR}]+")
_request_line = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Z]++) ([!-~]++) HTTP/1\.([01])")
_status_line = re.compile(rf"HTTP/1\.([01]) ([1-9][0-9]{{2}})(?: ({_VALUE}))?")
_length = re.compile(r"[0-9]{1,18}")
_protocol = re.compile(rf"([{_TCHAR}]+)(?:/[{_TCHAR}]+)?")

_bare_lf = re.compile(rb"(?<!\r)\n")
_any_version = re.compile(r"[^ \r\n]+ [^ \r\n]+ HTTP/[0-9]\.[0-9]")


# Reading.


def find_head(data: bytes | bytearray, start: int = 0, *, of_response: bool = False) -> int:
    """Return the index behind the head that begins `data`, or -1 if there is more to come.

    `start` is how much was looked through before, less 3. Raises HttpError as soon as it is known
    that this will be no head: 502 for a response, else 400, or where it is longer than
    RAW_LIMIT_BYTES 431, and 414 where its first line alone is.
    """
    end = data.find(b"\r\n\r\n", start) + 4
    if end > 3:
        if end <= RAW_LIMIT_BYTES:
            return end
    elif data:
        # Empty lines before a request are for a server to skip (RFC 9112 2.2): this one does not.
        if not 32 < data[0] < 127:
            raise _no_head(of_response, 400, "cannot take the head: it begins with no letter")
        if _bare_lf.search(data, start):
            raise _no_head(of_response, 400, "cannot take the head: a line ends without CR")
    if end > 3 or len(data) >= RAW_LIMIT_BYTES:
        what, status = "head", 431
        if data.find(b"\r\n", 0, RAW_LIMIT_BYTES) < 0:
            what, status = "first line", 414
        raise _no_head(of_response, status, _too_long(what))
    return -1


def _no_head(of_response: bool, status: int, message: str) -> HttpError:
    return HttpError(502 if of_response else status, message)


def _too_long(what: str) -> str:
    return f"cannot take a {what} of more than {HEAD_LIMIT_BYTES} bytes"


def check_method(method: str) -> None:
    """Raise HttpError (501) for a method of more than METHOD_LIMIT_BYTES."""
    if len(method) > METHOD_LIMIT_BYTES:
        raise HttpError(501, f"cannot take a method of more than {METHOD_LIMIT_BYTES} bytes")


def check_count(fields: Fields, status: int) -> None:
    """Raise HttpError (`status`) for more than FIELD_LIMIT fields beside the identifier."""
    count = len(fields)
    if count > FIELD_LIMIT and count - (request_id(fields) is not None) > FIELD_LIMIT:
        raise HttpError(status, _TOO_MANY)


def check_size(head: Request | Response, overhead_bytes: int, status: int) -> None:
    """Raise HttpError (`status`) for a head of more than HEAD_LIMIT_BYTES beside the identifier.

    `overhead_bytes` is what each field counts for beside its characters.
    """
    size = sum([len(name) + len(value) + overhead_bytes for name, value in head.fields])
    if isinstance(head, Request):
        size += len(head.method) + len(head.path) + len(head.query)
        size += max(len(head.authority), LONGEST_NAME)  # HTTP/1.0 may have left it to the sidecar
    if request_id(head.fields) is not None:
        size -= REQUEST_ID_BYTES + overhead_bytes
    if size > HEAD_LIMIT_BYTES:
        raise HttpError(status, _too_long("head"))


def parse_request(head: bytes | bytearray) -> Request:
    """Return the request whose head, with its empty line, is `head`.

    Content-Length 0 is no body. `Expect: 100-continue` stays in the fields, for the app to answer,
    unless there is no body, or the sender cannot take the answer (HTTP/1.0).
    Raises HttpError: 400, 405 (CONNECT), 417, 431, 501 or 505.
    """
    text = head.decode("latin-1")
    lines = text.split("\r\n", MOST_LOOKED_UP)
    line = lines[0]
    method, named, path, query, minor = _request_lines.get(line) or _read_request_line(line)
    fields, special = _requests.parse(text, lines)
    host = special.pop("host", None)
    if host is not None:
        if named and normalise_authority(named) != host.comparable:
            raise HttpError(400, "cannot take the request: Host is not that of the target")
    elif minor:
        raise HttpError(400, "cannot take the request: it has no Host")
    # By position: keywords double what it costs.
    request = Request(method, path, query, named if host is None else host.value, fields)
    if not minor:
        request.minor_version, request.keeps_alive = 0, False
    if special:
        _take_specials(request, special)
    if len(text) > UNMEASURED_BYTES:
        check_size(request, _FIELD_OVERHEAD_BYTES, 431)
    return request


def _take_specials(request: Request, special: "dict[str, _Special]") -> None:
    """Finish a request that says something of its connection or its body."""
    minor = request.minor_version
    framing, length = _framing(special, minor, 400)
    if length:
        request.framing, request.length = framing, length
    elif length is None:
        request.framing = framing
    options = _options(special, request.fields, 400)
    request.keeps_alive = "close" not in options and (minor == 1 or "keep-alive" in options)
    if not minor:
        return
    # Behind a body there is none: parsers differ about whose those bytes would be.
    if "upgrade" in special and request.framing is NO_BODY:
        request.upgrade = _upgrade(special["upgrade"].value, options, 400)
    if "te" in special and "trailers" in _members("TE", special["te"].value.lower(), 400):
        request.takes_trailers = True
        request.fields.append(("TE", "trailers"))
    if "expect" in special:
        if special["expect"].value.lower() != "100-continue":
            raise HttpError(417, "cannot take the request: it expects more than 100-continue")
        if request.framing is not NO_BODY:
            request.expects_continue = True
            request.fields.append(("Expect", "100-continue"))


def parse_response(head: bytes | bytearray, method: str) -> Response:
    """Return the response to a request of `method` whose head, with its empty line, is `head`.

    Raises HttpError (502). A response to HEAD, 1xx, 204 and 304 have no body, whatever they say
    (RFC 9112 6.3); 1xx and 204 that say they had one are refused (RFC 9110 8.6).
    """
    text = head.decode("latin-1")
    lines = text.split("\r\n", MOST_LOOKED_UP)
    line = lines[0]
    minor, status, reason = _status_lines.get(line) or _read_status_line(line)
    fields, special = _responses.parse(text, lines)
    framing, length = _framing(special, minor, 502)
    options = _options(special, fields, 502)
    response = Response(status, fields, NO_BODY, length, reason)  # see `parse_request`
    if "close" in options or (not minor and "keep-alive" not in options):
        response.keeps_alive = False
    if status in (101, 426) and "upgrade" in special:
        response.upgrade = _upgrade(special["upgrade"].value, options, 502)
    if status == 101 and not response.upgrade:
        raise HttpError(502, "cannot take the response: 101 without a protocol that may follow")

    if status < 200 or status == 204:
        if framing is STREAMED or length:
            raise HttpError(502, f"cannot take the response: a body was said to follow {status}")
        response.length = None
    elif method != "HEAD" and status != 304:
        if framing is NO_BODY:
            response.framing = STREAMED
            response.until_close = True
            response.keeps_alive = False
        elif length != 0:
            response.framing = framing
    if len(text) > UNMEASURED_BYTES:
        check_size(response, _FIELD_OVERHEAD_BYTES, 502)
    return response


def parse_fields(text: str, start: int, *, of_response: bool = False) -> Fields:
    """Return the field lines from `start` on, to the empty line that must end `text`.

    Raises HttpError: 502 for a response, else 400 or 431.
    """
    return (_responses if of_response else _requests).read(text, start)


# Reading a line, which means the same in every head.


def _read_request_line(line: str) -> tuple[str, str, str, str, int]:
    """Return method, authority of the target, path, query and minor version."""
    found = _request_line.fullmatch(line)
    if not found:
        raise _no_request_line(line)
    method, target, minor = found.groups()
    check_method(method)
    if method == "CONNECT":
        raise HttpError(405, "cannot take CONNECT: this is no forward proxy")
    named, path, query = split_target(target)
    if path == "*" and method != "OPTIONS":
        raise HttpError(400, "cannot take the target *: only OPTIONS has it")
    read = method, named, path, query, int(minor)
    _request_lines.came(line, read)
    return read


def _read_status_line(line: str) -> tuple[int, int, str]:
    """Return minor version, status and reason."""
    found = _status_line.fullmatch(line)
    if not found:
        raise HttpError(502, "cannot take the response: its first line is no status line")
    minor, status, reason = found.groups()
    read = int(minor), int(status), (reason or "").strip(" \t")
    _status_lines.came(line, read)
    return read


_request_lines: KnownLines[tuple[str, str, str, str, int]] = KnownLines()
_status_lines: KnownLines[tuple[int, int, str]] = KnownLines()


class _Special:
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


def _special(name: str, value: str, status: int) -> _Special:
    if name == "host":
        return _Special(name, value, comparable=normalise_authority(value))
    if name == "content-length":
        return _Special(name, value, length=_read_length(value, status))
    if name == "connection":
        return _Special(name, value, options=_read_options(value, status))
    return _Special(name, value)


def _read_length(value: str, status: int) -> int:
    if not _length.fullmatch(value):
        raise HttpError(status, "cannot take the head: Content-Length is no number of 1-18 digits")
    return int(value)


def _read_options(value: str, status: int) -> Set[str]:
    options = frozenset(_members("Connection", value.lower(), status))
    for option in options:
        if not _token.fullmatch(option):
            raise HttpError(status, "cannot take the head: Connection is no list of tokens")
        if option in _INDISPENSABLE:
            raise HttpError(status, f"cannot take the head: Connection names {option}")
    return options


def _members(name: str, value: str, status: int) -> list[str]:
    """Return what a list names (RFC 9110 5.6.1)."""
    members = value.split(",", MOST_MEMBERS)
    if len(members) > MOST_MEMBERS:
        raise HttpError(status, f"cannot take the head: {name} has over {MOST_MEMBERS} members")
    return [member for each in members if (member := each.strip(" \t"))]


class _FieldLines:
    """The field lines of requests, or those of responses: a pair each, or what is special."""

    __slots__ = ("_known", "_line", "_lines", "_of_requests", "_special", "_status", "_too_many")

    def __init__(self, name: str, special: Set[str], *, of_requests: bool) -> None:
        self._line = re.compile(rf"([{name}]++):[ \t]*+({_VALUE})")
        self._lines = re.compile(rf"^([{name}]++):[ \t]*+({_VALUE})\r\n", re.MULTILINE)
        self._special = special
        self._of_requests = of_requests
        self._status = 400 if of_requests else 502  # of a refusal
        self._too_many = 431 if of_requests else 502
        self._known: KnownLines[tuple[str, str] | _Special] = KnownLines()

    def parse(self, text: str, lines: list[str]) -> tuple[Fields, dict[str, _Special]]:
        """Return the fields of a head that are passed on, and the special ones by their names.

        `lines` are those of `text` from the first one on, as far as they are looked up.
        """
        if len(lines) > MOST_LOOKED_UP or len(text) > MOST_LOOKED_UP * LINE_LIMIT:
            return self._parse_all(text, lines[0])
        if len(lines) < 3 or lines[-1] or lines[-2]:
            raise HttpError(self._status, _NO_END)
        fields: Fields = []
        special: dict[str, _Special] = {}
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

    def _parse_all(self, text: str, first: str) -> tuple[Fields, dict[str, _Special]]:
        """Return what stands behind the `first` line, without looking up or keeping any."""
        fields: Fields = []
        special: dict[str, _Special] = {}
        for pair in self._read(text, len(first) + 2, MOST_LINES):
            name = self._special_name(pair[0].lower())
            if name is None:
                fields.append(pair)
                continue
            field = _special(name, pair[1], self._status)
            special[name] = self._joined(special[name], field) if name in special else field
        check_count(fields, self._too_many)
        return fields, special

    def _read_line(self, line: str) -> tuple[str, str] | _Special:
        found = self._line.fullmatch(line)
        if not found:
            raise HttpError(self._status, f"cannot take the head: {_why_no_field(line)}")
        name, value = found.groups()
        if line[-1] in " \t":
            value = self._stripped(name, value)
        lower = name.lower()
        if lower in _NOT_KEPT:
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
            raise HttpError(self._too_many, _TOO_MANY)
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

    def _joined(self, first: _Special, second: _Special) -> _Special:
        """Return two lines as one (RFC 9110 5.3), where there may be two."""
        name = first.name
        if name in ("content-length", "expect", "host", "transfer-encoding"):
            raise HttpError(self._status, f"cannot take the head: it has two {name} fields")
        return _Special(name, f"{first.value},{second.value}")

    def _no_fields(self, text: str) -> HttpError:
        for line in text.removesuffix("\r\n\r\n").split("\r\n"):
            if not self._line.fullmatch(line):
                return HttpError(self._status, f"cannot take the head: {_why_no_field(line)}")
        return HttpError(self._status, _NO_END)


_requests = _FieldLines(_TCHAR_BUT_UNDERSCORE, _REQUEST_FIELDS, of_requests=True)
_responses = _FieldLines(_TCHAR, CONNECTION_FIELDS, of_requests=False)


def forget_lines() -> None:
    """Know no line any more: heads are then read as by a process that has just started."""
    _request_lines.forget()
    _status_lines.forget()
    _requests.forget()
    _responses.forget()


# What the special fields say together.


def _framing(special: dict[str, _Special], minor: int, status: int) -> tuple[Framing, int | None]:
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
    codings = _members("Transfer-Encoding", coding.lower(), status)
    if status == 400 and codings.count("chunked") == 1 < len(codings) and codings[-1] == "chunked":
        return HttpError(501, "cannot take the request: its transfer coding is not only chunked")
    return HttpError(status, "cannot take the head: Transfer-Encoding is not chunked")


def _options(special: dict[str, _Special], fields: Fields, status: int) -> Set[str]:
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


def _upgrade(said: str, options: Set[str], status: int) -> str:
    """Return the protocols of Upgrade that may follow, if Connection names it (RFC 9110 7.8)."""
    if "upgrade" not in options:
        return ""
    protocols = []
    for protocol in _members("Upgrade", said, status):
        found = _protocol.fullmatch(protocol)
        if not found:
            raise HttpError(status, "cannot take the head: Upgrade is no list of protocols")
        if found[1].lower() not in _PROTOCOLS_OF_REQUESTS:
            protocols.append(protocol)
    return ", ".join(protocols)


# What is wrong, for whoever reads the answer: found only when it is known that something is.


def _no_request_line(line: str) -> HttpError:
    if _any_version.fullmatch(line):
        method, _, version = line.split(" ")
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            return HttpError(505, "cannot take the request: its version is not HTTP/1.0 or 1.1")
        if method != method.upper() and _token.fullmatch(method):
            return HttpError(400, "cannot take the request: a small letter is in its method")
    return HttpError(400, "cannot take the request: its first line is no request line")


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
    if "_" in name and _token.fullmatch(name):
        return "an underscore is in the name of a field; some apps take it for a hyphen"
    if not _token.fullmatch(name):
        return "the name of a field is no token"
    return "a control character is in a value"


# Writing.


def has_odd_body(request: Request) -> bool:
    """Whether a request has a body that its method gives no meaning to.

    It must be the last of its connection: who does not expect it may see a request in it.
    """
    return request.framing is not NO_BODY and request.method not in _METHODS_WITH_BODY


def write_request(request: Request, extra: Sequence[tuple[str, str]] = ()) -> bytes:
    """Return the head of a request on HTTP/1.1, with `extra` behind its fields.

    Without a body, POST, PUT and PATCH say `Content-Length: 0`, whether or not it was said before.
    One that `has_odd_body` says that it is the last.
    An empty authority, which only HTTP/1.0 can have, becomes an empty Host (RFC 9112 3.2).
    Raises HttpError (400) for a request of which a part would read as something else.
    """
    start = f"{request.method} {request.path}{request.query} HTTP/1.1"
    lines = [
        start,
        f"Host: {request.authority}",
        *map(_field_line, request.fields),
        *map(_field_line, extra),
    ]
    if request.framing is COUNTED:
        lines.append(f"Content-Length: {request.length}")
    elif request.framing is STREAMED:
        lines.append("Transfer-Encoding: chunked")
    elif request.method in _METHODS_WITH_BODY:
        lines.append("Content-Length: 0")
    options = ["TE"] if request.takes_trailers else []
    if has_odd_body(request):
        options.append("close")
    if request.upgrade:
        options.append("Upgrade")
    if options:
        lines.append(f"Connection: {', '.join(options)}")
    if request.upgrade:
        lines.append(f"Upgrade: {request.upgrade}")
    # What came over HTTP/2 has not been through the grammar of this version (RFC 9113 10.3); a line
    # that is known has.
    if _request_lines.get(start) is None and not _request_line.fullmatch(start):
        raise HttpError(400, "cannot write the request: its method or target is none of HTTP/1.1")
    return _head(lines, 400)


def write_response(response: Response, *, chunked: bool, close: bool) -> bytes:
    """Return the head of a response on HTTP/1.1; the body will be `chunked`, or by its length.

    With neither, the end of the connection ends the body, and `close` must be true.
    Raises HttpError (502) for a response of which a part would read as something else.
    """
    status = response.status
    lines = [
        f"HTTP/1.1 {status} {response.reason or _REASONS.get(status, '')}",
        *map(_field_line, response.fields),
    ]
    if chunked:
        lines.append("Transfer-Encoding: chunked")
    elif response.length is not None and status >= 200 and status != 204:
        lines.append(f"Content-Length: {response.length}")
    if response.upgrade:
        lines.append("Connection: close, Upgrade" if close else "Connection: Upgrade")
        lines.append(f"Upgrade: {response.upgrade}")
    elif close:
        lines.append("Connection: close")
    return _head(lines, 502)


def write_fields(fields: Fields) -> bytes:
    """Return field lines; raises HttpError (502) as `write_response` does."""
    return _head([*map(_field_line, fields)], 502)[:-2] if fields else b""


_END = ("", "")
_field_line = ": ".join


def _head(lines: list[str], status: int) -> bytes:
    count = len(lines) + 1
    lines += _END
    text = "\r\n".join(lines)
    # Over HTTP/2 these can be within a value; here it would be two (RFC 9113 10.3).
    if text.count("\n") != count or text.count("\r") != count or "\0" in text:
        raise HttpError(status, "cannot write the head: CR, LF or NUL is in it")
    return text.encode("latin-1")
