"""`meshrun intentions`: who may call whom, in the words and exit codes of `consul intention`."""

from collections.abc import Sequence
from typing import Literal

import click
import msgspec

from meshrun.proxy.intentions import WILDCARD, Action, Intention, precedence
from meshrun.supervisor.cli.columns import table
from meshrun.supervisor.cli.group import Group
from meshrun.supervisor.cli.intention_access import Access, open_access
from meshrun.supervisor.cli.intention_arguments import (
    ArgumentsError,
    Pairing,
    meta_entry,
    permissions_for,
    read_wanted,
    sought,
    target,
    two_services,
)
from meshrun.supervisor.cli.names import complete_service
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.cli.request_options import Asking, request_options
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.intention_book import IntentionNotFoundError, not_found
from meshrun.supervisor.intention_json import IntentionRecord, permission_records

__all__ = ["intentions"]


class _Command(click.Command):
    """A command whose every failure, usage included, has one exit code, as in Consul."""

    failure = 1

    def make_context(
        self,
        info_name: str | None,
        args: list[str],
        parent: click.Context | None = None,
        **extra: object,
    ) -> click.Context:
        """Read the arguments."""
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            error.show()
            raise click.exceptions.Exit(self.failure) from error

    def invoke(self, ctx: click.Context) -> object:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except MeshrunError as error:
            prefix = "Error: " if isinstance(error, ArgumentsError) else "meshrun: "
            click.echo(f"{prefix}{error}", err=True)
            ctx.exit(self.failure)


class _Check(_Command):
    """Consul's `check` keeps 1 for "denied"."""

    failure = 2


_json = click.option("--json", "as_json", is_flag=True, help="Print JSON, as Consul's API has it.")


def _pair_arguments(command: "click.decorators.FC") -> "click.decorators.FC":
    for option in (
        click.option("--from", "source", metavar="SRC", help="The same as the first argument."),
        click.option("--to", "destination", metavar="DST", help="The same as the second argument."),
        click.argument("names", metavar="SRC DST", nargs=-1, shell_complete=complete_service),
    ):
        command = option(command)
    return command


@click.group(cls=Group)
def intentions() -> None:
    """Say who may call whom.

    These intentions lie over those of mesh.toml, outlive the run, and can be read and changed where
    no mesh runs, too. A service is named as in mesh.toml, `*` means every one. Of all that match a
    call exactly one decides: that with the most exact destination, then the most exact source.

    \b
    meshrun intentions create web db             web may call db
    meshrun intentions create -deny '*' db       nobody else may
    meshrun intentions create -verb GET web api  GET only, the rest by the default
    meshrun intentions check web db              Allowed
    meshrun intentions delete web db
    """


@intentions.command(cls=_Command)
@_pair_arguments
@click.option("--allow", is_flag=True, help="Let the source call the destination (the default).")
@click.option("--deny", is_flag=True, help="Keep the source from calling the destination.")
@click.option("--replace", is_flag=True, help="Replace the intention that the pair has.")
@click.option("--description", metavar="TEXT", default="", help="What it is for.")
@click.option("--meta", metavar="KEY=VALUE", multiple=True, help="A note; may be repeated.")
@click.option(
    "--file", "from_files", is_flag=True, help="The arguments are JSON files, - is stdin."
)
@click.option(
    "--verb",
    "verbs",
    metavar="METHOD,…",
    multiple=True,
    help="Only requests of these methods; http or * is any.",
)
@click.option("--dry-run", is_flag=True, help="Let through and report what it would deny.")
@click.pass_obj
def create(
    place: Place,
    names: tuple[str, ...],
    source: str | None,
    destination: str | None,
    allow: bool,
    deny: bool,
    replace: bool,
    description: str,
    meta: tuple[str, ...],
    from_files: bool,
    verbs: tuple[str, ...],
    dry_run: bool,
) -> None:
    """Let SRC call DST, or with -deny keep it from that.

    With -verb it is about HTTP requests of these methods only, and the default decides about all
    others. A file can say more of requests (Permissions).

    Returns when every sidecar enforces it; a deny also closes the connections that it forbids. A
    pair has one intention: another one fails unless -replace is given.

    \b
    meshrun intentions create web db
    meshrun intentions create -deny -replace web db
    meshrun intentions create -from web -to api -verb GET,HEAD
    meshrun intentions create -from web -to db -meta team=shop -description "orders"
    echo '{"SourceName": "web", "DestinationName": "db"}' | meshrun intentions create -file -
    """
    if allow and deny:
        raise ArgumentsError("Only one of -allow or -deny may be specified.")
    if from_files:
        if verbs or dry_run:
            raise ArgumentsError("-verb and -dry-run are not for -file: the file says it")
        wanted = _from_files(names)
    else:
        source, destination = two_services(Pairing(names, source, destination))
        action: Action = "deny" if deny else "allow"
        permissions = permissions_for(verbs, action)
        if permissions and destination == WILDCARD:
            raise ArgumentsError("-verb needs one destination: not all of '*' need speak HTTP")
        if dry_run and not permissions and not deny:
            raise ArgumentsError("-dry-run would deny nothing: it is for -deny and for -verb")
        wanted = [
            Intention(
                source=source,
                destination=destination,
                action="deny" if permissions else action,
                permissions=permissions,
                dry_run=dry_run,
                description=description,
                meta=dict(meta_entry(entry) for entry in meta),
            )
        ]
    with open_access(place) as access:
        for one in wanted:
            _create(access, one, replace=replace)


