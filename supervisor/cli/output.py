"""`meshrun logs` and `meshrun events`: what was said and what happened."""

import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime

import click
import msgspec

from meshrun.supervisor.cli.names import complete_app
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.cli.records import Event, LogLine
from meshrun.supervisor.errors import MeshrunError, NotRunningError

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
    access: bool,
    as_json: bool,
) -> None:
    """Print what the apps wrote, each line after the name of its instance.

    APP is an app (`web`) or one instance (`web.1`); none means all. Without -f this works after
    the mesh has ended, too. With --access, APP is who called or was called, and -n counts all
    lines together.

    \b
    meshrun logs -f               everything, as it comes
    meshrun logs -n 20 web api.2  the last 20 lines of each instance
    meshrun logs --access -f web  the requests from and to web
    """
    running = place.running()
    if access:
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
        names = _chosen([row.instance for row in running.instances()], apps)
        lines: Iterable[LogLine] = running.logs(apps, last, follow=follow)
    elif follow:
        raise NotRunningError(
            "cannot follow the logs: no mesh runs here (without -f the last run's are printed)"
        )
    else:
        names, lines = _stored_lines(place, apps, last)
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
    return [
        name
        for name, service in zip(known, services, strict=True)
        if not apps or name in apps or service in apps
    ]


def _stored_lines(
    place: Place, apps: Sequence[str], last: int | None
) -> tuple[list[str], Iterator[LogLine]]:
    import heapq

    from meshrun.supervisor import logs as stored

    try:
        state = place.open_state()
    except NotRunningError as error:
        raise NotRunningError(f"there are no logs: {error}") from error
    names = _chosen(stored.instances(state), apps)
    # Each file is in the order of its times; sorting by them keeps the order within a file.
    found = heapq.merge(
        *(stored.tail(state, name, last) for name in names), key=lambda line: line.at
    )
    return names, (LogLine(line.at, line.instance, line.stream, line.text) for line in found)


def _stored_access(place: Place, apps: Sequence[str], last: int | None) -> list[bytes]:
    from meshrun.supervisor import access
    from meshrun.supervisor import logs as stored

    try:
        state = place.open_state()
    except NotRunningError as error:
        raise NotRunningError(f"there is no access log: {error}") from error
    if stored.end(state, stored.ACCESS) is None:
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
        content = line.text.encode(errors="replace")
        sys.stdout.buffer.write(painter.paint(line.instance, content))
        sys.stdout.buffer.flush()


def _shown(event: Event) -> str:
    moment = datetime.fromtimestamp(event.at).astimezone()
    time = moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
    kind = click.style(f"{event.kind:<10}", fg=_COLOURS.get(event.kind, "cyan"))
    times = f" ({event.count} times)" if event.count > 1 else ""
    subject = "" if event.subject in event.message else f"{event.subject}: "
    return f"{click.style(time, dim=True)}  {kind}  {subject}{event.message}{times}"
