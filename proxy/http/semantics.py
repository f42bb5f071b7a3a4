"""What holds for a head in every version of HTTP (RFC 9110): its limits, and what is checked alike.

Pure.
"""

import re

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.heads import Fields, Request, Response
from meshrun.proxy.http.own_fields import REQUEST_ID_BYTES, REQUEST_ID_FIELD, request_id

__all__ = [
    "FIELD_LIMIT",
    "HEAD_LIMIT_BYTES",
    "LONGEST_NAME",
    "METHOD_LIMIT_BYTES",
    "MULTIPLEXED",
    "NOT_KEPT",
    "RAW_LIMIT_BYTES",
    "UNMEASURED_BYTES",
    "check_count",
    "check_expectation",
    "check_method",
    "check_size",
    "read_length",
    "too_long",
    "too_many_fields",
]

# The protocols of services of which a connection carries many exchanges at a time: HTTP/2.
MULTIPLEXED = frozenset({"http2", "grpc"})

# Envoy's (max_request_headers_kb, max_headers_count), for requests and for responses. Only what
# goes from end to end counts, and not the request's identifier: else the second sidecar would
# refuse what the first took, for what that one has written into it.
HEAD_LIMIT_BYTES = 60 * 1024
FIELD_LIMIT = 100

# Of a head as it comes.
RAW_LIMIT_BYTES = HEAD_LIMIT_BYTES + 4 * 1024
# A head that is no longer is within the limit also where each octet of its path becomes three.
UNMEASURED_BYTES = HEAD_LIMIT_BYTES // 3

# RFC 9112 3: what is longer than any that is implemented gets a 501. The longest that is registered
# has 17 octets; logs and events are spared what somebody makes up.
METHOD_LIMIT_BYTES = 32

# Of a service, as of a label of DNS.
LONGEST_NAME = 63

# What is kept no longer than the message that it came with, in no memory of lines and no table of a
# compression: secrets (RFC 7541 7.1.3), and what is another one in each request, so that to keep it
# would be in vain.
NOT_KEPT = frozenset(
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

_length = re.compile(r"[0-9]{1,18}")


def check_method(method: str) -> None:
    """Raise HttpError: 405 for CONNECT, 501 for a method of more than METHOD_LIMIT_BYTES."""
    if len(method) > METHOD_LIMIT_BYTES:
        raise HttpError(501, f"cannot take a method of more than {METHOD_LIMIT_BYTES} bytes")
    if method == "CONNECT":
        raise HttpError(405, "cannot take CONNECT: this is no forward proxy")


def check_expectation(value: str) -> None:
    """Raise HttpError (417) for what Expect says, unless it is 100-continue (RFC 9110 10.1.1)."""
    if value.lower() != "100-continue":
        raise HttpError(417, "cannot take the request: it expects more than 100-continue")


def read_length(value: str, status: int) -> int:
    """Return what Content-Length says (RFC 9110 8.6). Raises HttpError (`status`)."""
    if not _length.fullmatch(value):
        raise HttpError(status, "cannot take the head: Content-Length is no number of 1-18 digits")
    return int(value)


def check_count(fields: Fields, status: int) -> None:
    """Raise HttpError (`status`) for more than FIELD_LIMIT fields beside the identifier."""
    count = len(fields)
    if count > FIELD_LIMIT and count - (request_id(fields) is not None) > FIELD_LIMIT:
        raise too_many_fields(status)


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
        raise too_long("head", status)


def too_many_fields(status: int) -> HttpError:
    """Return the refusal of more than FIELD_LIMIT fields."""
    return HttpError(status, f"cannot take more than {FIELD_LIMIT} fields")


def too_long(what: str, status: int) -> HttpError:
    """Return the refusal of a `what` that is longer than a head may be."""
    return HttpError(status, f"cannot take a {what} of more than {HEAD_LIMIT_BYTES} bytes")
