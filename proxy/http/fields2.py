"""Heads and trailers between HTTP/2's lists of fields and the vocabulary of `heads`. Pure.

All checks of RFC 9113 8.2 and 8.3 are here; h2's own are switched off, since it knows no failure
but that of the whole connection. What HTTP/1 would refuse is refused here as well, so that nothing
becomes a different message when it is written as HTTP/1 (RFC 9113 10.3).
"""

import re
from collections.abc import Sequence
from functools import lru_cache

from hpack.struct import NeverIndexedHeaderTuple

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http import own_fields
from meshrun.proxy.http.body1 import permitted_trailers
from meshrun.proxy.http.heads import (
    CONNECTION_FIELDS,
    COUNTED,
    NO_BODY,
    STREAMED,
    Fields,
    Request,
    Response,
)
from meshrun.proxy.http.hpack2 import FIELD_OVERHEAD_BYTES, Field
from meshrun.proxy.http.semantics import (
    NOT_KEPT,
    RAW_LIMIT_BYTES,
    UNMEASURED_BYTES,
    check_count,
    check_expectation,
    check_method,
    check_size,
    read_length,
    too_long,
)
from meshrun.proxy.http.target import normalise_authority, split_target

__all__ = [
    "Field",
    "Secret",
    "read_request",
    "read_response",
    "read_trailers",
    "write_fields",
    "write_request",
    "write_response",
]

# RFC 9110 5.6.2 without capitals. An underscore is a hyphen to CGI and WSGI, so that a rule would
# see another field than the app; the metadata of gRPC may have it.
_name = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]+")
_value = re.compile(rb"(?:[!-~\x80-\xff](?:[\t -~\x80-\xff]*[!-~\x80-\xff])?)?")
_method = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Z]+")
_status = re.compile(rb"[1-9][0-9]{2}")

_REQUEST_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path"})
# What the name is read as of a field that tells who calls, which only the sidecar may.
_FORGED = ""
_REQUEST_SPECIAL = CONNECTION_FIELDS | {_FORGED, "cookie", "expect", "host"}

# Never put into the table of the compression: these change with each message too, and would push
# out of it what does not.
_NEVER_INDEXED = NOT_KEPT | {"age", "content-length", "etag", "grpc-timeout"}


class Secret(str):
    """A value that its sender forbids every table of a compression (RFC 7541 6.2.3)."""

    __slots__ = ()


# Reading.


def read_request(fields: Sequence[Field], *, ended: bool, underscores: bool) -> Request:
    """Return the request whose head is `fields`; `ended` says that no body follows.

    `underscores` lets names have them. Raises HttpError: 400, 405 (CONNECT), 417, 431 or 501.
    """
    size = _check_size(fields, 431)
    pseudo: dict[bytes, str] = {}
    regular: Fields = []
    special: dict[str, str] = {}
    for index, field in enumerate(fields):
        name = field[0]
        if name[:1] == b":":
            if index > len(pseudo) or name in pseudo or name not in _REQUEST_PSEUDO:
                raise _unfit("pseudo-header fields are unknown, repeated or behind others")
            pseudo[name] = _text(field)
            continue
        text = _name_of_request(name) if underscores else _name_without_underscore(name)
        if text not in _REQUEST_SPECIAL:
            regular.append((text, _text(field)))
        else:
            _take_special(text, field, special, regular)
    check_count(regular, 431)
    request = _request_of(pseudo, special, regular)
    if size > UNMEASURED_BYTES:
        check_size(request, FIELD_OVERHEAD_BYTES, 431)
    length = special.get("content-length")
    if not ended:
        request.framing = STREAMED
        if length is not None:
            request.framing = COUNTED
            request.length = read_length(length, 400)
    elif length is not None and read_length(length, 400):
        raise _unfit("there is no body, though Content-Length says so")
    request.takes_trailers = "te" in special
    _take_expectation(special, request)
    return request


