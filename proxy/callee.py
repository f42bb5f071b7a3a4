"""Connections to the app behind the sidecar, which may not listen yet."""

import asyncio
import socket

from meshrun.proxy import dial
from meshrun.proxy.messages import Inbound
from meshrun.proxy.poller import Poller

__all__ = ["reach"]

FIRST_REDIAL_S = 0.005
LONGEST_REDIAL_S = 0.05


async def reach(poller: Poller, app: Inbound, failed: OSError | None = None) -> socket.socket:
    """Connect to `app`, again and again for as long as it may take to listen; raise OSError.

    `failed` is what a first attempt has met already.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + app.connect_timeout_s
    delay = 0.0 if failed is None else FIRST_REDIAL_S
    error = failed or TimeoutError("timed out")
    while loop.time() + delay < deadline:
        await asyncio.sleep(delay)
        delay = min(max(delay * 2, FIRST_REDIAL_S), LONGEST_REDIAL_S)
        try:
            async with asyncio.timeout_at(deadline):
                return await dial.connect(poller, app.host, app.port)
        except OSError as again:  # a TimeoutError is one too
            error = again
    raise OSError(
        error.errno, f"{error.strerror or error} for {app.connect_timeout_s:g} s"
    ) from error
