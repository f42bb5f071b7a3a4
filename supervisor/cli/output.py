"""`meshrun logs` and `meshrun events`: what was said and what happened."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import click
import msgspec

from meshrun.supervisor.cli.names import complete_app
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.cli.records import Event
from meshrun.supervisor.cli.since_option import Since
from meshrun.supervisor.errors import MeshrunError, NotRunningError
from meshrun.supervisor.lines import Piece
from meshrun.supervisor.logreading import LogLine, Reader, instances, is_meant
from meshrun.supervisor.statedir import StateDir

__all__ = ["events", "logs"]

# What `events` shows without -n; more of them are kept.
EVENTS_SHOWN = 100

_COLOURS = {
    "denied": "red",
    "failed": "red",
    "crash-loop": "red",
    "exited": "yellow",
    "would-deny": "yellow",
}

_follow = click.option(
    "-f", "--follow", is_flag=True, help="Go on with what comes, until the mesh ends or Ctrl-C."
)
_json = click.option("--json", "as_json", is_flag=True, help="Print an object a line.")


@click.command(short_help="Print what the apps wrote.")
@click.argument("apps", metavar="[APP…]", nargs=-1, shell_complete=complete_app)
@_follow
@click.option(
    "-n",
    "last",
    metavar="N",
    type=click.IntRange(min=0),
    help="Only the last N lines of each instance.",
)
@click.option(
    "--since",
    metavar="TIME",
    type=Since(),
    help="Only lines since so long ago (5m), or since a time (2026-11-24T13:05).",
)
@click.option(
    "--access",
    is_flag=True,
    help="The access log (mesh.access_log): each request and connection that is over.",
)
@_json
@click.pass_obj
def logs(
    place: Place,
    apps: tuple[str, ...],
    follow: bool,
    last: int | None,
    since: float | None,
    access: bool,
    as_json: bool,
) -> None:
    """Print what the apps wrote, each line after the name of its instance.

    APP is an app (`web`) or one instance (`web.1`); none means all. This works after the mesh has
    ended, too. A line of meshrun's own (`---`) says where an instance started and ended; -n does
    not count those. With --access, APP is who called or was called, and -n counts all lines
    together.

    \b
    meshrun logs -f               everything, as it comes
    meshrun logs -n 20 web api.2  the last 20 lines of each instance
    meshrun logs --since 5m       the last five minutes
    meshrun logs --access -f web  the requests from and to web
    """
    running = place.running()
    if access:
        if since is not None:
            raise click.UsageError("--since is not for --access; use -n")
        from meshrun.supervisor.cli.access_lines import print_access

        if running is not None:
            entries: Iterable[bytes] = running.access(apps, last, follow=follow)
        elif follow:
            raise NotRunningError("cannot follow the access log: no mesh runs here")
        else:
            entries = _stored_access(place, apps, last)
        print_access(entries, as_json=as_json, dates=True)
        return
    if running is not None:
        rows = [row.instance for row in running.instances()]
        names = _chosen(rows, apps) if not apps else _chosen([*rows, *_stored(place)], apps)
        lines: Iterable[LogLine] = running.logs(apps, last, follow=follow, since=since)
    else:
        names, lines = _stored_lines(place, apps, last, since)
        if follow:
            click.echo("meshrun: no mesh runs here: these are the lines of the last run", err=True)
    if as_json:
        _print_json(lines)
    else:
        _print_lines(lines, names)


@click.command(short_help="Print the timeline: starts, exits, denied calls, rotations.")
@_follow
@click.option(
    "-n",
    "last",
    metavar="N",
    type=click.IntRange(min=0),
    default=EVENTS_SHOWN,
    show_default=True,
    help="Only the last N events.",
)
@_json
@click.pass_obj
def events(place: Place, follow: bool, last: int, as_json: bool) -> None:
    """Print the timeline: starts, exits, probes, denied calls, rotations, changed intentions.

    Denied calls of one pair are summed up once a second. Without -f this works after the mesh has
    ended, too.

    \b
    meshrun events -f
    meshrun events -n 1000 --json | jq -r 'select(.kind == "exited") | .message'
    """
    running = place.running()
    if running is not None:
        found: Iterable[Event] = running.events(last, follow=follow)
    elif follow:
        raise NotRunningError("cannot follow the events: no mesh runs here")
    else:
        found = _stored_events(place, last)
    if as_json:
        _print_json(found)
        return
    for event in found:
        click.echo(_shown(event))
        sys.stdout.flush()


def _chosen(known: Sequence[str], apps: Sequence[str]) -> list[str]:
    """Return the instances that are meant. Raises MeshrunError for a name that is none."""
    services = [name.rpartition(".")[0] for name in known]
    for app in apps:
        if app not in known and app not in services:
            from meshrun.supervisor.suggest import hint

            raise MeshrunError(f"there are no logs of {app}{hint(app, [*known, *services])}")
    return [name for name in dict.fromkeys(known) if is_meant(name, apps)]


def _stored(place: Place) -> list[str]:
    return instances(place.open_state())


def _stored_lines(
    place: Place, apps: Sequence[str], last: int | None, since: float | None
) -> tuple[list[str], Iterator[LogLine]]:
    try:
        state = place.open_state()
    except NotRunningError as error:
        raise NotRunningError(f"there are no logs: {error}") from error
    names = _chosen(instances(state), apps)
    return names, _read(state, names, last, since)


def _read(
    state: StateDir, names: Sequence[str], last: int | None, since: float | None
) -> Iterator[LogLine]:
    reader = Reader(state)
    reader.add(names, last=last, since=since)
    while lines := reader.read():
        yield from map(LogLine.of, lines)


def _stored_access(place: Place, apps: Sequence[str], last: int | None) -> list[bytes]:
    from meshrun.supervisor import access, logreading
    from meshrun.supervisor.logs import ACCESS

    try:
        state = place.open_state()
    except NotRunningError as error:
        raise NotRunningError(f"there is no access log: {error}") from error
    if logreading.end(state, ACCESS) is None:
        raise MeshrunError("there is no access log: set mesh.access_log = true in mesh.toml")
    return access.tail(state, apps, last)


def _stored_events(place: Place, last: int) -> list[Event]:
    from meshrun.supervisor.cli import offline

    with offline.reading(place) as database:
        if database is None:
            raise NotRunningError(f"there are no events: no mesh has run in {place.state_path()}")
        return [Event(**msgspec.structs.asdict(event)) for event in database.events(last)]


def _print_json(records: Iterable[LogLine] | Iterable[Event]) -> None:
    for record in records:
        sys.stdout.buffer.write(msgspec.json.encode(record) + b"\n")
        sys.stdout.buffer.flush()


def _print_lines(lines: Iterable[LogLine], names: Sequence[str]) -> None:
    from meshrun.supervisor.painter import Painter

    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    painter = Painter(names, colour=colour)
    for line in lines:
        content = line.line.encode(errors="replace")
        if line.stream == "marker":
            painted = painter.mark(line.instance, content)
        else:
            painted = painter.paint(line.instance, [Piece(content) if line.partial else content])
        sys.stdout.buffer.write(painted)
        sys.stdout.buffer.flush()


def _shown(event: Event) -> str:
    moment = datetime.fromtimestamp(event.at).astimezone()
    time = moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
    kind = click.style(f"{event.kind:<10}", fg=_COLOURS.get(event.kind, "cyan"))
    times = f" ({event.count} times)" if event.count > 1 else ""
    subject = "" if event.subject in event.message else f"{event.subject}: "
    return f"{click.style(time, dim=True)}  {kind}  {subject}{event.message}{times}"
