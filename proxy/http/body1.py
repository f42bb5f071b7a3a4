"""The bodies of HTTP/1: where one ends, and what of the bytes received is its own. Pure."""

import re

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.fields1 import parse_fields, write_fields
from meshrun.proxy.http.heads import CONNECTION_FIELDS, Fields, folded
from meshrun.proxy.http.own_fields import OWN_FIELDS

__all__ = [
    "LAST_CHUNK",
    "Chunked",
    "chunk",
    "last_chunk",
    "permitted_trailers",
]

EXTENSION_LIMIT_BYTES = 256
# Of all extensions, beyond the bytes of body that came with them (CVE-2023-39326).
EXTENSIONS_LIMIT_BYTES = 16 * 1024
TRAILERS_LIMIT_BYTES = 8 * 1024

# Of chunks that came at once, how many are taken apart before others have their turn: a read has
# room for forty thousand of one byte.
BATCH = 256

LAST_CHUNK = b"0\r\n\r\n"
_CRLF = memoryview(b"\r\n")

_TCHAR = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]"
_QUOTED = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
# RFC 9112 7.1, without the white space that 7.1.1 allows and calls bad.
_size_line = re.compile(
    rb"([0-9A-Fa-f]{1,15}+)((?:;%b++(?:=(?:%b++|%b))?)*)\r\n" % (_TCHAR, _TCHAR, _QUOTED)
)
# What may become one.
_size_line_begun = re.compile(rb"[0-9A-Fa-f]{1,15}+(?:;[\t -~\x80-\xff]*+)?\r?+")
_bare_lf = re.compile(rb"(?<!\r)\n")
_LONGEST_SIZE_LINE = 15 + EXTENSION_LIMIT_BYTES + 2

# What must not come behind a body, where it was decided already without it (RFC 9110 6.5.1):
# framing, routing, modifiers of the request, authentication, how to read the content, and who asks.
# Some servers hand trailers to the app as if they were of the head.
_NOT_IN_TRAILERS = (
    CONNECTION_FIELDS
    | OWN_FIELDS
    | {
        "accept-encoding",
        "age",
        "authorization",
        "cache-control",
        "content-encoding",
        "content-location",
        "content-range",
        "content-type",
        "cookie",
        "date",
        "expect",
        "expires",
        "forwarded",
        "host",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "location",
        "max-forwards",
        "origin",
        "pragma",
        "proxy-authenticate",
        "proxy-authorization",
        "range",
        "referer",
        "retry-after",
        "set-cookie",
        "trailer",
        "vary",
        "www-authenticate",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-http-method",
        "x-http-method-override",
        "x-method-override",
        "x-real-ip",
    }
)
_FOLDED_NOT_IN_TRAILERS = frozenset(map(folded, _NOT_IN_TRAILERS))


def permitted_trailers(fields: Fields) -> Fields:
    """Return those that may stand behind a body (RFC 9110 6.5.1), whatever their spelling."""
    return [pair for pair in fields if folded(pair[0]) not in _FOLDED_NOT_IN_TRAILERS]