def _take_special(name: str, field: Field, special: dict[str, str], regular: Fields) -> None:
    value = _text(field)
    if name == _FORGED:
        return
    if name == "cookie":
        # RFC 9113 8.2.3: it may come in pieces, of which HTTP/1 and apps know nothing.
        if name not in special:
            regular.append((name, value))
        else:
            at = next(at for at, (known, _) in enumerate(regular) if known == name)
            regular[at] = (name, f"{regular[at][1]}; {value}")
    elif name == "te":
        if value.lower() != "trailers":
            raise _unfit("TE is not trailers")
        regular.append((name, "trailers"))
    elif name not in ("content-length", "expect", "host"):
        raise _unfit(f"{name} belongs to a connection of HTTP/1")
    elif name in special:
        raise _unfit(f"there are two {name} fields")
    special[name] = value


def _request_of(pseudo: dict[bytes, str], special: dict[str, str], fields: Fields) -> Request:
    method = pseudo.get(b":method", "")
    if not _method.fullmatch(method):
        raise _unfit("the method is missing, no token, or a small letter is in it")
    check_method(method)
    if pseudo.get(b":scheme") not in ("http", "https"):
        raise _unfit("the scheme is missing, or neither http nor https")
    target = pseudo.get(b":path", "")
    if target[:1] != "/" and (target != "*" or method != "OPTIONS"):
        raise _unfit("the path is missing, or does not begin with /")
    _, path, query = split_target(target)
    host, authority = special.get("host"), pseudo.get(b":authority")
    comparable = normalise_authority((host if authority is None else authority) or "")
    if host is not None and authority is not None and normalise_authority(host) != comparable:
        raise _unfit("Host and :authority differ")
    return Request(
        method=method,
        path=path,
        query=query,
        authority=(host if authority is None else authority) or "",
        fields=fields,
    )


def _take_expectation(special: dict[str, str], request: Request) -> None:
    expected = special.get("expect")
    if expected is None:
        return
    check_expectation(expected)
    if request.framing is not NO_BODY:
        request.expects_continue = True
        request.fields.append(("expect", "100-continue"))


def read_response(fields: Sequence[Field], *, ended: bool, method: str) -> Response:
    """Return the response to a request of `method` whose head is `fields`.

    `ended` says that no body follows. Raises HttpError (502).
    """
    size = _check_size(fields, 502)
    status = fields[0][1] if fields and fields[0][0] == b":status" else b""
    if not _status.fullmatch(status) or status == b"101":
        raise HttpError(502, "cannot take the response: its status is missing or no status")
    response = Response(status=int(status))
    length: str | None = None
    for field in fields[1:]:
        name = _name_of_response(field[0])
        if name not in CONNECTION_FIELDS:
            response.fields.append((name, _text(field, 502)))
        elif name == "content-length" and length is None:
            length = _text(field, 502)
        else:
            raise HttpError(502, f"cannot take the response: it has {name}, or has it twice")
    check_count(response.fields, 502)
    if size > UNMEASURED_BYTES:
        check_size(response, FIELD_OVERHEAD_BYTES, 502)
    if length is not None and not response.interim:
        response.length = read_length(length, 502)
    if ended:
        if response.interim:
            raise HttpError(502, "cannot take the response: it ends with an interim one")
        if response.length and method != "HEAD" and response.status != 304:
            raise HttpError(502, "cannot take the response: Content-Length says more than comes")
    elif response.status >= 200 and response.status not in (204, 304) and method != "HEAD":
        response.framing = STREAMED if response.length is None else COUNTED
    if response.status == 204:
        response.length = None  # RFC 9110 8.6: there may be none
    return response


