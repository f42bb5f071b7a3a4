"""A request that somebody asks about (`check`, `why`), as the sidecar would read it."""

import re
from collections.abc import Sequence

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.head1 import find_head, parse_request
from meshrun.proxy.http.heads import Request
from meshrun.supervisor.errors import MeshrunError

__all__ = ["UnaskableError", "asked"]

METHOD = "GET"
PATH = "/"
# What an app calls that takes the address of its upstream for the host.
AUTHORITY = "127.0.0.1"

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_HEADER = re.compile(r"([^:=]+)[:=](.*)", re.DOTALL)


class UnaskableError(MeshrunError):
    """No sidecar would take such a request."""


def asked(method: str | None, path: str | None, headers: Sequence[str]) -> Request | None:
    """Return the request, None where nothing is said of one; a header is `name=value` or `name: v`.

    What is not said is METHOD, PATH, and AUTHORITY for the header Host. Raises UnaskableError.
    """
    if method is None and path is None and not headers:
        return None
    fields = [_field(header) for header in headers]
    if not any(name.lower() == "host" for name, _ in fields):
        fields.append(("Host", AUTHORITY))
    first = f"{METHOD if method is None else method} {PATH if path is None else path} HTTP/1.1"
    lines = [first, *(f"{name}: {value}" for name, value in fields)]
    if any(map(_CONTROL.search, lines)):
        raise UnaskableError("cannot ask about a request with control characters")
    head = ("".join(f"{line}\r\n" for line in lines) + "\r\n").encode()
    try:
        return parse_request(head[: find_head(head)])
    except HttpError as error:
        raise UnaskableError(
            f"a sidecar would answer such a request with {error.status}: {error}"
        ) from error


def _field(header: str) -> tuple[str, str]:
    found = _HEADER.fullmatch(header)
    if found is None:
        raise UnaskableError(f"cannot use the header {header}: it must be NAME=VALUE or NAME:VALUE")
    return found[1], found[2].strip(" \t")
