"""An app that speaks gRPC, as its own library serves it."""

import contextlib
import threading
from collections.abc import Iterator
from concurrent import futures

import grpc

__all__ = ["OPTIONS", "TIMEOUT_S", "App", "identity", "served"]

TIMEOUT_S = 30.0

# grpc-core's limit of a message is 4 MiB unless it is told otherwise.
OPTIONS = [("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1)]


def identity(data: bytes) -> bytes:
    """Be the serialiser of what is bytes already."""
    return data


class App(grpc.GenericRpcHandler):
    """The four kinds of call, and what goes with them; `called` are those it heard of."""

    def __init__(self) -> None:
        self.called: list[str] = []
        self.cancelled = threading.Event()
        self.metadata: dict[str, str | bytes] = {}

    def service(
        self, details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """Return what answers a call."""
        self.called.append(details.method)
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
        """Answer with the request."""
        self.metadata = dict(context.invocation_metadata())
        context.set_trailing_metadata((("my_trailer-bin", b"\x00\xff"), ("my_trailer", "t")))
        return request

    def count(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer with so many numbers."""
        for number in range(int(request)):
            yield b"%d" % number

    def sum(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        """Answer with how many bytes came."""
        return b"%d" % sum(len(request) for request in requests)

    def chat(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer each message, turned around, as it comes."""
        for request in requests:
            yield request[::-1]

    def hang(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """Answer once, and then wait for the call to be given up."""
        ended = threading.Event()
        assert context.add_callback(ended.set)
        yield b"begun"
        if ended.wait(TIMEOUT_S):
            self.cancelled.set()

    def fail(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        """Answer with a status."""
        context.abort(grpc.StatusCode.NOT_FOUND, "keine Äpfel 100%")
        raise AssertionError("abort raises")


@contextlib.contextmanager
def served(app: App, port: int = 0) -> Iterator[tuple[grpc.Server, int]]:
    """Serve `app` within the block; yields the server and its port."""
    server = grpc.server(futures.ThreadPoolExecutor(8), handlers=[app], options=OPTIONS)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    try:
        yield server, port
    finally:
        server.stop(None).wait(TIMEOUT_S)
