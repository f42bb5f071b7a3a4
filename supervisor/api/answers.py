"""What every handler needs: JSON in and out, the run, errors as text that users are shown."""

import socket
import struct
from collections.abc import Awaitable, Callable
from typing import NamedTuple, TypeVar

import msgspec
from aiohttp import web

from meshrun.supervisor.run import Run

__all__ = [
    "END",
    "RUN",
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


def want_number(request: web.Request, name: str, default: float | None) -> float | None:
    """Return a query parameter as a number of zero or more, `default` if it is not there."""
    text = request.query.get(name)
    if text is None:
        return default
    try:
        number = float(text)
    except ValueError:
        number = -1.0
    if not 0 <= number <= HIGHEST_NUMBER:
        raise web.HTTPBadRequest(text=f"{name} must be from 0 to {HIGHEST_NUMBER}, not {text}")
    return number


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

    async def send(self, values: list[object]) -> None:
        """Send values; raises ConnectionResetError when the caller has gone."""
        encoded = b"".join(msgspec.json.encode(value) + b"\n" for value in values)
        await self._response.write(encoded)

    @property
    def response(self) -> web.StreamResponse:
        """The answer, for the handler to return."""
        return self._response
