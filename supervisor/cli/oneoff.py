"""`meshrun run`: a one-off command with an app's identity and its upstreams."""

import os
from collections.abc import Sequence

import click
from click.shell_completion import CompletionItem

from meshrun.supervisor.cli import foreground
from meshrun.supervisor.cli.names import complete_app
from meshrun.supervisor.cli.place import Place

__all__ = ["run"]


class _Command(click.Command):
    # What follows APP is the command's own, with its options.
    allow_interspersed_args = False


def _complete_file(
    _context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    return [CompletionItem(incomplete, type="file")]


@click.command(cls=_Command, short_help="Run a command with the identity and upstreams of APP.")
@click.argument("app", shell_complete=complete_app)
@click.argument(
    "command",
    metavar="-- CMD…",
    nargs=-1,
    type=click.UNPROCESSED,
    shell_complete=_complete_file,
)
@click.pass_obj
def run(place: Place, app: str, command: tuple[str, ...]) -> int:
    """Run a command as APP: with its identity, its upstreams and its environment.

    The command runs here, in this terminal and folder, beside the running mesh. A temporary
    sidecar gives it upstream ports of its own, and the intentions hold for it as they do for APP.
    It takes no calls. When the command ends, however it does, the sidecar goes.

    \b
    meshrun run web -- python manage.py migrate
    meshrun run web -- sh -c 'curl $UPSTREAM_API_URL/healthz'
    meshrun run web -- bash

    Exits with the command's code, 128 + N where signal N ended it; 127 where there is no such
    command; 1 where no mesh runs here.
    """
    from meshrun.supervisor.environment import effective

    words = _words(command)
    held, lines = place.client().begin_one_off(app, os.path.basename(words[0]) or words[0])
    environment = effective(os.environ, held.env_file, held.env, held.injected)
    try:
        return foreground.run(words, environment)
    finally:
        lines.close()


def _words(command: Sequence[str]) -> Sequence[str]:
    words = command[1:] if command and command[0] == "--" else command
    if not words or not words[0]:
        raise click.UsageError("name the command to run: meshrun run APP -- CMD…")
    return words
