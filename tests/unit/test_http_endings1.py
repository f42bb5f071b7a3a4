"""Who hears of it that a connection of HTTP/1 is gone."""

from support.http2 import MemoryLink, Recorder

from meshrun.proxy.http.heads import Response
from meshrun.proxy.http.server1 import Http1Server

UPGRADE = b"GET / HTTP/1.1\r\nHost: app\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"
GET = b"GET / HTTP/1.1\r\nHost: app\r\n\r\n"


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
