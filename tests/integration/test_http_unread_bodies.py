"""Bodies that an app does not expect, leaves unread, and would take for its next request."""

import queue
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from support.httpmesh import ENTRIES, Entry, HttpMesh
from support.sidecars import PATIENCE_S

SMUGGLED = b"GET /denied HTTP/1.1\r\nHost: server\r\nX-Mesh-Client-Id: spiffe://somebody\r\n\r\n"
LENGTH = f"Content-Length: {len(SMUGGLED)}\r\n\r\n".encode() + SMUGGLED
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED)


class Careless(ThreadingHTTPServer):
    """A server of the standard library that keeps connections, and whose handlers read no body."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        # What a connection was asked, once it has ended.
        self.asked: queue.Queue[list[str]] = queue.Queue()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Careless

    def setup(self) -> None:
        super().setup()
        self.lines: list[str] = []

    def answer(self) -> None:
        self.lines.append(self.requestline)
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_DELETE = do_OPTIONS = answer  # noqa: N815  # as the library calls them

    def finish(self) -> None:
        super().finish()
        self.server.asked.put(self.lines)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


@pytest.fixture(scope="module")
def app() -> Iterator[Careless]:
    with Careless() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def running(app: Careless) -> Iterator[HttpMesh]:
    with HttpMesh() as mesh:
        mesh.serve_on(app.server_address[1])
        yield mesh


@pytest.fixture
def mesh(running: HttpMesh) -> Iterator[HttpMesh]:
    """The mesh of this module, without connections."""
    yield running
    running.tidy()


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("method", ["GET", "DELETE", "OPTIONS"])
@pytest.mark.parametrize("body", [LENGTH, CHUNKED], ids=["length", "chunks"])
def test_body_that_no_app_expects_is_never_a_request(
    mesh: HttpMesh, app: Careless, entry: Entry, method: str, body: bytes
) -> None:
    wire = mesh.call(entry)
    wire.say(f"{method} /a HTTP/1.1\r\nHost: server\r\n".encode() + body)
    assert wire.hear_answer().status == 200
    assert app.asked.get(timeout=PATIENCE_S) == [f"{method} /a HTTP/1.1"]