def _from_files(names: Sequence[str]) -> list[Intention]:
    if not names:
        raise ArgumentsError("Must specify at least one file, or - for the standard input")
    wanted = []
    for name in names:
        try:
            with click.open_file(name, "rb") as file:
                wanted.append(read_wanted(file.read(), name))
        except OSError as error:
            raise ArgumentsError(f"cannot read {name}: {error.strerror}") from error
    return wanted


def _create(access: Access, wanted: Intention, *, replace: bool) -> None:
    # Only for what is said of it; whether it may be made is decided where it is kept.
    replaces = replace and access.find(wanted.pair) is not None
    access.warn_of_unknown(wanted.pair)
    if wanted.permissions and access.protocol(wanted.destination) == "tcp":
        message = (
            f"warning: {wanted.destination} is a tcp service: an intention about HTTP requests "
            "denies every call to it"
        )
        click.echo(click.style(message, fg="yellow"), err=True)
    access.put(wanted, replace=replace)
    if not replaces:
        click.echo(f"Created: {wanted}")


@intentions.command(cls=_Check, short_help="Say whether SRC may call DST.")
@_pair_arguments
@request_options
@_json
@click.pass_obj
def check(
    place: Place,
    names: tuple[str, ...],
    source: str | None,
    destination: str | None,
    method: str | None,
    path: str | None,
    headers: tuple[str, ...],
    as_json: bool,
) -> int:
    """Say whether SRC may call DST, or make one HTTP request to it: `Allowed` or `Denied`.

    Exits 0 where it may, 1 where it may not, 2 where that cannot be said. An intention about
    requests is `Denied` where none is described, as in Consul. --json names what decides, and so
    does `meshrun why SRC DST`.

    \b
    meshrun intentions check web db
    meshrun intentions check web api --method POST --path '/orders?all' -H x-role=admin
    """
    pair = two_services(Pairing(names, source, destination))
    with open_access(place) as access:
        access.warn_of_unknown(pair)
        found = access.check(pair, Asking(method, path, headers))
    if as_json:
        click.echo(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
    else:
        click.echo("Allowed" if found.allowed else "Denied")
    return 0 if found.allowed else 1


@intentions.command(cls=_Command)
@_pair_arguments
@_json
@click.pass_obj
def get(
    place: Place,
    names: tuple[str, ...],
    source: str | None,
    destination: str | None,
    as_json: bool,
) -> None:
    """Show one intention, by SRC and DST or by its ID.

    \b
    meshrun intentions get web db
    meshrun intentions get 5f0d2c1e-8f4e-5d5b-9c39-0d8d1c1b2a3f
    """
    with open_access(place) as access:
        found = _found(access, sought(Pairing(names, source, destination)))
    if as_json:
        _print_json(IntentionRecord.of(found))
    else:
        click.echo("\n".join(_described(found)))


@intentions.command("list", cls=_Command, short_help="List those in force, in their order.")
@_json
@click.pass_obj
def list_all(place: Place, as_json: bool) -> int:
    """List the intentions in force, in the order in which they are evaluated.

    Exits 2 where there are none (with --json: prints an empty list and exits 0).

    \b
    meshrun intentions list
    """
    with open_access(place) as access:
        found = access.effective()
    if as_json:
        _print_json([IntentionRecord.of(intention) for intention in found])
        return 0
    if not found:
        click.echo("There are no intentions.", err=True)
        return 2
    click.echo(
        table(
            ["ID", "Source", "Action", "Destination", "Precedence", "Origin"],
            [
                [i.id, i.source, i.effect, i.destination, str(precedence(i)), i.where or i.origin]
                for i in found
            ],
        )
    )
    return 0


@intentions.command(cls=_Command, short_help="List those that may decide about calls to NAME.")
@click.argument("names", metavar="NAME", nargs=-1, shell_complete=complete_service)
@click.option("--source", "by_source", is_flag=True, help="Those that name NAME as the source.")
@click.option(
    "--destination", "by_destination", is_flag=True, help="As the destination (the default)."
)
@_json
@click.pass_obj
def match(
    place: Place, names: tuple[str, ...], by_source: bool, by_destination: bool, as_json: bool
) -> None:
    """List the intentions that may decide about calls to NAME, or with -source from it.

    \b
    meshrun intentions match db
    meshrun intentions match -source web
    """
    if by_source and by_destination:
        raise ArgumentsError("Only one of -source or -destination may be specified.")
    if len(names) != 1:
        raise ArgumentsError("Must specify exactly one argument: the name of a service")
    name = target(names[0])
    by: Literal["source", "destination"] = "source" if by_source else "destination"
    with open_access(place) as access:
        found = access.match(by, name)
    if as_json:
        _print_json([IntentionRecord.of(intention) for intention in found])
        return
    for intention in found:
        click.echo(str(intention))


@intentions.command(cls=_Command)
@_pair_arguments
@click.pass_obj
def delete(
    place: Place, names: tuple[str, ...], source: str | None, destination: str | None
) -> None:
    """Delete one intention, by SRC and DST or by its ID.

    The one that mesh.toml has for the pair, if it has one, is in force again; that one itself is
    deleted in mesh.toml. Returns when no sidecar follows the deleted one any more.

    \b
    meshrun intentions delete web db
    """
    with open_access(place) as access:
        wanted = sought(Pairing(names, source, destination))
        access.delete(wanted if isinstance(wanted, tuple) else _found(access, wanted).pair)
    click.echo("Intention deleted.")


def _found(access: Access, wanted: tuple[str, str] | str) -> Intention:
    found = access.find(wanted)
    if found is None:
        raise IntentionNotFoundError(not_found(wanted))
    return found


def _described(intention: Intention) -> list[str]:
    facts = [
        ("Source", intention.source),
        ("Destination", intention.destination),
        *([] if intention.permissions else [("Action", intention.action)]),
        *([("Dry Run", "yes")] if intention.dry_run else []),
        ("ID", intention.id),
    ]
    if intention.description:
        facts.append(("Description", intention.description))
    facts += [(f"Meta[{key}]", value) for key, value in sorted(intention.meta.items())]
    if intention.created_at:
        facts.append(("Created At", _rfc850(intention.created_at)))
    facts.append(("Defined In", intention.where or intention.origin))
    width = max(len(name) for name, _ in facts) + 2
    lines = [f"{name + ':':<{width}}{value}" for name, value in facts]
    if intention.permissions:
        records = msgspec.json.encode(permission_records(intention.permissions))
        lines += ["Permissions:", msgspec.json.format(records, indent=2).decode()]
    return lines


def _rfc850(at: float) -> str:
    from datetime import datetime

    return datetime.fromtimestamp(at).astimezone().strftime("%A, %d-%b-%y %H:%M:%S %Z")


def _print_json(value: IntentionRecord | Sequence[IntentionRecord]) -> None:
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())
