"""`meshrun env`: the environment that an app gets."""

import re
import shlex
from collections.abc import Mapping

import click
import msgspec

from meshrun.supervisor.cli.names import complete_app
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.errors import MeshrunError

__all__ = ["env", "shell_lines"]

_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*", re.ASCII)


@click.command(short_help="Print the environment that APP gets.")
@click.argument("app", shell_complete=complete_app)
@click.option("--json", "as_json", is_flag=True, help="Print an object.")
@click.pass_obj
def env(place: Place, app: str, as_json: bool) -> None:
    """Print the environment that APP gets, its ports and upstreams included.

    APP means its first instance, APP.2 its second. Where no mesh runs, the ports are those that it
    would get now. Values are quoted for a shell, so that a program can be started by hand as the
    app would be:

    \b
    set -a; . <(meshrun env web); ./web --debug

    Names that a shell cannot have are left out; --json has them all.
    """
    instance = app if "." in app else f"{app}.1"
    running = place.running()
    values = running.env(instance) if running is not None else _planned(place, instance)
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(values), indent=2).decode())
    else:
        click.echo("\n".join(shell_lines(values)))


def shell_lines(environment: Mapping[str, str]) -> list[str]:
    """Return `NAME=value` lines that a POSIX shell reads back as they were, sorted by name."""
    return [
        f"{name}={shlex.quote(value)}"
        for name, value in sorted(environment.items())
        if _VARIABLE.fullmatch(name)
    ]


def _planned(place: Place, name: str) -> Mapping[str, str]:
    from meshrun.supervisor.cli import offline

    plan = offline.plan(place, place.configuration(), offline.remembered_ports(place))
    for instance in plan.instances:
        if instance.name == name:
            if instance.environment is None:
                raise MeshrunError(
                    f"cannot show the environment of {instance.service}: it is an external "
                    "service, meshrun does not start it"
                )
            return instance.environment
    from meshrun.supervisor.suggest import hint

    known = [instance.name for instance in plan.instances if instance.app is not None]
    raise MeshrunError(
        f"cannot show the environment of {name}: there is no such instance{hint(name, known)}"
    )
