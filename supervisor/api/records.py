"""What was said and what happened: logs and events, from the past into the present."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

from aiohttp import web

from meshrun.supervisor import logs
from meshrun.supervisor.api.answers import RUN, Handler, Lines, want_number
from meshrun.supervisor.run import Run
from meshrun.supervisor.statedir import StateDir

__all__ = ["ROUTES"]

# What a follower who does not read may let pile up before it is cut off: lines may be long.
BACKLOG_LINES = 50_000
BACKLOG_BYTES = 4 * 1024 * 1024


class _Feed:
    """A bounded queue between whatever happens and one follower."""

    def __init__(self) -> None:
        self._waiting: list[object] = []
        self._bytes = 0
        self._more = asyncio.Event()
        self._overrun = False

    def put(self, values: list[object], size: int = 0) -> None:
        """Add values of about `size` bytes together; too much ends the feed."""
        lines = len(self._waiting) + len(values)
        if lines > BACKLOG_LINES or self._bytes + size > BACKLOG_BYTES:
            self._overrun = True
        if not self._overrun:
            self._waiting += values
            self._bytes += size
        self._more.set()

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
    subscribe: Callable[[_Feed], Callable[[], None]],
) -> web.StreamResponse:
    feed = _Feed()
    lines = Lines(request)
    following = request.query.get("follow") == "1"
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


def _line(line: logs.Line) -> dict[str, object]:
    return {"at": line.at, "instance": line.instance, "stream": line.stream, "text": line.text}


def _past(state: StateDir, ends: Mapping[str, logs.End | None], last: int | None) -> list[object]:
    lines = [
        line
        for name, end in ends.items()
        if end is not None
        for line in logs.tail(state, name, last, end)
    ]
    lines.sort(key=lambda line: line.at)
    return [_line(line) for line in lines]


async def show_logs(request: web.Request) -> web.StreamResponse:
    """Stream the output of apps."""
    run = request.app[RUN]
    names = set(run.resolve(request.query.getall("app", [])))
    number = want_number(request, "n", None)
    last = None if number is None else int(number)
    state = run.prepared.state
    # The past ends here and a follower begins here, however long the past takes to read: no line
    # is lost or shown twice, and the run goes on meanwhile.
    ends = {name: logs.end(state, name) for name in names}
    past = asyncio.to_thread(_past, state, ends, last)

    def subscribe(feed: _Feed) -> Callable[[], None]:
        def put(lines: list[logs.Line]) -> None:
            chosen = [line for line in lines if line.instance in names]
            if chosen:
                size = sum(len(line.content) for line in chosen)
                feed.put([_line(line) for line in chosen], size)

        return run.logs.follow(put)

    return await _stream(request, past, subscribe)


async def show_events(request: web.Request) -> web.StreamResponse:
    """Stream the timeline."""
    run: Run = request.app[RUN]
    last = want_number(request, "n", 1000)
    assert last is not None
    run.timeline.flush()
    events: list[object] = list(run.prepared.database.events(int(last)))

    async def past() -> list[object]:
        return events

    return await _stream(request, past(), lambda feed: run.timeline.follow(lambda e: feed.put([e])))


ROUTES: tuple[tuple[str, str, Handler], ...] = (
    ("GET", "/v1/meshrun/logs", show_logs),
    ("GET", "/v1/meshrun/events", show_events),
)
