"""Who is held on a connection of HTTP/1, and that nobody is for longer than an exchange lasts."""

from dataclasses import dataclass, field

from support.http2 import MemoryLink, Recorded, Recorder

from meshrun.proxy.http.client1 import Http1Client
from meshrun.proxy.http.heads import Fields, Framing, Request, Response
from meshrun.proxy.http.relay import Relay
from meshrun.proxy.http.server1 import Http1Server

POST = b"POST /a HTTP/1.1\r\nHost: app\r\nContent-Length: 4\r\n\r\nbody"
GET = b"GET /b HTTP/1.1\r\nHost: app\r\n\r\n"


def listens(link: MemoryLink) -> bool:
    """Whether what comes is received."""
    return link.listening


def test_a_server_that_was_held_takes_the_next_request() -> None:
    link, recorder = MemoryLink(), Recorder()
    server = Http1Server(link, recorder)
    server.start()
    link.deliver(POST[:-1])
    recorder.exchanges[0].on_data = server.hold
    link.deliver(POST[-1:])
    assert not listens(link)
    server.respond(Response(status=503, framing=Framing.LENGTH, length=2))
    server.send(b"no")
    server.end([])
    server.flush()
    assert link.take().endswith(b"\r\n\r\nno")
    assert listens(link)
    link.deliver(GET)
    assert len(recorder.exchanges) == 2


def test_a_client_that_was_held_hears_the_response_to_the_next_request() -> None:
    link = MemoryLink()
    idle: list[Http1Client] = []
    client = Http1Client(link, idle.append, lambda _: None)
    client.start()
    exchange = Recorded()
    request = Request(method="GET", path="/", query="", authority="app")
    client.request(request, exchange, []).end([])
    link.deliver(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nbo")
    client.hold()
    assert not listens(link)
    link.deliver(b"dy")  # it had been received before
    assert exchange.said[-1] == "end"
    assert idle == [client]
    assert listens(link)


@dataclass
class _Side:
    """A downstream and an upstream that note whether they are held."""

    held: bool = False
    sent: list[bytes] = field(default_factory=list)

    def respond(self, head: Response) -> None:
        raise AssertionError("there is no response")

    def send(self, data: bytes | memoryview) -> None:
        self.sent.append(bytes(data))

    def end(self, trailers: Fields) -> None:
        self.sent.append(b"")

    def abort(self, reason: str) -> None:
        raise AssertionError("nothing is broken off")

    def flush(self) -> None:
        pass

    def hold(self) -> None:
        self.held = True

    def resume(self) -> None:
        self.held = False


def is_held(side: _Side) -> bool:
    """Whether it shall deliver no more."""
    return side.held


def test_what_was_held_by_one_upstream_goes_on_with_the_next() -> None:
    downstream, first, second = _Side(), _Side(), _Side()
    request = Request(method="PUT", path="/", query="", authority="app", framing=Framing.STREAM)
    relay = Relay(request, downstream, grpc=False)
    relay.connect(first)
    relay.hold_request()
    assert is_held(downstream)
    relay.connect(second)
    assert not is_held(downstream)
    relay.request_data(b"body")
    assert second.sent == [b"body"]
