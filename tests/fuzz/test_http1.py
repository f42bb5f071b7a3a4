"""HTTP/1 from whoever means ill: read in one way, however it is fragmented, or refused.

What is accepted is compared with another parser, httptools (llhttp, which Node has): the app may
have that one, so it must see the same requests in the same bytes, and in what is forwarded.
"""

import itertools
from dataclasses import dataclass, field

import httptools
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from support.sampling import WHOLE

from meshrun.proxy.errors import HttpError
from meshrun.proxy.http.body1 import Chunked, chunk, last_chunk, permitted_trailers
from meshrun.proxy.http.head1 import (
    find_head,
    parse_request,
    parse_response,
    write_request,
    write_response,
)
from meshrun.proxy.http.heads import CONNECTION_FIELDS, Fields, Framing, Request, Response
from meshrun.proxy.http.target import split_target

pytestmark = pytest.mark.long

fuzz = settings(max_examples=4_000 if WHOLE else 300, deadline=None, derandomize=not WHOLE)


# What we make of bytes.


@dataclass(slots=True)
class Message:
    """One that was read: where it ended (None: not yet), and what it was."""

    head: Request | Response
    body: bytearray = field(default_factory=bytearray)
    trailers: Fields = field(default_factory=list)
    end: int | None = None


class Reader:
    """Reads messages one after the other, as a connection would."""

    def __init__(self, method: str = "") -> None:
        self.messages: list[Message] = []
        self.refusal: int | None = None
        self.over = False  # nothing more of HTTP/1 comes
        self._method = method  # of the requests that are answered; empty: these are requests
        self._at = 0
        self._kept = bytearray()
        self._searched = 0
        self._chunked: Chunked | None = None
        self._counted = 0  # of a body with a length, what is left
        self._until_close = False

    def feed(self, data: bytes) -> None:
        try:
            while data and not self.over and self.refusal is None:
                data = data[self._take(data) :]
        except HttpError as refused:
            self.refusal = refused.status

    def _take(self, data: bytes) -> int:
        if self._until_close:
            self.messages[-1].body += data
            return len(data)
        taken = self._take_body(data) if self._in_body else self._take_head(data)
        self._at += taken
        message = self.messages[-1] if self.messages else None
        if message and message.end is None and not self._in_body:
            message.end = self._at
            if self._chunked is not None:
                message.trailers = self._chunked.trailers
            self._chunked = None
            self.over = bool(message.head.upgrade) or not message.head.keeps_alive
        return taken

    @property
    def _in_body(self) -> bool:
        return self._counted > 0 or (self._chunked is not None and not self._chunked.over)

    def _take_head(self, data: bytes) -> int:
        before = len(self._kept)
        self._kept += data
        end = find_head(self._kept, self._searched, of_response=bool(self._method))
        if end < 0:
            self._searched = max(0, len(self._kept) - 3)
            return len(data)
        head = bytes(self._kept[:end])
        self._kept.clear()
        self._searched = 0
        parsed = parse_response(head, self._method) if self._method else parse_request(head)
        self.messages.append(Message(parsed))
        if parsed.framing is Framing.LENGTH:
            self._counted = parsed.length or 0
        elif parsed.framing is Framing.STREAM:
            self._until_close = isinstance(parsed, Response) and parsed.until_close
            self._chunked = Chunked(of_response=bool(self._method))
        return end - before

    def _take_body(self, data: bytes) -> int:
        body = self.messages[-1].body
        if self._chunked is None:
            taken = min(self._counted, len(data))
            self._counted -= taken
            body += data[:taken]
            return taken
        piece, taken = self._chunked.feed(data)
        body += piece
        return taken


def read(*parts: bytes, method: str = "") -> Reader:
    reader = Reader(method)
    for part in parts:
        reader.feed(part)
    return reader


# What httptools makes of them.


class Seen:
    """What httptools tells of one message."""

    def __init__(self) -> None:
        self.method = ""
        self.target = ""
        self.status = 0
        self.fields: Fields = []
        self.later: Fields = []  # it tells trailers as if they were of the head
        self.body = bytearray()
        self.in_body = False
        self.whole = False


