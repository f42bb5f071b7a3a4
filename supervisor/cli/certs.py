"""`meshrun certs`: the certificates of the running mesh."""

import time
from datetime import datetime

import click
import msgspec

from meshrun.supervisor.cli.columns import age, table
from meshrun.supervisor.cli.group import Group
from meshrun.supervisor.cli.names import complete_app
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.cli.records import Leaf, Root

__all__ = ["certs"]


class _Certs(Group):
    default = "show"


_json = click.option("--json", "as_json", is_flag=True, help="Print a list of objects.")


@click.group(cls=_Certs)
def certs() -> None:
    """Show the certificates of the running mesh, or replace them.

    \b
    meshrun certs                the leaf of every sidecar, and when it expires
    meshrun certs show --roots   the roots that every sidecar trusts
    meshrun certs rotate web     a new leaf for each instance of web, now
    """


@certs.command(short_help="Show the leaf that each sidecar serves, or the roots.")
@click.option("--roots", is_flag=True, help="The roots instead of the leaves; --json has the PEM.")
@_json
@click.pass_obj
def show(place: Place, roots: bool, as_json: bool) -> None:
    """Show the leaf that each sidecar serves, or the roots that all trust.

    Each worker of a sidecar has its own.

    \b
    meshrun certs show
    meshrun certs show --roots --json | jq -r '.[].pem'
    """
    client = place.client()
    if not roots:
        _print_leaves(client.certs(), as_json=as_json)
        return
    found = client.roots()
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    heading = ["TRUST DOMAIN", "ACTIVE", "EXPIRES", "SERIAL"]
    click.echo(table(heading, [_root_cells(root) for root in found]))


@certs.command(short_help="Replace leaves now; no connection is dropped.")
@click.argument("apps", metavar="[APP…]", nargs=-1, shell_complete=complete_app)
@_json
@click.pass_obj
def rotate(place: Place, apps: tuple[str, ...], as_json: bool) -> None:
    """Replace leaves now, and return when every sidecar serves its new one.

    No connection is dropped. APP is an app (`web`) or one instance (`web.1`); none means all.

    \b
    meshrun certs rotate web
    """
    leaves = place.client().rotate(apps)
    chosen = [leaf for leaf in leaves if not apps or {leaf.service, leaf.instance} & {*apps}]
    _print_leaves(chosen, as_json=as_json)


def _print_leaves(leaves: list[Leaf], *, as_json: bool) -> None:
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(leaves), indent=2).decode())
        return
    several = any(leaf.worker > 1 for leaf in leaves)
    rows = [
        [
            leaf.instance,
            *([str(leaf.worker)] if several else []),
            _moment(leaf.issued_at),
            _expiry(leaf.not_after),
            leaf.serial,
            leaf.identity,
        ]
        for leaf in leaves
    ]
    worker = ["WORKER"] if several else []
    click.echo(table(["INSTANCE", *worker, "ISSUED", "EXPIRES", "SERIAL", "IDENTITY"], rows))


def _root_cells(root: Root) -> list[str]:
    return [root.trust_domain, "yes" if root.active else "no", _expiry(root.not_after), root.serial]


def _moment(at: float) -> str:
    return datetime.fromtimestamp(at).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def _expiry(at: float) -> str:
    left_s = at - time.time()
    if left_s < 0:
        return click.style(f"expired {age(-left_s)} ago", fg="red")
    return f"in {age(left_s)} ({_moment(at)})"
