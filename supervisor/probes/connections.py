"""Asking an app at its port: a connection, or one request."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING

from meshrun.supervisor.configuration.model import HttpCheck, Probe, TcpCheck

if TYPE_CHECKING:
    import aiohttp

__all__ = ["asker"]

ANSWER_LIMIT_BYTES = 1024 * 1024
_HEADERS = {"Connection": "close", "User-Agent": "meshrun-probe"}


def asker(
    check: HttpCheck | TcpCheck, probe: Probe, host: str, port: int
) -> Callable[[], Awaitable[str | None]]:
    """Return what asks once: None is a success, else the reason, after `timeout_s` at most."""
    return partial(_ask, check, host, port, probe.timeout_s)


async def _ask(check: HttpCheck | TcpCheck, host: str, port: int, timeout_s: float) -> str | None:
    try:
        async with asyncio.timeout(timeout_s):
            if isinstance(check, HttpCheck):
                return await _get(host, port, check.path)
            return await _connect(host, port)
    except TimeoutError:
        return f"no answer within {timeout_s:g} s from {host}:{port}"


async def _connect(host: str, port: int) -> str | None:
    try:
        _, writer = await asyncio.open_connection(host, port)
    except OSError as error:
        return f"cannot connect to {host}:{port}: {_plain(error)}"
    writer.close()
    return None


async def _get(host: str, port: int, path: str) -> str | None:
    # Not at the top: it takes longer than all else that a start must import, and no app waits for
    # it. The API needs it too, and by now has it, or has begun to import it in a thread.
    import aiohttp

    host = f"[{host}]" if ":" in host else host
    url = f"http://{host}:{port}{path}"
    try:
        # A session for each: a probe is a new connection, and nothing is kept open in between.
        async with (
            aiohttp.ClientSession() as session,
            session.get(url, headers=_HEADERS, allow_redirects=False) as response,
        ):
            status = response.status
            # Closing over an answer that was not read is a reset, which many a server logs.
            await _skip(response.content)
    except aiohttp.ClientConnectorError as error:
        return f"cannot connect to {host}:{port}: {_plain(error.os_error)}"
    except (aiohttp.ClientError, OSError) as error:
        return f"cannot get {url}: {error}"
    return None if 200 <= status < 400 else f"GET {url} answered {status}"


def _plain(error: OSError) -> str:
    """Say what the system said, without what asyncio and aiohttp put around it."""
    return os.strerror(error.errno) if error.errno else str(error)


async def _skip(content: "aiohttp.StreamReader") -> None:
    left = ANSWER_LIMIT_BYTES
    while left > 0 and (data := await content.readany()):
        left -= len(data)
