"""Intentions, under Consul's paths and in Consul's JSON (`/v1/connect/intentions`)."""

import asyncio
import time
import uuid
from typing import Literal

import msgspec
from aiohttp import web

from meshrun.proxy.intentions import WILDCARD, Intention, decide
from meshrun.supervisor.api.answers import RUN, Handler, body, json, problem, want
from meshrun.supervisor.asked import UnaskableError, asked
from meshrun.supervisor.configuration.model import SERVICE_NAME
from meshrun.supervisor.intention_book import (
    IntentionExistsError,
    IntentionInFileError,
    IntentionNotFoundError,
    Pair,
    not_found,
)
from meshrun.supervisor.intention_checks import Effect, UnfitIntentionError, effect
from meshrun.supervisor.intention_json import IntentionRecord, PermissionRecord
from meshrun.supervisor.run import Run

__all__ = ["ROUTES"]

# Consul's limits of Meta (64 pairs of 128 and 512 bytes); its Description is as long as a value.
_META_LIMIT = 64
_KEY_LIMIT = 128
_VALUE_LIMIT = 512
_INTENTIONS_LIMIT = 10_000


class Written(msgspec.Struct):
    """The body of a PUT; what Consul knows beyond it belongs to later versions."""

    Action: str | None = None
    Permissions: list[PermissionRecord] | None = None
    DryRun: bool = False
    SourceType: Literal["consul"] = "consul"
    Description: str = ""
    Meta: dict[str, str] = {}
    JWT: object = None


def _too_much(written: Written, existing: int) -> str | None:
    """Say what cannot be, None for nothing: everything here is kept, listed and compared."""
    if written.JWT is not None:
        return "JWT is not supported: an intention with it would let through who has none"
    if len(written.Description) > _VALUE_LIMIT:
        return f"Description has more than {_VALUE_LIMIT} characters"
    if len(written.Meta) > _META_LIMIT:
        return f"Meta has more than {_META_LIMIT} entries"
    if any(len(k) > _KEY_LIMIT or len(v) > _VALUE_LIMIT for k, v in written.Meta.items()):
        return f"Meta has a key over {_KEY_LIMIT} or a value over {_VALUE_LIMIT} characters"
    if existing >= _INTENTIONS_LIMIT:
        return f"there are {existing} intentions; more than {_INTENTIONS_LIMIT} are not kept"
    return None


def _pair(request: web.Request) -> tuple[str, str]:
    pair = want(request, "source"), want(request, "destination")
    for name in pair:
        if name != WILDCARD and not SERVICE_NAME.fullmatch(name):
            raise web.HTTPBadRequest(text=f'"{name}" is neither a service name nor *')
    return pair


async def list_all(request: web.Request) -> web.StreamResponse:
    """List what is in force, in evaluation order."""
    return json([IntentionRecord.of(i) for i in request.app[RUN].prepared.book.effective()])


async def get(request: web.Request) -> web.StreamResponse:
    """Show the intention of a pair."""
    pair = _pair(request)
    found = request.app[RUN].prepared.book.find(pair)
    return problem(404, not_found(pair)) if found is None else json(IntentionRecord.of(found))


def _create(run: Run, pair: Pair, written: Written, decided: Effect, *, replace: bool) -> Intention:
    action, permissions, dry_run = decided
    return run.prepared.book.create(
        *pair,
        action,
        permissions=permissions,
        dry_run=dry_run,
        description=written.Description,
        meta=written.Meta,
        replace=replace,
        now=time.time(),
        id=str(uuid.uuid4()),
    )


async def put(request: web.Request) -> web.StreamResponse:
    """Create or replace the intention of a pair; answers when every sidecar enforces it.

    With `replace=0`, which Consul does not have, a pair that has one already is a 409.
    """
    run = request.app[RUN]
    source, destination = pair = _pair(request)
    written = await body(request, Written)
    if complaint := _too_much(written, len(run.prepared.book.effective())):
        return problem(400, complaint)
    replace = request.query.get("replace") != "0"
    try:
        decided = effect(destination, written.Action, written.Permissions, dry_run=written.DryRun)
        created = _create(run, pair, written, decided, replace=replace)
    except UnfitIntentionError as error:
        return problem(400, str(error))
    except IntentionExistsError as error:
        return problem(409, str(error))
    return await _enforced(run, f"intention {created} was set", source, destination)


async def delete(request: web.Request) -> web.StreamResponse:
    """Delete the runtime intention of a pair; answers when no sidecar follows it any more."""
    run = request.app[RUN]
    source, destination = pair = _pair(request)
    try:
        deleted = run.prepared.book.delete(pair)
    except IntentionNotFoundError as error:
        return problem(404, str(error))
    except IntentionInFileError as error:
        return problem(409, str(error))
    return await _enforced(run, f"intention {deleted} was deleted", source, destination)


async def _enforced(run: Run, message: str, source: str, destination: str) -> web.Response:
    """Answer when every sidecar follows a change, also where nobody waits for that any more."""
    run.timeline.add("intention", destination, message, source=source, destination=destination)
    await asyncio.shield(run.enforce_intentions())
    return json(True)


async def match(request: web.Request) -> web.StreamResponse:
    """List what may decide about a source or a destination, in evaluation order."""
    name, by = want(request, "name"), want(request, "by")
    if by not in ("source", "destination"):
        return problem(400, "by must be source or destination")
    effective = request.app[RUN].prepared.book.effective()
    names = (name, WILDCARD)
    found = [i for i in effective if (i.source if by == "source" else i.destination) in names]
    return json({name: [IntentionRecord.of(i) for i in found]})


async def check(request: web.Request) -> web.StreamResponse:
    """Decide about a pair, and with `method`, `path` or `header` about a request.

    `header` is `name:value` or `name=value`, and may be repeated. Consul knows only pairs, of which
    those with permissions are denied.
    """
    run = request.app[RUN]
    source, destination = _pair(request)
    query = request.query
    try:
        about = asked(query.get("method"), query.get("path"), query.getall("header", []))
    except UnaskableError as error:
        return problem(400, str(error))
    decision = decide(
        run.prepared.book.effective(),
        source,
        destination,
        run.control.default_action,
        about,
        # Of a service that is not known yet nothing says that it will not speak HTTP.
        protocol=run.plan.configuration.protocol(destination) or "http",
    )
    return json(
        {
            "Allowed": decision.allowed,
            "Reason": decision.reason,
            "Permission": decision.permission,
            "DryRun": decision.dry_run,
        }
    )


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/v1/connect/intentions", list_all),
    ("GET", "/v1/connect/intentions/exact", get),
    ("PUT", "/v1/connect/intentions/exact", put),
    ("DELETE", "/v1/connect/intentions/exact", delete),
    ("GET", "/v1/connect/intentions/match", match),
    ("GET", "/v1/connect/intentions/check", check),
)
