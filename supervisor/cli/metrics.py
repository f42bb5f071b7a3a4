"""`meshrun metrics`: what the running mesh has counted."""

import click

from meshrun.supervisor.cli.place import Place

__all__ = ["metrics"]


@click.command(short_help="Print counters and histograms for Prometheus.")
@click.pass_obj
def metrics(place: Place) -> None:
    """Print requests, connections, bytes, decisions, certificates and restarts for Prometheus.

    It is what a scraper gets from the control socket:

    \b
    meshrun metrics | grep connections_open
    curl --unix-socket .meshrun/control.sock http://meshrun/metrics
    """
    click.echo(place.client().metrics(), nl=False)
