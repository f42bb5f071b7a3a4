"""`meshrun tap`: the requests and connections of the running mesh, as they happen."""

import click

from meshrun.supervisor.cli.names import complete_service
from meshrun.supervisor.cli.place import Place

__all__ = ["tap"]


@click.command(short_help="Show each request from SRC to DST as it happens.")
@click.argument("source", metavar="SRC", shell_complete=complete_service)
@click.argument("destination", metavar="DST", shell_complete=complete_service)
@click.option("--json", "as_json", is_flag=True, help="Print an object a line.")
@click.pass_obj
def tap(place: Place, source: str, destination: str, as_json: bool) -> None:
    """Show each request from SRC to DST when it is over, until Ctrl-C or the mesh ends.

    SRC may be `*` for every caller (quote it for your shell). Of a tcp service each connection is
    shown when it has ended. Nothing is recorded any more once nobody taps.

    \b
    meshrun tap web api
    meshrun tap '*' api
    """
    from meshrun.supervisor.cli.access_lines import print_access

    lines = place.client().tap(source, destination)
    print_access(lines, as_json=as_json, dates=False)
