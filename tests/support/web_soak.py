"""HTTP/1 and WebSockets of aiohttp, both ends, for `http_soak`."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine

import aiohttp
from aiohttp import WSMsgType, web
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
from support.weather import INSTANCES

__all__ = ["WebApps", "WebCaller"]

METHODS = {Kind.TELL: "POST", Kind.UPLOAD: "PUT", Kind.TALK: "POST"}

# How long after a connection was lost its reader may take to hear of it.
LOST_S = 2.0

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


class WebApps(Apps):
    """Apps of aiohttp."""

    def __init__(self, soak: HttpSoak) -> None:
        super().__init__(soak)
        self._runners: list[web.AppRunner] = []

    async def start(self) -> list[int]:
        """Begin to serve as `INSTANCES`; return the ports."""
        ports = []
        for instance in INSTANCES:
            app = web.Application()
            app.router.add_route("*", "/{number}", self._answers(instance))
            runner = web.AppRunner(app, handler_cancellation=True)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            ports.append(runner.addresses[0][1])
            self._runners.append(runner)
        return ports

    async def stop(self) -> None:
        """Serve no more, after the requests that are under way."""
        for runner in self._runners:
            await runner.cleanup()

    def _answers(self, instance: str) -> Answer:
        async def answer(asked: web.Request) -> web.StreamResponse:
            request = self.soak.saw(int(asked.match_info["number"]), instance)
            match request.kind:
                case Kind.SOCKET:
                    return await self._talk_over_socket(asked, request)
                case Kind.TALK:
                    return await self._talk(asked, request)
            if await asked.read() != b"".join(request.pieces_there(self.soak.noise)):
                self.soak.complain(f"the app heard what was not said: {request}")
            if request.kind in (Kind.ASK, Kind.TELL):
                return web.Response(body=next(request.pieces_back(self.soak.noise)))
            return await self._stream(asked, request)

        return answer

    async def _stream(self, asked: web.Request, request: Request) -> web.StreamResponse:
        response = web.StreamResponse()
        if request.number % 2:
            response.content_length = sum(request.back)
        await response.prepare(asked)
        *pieces, last = request.pieces_back(self.soak.noise)
        for piece in pieces:
            await response.write(piece)
        if request.kind is Kind.APP_BREAKS:
            await response.write(last[:-1])
            assert asked.transport is not None
            asked.transport.abort()
        else:
            await response.write(last)
        return response

    async def _talk(self, asked: web.Request, request: Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(asked)
        noise = self.soak.noise
        for there, back in zip(
            request.pieces_there(noise), request.pieces_back(noise), strict=True
        ):
            if await asked.content.readexactly(len(there)) != there:
                self.soak.complain(f"the app heard what was not said: {request}")
            await response.write(back)
        return response

    async def _talk_over_socket(self, asked: web.Request, request: Request) -> web.StreamResponse:
        socket = web.WebSocketResponse(max_msg_size=0)
        await socket.prepare(asked)
        noise = self.soak.noise
        for there, back in zip(
            request.pieces_there(noise), request.pieces_back(noise), strict=True
        ):
            message = await socket.receive()
            if message.type is not WSMsgType.BINARY:
                return socket  # broken off, which its caller accounts for
            if message.data != there:
                self.soak.complain(f"the app heard what was not said: {request}")
            await socket.send_bytes(back)
        await socket.receive()
        return socket


class WebCaller(Caller):
    """A client of aiohttp, with as many connections as it likes."""

    def __init__(self, soak: HttpSoak, port: int) -> None:
        super().__init__(soak, port)
        self._session = aiohttp.ClientSession(
            f"http://127.0.0.1:{port}",
            connector=aiohttp.TCPConnector(limit=0),
            timeout=aiohttp.ClientTimeout(total=None),
        )

    async def make(self, request: Request) -> None:
        """Make `request`; raises RefusedError, BrokenOffError, or WrongError."""
        try:
            if request.kind is Kind.SOCKET:
                await self._talk_over_socket(request)
            else:
                await self._ask(request)
        except aiohttp.WSServerHandshakeError as error:
            raise RefusedError(error.status) from error
        except (aiohttp.ClientError, ConnectionError) as error:
            raise BrokenOffError(repr(error)) from error
        except asyncio.IncompleteReadError as error:
            raise WrongError("the answer is shorter than what the app said") from error

    async def close(self) -> None:
        """Close its connections."""
        await self._session.close()

    async def _ask(self, request: Request) -> None:
        noise = self.soak.noise
        turn = asyncio.Semaphore(1)

        async def body() -> AsyncIterator[bytes]:
            for piece in request.pieces_there(noise):
                if request.kind is Kind.TALK:
                    await turn.acquire()
                yield piece

        data: bytes | AsyncIterator[bytes] | None = None
        if request.kind is Kind.TELL:
            data = next(request.pieces_there(noise))
        elif request.there:
            data = body()
        async with self._session.request(
            METHODS.get(request.kind, "GET"),
            f"/{request.number}",
            data=data,
            headers={"Connection": "close"} if request.closes else {},
        ) as response:
            if response.status != 200:
                raise RefusedError(response.status)
            for piece in request.pieces_back(noise):
                if await _or_lost(response, response.content.readexactly(len(piece))) != piece:
                    raise WrongError("the answer is not what the app said")
                turn.release()
                if request.kind is Kind.CALLER_LEAVES:
                    response.close()
                    return
            if await _or_lost(response, response.content.read()):
                raise WrongError("the answer is longer than what the app said")

    async def _talk_over_socket(self, request: Request) -> None:
        noise = self.soak.noise
        async with self._session.ws_connect(f"/{request.number}", max_msg_size=0) as socket:
            for there, back in zip(
                request.pieces_there(noise), request.pieces_back(noise), strict=True
            ):
                await socket.send_bytes(there)
                message = await socket.receive()
                if message.type is not WSMsgType.BINARY:
                    raise BrokenOffError(f"{message.type.name} came instead of a message")
                if message.data != back:
                    raise WrongError("the answer is not what the app said")
            await socket.close()
            if socket.close_code != 1000:
                raise BrokenOffError(f"the socket was closed with {socket.close_code}")


async def _or_lost(
    response: aiohttp.ClientResponse, reading: Coroutine[object, object, bytes]
) -> bytes:
    """Return what is read; raises BrokenOffError where the connection is lost before.

    aiohttp 3.14 does not tell the reader itself where the writer of the request meets the loss
    first: it drops the reader as it closes, and whoever waits there waits for ever.
    """
    connection = response.connection
    lost = connection.protocol.closed if connection is not None and connection.protocol else None
    task = asyncio.ensure_future(reading)
    waiting: list[asyncio.Future[bytes] | asyncio.Future[None]] = [task]
    if lost is not None:
        lost.add_done_callback(lambda loss: loss.cancelled() or loss.exception())
        waiting.append(lost)
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        # What came before is there, or told in the next turn; only what is never told is late.
        await asyncio.wait([task], timeout=LOST_S)
        if not task.done():
            raise BrokenOffError("the connection was lost")
        return await task
    finally:
        task.cancel()
