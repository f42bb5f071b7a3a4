"""What was said, what happened and what went over the mesh, from the past into the present."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Collection

import msgspec
from aiohttp import web

from meshrun.proxy.intentions import WILDCARD
from meshrun.supervisor import access, logreading, logs
from meshrun.supervisor.access import Entries, Entry
from meshrun.supervisor.api.answers import (
    FOLLOWERS,
    RUN,
    Handler,
    Lines,
    problem,
    want,
    want_number,
)
from meshrun.supervisor.happening import Happening
from meshrun.supervisor.logreading import LogLine
from meshrun.supervisor.run import Run

__all__ = ["ROUTES"]

# What a follower who does not read may let pile up before it is cut off: lines may be long.
BACKLOG_LINES = 50_000
BACKLOG_BYTES = 4 * 1024 * 1024
# What an entry of the access log takes besides its longest texts.
ENTRY_BYTES = 1024
# The end of the year 9999.
MOST_SECONDS = 253_402_300_799


class _Feed:
    """A bounded queue between whatever happens and one follower."""

    def __init__(self) -> None:
        self._waiting: list[object] = []
        self._bytes = 0
        self._more = asyncio.Event()
        self._overrun = False

    def put(self, values: list[object], size: int = 0) -> bool:
        """Add values of about `size` bytes together; too much ends the feed, and makes this False.

        Whoever pays for what comes should stop then: the follower may never read on.
        """
        lines = len(self._waiting) + len(values)
        if lines > BACKLOG_LINES or self._bytes + size > BACKLOG_BYTES:
            self._overrun = True
        if not self._overrun:
            self._waiting += values
            self._bytes += size
        self._more.set()
        return not self._overrun

    async def get(self) -> list[object] | None:
        """Return what has come, None after too much has."""
        await self._more.wait()
        if not self._overrun:
            self._more.clear()
        values, self._waiting, self._bytes = self._waiting, [], 0
        return values or (None if self._overrun else [])


async def _stream(
    request: web.Request,
    past: Awaitable[list[object]],
    subscribe: Callable[[_Feed], Callable[[], object]],
    *,
    following: bool,
) -> web.StreamResponse:
    feed = _Feed()
    lines = Lines(request)
    unsubscribe = subscribe(feed) if following else lambda: None
    try:
        before = await past
        async with lines:
            for begin in range(0, len(before), 500):
                await lines.send(before[begin : begin + 500])
            while following:
                values = await feed.get()
                if values is None:
                    break
                await lines.send(values)
    except ConnectionResetError:
        pass  # the follower has gone, as followers do
    finally:
        unsubscribe()
    return lines.response


def _follows(request: web.Request) -> bool:
    return request.query.get("follow") == "1"


def _want_last(request: web.Request) -> int | None:
    number = want_number(request, "n", None)
    return None if number is None else int(number)


async def show_logs(request: web.Request) -> web.StreamResponse:
    """Stream the output of apps: from the files, so that who reads slowly costs and loses nothing.

    A follower of an app hears of its new instances, too; one of all apps of every new instance.
    """
    run = request.app[RUN]
    wanted = request.query.getall("app", [])
    since = want_number(request, "since", None, highest=MOST_SECONDS)
    last = _want_last(request)
    state = run.prepared.state
    names = await asyncio.to_thread(_chosen, run, wanted)
    following = _follows(request)
    begun = time.time()
    followers = request.app[FOLLOWERS]
    lines = Lines(request)
    with contextlib.ExitStack() as kept:
        bell = kept.enter_context(followers.joined())

        def hear(output: logs.Output) -> None:
            if output.instance not in known and logreading.is_meant(output.instance, wanted):
                new.append(output.instance)
            bell.set()

        known = {*names, logs.MESH}
        new: list[str] = []
        if following:
            kept.callback(run.logs.follow(hear))
        reader = logreading.Reader(state, following=following)
        kept.callback(reader.close)
        kept.enter_context(contextlib.suppress(ConnectionResetError))  # gone, as followers go
        await asyncio.to_thread(reader.add, names, last=last, since=since)
        async with lines:
            while True:
                # Before the read: what comes during it is read with the next one.
                over = followers.over or not following
                bell.clear()
                if new:
                    reader.add(new, since=begun)
                    known.update(new)
                    new.clear()
                read = await asyncio.to_thread(reader.read)
                if read:
                    await lines.send([LogLine.of(line) for line in read])
                elif over:
                    break
                else:
                    await bell.wait()
    return lines.response


def _chosen(run: Run, wanted: Collection[str]) -> list[str]:
    """Return the instances that are meant, also those that ran earlier where they are named.

    Raises UnknownNameError.
    """
    if not wanted:
        return run.resolve(())
    stored = logreading.instances(run.prepared.state)
    found = [name for name in stored if logreading.is_meant(name, wanted)]
    unknown = [name for name in wanted if not any(logreading.is_meant(i, [name]) for i in found)]
    return list(dict.fromkeys([*found, *(run.resolve(unknown) if unknown else ())]))


async def show_events(request: web.Request) -> web.StreamResponse:
    """Stream the timeline."""
    run: Run = request.app[RUN]
    last = want_number(request, "n", 1000)
    assert last is not None
    run.timeline.flush()
    events: list[object] = list(run.prepared.database.events(int(last)))

    async def past() -> list[object]:
        return events

    def subscribe(feed: _Feed) -> Callable[[], None]:
        def put(event: Happening) -> None:
            feed.put([event])

        return run.timeline.follow(put)

    return await _stream(request, past(), subscribe, following=_follows(request))


def _size(entries: Entries) -> int:
    return sum(
        ENTRY_BYTES + len(entry.path) + len(entry.failure)
        for entry in entries
        if isinstance(entry, Entry)
    )


async def show_access(request: web.Request) -> web.StreamResponse:
    """Stream the access log."""
    run = request.app[RUN]
    names = frozenset(request.query.getall("app", []))
    run.resolve(names)  # raises for a name that nothing has
    last = _want_last(request)
    state = run.prepared.state
    end = logreading.end(state, logs.ACCESS)
    following = _follows(request)
    if not run.access.logging and (end is None or following):
        return problem(409, "there is no access log: set mesh.access_log = true in mesh.toml")

    def past() -> list[object]:
        if end is None:
            return []
        return [msgspec.Raw(entry) for entry in access.tail(state, names, last, end)]

    def subscribe(feed: _Feed) -> Callable[[], object]:
        def put(entries: Entries) -> None:
            chosen = [entry for entry in entries if access.concerns(entry, names)]
            if chosen:
                feed.put([*chosen], _size(chosen))

        return run.access.follow(put)

    return await _stream(request, asyncio.to_thread(past), subscribe, following=following)


async def tap(request: web.Request) -> web.StreamResponse:
    """Stream what goes from a service, or from any (`*`), to another; begins when all is seen."""
    run = request.app[RUN]
    source, destination = want(request, "source"), want(request, "destination")
    run.want_service(destination)
    if source != WILDCARD:
        run.want_service(source)
    if all(instance.inbound_port is None for instance in run.plan.of(destination)):
        return problem(400, f"{destination} takes no calls (port = 0)")

    def subscribe(feed: _Feed) -> Callable[[], None]:
        def put(entries: Entries) -> None:
            # One who does not read would have the sidecars record for nobody.
            if not feed.put([*entries], _size(entries)):
                stop()

        stop = run.tap(put, None if source == WILDCARD else source, destination)
        return stop

    async def begun() -> list[object]:
        await run.tapped()
        return []

    return await _stream(request, begun(), subscribe, following=True)


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/v1/meshrun/logs", show_logs),
    ("GET", "/v1/meshrun/events", show_events),
    ("GET", "/v1/meshrun/access", show_access),
    ("GET", "/v1/meshrun/tap", tap),
)