class Other:
    """Collects what httptools tells."""

    def __init__(self, *, of_responses: bool = False) -> None:
        self.messages: list[Seen] = []
        self.error: httptools.HttpParserError | None = None
        self._responses: httptools.HttpResponseParser | None = None
        self._requests: httptools.HttpRequestParser | None = None
        if of_responses:
            self._responses = httptools.HttpResponseParser(self)
        else:
            self._requests = httptools.HttpRequestParser(self)

    def feed(self, data: bytes) -> None:
        parser = self._responses or self._requests
        assert parser is not None
        try:
            parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass
        except httptools.HttpParserError as error:
            self.error = error

    def on_message_begin(self) -> None:
        self.messages.append(Seen())

    def on_url(self, url: bytes) -> None:
        self.messages[-1].target += url.decode("latin-1")

    def on_header(self, name: bytes, value: bytes) -> None:
        seen = self.messages[-1]
        pair = name.decode("latin-1"), value.decode("latin-1").strip(" \t")
        (seen.later if seen.in_body else seen.fields).append(pair)

    def on_headers_complete(self) -> None:
        seen = self.messages[-1]
        seen.in_body = True
        if self._responses:
            seen.status = self._responses.get_status_code()
        elif self._requests:
            seen.method = self._requests.get_method().decode()

    def on_body(self, body: bytes) -> None:
        self.messages[-1].body += body

    def on_message_complete(self) -> None:
        self.messages[-1].whole = True


def see(data: bytes, *, of_responses: bool = False) -> Other:
    other = Other(of_responses=of_responses)
    other.feed(data)
    return other


# Bytes.

