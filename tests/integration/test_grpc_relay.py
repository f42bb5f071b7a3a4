"""gRPC as it is, client and server, with HTTP/2 of ours between them over loopback."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc
import pytest
from support.http2 import AsyncLink, RelayHandler
from support.sidecars import Mesh

from meshrun.proxy.http.client2 import Http2Client
from meshrun.proxy.http.server2 import Http2Server

MIB = 1024 * 1024
TIMEOUT_S = 30.0
# grpc-core's limit of a message is 4 MiB unless it is told otherwise.
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


class Relay:
    """A loop in a thread: each connection to `port` goes on to the app over one of its own."""

    def __init__(self, app_port: int) -> None:
        self.app_port = app_port
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._started = threading.Event()
        self._stopped = asyncio.Event()
        self._links: list[AsyncLink] = []
        self._connecting: set[asyncio.Task[object]] = set()
        self._thread = threading.Thread(target=self._run, name="relay")

    def __enter__(self) -> "Relay":
        self._thread.start()
        assert self._started.wait(TIMEOUT_S)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(TIMEOUT_S)
        assert not self._thread.is_alive()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await self._loop.create_server(lambda: AsyncLink(self._accepted), "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._started.set()
        await self._stopped.wait()
        server.close()
        for link in self._links:
            link.reset()
        await asyncio.sleep(0)  # a transport that was aborted closes in the next turn

    def _accepted(self, link: AsyncLink) -> None:
        self._links.append(link)

        def connected(to_app: AsyncLink) -> None:
            self._links.append(to_app)
            client = Http2Client(to_app, lambda _: None)
            client.start()
            Http2Server(link, RelayHandler(client), grpc=True).start()

        task = self._loop.create_task(
            self._loop.create_connection(lambda: AsyncLink(connected), "127.0.0.1", self.app_port)
        )
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)


def identity(data: bytes) -> bytes:
    return data


class App(grpc.GenericRpcHandler):
    """The four kinds of call, and what goes with them."""

    def __init__(self) -> None:
        self.cancelled = threading.Event()
        self.metadata: dict[str, str | bytes] = {}

    def service(
        self, details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
            "/app/echo": grpc.unary_unary_rpc_method_handler(self.echo),
            "/app/count": grpc.unary_stream_rpc_method_handler(self.count),
            "/app/sum": grpc.stream_unary_rpc_method_handler(self.sum),
            "/app/chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "/app/hang": grpc.unary_stream_rpc_method_handler(self.hang),
            "/app/fail": grpc.unary_unary_rpc_method_handler(self.fail),
        }
        return handlers.get(details.method)

    def echo(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        self.metadata = dict(context.invocation_metadata())
        context.set_trailing_metadata((("my_trailer-bin", b"\x00\xff"), ("my_trailer", "t")))
        return request

    def count(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    def sum(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        return b"%d" % sum(len(request) for request in requests)

    def chat(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for request in requests:
            yield request[::-1]

    def hang(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        ended = threading.Event()
        assert context.add_callback(ended.set)
        yield b"begun"
        if ended.wait(TIMEOUT_S):
            self.cancelled.set()

    def fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(grpc.StatusCode.NOT_FOUND, "keine Äpfel 100%")
        raise AssertionError("abort raises")


@pytest.fixture(scope="module")
def app() -> App:
    return App()


@contextlib.contextmanager
def served(app: App) -> Iterator[tuple[grpc.Server, int]]:
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[app], options=OPTIONS)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield server, port
    finally:
        server.stop(None).wait(TIMEOUT_S)


@contextlib.contextmanager
def halves(app_port: int) -> Iterator[int]:
    """Both halves, joined by nothing but a relay."""
    with Relay(app_port) as relay:
        yield relay.port


@contextlib.contextmanager
def sidecars(app_port: int) -> Iterator[int]:
    """Two sidecars, with all that they are made of."""
    with Mesh() as mesh:
        server = mesh.sidecar("server", app=app_port, default="allow", protocol="grpc")
        client = mesh.sidecar("client", upstreams=(server,), protocol="grpc")
        yield client.upstream_port("server")


@pytest.fixture(scope="module", params=[halves, sidecars])
def channel(app: App, request: pytest.FixtureRequest) -> Iterator[grpc.Channel]:
    with (
        served(app) as (_, app_port),
        request.param(app_port) as port,
        grpc.insecure_channel(f"127.0.0.1:{port}", options=OPTIONS) as channel,
    ):
        yield channel


def test_unary(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/app/echo", identity, identity)
    for size in (0, 1, 5000):
        assert call(b"x" * size, timeout=TIMEOUT_S) == b"x" * size


def test_server_streams(channel: grpc.Channel) -> None:
    call = channel.unary_stream("/app/count", identity, identity)
    assert list(call(b"500", timeout=TIMEOUT_S)) == [b"%d" % number for number in range(500)]


def test_client_streams(channel: grpc.Channel) -> None:
    call = channel.stream_unary("/app/sum", identity, identity)
    assert call((bytes(size) for size in range(300)), timeout=TIMEOUT_S) == b"%d" % sum(range(300))


def test_both_stream_in_turns(channel: grpc.Channel) -> None:
    call = channel.stream_stream("/app/chat", identity, identity)
    heard: list[bytes] = []
    turn = threading.Semaphore(1)

    def questions() -> Iterator[bytes]:
        for number in range(100):
            assert turn.acquire(timeout=TIMEOUT_S)
            yield b"question %d" % number

    for answer in call(questions(), timeout=TIMEOUT_S):
        heard.append(answer)
        turn.release()
    assert heard == [(b"question %d" % number)[::-1] for number in range(100)]


def test_messages_of_ten_mebibytes_both_ways(channel: grpc.Channel) -> None:
    body = bytes(range(256)) * (10 * MIB // 256)
    assert channel.unary_unary("/app/echo", identity, identity)(body, timeout=TIMEOUT_S) == body
    chat = channel.stream_stream("/app/chat", identity, identity)
    assert list(chat(iter([body, b"end"]), timeout=TIMEOUT_S)) == [body[::-1], b"dne"]


def test_many_calls_at_once(channel: grpc.Channel) -> None:
    call = channel.unary_unary("/app/echo", identity, identity)
    bodies = [b"%d" % number * (1 + 997 * number) for number in range(200)]
    calls = [call.future(body, timeout=TIMEOUT_S) for body in bodies]
    assert [running.result() for running in calls] == bodies


def test_metadata_comes_through_both_ways(channel: grpc.Channel, app: App) -> None:
    call = channel.unary_unary("/app/echo", identity, identity)
    sent = (("my_key", "my value"), ("key-bin", bytes(range(256))))
    response, done = call.with_call(b"", metadata=sent, timeout=TIMEOUT_S)
    assert response == b""
    assert app.metadata["my_key"] == "my value"
    assert app.metadata["key-bin"] == bytes(range(256))
    trailing = dict(done.trailing_metadata())
    assert trailing == {"my_trailer-bin": b"\x00\xff", "my_trailer": "t"}


def test_status_and_message_come_through(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary("/app/fail", identity, identity)(b"", timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.NOT_FOUND
    assert failed.value.details() == "keine Äpfel 100%"


def test_method_that_nobody_has(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as failed:
        channel.unary_unary("/app/none", identity, identity)(b"", timeout=TIMEOUT_S)
    assert failed.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.parametrize(
    ("cancelled", "timeout_s", "code"),
    [
        (True, TIMEOUT_S, grpc.StatusCode.CANCELLED),
        (False, 0.3, grpc.StatusCode.DEADLINE_EXCEEDED),
    ],
)
def test_call_that_is_given_up_ends_at_the_app(
    channel: grpc.Channel,
    app: App,
    cancelled: bool,
    timeout_s: float,
    code: grpc.StatusCode,
) -> None:
    app.cancelled.clear()
    call = channel.unary_stream("/app/hang", identity, identity)(b"", timeout=timeout_s)
    assert next(call) == b"begun"
    if cancelled:
        call.cancel()
    with pytest.raises(grpc.RpcError) as failed:
        next(call)
    assert failed.value.code() is code
    assert app.cancelled.wait(TIMEOUT_S)


def test_calls_of_an_app_that_stops_end() -> None:
    app = App()
    with (
        served(app) as (server, port),
        Relay(port) as relay,
        grpc.insecure_channel(f"127.0.0.1:{relay.port}", options=OPTIONS) as channel,
    ):
        call = channel.unary_stream("/app/hang", identity, identity)(b"", timeout=TIMEOUT_S)
        assert next(call) == b"begun"
        server.stop(None)
        with pytest.raises(grpc.RpcError) as failed:
            next(call)
        assert failed.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