def read_trailers(fields: Sequence[Field], *, underscores: bool) -> Fields:
    """Return those fields behind a body that may stand there. Raises HttpError (400)."""
    _check_size(fields, 400)
    read = _name_of_request if underscores else _name_without_underscore
    trailers: Fields = []
    for field in fields:
        name = read(field[0])
        if name == _FORGED:
            continue
        if name in CONNECTION_FIELDS:
            raise _unfit(f"{name} is no field of trailers")
        trailers.append((name, _text(field)))
    check_count(trailers, 400)
    return permitted_trailers(trailers)


# What is remembered of names, which a peer chooses, is bounded by this: no honest one is so long.
MOST_NAME_BYTES = 256


@lru_cache(maxsize=2048)
def _name_of_request(name: bytes) -> str:
    if not _name.fullmatch(name):
        raise _unfit("the name of a field is no token of small letters")
    text = name.decode("ascii")
    return _FORGED if own_fields.tells_who_calls(text) else text


@lru_cache(maxsize=2048)
def _name_without_underscore(name: bytes) -> str:
    if b"_" in name:
        raise _unfit("an underscore is in the name of a field; some apps take it for a hyphen")
    return _name_of_request(name)


@lru_cache(maxsize=2048)
def _name_of_response(name: bytes) -> str:
    if not _name.fullmatch(name):
        raise HttpError(502, "cannot take the response: the name of a field is no token")
    return name.decode("ascii")


def _text(field: Field, status: int = 400) -> str:
    value = field[1]
    if not _value.fullmatch(value):
        raise HttpError(
            status, "cannot take the head: a control, or white space around it, is in a value"
        )
    text = value.decode("latin-1")
    return Secret(text) if isinstance(field, NeverIndexedHeaderTuple) else text


def _check_size(fields: Sequence[Field], status: int) -> int:
    if any(len(field[0]) > MOST_NAME_BYTES for field in fields):
        raise HttpError(status, f"cannot take a name of a field over {MOST_NAME_BYTES} bytes")
    size = sum([len(name) + len(value) for name, value in fields])
    size += FIELD_OVERHEAD_BYTES * len(fields)
    if size > RAW_LIMIT_BYTES:
        raise too_long("head", status)
    return size


def _unfit(why: str) -> HttpError:
    return HttpError(400, f"cannot take the request: {why}")


# Writing.


def write_request(request: Request, extra: Sequence[tuple[str, str]] = ()) -> list[Field]:
    """Return the head of `request` with `extra` fields."""
    head: list[Field] = [
        (b":method", request.method.encode("latin-1")),
        (b":scheme", b"http"),
        (b":path", (request.path + request.query).encode("latin-1")),
    ]
    if request.authority:
        head.append((b":authority", request.authority.encode("latin-1")))
    head += write_fields(request.fields)
    head += write_fields(extra)
    if request.framing is COUNTED:
        head.append(NeverIndexedHeaderTuple(b"content-length", b"%d" % request.length))
    return head


def write_response(response: Response) -> list[Field]:
    """Return the head of `response`, which is not 101 (RFC 9113 8.6)."""
    head: list[Field] = [(b":status", b"%d" % response.status)]
    head += write_fields(response.fields)
    if response.length is not None:
        head.append(NeverIndexedHeaderTuple(b"content-length", b"%d" % response.length))
    return head


def write_fields(fields: Sequence[tuple[str, str]]) -> list[Field]:
    """Return fields as HTTP/2 has them; those of a connection of HTTP/1 are left out."""
    written: list[Field] = []
    for name, value in fields:
        spelled, indexed = _spelling(name)
        if indexed and type(value) is str:
            written.append((spelled, value.encode("latin-1")))
        elif spelled:
            written.append(NeverIndexedHeaderTuple(spelled, value.encode("latin-1")))
    return written


@lru_cache(maxsize=2048)
def _spelling(name: str) -> tuple[bytes, bool]:
    """Return how a name is written, empty if it is not, and whether a table may have the field."""
    lower = name.lower()
    if lower in CONNECTION_FIELDS and lower != "te":
        return b"", False
    return lower.encode("latin-1"), lower not in _NEVER_INDEXED
