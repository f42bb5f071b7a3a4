"""Serves the API on the control socket, and lets in only the owner of the run and root."""

import os
import socket
import sqlite3
from collections.abc import Callable

from aiohttp import web

from meshrun.supervisor.api import (
    certificates,
    changes,
    instances,
    intentions,
    metrics,
    oneoffs,
    records,
)
from meshrun.supervisor.api.answers import (
    END,
    FOLLOWERS,
    RUN,
    Followers,
    Handler,
    caller,
    problem,
)
from meshrun.supervisor.errors import ConfigError, MeshrunError, StoppingError, UnknownNameError
from meshrun.supervisor.run import Run

__all__ = ["Server", "serve"]

BODY_LIMIT_BYTES = 1024 * 1024
# How long a run that is over still tells its last lines to whoever follows them.
LAST_LINES_S = 1.0


class Server:
    """The running API server."""

    def __init__(self, runner: web.AppRunner, followers: Followers) -> None:
        self._runner = runner
        self._followers = followers

    async def close(self) -> None:
        """Stop answering; whoever still follows a stream sees its end."""
        await self._followers.finish(LAST_LINES_S)
        await self._runner.cleanup()


@web.middleware
async def _guard(request: web.Request, handler: Handler) -> web.StreamResponse:
    peer = caller(request)
    if peer is None or peer.uid not in (os.geteuid(), 0):
        return problem(403, "only the user who runs this mesh, and root, may control it")
    try:
        return await handler(request)
    except ConfigError as error:
        return problem(422, str(error))
    except UnknownNameError as error:
        return problem(404, str(error))
    except StoppingError as error:
        return problem(409, str(error))
    except MeshrunError as error:
        return problem(500, str(error))
    except (sqlite3.Error, OSError) as error:
        # A full or broken disk; what was asked for has not been done.
        return problem(500, f"cannot do that: {error}")


async def serve(run: Run, control: socket.socket, end: Callable[[], None]) -> Server:
    """Begin to answer on the control socket; `end` is called when somebody wants the run to end."""
    application = web.Application(middlewares=[_guard], client_max_size=BODY_LIMIT_BYTES)
    application[RUN] = run
    application[END] = end
    followers = application[FOLLOWERS] = Followers()
    for module in (instances, changes, oneoffs, records, certificates, intentions, metrics):
        for method, path, handler in module.ROUTES:
            application.router.add_route(method, path, handler)
    # Followers of a stream do not keep a run from ending.
    # A handler ends with its caller: who follows a quiet stream and leaves would stay for ever.
    runner = web.AppRunner(
        application, access_log=None, shutdown_timeout=0.1, handler_cancellation=True
    )
    await runner.setup()
    await web.SockSite(runner, control).start()
    return Server(runner, followers)
