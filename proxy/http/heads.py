"""The heads of requests and responses, whatever version of HTTP carried them.

`fields` are the end-to-end ones, in order and spelled as they were sent. What belongs to one
connection only is not in them: it was understood and dropped (RFC 9110 7.6.1), or is an attribute
here (`authority`, `length`, `upgrade`). Text is Latin-1, a character for a byte.
"""

from enum import Enum, auto
from functools import lru_cache

import msgspec

__all__ = [
    "CONNECTION_FIELDS",
    "COUNTED",
    "NO_BODY",
    "STREAMED",
    "Fields",
    "Framing",
    "Request",
    "Response",
    "folded",
]

Fields = list[tuple[str, str]]

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


class Framing(Enum):
    """How the end of a body is known."""

    NONE = auto()  # there is none
    LENGTH = auto()  # by its length, which was said before
    STREAM = auto()  # when it comes: chunks, END_STREAM, or the end of the connection


# What is asked for with each message by these names: an attribute of an Enum takes CPython 3.11 as
# long as a method call.
NO_BODY, COUNTED, STREAMED = Framing


class Request(msgspec.Struct, eq=False):
    """The head of a request; `path` is normalised, `query` is empty or begins with `?`.

    `authority` is the host as it was sent, `upgrade` what HTTP/1.1's Upgrade asked for.
    `takes_trailers` repeats what TE in the fields says. `keeps_alive` says whether the sender wants
    to use the connection again.
    """

    method: str
    path: str
    query: str
    authority: str
    fields: Fields = msgspec.field(default_factory=list)
    framing: Framing = NO_BODY
    length: int = 0
    upgrade: str = ""
    expects_continue: bool = False
    takes_trailers: bool = False
    keeps_alive: bool = True
    minor_version: int = 1  # of HTTP/1; HTTP/2 can do all that 1.1 can


class Response(msgspec.Struct, eq=False):
    """The head of a response, interim (1xx) or final.

    `length` is what Content-Length said, also where no body follows (HEAD, 304). `until_close`
    says that the end of the connection is the end of the body (HTTP/1 only).
    """

    status: int
    fields: Fields = msgspec.field(default_factory=list)
    framing: Framing = NO_BODY
    length: int | None = None
    reason: str = ""
    upgrade: str = ""
    until_close: bool = False
    keeps_alive: bool = True

    @property
    def interim(self) -> bool:
        """Whether another response to the same request follows; 101 is final."""
        return self.status < 200 and self.status != 101


_SMALL = bytes(range(256)).lower()
_SEPARATORS = bytes(octet for octet in range(128) if not chr(octet).isalnum())

# What is remembered of names, which a peer chooses, is bounded by this.
_LONGEST_REMEMBERED = 64


def folded(name: str) -> bytes:
    """Return the letters and digits of a field's name, in small letters.

    To CGI and WSGI a hyphen is an underscore, to PHP a dot is one as well, and Apache has made one
    of whatever is no letter: names that differ in nothing else are one field to some app.
    """
    return _remembered(name) if len(name) <= _LONGEST_REMEMBERED else _folded(name)


def _folded(name: str) -> bytes:
    return name.encode("latin-1").translate(_SMALL, _SEPARATORS)


_remembered = lru_cache(maxsize=512)(_folded)
