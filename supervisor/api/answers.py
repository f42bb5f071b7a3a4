"""What every handler needs: JSON in and out, the run, errors as text that users are shown."""

import asyncio
import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import msgspec
from aiohttp import web

from meshrun.supervisor.run import Run

__all__ = [
    "END",
    "FOLLOWERS",
    "RUN",
    "Followers",
    "Handler",
    "Lines",
    "Peer",
    "body",
    "caller",
    "json",
    "problem",
    "want",
    "want_number",
]

RUN: web.AppKey[Run] = web.AppKey("run", Run)
# Called when somebody wants the run to end.
END: web.AppKey[Callable[[], None]] = web.AppKey("end")

# Who follows the logs, and reads them to their end when the run is over.
FOLLOWERS: web.AppKey["Followers"] = web.AppKey("followers")

HIGHEST_NUMBER = 1_000_000_000

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
T = TypeVar("T")


_UCRED = struct.Struct("3i")


class Peer(NamedTuple):
    """Who is at the other end of a Unix socket (`struct ucred`)."""

    pid: int
    uid: int
    gid: int


def caller(request: web.Request) -> Peer | None:
    """Return who asks, as the kernel says (SO_PEERCRED); None where the caller has gone."""
    sock = request.transport.get_extra_info("socket") if request.transport is not None else None
    if sock is None:
        return None
    raw = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return Peer(*_UCRED.unpack(raw))


def json(value: object) -> web.Response:
    """Answer with a value as JSON."""
    return web.Response(body=msgspec.json.encode(value), content_type="application/json")


def problem(status: int, message: str) -> web.Response:
    """Answer that something cannot be done, in words for the user."""
    return web.Response(status=status, text=message)


async def body(request: web.Request, kind: type[T]) -> T:
    """Read the JSON body as a `kind`; answers 400 for anything else."""
    try:
        return msgspec.json.decode(await request.read() or b"{}", type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise web.HTTPBadRequest(text=f"cannot read the body as JSON: {error}") from error


def want(request: web.Request, name: str) -> str:
    """Return a query parameter that must be there."""
    value = request.query.get(name)
    if not value:
        raise web.HTTPBadRequest(text=f"the query parameter {name} is missing")
    return value


def want_number(
    request: web.Request, name: str, default: float | None, highest: int = HIGHEST_NUMBER
) -> float | None:
    """Return a query parameter as a number of zero or more, `default` if it is not there."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= highest:
        raise web.HTTPBadRequest(text=f"{name} must be from 0 to {highest}, not {text}")
    return number


class Followers:
    """Those who read the logs as they grow, and must hear that they grow no more."""

    def __init__(self) -> None:
        self._bells: dict[asyncio.Event, asyncio.Event] = {}
        self.over = False

    @contextlib.contextmanager
    def joined(self) -> Iterator[asyncio.Event]:
        """Be one of them within the block; the event is set when something changes."""
        bell, gone = asyncio.Event(), asyncio.Event()
        self._bells[bell] = gone
        try:
            yield bell
        finally:
            del self._bells[bell]
            gone.set()

    async def finish(self, timeout_s: float) -> None:
        """Have them read what there is and leave; whoever does not read on is not waited for."""
        self.over = True
        for bell in self._bells:
            bell.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                for gone in list(self._bells.values()):
                    await gone.wait()


class Lines:
    """An answer of one JSON value a line, which goes on as long as the caller listens."""

    def __init__(self, request: web.Request) -> None:
        self._request = request
        self._response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})

    async def __aenter__(self) -> "Lines":
        await self._response.prepare(self._request)
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def send(self, values: Sequence[object]) -> None:
        """Send values; raises ConnectionResetError when the caller has gone."""
        encoded = b"".join(msgspec.json.encode(value) + b"\n" for value in values)
        await self._response.write(encoded)

    @property
    def response(self) -> web.StreamResponse:
        """The answer, for the handler to return."""
        return self._response
