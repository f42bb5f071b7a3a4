"""`meshrun start`, `stop` and `restart`: apps of the running mesh."""

import click
import msgspec

from meshrun.supervisor.cli.names import complete_app
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.cli.ps import state_colour
from meshrun.supervisor.cli.records import Outcome

__all__ = ["restart", "start", "stop"]

_BAD = ("failed", "backoff", "crash-loop")

_apps = click.argument("apps", metavar="[APP…]", nargs=-1, shell_complete=complete_app)
_json = click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")


@click.command(short_help="Start apps that are stopped, completed, failed or wait for their time.")
@_apps
@_json
@click.pass_obj
def start(place: Place, apps: tuple[str, ...], as_json: bool) -> int:
    """Start apps of the running mesh that are stopped, completed or failed.

    APP is an app (`web`) or one instance (`web.1`); none means all. Exits 1 if one fails. An app
    that is run at times (`every`) is run now if it is named, and goes on with its schedule.

    \b
    meshrun start web
    """
    return _act(place, "start", apps, as_json)


@click.command()
@_apps
@_json
@click.pass_obj
def stop(place: Place, apps: tuple[str, ...], as_json: bool) -> int:
    """Stop apps and leave the rest of the mesh running.

    APP is an app (`web`) or one instance (`web.1`); none means all. They stay stopped until
    `meshrun start`; their sidecars keep running. To end the mesh itself use `meshrun down`.

    \b
    meshrun stop web     all instances of web
    meshrun stop web.2   the second one
    """
    return _act(place, "stop", apps, as_json)


@click.command()
@_apps
@_json
@click.pass_obj
def restart(place: Place, apps: tuple[str, ...], as_json: bool) -> int:
    """Stop apps and start them again, one instance after the other.

    An instance gets no more calls, those that it has end within `stop.timeout`, it is restarted,
    and the next one follows when it is ready: where there are several no call fails, and of a
    single one callers wait for `connect_timeout`. If one does not come back the rest of its app is
    left alone.

    APP is an app (`web`) or one instance (`web.1`); none means all. Exits 1 if one fails.

    \b
    meshrun restart web
    """
    return _act(place, "restart", apps, as_json)


def _act(place: Place, action: str, apps: tuple[str, ...], as_json: bool) -> int:
    outcomes = place.client().act(action, apps)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(outcomes), indent=2).decode())
    else:
        width = max((len(outcome.instance) for outcome in outcomes), default=0)
        for outcome in outcomes:
            click.echo(f"{outcome.instance:<{width}}  {_said(outcome)}")
    failed = any(outcome.kept or outcome.state in _BAD for outcome in outcomes)
    return 1 if failed and action != "stop" else 0


def _said(outcome: Outcome) -> str:
    state = click.style(outcome.state, fg=state_colour(outcome.state))
    ready = ", ready" if outcome.ready else ""
    reason = f": {outcome.reason}" if outcome.reason not in (None, "", outcome.state) else ""
    return f"{state}{ready}{reason}"
