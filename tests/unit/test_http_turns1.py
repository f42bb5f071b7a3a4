"""Whoever sends tiny chunks over HTTP/1 does not have the loop for itself."""

import pytest
from support.http2 import MemoryLink, Recorded, Recorder

from meshrun.proxy.http.body1 import BATCH, LAST_CHUNK
from meshrun.proxy.http.client1 import Http1Client
from meshrun.proxy.http.exchange import Failure
from meshrun.proxy.http.heads import Request
from meshrun.proxy.http.server1 import Http1Server

REQUEST = b"POST / HTTP/1.1\r\nHost: app\r\nTransfer-Encoding: chunked\r\n\r\n"
RESPONSE = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
NEXT = b"GET /next HTTP/1.1\r\nHost: app\r\n\r\n"
TINY = b"1\r\nx\r\n"
MANY = BATCH * 5 // 2  # chunks: three turns of them


def come(link: MemoryLink, data: bytes) -> None:
    """Let `data` come, and the loop turn no further."""
    assert link.owner is not None
    link.owner.received(memoryview(data))


def turn(link: MemoryLink) -> None:
    """Let the loop turn once."""
    later, link.later = link.later, []
    assert len(later) == 1
    later[0]()


def listens(link: MemoryLink) -> bool:
    """Whether what comes is received."""
    return link.listening


# A request.


def server() -> tuple[MemoryLink, Recorder]:
    link, recorder = MemoryLink(), Recorder()
    Http1Server(link, recorder).start()
    return link, recorder


def test_the_chunks_of_one_read_are_one_piece_of_a_request() -> None:
    link, recorder = server()
    come(link, REQUEST + TINY * 10 + LAST_CHUNK)
    assert recorder.exchanges[0].said == ["data", "end"]
    assert recorder.exchanges[0].body == b"x" * 10
    assert not link.later


def test_a_request_in_tiny_chunks_comes_in_turns() -> None:
    link, recorder = server()
    come(link, REQUEST + TINY * MANY + LAST_CHUNK + NEXT)
    exchange = recorder.exchanges[0]
    for turns in (1, 2):
        assert exchange.said == ["data"] * turns
        assert len(exchange.body) == BATCH * turns
        turn(link)
    assert exchange.said == ["data"] * 3 + ["end"]
    assert exchange.body == b"x" * MANY
    assert not link.later
    assert len(recorder.exchanges) == 1


def test_what_comes_meanwhile_waits_behind() -> None:
    link, recorder = server()
    come(link, REQUEST + TINY * MANY)
    come(link, b"1\r\ny\r\n" + LAST_CHUNK)
    assert len(recorder.exchanges[0].body) == BATCH
    turn(link)
    turn(link)
    assert recorder.exchanges[0].body == b"x" * MANY + b"y"


def test_a_server_that_is_held_goes_on_when_it_is_let() -> None:
    link, recorder = MemoryLink(), Recorder()
    server = Http1Server(link, recorder)
    server.start()
    come(link, REQUEST + TINY * MANY)
    server.hold()
    turn(link)
    assert len(recorder.exchanges[0].body) == BATCH
    server.resume()
    turn(link)
    assert len(recorder.exchanges[0].body) == MANY


# A response.


def client() -> tuple[MemoryLink, Http1Client, Recorded, list[Http1Client]]:
    link, exchange = MemoryLink(), Recorded()
    idle: list[Http1Client] = []
    made = Http1Client(link, idle.append, lambda _: None)
    made.start()
    request = Request(method="GET", path="/", query="", authority="app")
    made.request(request, exchange, []).end([])
    return link, made, exchange, idle


def test_a_response_in_tiny_chunks_comes_in_turns() -> None:
    link, made, exchange, idle = client()
    come(link, RESPONSE + TINY * MANY + LAST_CHUNK)
    for turns in (1, 2):
        assert exchange.said == ["head 200"] + ["data"] * turns
        assert exchange.flushes == turns
        assert not listens(link)
        assert not idle
        turn(link)
    assert exchange.said == ["head 200"] + ["data"] * 3 + ["end"]
    assert exchange.body == b"x" * MANY
    assert idle == [made]
    assert listens(link)
    assert not link.later


@pytest.mark.parametrize("rest", [LAST_CHUNK, LAST_CHUNK + b"more"], ids=["in order", "excess"])
def test_what_comes_of_a_response_meanwhile_waits_behind(rest: bytes) -> None:
    link, made, exchange, idle = client()
    come(link, RESPONSE + TINY * MANY)
    come(link, b"1\r\ny\r\n" + rest)
    turn(link)
    turn(link)
    assert exchange.body == b"x" * MANY + b"y"
    assert exchange.said[-1] == "end"
    assert idle == ([made] if rest == LAST_CHUNK else [])


def test_an_end_that_comes_meanwhile_is_heard_behind_the_response() -> None:
    link, made, exchange, idle = client()
    come(link, RESPONSE + TINY * MANY + LAST_CHUNK)
    made.ended()
    turn(link)
    turn(link)
    assert exchange.said[-1] == "end"
    assert len(exchange.body) == MANY
    assert not idle
    assert link.state == "closed"


def test_an_end_within_chunks_breaks_the_response() -> None:
    link, made, exchange, _ = client()
    come(link, RESPONSE + TINY * MANY)
    made.ended()
    turn(link)
    assert exchange.said[-1] == "data"
    turn(link)
    assert exchange.failure is Failure.BROKEN
    assert len(exchange.body) == MANY


def test_a_client_that_is_held_goes_on_when_it_is_let() -> None:
    link, made, exchange, _ = client()
    come(link, RESPONSE + TINY * MANY + LAST_CHUNK)
    made.hold()
    turn(link)
    assert len(exchange.body) == BATCH
    assert not listens(link)
    made.resume()
    assert not listens(link)
    turn(link)
    assert len(exchange.body) == 2 * BATCH
    turn(link)
    assert exchange.said[-1] == "end"
    assert listens(link)


def test_what_is_wrong_with_a_later_chunk_breaks_the_response() -> None:
    link, _, exchange, _ = client()
    come(link, RESPONSE + TINY * MANY + b"no chunk")
    turn(link)
    turn(link)
    assert exchange.failure is Failure.BROKEN
    assert link.state == "reset"


def test_an_exchange_that_is_broken_off_meanwhile_hears_nothing_more() -> None:
    link, made, exchange, _ = client()
    come(link, RESPONSE + TINY * MANY + LAST_CHUNK)
    said = list(exchange.said)
    made.abort("nobody waits")
    turn(link)
    assert exchange.said == said
    assert not link.later
