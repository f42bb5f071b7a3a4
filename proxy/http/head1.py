"""The heads of HTTP/1.1 and 1.0: read by the grammar and nothing beside it, and written. Pure.

Where two parsers can differ about a message, one request can be hidden in another (RFC 9112 11.2).
So there is one reading of a head or none: no leniency of RFC 9112 is taken up (2.2, 2.3, 5.2, 6.3),
and nothing is passed on as it came: what was understood is written anew.
"""

import re
from collections.abc import Sequence, Set
from http import HTTPStatus

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.heads import COUNTED, NO_BODY, STREAMED, Fields, Framing, Request, Response
from meshrun.proxy.http.target import normalise_authority, split_target

__all__ = [
    "CONNECTION_FIELDS",
    "FIELD_LIMIT",
    "HEAD_LIMIT_BYTES",
    "find_head",
    "parse_fields",
    "parse_request",
    "parse_response",
    "write_fields",
    "write_request",
    "write_response",
]

# Envoy's (max_request_headers_kb, max_headers_count), for requests and for responses.
HEAD_LIMIT_BYTES = 60 * 1024
FIELD_LIMIT = 100

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

# After these the connection could carry requests that no rule is asked about.
_PROTOCOLS_OF_REQUESTS = frozenset({"h2", "h2c", "http", "tls"})

# RFC 9110 8.6: these say so when they have no body.
_METHODS_WITH_BODY = frozenset({"PATCH", "POST", "PUT"})

_REASONS = {status.value: status.phrase for status in HTTPStatus}

# RFC 9110 5.6.2. To CGI and WSGI an underscore is a hyphen: `x_user` would be `x-user` to the app,
# and to the rules another field.
_TCHAR_BUT_UNDERSCORE = r"!#$%&'*+\-.^`|~0-9A-Za-z"
_TCHAR = _TCHAR_BUT_UNDERSCORE + "_"
_VALUE = r"[\t -~\x80-\xff]*+"

_token = re.compile(rf"[{_TCHAR}]+")
_request_line = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Z]++) ([!-~]++) HTTP/1\.([01])\r\n")
_status_line = re.compile(rf"HTTP/1\.([01]) ([1-9][0-9]{{2}})(?: ({_VALUE}))?+\r\n")
_request_field = re.compile(rf"^([{_TCHAR_BUT_UNDERSCORE}]++):[ \t]*+({_VALUE})\r\n", re.MULTILINE)
_response_field = re.compile(rf"^([{_TCHAR}]++):[ \t]*+({_VALUE})\r\n", re.MULTILINE)
_length = re.compile(r"[0-9]{1,18}")
_protocol = re.compile(rf"([{_TCHAR}]+)(?:/[{_TCHAR}]+)?")

_bare_lf = re.compile(rb"(?<!\r)\n")
_any_version = re.compile(r"[^ \r\n]+ [^ \r\n]+ HTTP/[0-9]\.[0-9]\r\n")


# Reading.


def find_head(data: bytes | bytearray, start: int = 0, *, of_response: bool = False) -> int:
    """Return the index behind the head that begins `data`, or -1 if there is more to come.

    `start` is how much was looked through before, less 3. Raises HttpError as soon as it is known
    that this will be no head: 502 for a response, else 400, or where it is longer than
    HEAD_LIMIT_BYTES 431, and 414 where its first line alone is.
    """
    end = data.find(b"\r\n\r\n", start) + 4
    if end > 3:
        if end <= HEAD_LIMIT_BYTES:
            return end
    elif data:
        # Empty lines before a request are for a server to skip (RFC 9112 2.2): this one does not.
        if not 32 < data[0] < 127:
            raise _no_head(of_response, 400, "cannot take the head: it begins with no letter")
        if _bare_lf.search(data, start):
            raise _no_head(of_response, 400, "cannot take the head: a line ends without CR")
    if end > 3 or len(data) >= HEAD_LIMIT_BYTES:
        what, status = "a head", 431
        if data.find(b"\r\n", 0, HEAD_LIMIT_BYTES) < 0:
            what, status = "a first line", 414
        message = f"cannot take {what} of more than {HEAD_LIMIT_BYTES} bytes"
        raise _no_head(of_response, status, message)
    return -1


