"""The heads of HTTP/1.1 and 1.0: read by the grammar and nothing beside it, and written. Pure.

Where two parsers can differ about a message, one request can be hidden in another (RFC 9112 11.2).
So there is one reading of a head or none: no leniency of RFC 9112 is taken up (2.2, 2.3, 5.2, 6.3),
and nothing is passed on as it came: what was understood is written anew.

Lines that come again and again are not read again (`KnownLines`). What a head means, or that it is
refused and with what status, does not depend on which are known: only, where several things are
wrong with it, which of them is named.
"""

import re
from collections.abc import Sequence
from http import HTTPStatus

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.fields1 import (
    MOST_LOOKED_UP,
    OF_REQUESTS,
    OF_RESPONSES,
    VALUE,
    Special,
    field_line,
    framing_of,
    is_token,
    members_of,
    take_options,
    upgrade_of,
    write_lines,
)
from meshrun.proxy.http.heads import COUNTED, NO_BODY, STREAMED, Request, Response
from meshrun.proxy.http.known_lines import KnownLines
from meshrun.proxy.http.semantics import (
    RAW_LIMIT_BYTES,
    UNMEASURED_BYTES,
    check_expectation,
    check_method,
    check_size,
    too_long,
)
from meshrun.proxy.http.target import normalise_authority, split_target

__all__ = [
    "find_head",
    "forget_lines",
    "has_odd_body",
    "parse_request",
    "parse_response",
    "write_request",
    "write_response",
]

# A colon, a blank and the end of a line.
_FIELD_OVERHEAD_BYTES = 4

# RFC 9110 8.6: these say so when they have no body. Behind any other an app may expect none, leave
# it unread, and take it for its next request (RFC 9110 9.3.1; `http.server` does).
_METHODS_WITH_BODY = frozenset({"PATCH", "POST", "PUT"})

_REASONS = {status.value: status.phrase for status in HTTPStatus}

_request_line = re.compile(r"([!#$%&'*+\-.^_`|~0-9A-Z]++) ([!-~]++) HTTP/1\.([01])")
_status_line = re.compile(rf"HTTP/1\.([01]) ([1-9][0-9]{{2}})(?: ({VALUE}))?")

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
        raise too_long(what, 502 if of_response else status)
    return -1


def _no_head(of_response: bool, status: int, message: str) -> HttpError:
    return HttpError(502 if of_response else status, message)


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
    fields, special = OF_REQUESTS.parse(text, lines)
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


def _take_specials(request: Request, special: dict[str, Special]) -> None:
    """Finish a request that says something of its connection or its body."""
    minor = request.minor_version
    framing, length = framing_of(special, minor, 400)
    if length:
        request.framing, request.length = framing, length
    elif length is None:
        request.framing = framing
    options = take_options(special, request.fields, 400)
    request.keeps_alive = "close" not in options and (minor == 1 or "keep-alive" in options)
    if not minor:
        return
    # Behind a body there is none: parsers differ about whose those bytes would be.
    if "upgrade" in special and request.framing is NO_BODY:
        request.upgrade = upgrade_of(special["upgrade"].value, options, 400)
    if "te" in special and "trailers" in members_of("TE", special["te"].value.lower(), 400):
        request.takes_trailers = True
        request.fields.append(("TE", "trailers"))
    if "expect" in special:
        check_expectation(special["expect"].value)
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
    fields, special = OF_RESPONSES.parse(text, lines)
    framing, length = framing_of(special, minor, 502)
    options = take_options(special, fields, 502)
    response = Response(status, fields, NO_BODY, length, reason)  # see `parse_request`
    if "close" in options or (not minor and "keep-alive" not in options):
        response.keeps_alive = False
    if status in (101, 426) and "upgrade" in special:
        response.upgrade = upgrade_of(special["upgrade"].value, options, 502)
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


# Reading a line, which means the same in every head.


def _read_request_line(line: str) -> tuple[str, str, str, str, int]:
    """Return method, authority of the target, path, query and minor version."""
    found = _request_line.fullmatch(line)
    if not found:
        raise _no_request_line(line)
    method, target, minor = found.groups()
    check_method(method)
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


def forget_lines() -> None:
    """Know no line any more: heads are then read as by a process that has just started."""
    _request_lines.forget()
    _status_lines.forget()
    OF_REQUESTS.forget()
    OF_RESPONSES.forget()


# What is wrong, for whoever reads the answer: found only when it is known that something is.


def _no_request_line(line: str) -> HttpError:
    if _any_version.fullmatch(line):
        method, _, version = line.split(" ")
        if version not in ("HTTP/1.0", "HTTP/1.1"):
            return HttpError(505, "cannot take the request: its version is not HTTP/1.0 or 1.1")
        if method != method.upper() and is_token(method):
            return HttpError(400, "cannot take the request: a small letter is in its method")
    return HttpError(400, "cannot take the request: its first line is no request line")


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
        *map(field_line, request.fields),
        *map(field_line, extra),
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
    return write_lines(lines, 400)


def write_response(response: Response, *, chunked: bool, close: bool) -> bytes:
    """Return the head of a response on HTTP/1.1; the body will be `chunked`, or by its length.

    With neither, the end of the connection ends the body, and `close` must be true.
    Raises HttpError (502) for a response of which a part would read as something else.
    """
    status = response.status
    lines = [
        f"HTTP/1.1 {status} {response.reason or _REASONS.get(status, '')}",
        *map(field_line, response.fields),
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
    return write_lines(lines, 502)
