"""A gRPC server on $PORT for tests: `/test.Echo/Say` answers what it was told.

Behind a blank follows the `x-request-id` that it saw.
"""

import os
from concurrent import futures

import grpc


def request_id(context: grpc.ServicerContext) -> bytes:
    """Return the identifier of a request."""
    return str(dict(context.invocation_metadata()).get("x-request-id", "")).encode()


def say(request: bytes, context: grpc.ServicerContext) -> bytes:
    """Answer."""
    return request + b" " + request_id(context)


def main() -> None:
    """Serve until told to stop."""
    server = grpc.server(futures.ThreadPoolExecutor(4))
    handlers: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {
        "Say": grpc.unary_unary_rpc_method_handler(say)
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Echo", handlers),))
    server.add_insecure_port(f"127.0.0.1:{os.environ['PORT']}")
    server.start()
    server.wait_for_termination()


if __name__ == "__main__":
    main()