class Chunked:
    """Takes a chunked body apart, however it was fragmented (RFC 9112 7.1).

    `over` becomes true when all of it has come, trailers included; `trailers` are then those that
    are permitted. Extensions are dropped (7.1.1). What is wrong with a response's body has the
    status 502, and underscores are no offence in the names of its trailers.
    """

    __slots__ = (
        "_at_data_end",
        "_credit",
        "_kept",
        "_left",
        "_response",
        "_searched",
        "over",
        "trailers",
    )

    def __init__(self, *, of_response: bool = False) -> None:
        self.over = False
        self.trailers: Fields = []
        self._response = of_response
        self._left = 0  # of the chunk under way
        self._at_data_end = False  # its CRLF has not come whole
        self._searched = -1  # in the trailer section: how much of what is kept; else -1
        self._kept = b""  # a part of a line, or of the trailer section
        self._credit = EXTENSIONS_LIMIT_BYTES

    def feed(self, data: bytes | memoryview) -> tuple[bytes | memoryview, int]:
        """Return the body in `data` and how many bytes were taken.

        The body is that of all chunks in one piece: whoever takes it is not called for each. Where
        not all bytes are taken, the rest is the next message's if the body is `over`; else there
        are more than `BATCH` chunks, and the rest is to be fed in another turn. Raises HttpError
        (400, 502, or 431 for trailers); nothing may be fed after that.
        """
        view = memoryview(data)
        pieces: list[memoryview] = []
        at, end = 0, len(view)
        chunks = 0
        while at < end and not self.over:
            if self._left:
                piece = view[at : at + self._left]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
                self._at_data_end = not self._left
            elif self._at_data_end:
                at = self._data_end(view, at)
            elif self._searched < 0:
                if chunks == BATCH:
                    break
                chunks += 1
                at = self._size(view, at)
            else:
                at = self._trailer_section(view, at)
        return pieces[0] if len(pieces) == 1 else b"".join(pieces), at

    def _data_end(self, view: memoryview, at: int) -> int:
        if not self._kept and view[at : at + 2] == _CRLF:
            self._at_data_end = False
            return at + 2
        line = self._kept + bytes(view[at : at + 2 - len(self._kept)])
        at += len(line) - len(self._kept)
        if line == b"\r\n":
            self._kept = b""
            self._at_data_end = False
        elif line == b"\r":
            self._kept = line
        else:
            raise self._wrong("cannot take the body: no CRLF is behind a chunk's data")
        return at

    def _size(self, view: memoryview, at: int) -> int:
        if not self._kept and (found := _size_line.match(view, at)):
            self._begin(found)
            return found.end()
        kept = len(self._kept)
        line = self._kept + bytes(view[at : at + _LONGEST_SIZE_LINE - kept])
        if found := _size_line.match(line):
            self._kept = b""
            self._begin(found)
            return at + found.end() - kept
        if len(line) >= _LONGEST_SIZE_LINE or not _size_line_begun.fullmatch(line):
            raise self._wrong("cannot take the body: no chunk size is where one must be")
        self._kept = line
        return at + len(line) - kept

    def _begin(self, found: re.Match[bytes]) -> None:
        """Begin a chunk, or with the last one the trailer section."""
        extension = found.end(2) - found.start(2)
        self._left = int(found[1], 16)
        if extension:
            self._credit -= extension
            if extension > EXTENSION_LIMIT_BYTES or self._credit < 0:
                raise self._wrong("cannot take the body: too many chunk extensions")
        self._credit = min(self._credit + self._left, EXTENSIONS_LIMIT_BYTES)
        if not self._left:
            self._searched = 0

    def _trailer_section(self, view: memoryview, at: int) -> int:
        kept = len(self._kept)
        section = self._kept + bytes(view[at : at + TRAILERS_LIMIT_BYTES - kept])
        if section.startswith(b"\r\n"):
            end = 2
        elif (end := section.find(b"\r\n\r\n", self._searched) + 4) > 3:
            self.trailers = self._permitted(section[:end])
        elif _bare_lf.search(section, self._searched):
            raise self._wrong("cannot take the body: a line of its trailers ends without CR")
        elif len(section) == TRAILERS_LIMIT_BYTES:
            raise self._wrong("cannot take the body: too many trailers", 431)
        else:
            self._kept = section
            self._searched = max(0, len(section) - 3)
            return at + len(section) - kept
        self._kept = b""
        self.over = True
        return at + end - kept

    def _permitted(self, section: bytes) -> Fields:
        fields = parse_fields(str(section, "latin-1"), 0, of_response=self._response)
        return permitted_trailers(fields)

    def _wrong(self, message: str, status: int = 400) -> HttpError:
        return HttpError(502 if self._response else status, message)


def chunk(data: bytes | memoryview) -> bytes:
    """Return `data` as a chunk; nothing, which would say that the body is over, as nothing."""
    return b"".join((b"%x\r\n" % len(data), data, b"\r\n")) if data else b""


def last_chunk(trailers: Fields) -> bytes:
    """Return the end of a chunked body; raises HttpError (502) for trailers that are no lines."""
    return b"0\r\n%b\r\n" % write_fields(trailers) if trailers else LAST_CHUNK
