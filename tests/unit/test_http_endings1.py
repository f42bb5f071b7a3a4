"""Where a connection of HTTP/1 ends and where it goes on, and who hears that it is gone."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.http2 import MemoryLink, Recorder

from meshrun.proxy.http.heads import COUNTED, Response
from meshrun.proxy.http.server1 import HEAD_TIMEOUT_S, MOST_UNWANTED_BYTES, Http1Server

UPGRADE = b"GET / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: app\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"


class HalfClosingLink(MemoryLink):
    """A link whose directions end each for itself."""

    def end(self) -> None:
        self.state = "ended"


def served(request: bytes) -> tuple[Http1Server, Recorder]:
    link, recorder = HalfClosingLink(), Recorder()
    server = Http1Server(link, recorder)
    server.start()
    link.deliver(request)
    return server, recorder


def test_an_upgraded_connection_that_was_half_ended_is_missed_when_it_breaks() -> None:
    server, recorder = served(UPGRADE)
    server.respond(Response(status=101, upgrade="x"))
    server.end([])  # the app says nothing more, and would still hear
    server.broken("a reset")
    assert recorder.exchanges[0].said == ["end", "aborted: a reset"]
    assert recorder.closings == 1


def test_one_that_was_ended_in_both_directions_is_not() -> None:
    server, recorder = served(UPGRADE)
    server.respond(Response(status=101, upgrade="x"))
    server.end([])
    server.ended()
    server.broken("a reset")
    assert recorder.exchanges[0].said == ["end", "end"]
    assert recorder.closings == 1


def test_a_request_that_was_answered_is_not() -> None:
    server, recorder = served(GET)
    server.respond(Response(status=204))
    server.end([])
    server.broken("a reset")
    assert recorder.exchanges[0].said == ["end"]
    assert recorder.closings == 1


# A body whose request was answered without it.


class Early:
    """A server whose first request was answered while its body is under way."""

    def __init__(self, request: bytes, status: int = 200) -> None:
        self.link, self.recorder = HalfClosingLink(), Recorder()
        self.server = Http1Server(self.link, self.recorder)
        self.server.start()
        self.link.deliver(request)
        self.server.respond(Response(status=status, framing=COUNTED, length=0))
        self.server.end([])
        self.server.flush()

    @property
    def requests(self) -> int:
        """How many have begun."""
        return len(self.recorder.exchanges)


@pytest.mark.parametrize(
    ("head", "rest"),
    [(CHUNKED, b"1\r\na\r\n0\r\n\r\n"), (POST + b"Content-Length: 4\r\n\r\n", b"body")],
    ids=["chunked", "counted"],
)
def test_the_next_request_is_taken_behind_a_body_that_nobody_waited_for(
    head: bytes, rest: bytes
) -> None:
    early = Early(head)
    assert early.link.state == "open"
    early.link.deliver(rest + GET)
    assert early.requests == 2
    assert early.recorder.exchanges[0].said == []
    assert early.link.timers == []


def test_nothing_more_is_taken_where_the_end_was_announced() -> None:
    early = Early(CHUNKED, status=413)
    assert early.link.state == "closed"
    assert b"Connection: close" in early.link.take()
    early.link.deliver(b"0\r\n\r\n" + GET)
    assert early.requests == 1


@pytest.mark.parametrize("more", [0, 1])
def test_a_body_that_nobody_waits_for_is_read_so_far(more: int) -> None:
    size = MOST_UNWANTED_BYTES + more
    early = Early(POST + b"Content-Length: %d\r\n\r\n" % size)
    assert early.link.state == ("closed" if more else "open")
    early.link.deliver(bytes(size) + GET)
    assert early.requests == 2 - more


def test_chunks_that_nobody_waits_for_are_read_so_far() -> None:
    early = Early(CHUNKED)
    tiny = b"1\r\nx\r\n"
    early.link.deliver(tiny * (MOST_UNWANTED_BYTES // len(tiny)))
    assert early.link.state == "open"
    early.link.deliver(tiny * 2)
    assert early.link.state == "closed"


def test_a_body_that_nobody_waits_for_has_its_time() -> None:
    early = Early(CHUNKED)
    [timer] = early.link.timers
    assert timer.wait_s == HEAD_TIMEOUT_S
    early.link.take()
    timer.fire()
    assert early.link.state == "closed"
    assert early.link.take() == b""  # all was said
    assert early.recorder.closings == 1


@pytest.mark.parametrize("rest", [b"no chunk\r\n", b""], ids=["none", "ended"])
def test_what_is_wrong_with_a_body_that_nobody_waits_for_leaves_the_answer_whole(
    rest: bytes,
) -> None:
    early = Early(CHUNKED)
    said = early.link.take()
    early.link.deliver(rest)
    if not rest:
        early.server.ended()
    assert early.link.state == "closed"
    assert said.startswith(b"HTTP/1.1 200 OK\r\n")
    assert early.link.take() == b""


@given(
    cuts=st.lists(st.integers(0, 60), max_size=6).map(sorted),
    answered_behind=st.integers(0, 6),
    chunked=st.booleans(),
    held=st.booleans(),
)
def test_wherever_a_request_is_answered_the_next_begins_behind_its_body(
    cuts: list[int], answered_behind: int, chunked: bool, held: bool
) -> None:
    first = CHUNKED + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    if not chunked:
        first = POST + b"Content-Length: 5\r\n\r\nabcde"
    data, at = first + GET, first.index(b"\r\n\r\n") + 4
    ends = [at, *(at + cut for cut in cuts if at + cut < len(data)), len(data)]
    link, recorder = HalfClosingLink(), Recorder()
    server = Http1Server(link, recorder)
    server.start()
    link.deliver(data[:at])
    answered = False
    for number, (begin, end) in enumerate(pairwise(ends)):
        if number >= answered_behind and recorder.exchanges and not answered:
            if held:
                server.hold()
            server.respond(Response(status=200, framing=COUNTED, length=0))
            server.end([])
            answered = True
        link.deliver(data[begin:end])
    if not answered:
        server.respond(Response(status=200, framing=COUNTED, length=0))
        server.end([])
    assert len(recorder.exchanges) == 2
    assert b"abcde".startswith(bytes(recorder.exchanges[0].body))
    assert recorder.exchanges[1].said == ["end"]
    assert link.state == "open"