def _no_head(of_response: bool, status: int, message: str) -> HttpError:
    return HttpError(502 if of_response else status, message)


def parse_request(head: bytes | bytearray) -> Request:
    """Return the request whose head, with its empty line, is `head`.

    Content-Length 0 is no body. `Expect: 100-continue` stays in the fields, for the app to answer,
    unless there is no body, or the sender cannot take the answer (HTTP/1.0).
    Raises HttpError: 400, 405 (CONNECT), 417, 431, 501 or 505.
    """
    text = str(head, "latin-1")
    line = _request_line.match(text)
    if not line:
        raise _no_request_line(text)
    method, target, minor = line.groups()
    if method == "CONNECT":
        raise HttpError(405, "cannot take CONNECT: this is no forward proxy")
    named, path, query = split_target(target)
    if path == "*" and method != "OPTIONS":
        raise HttpError(400, "cannot take the target *: only OPTIONS has it")

    fields: Fields = []
    special: dict[str, str] = {}
    for pair in parse_fields(text, line.end()):
        name = pair[0].lower()
        if name not in _REQUEST_FIELDS:
            fields.append(pair)
        elif name not in special:
            special[name] = pair[1]
        else:
            special[name] = _joined(name, special[name], pair[1], 400)

    host = special.pop("host", None)
    if host is not None:
        comparable = normalise_authority(host)
        if named and normalise_authority(named) != comparable:
            raise HttpError(400, "cannot take the request: Host is not that of the target")
    elif minor == "1":
        raise HttpError(400, "cannot take the request: it has no Host")
    request = Request(
        method=method,
        path=path,
        query=query,
        authority=named if host is None else host,
        fields=fields,
    )
    if not special:
        if minor == "0":
            request.minor_version = 0
            request.keeps_alive = False
        return request
    return _with_specials(request, special, minor)


def _with_specials(request: Request, special: dict[str, str], minor: str) -> Request:
    """Finish a request that says something of its connection or its body."""
    request.framing, length = _framing(special, minor, 400)
    if length is not None:
        request.length = length
        if not length:
            request.framing = NO_BODY
    options = _options(special, request.fields, 400)
    if minor == "0":
        request.minor_version = 0
        request.keeps_alive = "keep-alive" in options and "close" not in options
        return request
    request.keeps_alive = "close" not in options
    # Behind a body there is none: parsers differ about whose those bytes would be.
    if "upgrade" in special and request.framing is Framing.NONE:
        request.upgrade = _upgrade(special["upgrade"], options, 400)
    if "te" in special and _takes_trailers(special["te"]):
        request.fields.append(("TE", "trailers"))
    if "expect" in special:
        if special["expect"].lower() != "100-continue":
            raise HttpError(417, "cannot take the request: it expects more than 100-continue")
        if request.framing is not NO_BODY:
            request.expects_continue = True
            request.fields.append(("Expect", "100-continue"))
    return request


def parse_response(head: bytes | bytearray, method: str) -> Response:
    """Return the response to a request of `method` whose head, with its empty line, is `head`.

    Raises HttpError (502). A response to HEAD, 1xx, 204 and 304 have no body, whatever they say
    (RFC 9112 6.3); 1xx and 204 that say they had one are refused (RFC 9110 8.6).
    """
    text = str(head, "latin-1")
    line = _status_line.match(text)
    if not line:
        raise HttpError(502, "cannot take the response: its first line is no status line")
    minor, digits, reason = line.groups()
    status = int(digits)

    fields: Fields = []
    special: dict[str, str] = {}
    for pair in parse_fields(text, line.end(), of_response=True):
        name = pair[0].lower()
        if name not in CONNECTION_FIELDS:
            fields.append(pair)
        elif name not in special:
            special[name] = pair[1]
        else:
            special[name] = _joined(name, special[name], pair[1], 502)

    response = Response(status=status, fields=fields, reason=(reason or "").strip(" \t"))
    framing, response.length = _framing(special, minor, 502)
    options = _options(special, fields, 502)
    response.keeps_alive = "close" not in options and (minor == "1" or "keep-alive" in options)
    if status in (101, 426) and "upgrade" in special:
        response.upgrade = _upgrade(special["upgrade"], options, 502)
    if status == 101 and not response.upgrade:
        raise HttpError(502, "cannot take the response: 101 without a protocol that may follow")

    if status < 200 or status == 204:
        if framing is STREAMED or response.length:
            raise HttpError(502, f"cannot take the response: a body was said to follow {status}")
        response.length = None
    elif method != "HEAD" and status != 304:
        if framing is NO_BODY:
            response.framing = STREAMED
            response.until_close = True
            response.keeps_alive = False
        elif response.length != 0:
            response.framing = framing
    return response


