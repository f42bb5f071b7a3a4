"""Asking an app itself, at its own port, whether it is ready."""

import asyncio
import os
from collections.abc import Callable

import aiohttp

from meshrun.proxy import tasks
from meshrun.supervisor.configuration.model import HttpProbe, Probe

__all__ = ["Prober"]

ANSWER_LIMIT_BYTES = 1024 * 1024
_HEADERS = {"Connection": "close", "User-Agent": "meshrun-probe"}

# Until it is ready for the first time; from then on the configured interval.
FIRST_INTERVAL_S = 0.1


class Prober:
    """Asks one probe again and again until it is stopped.

    `on_success` is called for every success, `on_failure` with the reason for every failure until
    the first success, and from then on for as many in a row as the configuration says.
    """

    def __init__(
        self,
        probe: Probe,
        host: str,
        port: int,
        on_success: Callable[[], None],
        on_failure: Callable[[str], None],
    ) -> None:
        self._probe = probe
        self._host = host
        self._port = port
        self._on_success = on_success
        self._on_failure = on_failure
        self._task = tasks.start(self._run(), f"probe {host}:{port}")

    def stop(self) -> None:
        """Ask no more."""
        self._task.cancel()

    async def _run(self) -> None:
        begun = asyncio.get_running_loop().time()
        failures = 0
        was_ready = False
        while True:
            reason = await self._ask()
            if reason is None:
                failures, was_ready = 0, True
                self._on_success()
            else:
                failures += 1
                if not was_ready or failures >= self._probe.failures:
                    self._on_failure(reason)
            elapsed_s = asyncio.get_running_loop().time() - begun
            # What nobody ends after its deadline, an external service, is asked less often then.
            starting = not was_ready and elapsed_s < self._probe.deadline_s
            interval_s = self._probe.interval_s
            await asyncio.sleep(min(FIRST_INTERVAL_S, interval_s) if starting else interval_s)

    async def _ask(self) -> str | None:
        """Ask once; None is a success, else the reason."""
        try:
            async with asyncio.timeout(self._probe.timeout_s):
                if isinstance(self._probe, HttpProbe):
                    return await self._get(self._probe.path)
                return await self._connect()
        except TimeoutError:
            return f"no answer within {self._probe.timeout_s:g} s from {self._host}:{self._port}"

    async def _connect(self) -> str | None:
        try:
            _, writer = await asyncio.open_connection(self._host, self._port)
        except OSError as error:
            return f"cannot connect to {self._host}:{self._port}: {_plain(error)}"
        writer.close()
        return None

    async def _get(self, path: str) -> str | None:
        host = f"[{self._host}]" if ":" in self._host else self._host
        url = f"http://{host}:{self._port}{path}"
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
            return f"cannot connect to {host}:{self._port}: {_plain(error.os_error)}"
        except (aiohttp.ClientError, OSError) as error:
            return f"cannot get {url}: {error}"
        return None if 200 <= status < 400 else f"GET {url} answered {status}"


def _plain(error: OSError) -> str:
    """Say what the system said, without what asyncio and aiohttp put around it."""
    return os.strerror(error.errno) if error.errno else str(error)


async def _skip(content: aiohttp.StreamReader) -> None:
    left = ANSWER_LIMIT_BYTES
    while left > 0 and (data := await content.readany()):
        left -= len(data)
