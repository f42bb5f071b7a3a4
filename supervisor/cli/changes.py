"""`meshrun reload` and `scale`: changing what runs, and nothing else of it."""

from collections.abc import Sequence

import click
import msgspec

from meshrun.supervisor.cli.names import complete_scale
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.cli.ps import state_colour
from meshrun.supervisor.cli.records import Done
from meshrun.supervisor.cli.scale_argument import Scale

__all__ = ["reload", "scale"]

_BAD = ("failed", "backoff", "crash-loop")
# What the API answers for a file that cannot be applied.
_UNFIT = 422

_json = click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")


@click.command(short_help="Apply a changed mesh.toml, touching only what changed.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@_json
@click.pass_obj
def reload(place: Place, dry_run: bool, as_json: bool) -> int:
    """Apply a changed mesh.toml to the running mesh, and touch only what changed.

    What is new is started, what is gone is stopped, and what would run differently is restarted,
    one instance of an app after the other; the rest runs on. No call fails for it where there is
    another instance, or the caller can wait. Returns when all that is up, or has failed.

    A file that is wrong changes nothing: every mistake is printed, and the command exits 2. Exits 1
    if an app fails.

    \b
    meshrun reload --dry-run   what would be done
    meshrun reload
    """
    from meshrun.supervisor.cli.client import ApiError

    try:
        done = place.client().reload(dry_run=dry_run)
    except ApiError as error:
        if error.status != _UNFIT:
            raise
        click.echo(str(error), err=True)
        return 2
    return _print(done, as_json, "would have " if dry_run else "")


@click.command(short_help="Run other numbers of instances of apps.")
@click.argument(
    "wanted",
    nargs=-1,
    required=True,
    type=Scale(),
    metavar="APP=N…",
    shell_complete=complete_scale,
)
@_json
@click.pass_obj
def scale(place: Place, wanted: tuple[tuple[str, int], ...], as_json: bool) -> int:
    """Run N instances of an app of the running mesh, from 0 to 100.

    New ones get calls once they are ready. Of those that are too many the last go: they get no more
    calls, those that they have end within `stop.timeout`, and then they are stopped. It stays so
    after `meshrun reload`, until `instances` changes in the file. Exits 1 if an app fails.

    \b
    meshrun scale web=3 worker=2
    """
    return _print(place.client().scale(dict(wanted)), as_json, "")


def _print(done: Sequence[Done], as_json: bool, how: str) -> int:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(done), indent=2).decode())
    elif not done:
        click.echo("nothing has changed")
    else:
        for step in done:
            click.echo(f"{how}{step.text}{_said(step)}" if not how else f"{how}{step.text}")
    failed = any(step.state in _BAD or step.action == "kept" for step in done)
    return 1 if failed and not how else 0


def _said(step: Done) -> str:
    if step.state is None:
        return ""
    state = click.style(step.state, fg=state_colour(step.state))
    ready = ", ready" if step.ready else ""
    reason = f": {step.reason}" if step.reason not in (None, "", step.state) else ""
    return f": {state}{ready}{reason}"
