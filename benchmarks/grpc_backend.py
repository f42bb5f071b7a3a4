"""A gRPC server that answers any unary call with what it was sent: `grpc_backend.py PORT`."""

import asyncio
import sys

import grpc


async def echo(request: bytes, context: "grpc.aio.ServicerContext[bytes, bytes]") -> bytes:
    """Answer with the same."""
    return request


class Echo(grpc.GenericRpcHandler):
    """Takes every method, without a schema: messages are the bytes that they are."""

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes]":
        """Return the one handler that there is."""
        return grpc.unary_unary_rpc_method_handler(echo)


async def main(port: int) -> None:
    """Serve until somebody ends the process."""
    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Echo(),))
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await server.wait_for_termination()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