def parse_fields(text: str, start: int, *, of_response: bool = False) -> Fields:
    """Return the field lines from `start` on, to the empty line that must end `text`.

    Raises HttpError: 502 for a response, else 400 or 431.
    """
    status = 502 if of_response else 400
    pattern = _response_field if of_response else _request_field
    count = text.count("\n", start) - 1
    if count > FIELD_LIMIT:
        raise HttpError(502 if of_response else 431, f"cannot take more than {FIELD_LIMIT} fields")
    fields = pattern.findall(text, start)
    # Each match is a whole line: where there are as many as lines but the empty one, all matched.
    if len(fields) != count or not text.endswith("\r\n\r\n"):
        raise _no_fields(text, start, pattern, status)
    if " \r" not in text and "\t\r" not in text:
        return fields
    stripped = [(name, value.rstrip(" \t")) for name, value in fields]
    for (name, value), (_, kept) in zip(fields, stripped, strict=True):
        # llhttp, which Node has, does not take `chunked` with a tab behind it for `chunked`.
        if kept != value and name.lower() in ("content-length", "transfer-encoding"):
            raise HttpError(status, f"cannot take the head: white space is behind {name}")
    return stripped


def _joined(name: str, first: str, second: str, status: int) -> str:
    """Return the values of two lines as one (RFC 9110 5.3), where there may be two."""
    if name in ("content-length", "expect", "host", "transfer-encoding"):
        raise HttpError(status, f"cannot take the head: it has two {name} fields")
    return f"{first},{second}"


def _framing(special: dict[str, str], minor: str, status: int) -> tuple[Framing, int | None]:
    """Return how the body is framed, and its length if it is said (RFC 9112 6)."""
    length, coding = special.get("content-length"), special.get("transfer-encoding")
    if coding is not None:
        if minor == "0":
            raise HttpError(status, "cannot take the head: Transfer-Encoding on HTTP/1.0")
        if length is not None:
            raise HttpError(status, "cannot take the head: Content-Length and Transfer-Encoding")
        if coding.lower() != "chunked":
            raise _no_coding(coding, status)
        return STREAMED, None
    if length is None:
        return NO_BODY, None
    if not _length.fullmatch(length):
        raise HttpError(status, "cannot take the head: Content-Length is no number of 1-18 digits")
    return COUNTED, int(length)


def _no_coding(coding: str, status: int) -> HttpError:
    codings = [member.strip(" \t").lower() for member in coding.split(",")]
    if status == 400 and codings[-1] == "chunked" and codings.count("chunked") == 1:
        return HttpError(501, "cannot take the request: its transfer coding is not only chunked")
    return HttpError(status, "cannot take the head: Transfer-Encoding is not chunked")


def _options(special: dict[str, str], fields: Fields, status: int) -> Set[str]:
    """Return the options of Connection, and take the fields out that they name."""
    said = special.get("connection")
    if said is None:
        return _NO_OPTIONS
    if (usual := _USUAL_OPTIONS.get(said)) is not None:
        return usual
    options = {option for member in said.lower().split(",") if (option := member.strip(" \t"))}
    if options <= _OPTIONS:
        return options
    for option in options:
        if not _token.fullmatch(option):
            raise HttpError(status, "cannot take the head: Connection is no list of tokens")
        if option in _INDISPENSABLE:
            raise HttpError(status, f"cannot take the head: Connection names {option}")
    fields[:] = [pair for pair in fields if pair[0].lower() not in options]
    return options


