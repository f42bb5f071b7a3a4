"""Changing what runs: a changed file, other numbers of instances."""

import asyncio
from collections.abc import Sequence
from typing import Annotated

import msgspec
from aiohttp import web

from meshrun.supervisor.api.answers import RUN, Handler, body, json
from meshrun.supervisor.configuration.model import MOST_INSTANCES
from meshrun.supervisor.rollout import Step
from meshrun.supervisor.run import Run

__all__ = ["ROUTES"]

Number = Annotated[int, msgspec.Meta(ge=0, le=MOST_INSTANCES)]


class Reload(msgspec.Struct):
    """The body of a reload."""

    dry_run: bool = False


class Scale(msgspec.Struct):
    """The body of a scaling: how many instances of each app."""

    instances: dict[str, Number]


def _told(run: Run, done: Sequence[Step]) -> web.Response:
    rows = []
    for step in done:
        app = run.apps.get(step.subject)
        row: dict[str, object] = {
            "action": step.action,
            "subject": step.subject,
            "reasons": step.reasons,
            "text": str(step),
        }
        if app is not None and step.action != "removed":
            status = app.status
            row |= {
                "state": status.phase.shown,
                "ready": status.ready,
                "reason": run.standing.reason(step.subject),
            }
        rows.append(row)
    return json(rows)


async def reload(request: web.Request) -> web.StreamResponse:
    """Apply a changed file; answers when it is applied, and what was started is up or has failed.

    A file that cannot be applied is a 422 with what is wrong in it, and has changed nothing.
    """
    run = request.app[RUN]
    wish = await body(request, Reload)
    # Shielded: a caller who goes away does not leave a mesh that is half one and half the other.
    return _told(run, await asyncio.shield(run.reload(dry_run=wish.dry_run)))


async def scale(request: web.Request) -> web.StreamResponse:
    """Run other numbers of instances; answers when that is done."""
    run = request.app[RUN]
    wish = await body(request, Scale)
    return _told(run, await asyncio.shield(run.scale(wish.instances)))


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("POST", "/v1/meshrun/reload", reload),
    ("POST", "/v1/meshrun/scale", scale),
)
