"""Connections to an app that are kept, and close just as a request comes over them."""

import asyncio
import socket
from collections.abc import Callable
from contextlib import closing

import pytest
from h2.errors import ErrorCodes
from h2.events import DataReceived
from support.http2 import Recorded
from support.httpmesh import ID, HttpMesh
from support.sidecars import PATIENCE_S
from support.traffic import wait_until
from support.wire import Wire
from support.wire2 import Wire2

from meshrun.proxy import sockets
from meshrun.proxy.http.client1 import Http1Client
from meshrun.proxy.http.exchange import Failure
from meshrun.proxy.http.heads import COUNTED, Request
from meshrun.proxy.http.inbound import TRUSTED_S
from meshrun.proxy.http.link import SocketLink
from meshrun.proxy.poller import Poller

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class Heard(Recorded):
    """An exchange that a test can wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.flushed = asyncio.Event()

    def flush_response(self) -> None:
        """Say that something came."""
        self.flushed.set()


def hear(app: socket.socket) -> None:
    """Hear a whole request."""
    heard = b""
    while not heard.endswith(b"once"):
        heard += app.recv(65536)


def hear_and_close(app: socket.socket) -> None:
    """Hear a request, and close without an answer."""
    hear(app)
    app.close()


def close_before_reading(app: socket.socket) -> None:
    """Close on what has come, which is answered by a reset."""
    app.recv(1)
    app.close()


def say_nothing_more(app: socket.socket) -> None:
    """End one direction only: the app may read on."""
    app.shutdown(socket.SHUT_WR)


def refused(sock: socket.socket) -> bool:
    """Whether a reset came behind the end of what the other side sends (TCP_CLOSE)."""
    return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == 7


@pytest.mark.parametrize(
    ("before", "behind", "failure"),
    [
        (socket.socket.close, None, Failure.UNSENT),
        (say_nothing_more, None, Failure.SILENT),
        (None, hear_and_close, Failure.SILENT),
        (None, close_before_reading, Failure.SILENT),
    ],
    ids=["closed before", "half-closed before", "heard", "reset"],
)
def test_a_request_is_unsent_only_if_the_app_had_closed_when_it_came(
    before: Callable[[socket.socket], object] | None,
    behind: Callable[[socket.socket], object] | None,
    failure: Failure,
) -> None:
    poller = Poller()

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            sock = socket.create_connection(listener.getsockname())
            app, _ = listener.accept()
        app.settimeout(PATIENCE_S)
        client = Http1Client(
            SocketLink(poller, sockets.set_up(sock)), lambda _: None, lambda _: None
        )
        with closing(app):
            client.start()
            first = Heard()
            client.request(Request(method="GET", path="/", query="", authority="app"), first, [])
            client.end([])
            client.flush()
            assert app.recv(65536).startswith(b"GET / ")
            app.sendall(OK)
            async with asyncio.timeout(PATIENCE_S):
                await first.flushed.wait()
            assert client.idle
            if before is not None:
                before(app)
            # Nothing of that has been read when the next request goes.
            second = Heard()
            post = Request(
                method="POST", path="/", query="", authority="app", framing=COUNTED, length=4
            )
            client.request(post, second, [])
            client.send(b"once")
            client.end([])
            client.flush()
            if behind is not None:
                behind(app)
            if failure is Failure.UNSENT:
                wait_until(lambda: refused(sock), "the app's kernel has refused it")
            async with asyncio.timeout(PATIENCE_S):
                await second.flushed.wait()
            assert second.failure is failure

    with asyncio.Runner(loop_factory=poller.new_loop) as runner:
        runner.run(scenario())


@pytest.mark.parametrize("trusted_s", [0.0, PATIENCE_S], ids=["distrusted", "trusted"])
def test_what_may_not_be_sent_twice_goes_over_no_connection_that_the_app_may_be_about_to_close(
    trusted_s: float,
) -> None:
    assert 0.0 < TRUSTED_S <= 1.0  # gunicorn closes after 2 s
    constants = {"meshrun.proxy.http.inbound:TRUSTED_S": trusted_s}
    with HttpMesh(constants=constants) as mesh, mesh.call() as wire:
        app = mesh.app.accept
        first = say(wire, f"GET /1 HTTP/1.1\r\nHost: server\r\n{ID}\r\n\r\n", app)
        # What may be sent twice is, should it meet an end.
        again = say(wire, f"GET /2 HTTP/1.1\r\nHost: server\r\n{ID}\r\n\r\n", lambda: first)
        assert again is first
        wire.say(
            f"POST /3 HTTP/1.1\r\nHost: server\r\n{ID}\r\nContent-Length: 4\r\n\r\nonce".encode()
        )
        if trusted_s:
            assert first.hear_request().startswith(b"POST /3 ")
            assert mesh.app.untouched()
        else:
            assert mesh.app.accept().hear_request().startswith(b"POST /3 ")
            assert first.hear_rest() == b""


def say(wire: Wire, request: str, app: Callable[[], Wire]) -> Wire:
    """Make a request which is answered; return the app's connection."""
    wire.say(request.encode())
    there = app()
    assert there.hear_request().startswith(request.split(" HTTP", maxsplit=1)[0].encode())
    there.say(OK)
    assert wire.hear_answer().raw == OK
    return there


@pytest.mark.parametrize("refusals", [1, 2])
def test_a_stream_that_the_app_refuses_is_opened_again_with_all_of_its_body(refusals: int) -> None:
    with HttpMesh(protocol="http2") as mesh, mesh.call("peer") as wire:
        caller = Wire2(wire, client=True)
        asked = caller.ask("/", method="POST", end=False)
        caller.say(asked, b"half")
        app = Wire2(mesh.app.accept(), client=False)
        for _ in range(refusals):
            number, _ = app.hear_request()
            assert app.hear(DataReceived, number).data == b"half"
            app.h2.reset_stream(number, ErrorCodes.REFUSED_STREAM)
            app.flush()
        if refusals == 1:
            number, _ = app.hear_request()
            caller.say(asked, b"rest", end=True)
            assert app.hear_body(number) == b"halfrest"
            app.answer(number)
        assert caller.hear_answer(asked).status == (200 if refusals == 1 else 503)