_NO_OPTIONS: Set[str] = frozenset()
_USUAL_OPTIONS: dict[str, Set[str]] = {
    said: frozenset({said.lower()}) for said in ("close", "keep-alive", "Keep-Alive")
}

# What Connection names of what is never in the fields.
_OPTIONS = frozenset({"close", "http2-settings", "keep-alive", "te", "upgrade"})


def _upgrade(said: str, options: Set[str], status: int) -> str:
    """Return the protocols of Upgrade that may follow, if Connection names it (RFC 9110 7.8)."""
    if "upgrade" not in options:
        return ""
    protocols = []
    for member in said.split(","):
        if not (protocol := member.strip(" \t")):
            continue
        found = _protocol.fullmatch(protocol)
        if not found:
            raise HttpError(status, "cannot take the head: Upgrade is no list of protocols")
        if found[1].lower() not in _PROTOCOLS_OF_REQUESTS:
            protocols.append(protocol)
    return ", ".join(protocols)


def _takes_trailers(te: str) -> bool:
    return any(member.strip(" \t").lower() == "trailers" for member in te.split(","))


# What is wrong, for whoever reads the answer: found only when it is known that something is.


def _no_request_line(text: str) -> HttpError:
    if _any_version.match(text):
        method, _, version = text.partition("\r\n")[0].split(" ")
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            return HttpError(505, "cannot take the request: its version is not HTTP/1.0 or 1.1")
        if method != method.upper() and _token.fullmatch(method):
            return HttpError(400, "cannot take the request: a small letter is in its method")
    return HttpError(400, "cannot take the request: its first line is no request line")


def _no_fields(text: str, start: int, pattern: re.Pattern[str], status: int) -> HttpError:
    at = start
    while found := pattern.match(text, at):
        at = found.end()
    line = text[at:].partition("\n")[0]
    name, colon, _ = line.partition(":")
    if not line.endswith("\r") or "\r" in line[:-1]:
        why = "a line does not end in CRLF"
    elif line[:1] in (" ", "\t"):
        why = "a line is folded, or begins with white space"
    elif not colon:
        why = "a line has no colon"
    elif name != name.rstrip(" \t"):
        why = "white space is before a colon"
    elif "_" in name and _token.fullmatch(name):
        why = "an underscore is in the name of a field; some apps take it for a hyphen"
    elif not _token.fullmatch(name):
        why = "the name of a field is no token"
    else:
        why = "a control character is in a value"
    return HttpError(status, f"cannot take the head: {why}")


# Writing.


def write_request(request: Request, extra: Sequence[tuple[str, str]] = ()) -> bytes:
    """Return the head of a request on HTTP/1.1, with `extra` behind its fields.

    Without a body, POST, PUT and PATCH say `Content-Length: 0`, whether or not it was said before.
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
    takes_trailers = _TE_TRAILERS in request.fields or _TE_TRAILERS_OF_HTTP2 in request.fields
    if request.upgrade:
        lines.append("Connection: TE, Upgrade" if takes_trailers else "Connection: Upgrade")
        lines.append(f"Upgrade: {request.upgrade}")
    elif takes_trailers:
        lines.append("Connection: TE")
    # What came over HTTP/2 has not been through the grammar of this version (RFC 9113 10.3).
    if not _request_line.fullmatch(f"{start}\r\n"):
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


_field_line = ": ".join
_TE_TRAILERS = ("TE", "trailers")
_TE_TRAILERS_OF_HTTP2 = ("te", "trailers")


def _head(lines: list[str], status: int) -> bytes:
    text = "\r\n".join([*lines, "", ""])
    # Over HTTP/2 these can be within a value; here it would be two (RFC 9113 10.3).
    count = len(lines) + 1
    if text.count("\n") != count or text.count("\r") != count or "\0" in text:
        raise HttpError(status, "cannot write the head: CR, LF or NUL is in it")
    return text.encode("latin-1")
