"""HTTP/2 of gRPC, both ends, for `http_soak`."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterable

import grpc
import grpc.aio
from support.http_soak import (
    Apps,
    BrokenOffError,
    Caller,
    HttpSoak,
    Kind,
    RefusedError,
    Request,
    WrongError,
)
from support.rpc import OPTIONS, identity
from support.weather import INSTANCES

__all__ = ["RpcApps", "RpcCaller"]

# Channels of one process share their connections to an address, unless they are told otherwise.
CHANNEL = [
    *OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 50),
]

STATUSES = {grpc.StatusCode.PERMISSION_DENIED: 403, grpc.StatusCode.UNAVAILABLE: 503}

# A call that is over takes nothing more; who reads on is told why.
OVER = (asyncio.InvalidStateError, grpc.aio.InternalError)

Context = grpc.aio.ServicerContext[bytes, bytes]
Stream = grpc.aio.StreamStreamCall[bytes, bytes]


class RpcApps(Apps):
    """Apps of gRPC."""

    def __init__(self, soak: HttpSoak) -> None:
        super().__init__(soak)
        self._servers: list[grpc.aio.Server] = []

    async def start(self) -> list[int]:
        """Begin to serve as `INSTANCES`; return the ports."""
        ports = []
        for instance in INSTANCES:
            server = grpc.aio.server(handlers=[_Handler(self.soak, instance)], options=OPTIONS)
            ports.append(server.add_insecure_port("127.0.0.1:0"))
            await server.start()
            self._servers.append(server)
        return ports

    async def stop(self) -> None:
        """Serve no more, after the requests that are under way."""
        for server in self._servers:
            await server.stop(None)


class _Handler(grpc.GenericRpcHandler):
    """Answers a call to /soak/NUMBER."""

    def __init__(self, soak: HttpSoak, instance: str) -> None:
        self._soak = soak
        self._instance = instance

    def service(
        self, details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        """Return what answers a call."""
        request = self._soak.saw(int(details.method.removeprefix("/soak/")), self._instance)

        async def answer(heard: AsyncIterator[bytes], context: Context) -> AsyncIterator[bytes]:
            noise = self._soak.noise
            theirs = request.pieces_there(noise)
            ours = request.pieces_back(noise)
            if request.kind is Kind.TALK:
                async for piece in heard:
                    self._compare(request, piece, next(theirs, b""))
                    yield next(ours)
                return
            async for piece in heard:
                self._compare(request, piece, next(theirs, b""))
            *pieces, last = ours
            for piece in pieces:
                yield piece
            if request.kind is Kind.APP_BREAKS:
                await context.abort(grpc.StatusCode.DATA_LOSS, "broken off")
            yield last

        return grpc.stream_stream_rpc_method_handler(answer)

    def _compare(self, request: Request, heard: bytes, said: bytes) -> None:
        if heard != said:
            self._soak.complain(f"the app heard what was not said: {request}")


class RpcCaller(Caller):
    """A client of gRPC with one connection."""

    def __init__(self, soak: HttpSoak, port: int) -> None:
        super().__init__(soak, port)
        self._channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=CHANNEL)

    async def make(self, request: Request) -> None:
        """Make `request`; raises RefusedError, BrokenOffError, or WrongError."""
        try:
            await self._make(request)
        except grpc.aio.AioRpcError as error:
            if status := STATUSES.get(error.code()):
                raise RefusedError(status, error.details() or "") from error
            raise BrokenOffError(repr(error)) from error

    async def close(self) -> None:
        """Close its connection."""
        await self._channel.close()

    async def _make(self, request: Request) -> None:
        noise, path = self.soak.noise, f"/soak/{request.number}"
        theirs = request.pieces_back(noise)
        if request.kind in (Kind.ASK, Kind.TELL):
            unary = self._channel.unary_unary(path, identity, identity)
            said = next(request.pieces_there(noise), b"")
            _compare(await unary(said, wait_for_ready=True), next(theirs))
            return
        stream = self._channel.stream_stream(path, identity, identity)
        call = stream(wait_for_ready=True)
        if request.kind is Kind.TALK:
            for said, heard in zip(request.pieces_there(noise), theirs, strict=True):
                await _write(call, said)
                _compare(await call.read(), heard)
            await _finish(call)
        elif request.kind is Kind.SOCKET:
            await asyncio.gather(_say(call, request.pieces_there(noise)), _hear(call, theirs))
        else:
            await _say(call, request.pieces_there(noise))
            if request.kind is Kind.CALLER_LEAVES:
                _compare(await call.read(), next(theirs))
                call.cancel()
                return
            await _hear(call, theirs)
        _compare(await call.read(), None)


async def _say(call: Stream, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        await _write(call, piece)
    await _finish(call)


async def _write(call: Stream, piece: bytes) -> None:
    with contextlib.suppress(*OVER):
        await call.write(piece)


async def _finish(call: Stream) -> None:
    with contextlib.suppress(*OVER):
        await call.done_writing()


async def _hear(call: Stream, pieces: Iterable[bytes]) -> None:
    for piece in pieces:
        _compare(await call.read(), piece)


def _compare(heard: object, said: bytes | None) -> None:
    """Compare what a call read with what its app said, None for the end."""
    if said is None and heard is grpc.aio.EOF:
        return
    if heard is grpc.aio.EOF:
        raise WrongError("the answer is shorter than what the app said")
    if heard != said:
        raise WrongError("the answer is not what the app said")
