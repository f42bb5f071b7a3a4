"""`meshrun down`: end the mesh, or what is left of one."""

import click

from meshrun.supervisor import processes
from meshrun.supervisor.cli.client import Client
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.errors import MeshrunError, NotRunningError
from meshrun.supervisor.statedir import AlreadyLockedError, StateDir

__all__ = ["down"]


@click.command(short_help="Stop the mesh, and wait until it is gone.")
@click.option(
    "--timeout",
    metavar="DURATION",
    default="60s",
    show_default=True,
    help="How long the mesh may take to stop.",
)
@click.pass_obj
def down(place: Place, timeout: str) -> None:
    """Stop the mesh, in the foreground of a terminal or detached, and wait until it is gone.

    Where a run was killed, ends what it left behind. Where nothing runs there is nothing to do,
    and that is no failure.

    \b
    meshrun down
    meshrun down --timeout 5m
    """
    from meshrun.supervisor.units import UnitError, seconds

    try:
        limit_s = seconds(timeout)
    except UnitError as error:
        raise click.BadParameter(str(error), param_hint="--timeout") from error
    try:
        state = place.open_state()
    except NotRunningError:
        click.echo("nothing runs here")
        return
    try:
        click.echo("\n".join(_end(state, limit_s)))
    finally:
        state.close()


def _end(state: StateDir, limit_s: float) -> list[str]:
    said = ["the mesh has stopped"] if _stop(state, limit_s) else []
    from meshrun.supervisor import runfile

    try:
        state.lock()
    except AlreadyLockedError as error:
        raise MeshrunError(f"cannot stop what runs in {state.path}: {_holder(state)}") from error
    ended = runfile.end_leftovers(state)
    if ended:
        said += ["ended what a killed run had left:", *(f"  {command}" for command in ended)]
    return said or ["nothing runs here"]


def _stop(state: StateDir, limit_s: float) -> bool:
    """Stop the supervisor and wait for its end; False where none answers."""
    client = Client(state)
    try:
        supervisor = processes.identify(client.run().pid)
        client.down()
    except NotRunningError:
        return False
    if supervisor is None:
        return True
    processes.await_exit(supervisor, limit_s)
    if processes.identify(supervisor.pid) == supervisor:
        raise MeshrunError(
            f"the mesh (pid {supervisor.pid}) is still stopping after {limit_s:g} s; "
            "see `meshrun ps`, or run `meshrun down` again to go on waiting"
        )
    return True


def _holder(state: StateDir) -> str:
    from meshrun.supervisor import runfile

    run = runfile.read(state)
    who = f" (pid {run.supervisor.pid})" if run is not None else ""
    return (
        f"its supervisor{who} holds the folder but does not answer; "
        "if it is starting, try again, else kill it and run `meshrun down` again"
    )
