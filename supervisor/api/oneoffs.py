"""One-off commands: the connection of whoever runs one is what keeps its sidecar."""

import asyncio

import msgspec
from aiohttp import web

from meshrun.proxy import tasks
from meshrun.supervisor.api.answers import RUN, Handler, Lines, caller, problem, want
from meshrun.supervisor.oneoff import OneOff

__all__ = ["ROUTES"]


def _answer(one_off: OneOff) -> dict[str, object]:
    planned = one_off.planned
    return {
        "instance": planned.instance.name,
        "env_file": planned.env_file,
        "env": planned.env,
        "injected": planned.injected,
    }


async def hold(request: web.Request) -> web.StreamResponse:
    """Give a command of an app a sidecar, say what it gets, and keep it until the caller goes.

    However the caller ends, the kernel closes the connection, and this handler is cancelled.
    """
    run = request.app[RUN]
    app, program = want(request, "app"), want(request, "program")
    peer = caller(request)
    # A process of another namespace has no number here.
    pid = peer.pid if peer is not None and peer.pid > 0 else None
    one_off = run.begin_one_off(app, program, pid)
    lines = Lines(request)
    try:
        answer = msgspec.json.encode(_answer(one_off))
        await run.one_offs.ready(one_off)
        async with lines:
            await lines.send([msgspec.Raw(answer)])
            await asyncio.get_running_loop().create_future()
    except ConnectionResetError:
        pass  # gone already
    except UnicodeEncodeError:
        return problem(500, f"cannot run a command as {app}: its environment is not UTF-8")
    finally:
        # A task of its own: this one is being cancelled.
        tasks.start(run.one_offs.end(one_off), f"end {one_off.instance.name}")
    return lines.response


ROUTES: tuple[tuple[str, str, Handler], ...] = (("POST", "/v1/meshrun/one-off", hold),)