SEEDS = [
    b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    b"POST /a?b HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello",
    b"PUT /a HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n"
    b"5\r\nhello\r\n6;a=b\r\n world\r\n0\r\nX: y\r\nHost: b\r\n\r\n",
    b"GET http://A:80/b HTTP/1.1\r\nHost: a\r\nConnection: keep-alive, X-A\r\nX-A: b\r\n\r\n",
    b"OPTIONS * HTTP/1.1\r\nHost: a:1\r\nTE: trailers\r\nConnection: TE\r\n\r\n",
    b"GET /w HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00",
    b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    b"DELETE /%2e%2E/x\\y HTTP/1.0\r\nHost: [::1]\r\n\r\n",
    b"PATCH / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\nab",
    b"HEAD / HTTP/1.1\r\nhost:a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
]
ANSWERS = [
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nA_b: c\r\n\r\n",
    b"HTTP/1.1 100 Continue\r\n\r\n",
    b"HTTP/1.1 204\r\n\r\n",
    b"HTTP/1.1 304 Not Modified\r\nContent-Length: 7\r\nA_b: \xe9\r\n\r\n",
    b"HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 2\r\n\r\nab",
    b"HTTP/1.1 200 OK\r\nDate: x\r\n\r\nto the end",
    b"HTTP/1.1 101 x\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n\x81\x00",
]
# Any method that is a token is taken; httptools only takes those that it knows.
METHODS = {seed.split()[0].decode() for seed in SEEDS}
SPLINTERS = [
    *(b"\r\n", b"\n", b"\r", b"\r\n\r\n", b" ", b"\t", b"\0", b":", b",", b";", b"\x0b", b"\x0c"),
    *(b"_", b"#", b"?", b"\\", b"%00", b"%2f", b"//", b"/../", b"\xa0", b"\xff", b"0", b"1", b"a"),
    *(b"5\r\n", b"0\r\n\r\n", b"0x", b"+", b"-", b"ffffffffffffffff", b'"', b"=", b"\r\n ", b"*"),
    *(b"Host: b\r\n", b"Content-Length: 5\r\n", b"Content-Length: 0\r\n", b"Content-Length:\r\n"),
    *(b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: gzip, chunked\r\n", b"A : b\r\n"),
    *(b"Transfer-Encoding:\tchunked \r\n", b"Transfer-Encoding: identity\r\n", b" a: b\r\n"),
    *(b"Content-Length: 5, 5\r\n", b"Content-Length: +5\r\n", b"Connection: close\r\n"),
    *(b"Connection: upgrade\r\n", b"Upgrade: h2c\r\n", b"TE: trailers\r\n", b"X_y: z\r\n"),
    *(b"HTTP/1.0", b"HTTP/1.1", b"HTTP/2.0", b"GET ", b"CONNECT ", b"PRI * HTTP/2.0\r\n\r\n"),
    *(b"Connection: content-length\r\n", b"Connection: transfer-encoding\r\n", b"A: b\r\n"),
]


@st.composite
def mutated(draw: st.DrawFn, seeds: list[bytes]) -> bytes:
    """Good messages one after the other, with a few splinters driven in."""
    wire = b"".join(draw(st.lists(st.sampled_from(seeds), min_size=1, max_size=4)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(wire)))
        # Most splinters are field lines: where those fit, they do more harm.
        if draw(st.booleans()) and (line := wire.find(b"\r\n", at)) >= 0:
            at = line + 2
        cut = draw(st.sampled_from([0, 0, 0, 1, 2, 4]))
        splinter = draw(st.sampled_from(SPLINTERS) | st.binary(max_size=3))
        wire = wire[:at] + splinter + wire[at + cut :]
    return wire


requests = mutated(SEEDS)
answers = mutated(ANSWERS)
cuts = st.lists(st.integers(0, 500), max_size=20)


def fragments(wire: bytes, at: list[int]) -> list[bytes]:
    edges = sorted({0, *(cut for cut in at if cut < len(wire)), len(wire)})
    return [wire[start:end] for start, end in itertools.pairwise(edges)]


def essence(reader: Reader) -> object:
    """What must not depend on fragmentation.

    That is all but with what status it was refused, and how much came of a body before that.
    """
    return reader.refusal is not None, [
        (
            message.end,
            *(getattr(message.head, name) for name in message.head.__struct_fields__),
            bytes(message.body) if message.end or reader.refusal is None else None,
            message.trailers,
        )
        for message in reader.messages
    ]


# Parse or refuse, nothing else.


@fuzz
@given(st.binary(max_size=300) | requests | answers, st.sampled_from(["", "GET", "HEAD"]), cuts)
def test_whatever_comes_is_read_or_refused_however_it_is_fragmented(
    wire: bytes, method: str, at: list[int]
) -> None:
    whole = read(wire, method=method)
    assert whole.refusal in ((None, 502) if method else (None, 400, 405, 414, 417, 431, 501, 505))
    assert essence(read(*fragments(wire, at), method=method)) == essence(whole)
    assert essence(read(*(wire[i : i + 1] for i in range(len(wire))), method=method)) == essence(
        whole
    )


# The app reads the same.


def forwarded_fields(seen: Fields) -> Fields:
    """Return what of the fields that httptools saw is for the other end."""
    named = {
        option.strip(" \t").lower()
        for name, value in seen
        if name.lower() == "connection"
        for option in value.split(",")
    }
    gone = CONNECTION_FIELDS | named
    return [pair for pair in seen if pair[0].lower() not in gone]


def without(fields: Fields, *names: str) -> Fields:
    return [pair for pair in fields if pair[0].lower() not in names]


FRAMING_FIELDS = {"transfer-encoding", "content-length"}


def differs_as_it_may(theirs: Other, accepted: list[Message]) -> bool:
    """Whether httptools stumbles over what is not forwarded.

    It refuses trailers that say how to frame, or obeys them, and takes what follows an Upgrade,
    whatever was said of a body, for no HTTP.
    """
    for message, seen in zip(accepted, theirs.messages, strict=False):
        if FRAMING_FIELDS & {name.lower() for name, _ in seen.later}:
            assert not FRAMING_FIELDS & {name.lower() for name, _ in message.trailers}
            return True
        names = {name.lower() for name, _ in seen.fields}
        if {"upgrade", "connection"} <= names and message.head.framing is not Framing.NONE:
            assert not message.head.upgrade
            return True
    about = str(theirs.error)
    framing = "Transfer-Encoding" in about or "Content-Length" in about
    return theirs.messages[-1].in_body and framing


def method_of(message: Message) -> str:
    assert isinstance(message.head, Request)
    return message.head.method


def alike(message: Message, seen: Seen) -> None:
    ours = without(message.head.fields, "host", "expect", "te")
    assert ours == without(forwarded_fields(seen.fields), "host", "expect", "te")
    assert message.body == seen.body
    if message.end is not None:
        assert seen.whole
        assert message.trailers == permitted_trailers(seen.later)


@fuzz
@given(requests)
@example(b"".join(SEEDS))
def test_what_is_accepted_another_parser_reads_alike(wire: bytes) -> None:
    ours = read(wire)
    accepted = [message for message in ours.messages if message.end is not None]
    assume(accepted and METHODS.issuperset(method_of(message) for message in accepted))
    end = accepted[-1].end or 0
    theirs = see(wire[:end])
    if differs_as_it_may(theirs, accepted):
        return
    assert theirs.error is None
    assert len(theirs.messages) == len(accepted)
    for message, seen in zip(accepted, theirs.messages, strict=True):
        assert isinstance(message.head, Request)
        assert method_of(message) == seen.method
        assert split_target(seen.target)[1:] == (message.head.path, message.head.query)
        alike(message, seen)
    # The last one ended there and nowhere else.
    shorter = see(wire[: end - 1]).messages
    assert len(shorter) < len(accepted) or not shorter[-1].whole


@fuzz
@given(requests)
@example(b"".join(SEEDS))
def test_what_is_forwarded_another_parser_reads_as_it_was_meant(wire: bytes) -> None:
    for message in read(wire).messages:
        head = message.head
        assert isinstance(head, Request)
        if message.end is None or head.method not in METHODS:
            continue
        sent = write_request(head, [("X-Mesh-Client-Id", "spiffe://a")])
        if head.framing is Framing.STREAM:
            sent += chunk(bytes(message.body)) + last_chunk(message.trailers)
        else:
            sent += message.body
        theirs = see(sent)
        assert theirs.error is None
        (seen,) = theirs.messages
        assert (seen.method, seen.target) == (head.method, head.path + head.query)
        assert seen.fields[0] == ("Host", head.authority)
        rest = without(seen.fields[1:], "connection", "upgrade", "content-length")
        assert without(rest, "transfer-encoding") == [
            *head.fields,
            ("X-Mesh-Client-Id", "spiffe://a"),
        ]
        assert (seen.body, seen.later, seen.whole) == (message.body, message.trailers, True)


@fuzz
@given(answers)
@example(b"".join(ANSWERS))
@example(ANSWERS[1].replace(b"A_b: c", b"Transfer-Encoding: identity") + ANSWERS[0])
def test_answers_that_are_accepted_another_parser_reads_alike(wire: bytes) -> None:
    ours = read(wire, method="GET")
    accepted = [m for m in ours.messages if m.end is not None]
    assume(accepted)
    theirs = see(wire[: accepted[-1].end], of_responses=True)
    if differs_as_it_may(theirs, accepted):
        return
    assert theirs.error is None
    assert len(theirs.messages) == len(accepted)
    for message, seen in zip(accepted, theirs.messages, strict=True):
        assert isinstance(message.head, Response)
        assert message.head.status == seen.status
        alike(message, seen)


@fuzz
@given(answers)
@example(b"".join(ANSWERS))
def test_answers_that_are_passed_on_another_parser_reads_as_they_were_meant(wire: bytes) -> None:
    for message in read(wire, method="GET").messages:
        head = message.head
        assert isinstance(head, Response)
        if message.end is None and not head.until_close:
            continue
        chunked = head.framing is Framing.STREAM
        sent = write_response(head, chunked=chunked, close=not head.keeps_alive)
        sent += (
            chunk(bytes(message.body)) + last_chunk(message.trailers) if chunked else message.body
        )
        theirs = see(sent, of_responses=True)
        assert theirs.error is None
        (seen,) = theirs.messages
        assert seen.status == head.status
        rest = without(seen.fields, "connection", "upgrade", "content-length")
        assert without(rest, "transfer-encoding") == head.fields
        assert (seen.body, seen.later, seen.whole) == (message.body, message.trailers, True)
