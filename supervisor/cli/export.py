"""`meshrun export`: the mesh as other programs want it."""

import os
import pwd
import shlex
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshrun.supervisor.cli.group import Group
from meshrun.supervisor.cli.place import VARIABLE, Place
from meshrun.supervisor.errors import MeshrunError

if TYPE_CHECKING:
    from meshrun.supervisor import systemd_unit
    from meshrun.supervisor.plan import Plan

__all__ = ["export"]

_UNITS = "/etc/systemd/system"


@click.group(cls=Group)
def export() -> None:
    """Write the mesh down for other programs that run it.

    \b
    meshrun export systemd   units of systemd, for a machine of its own
    """


@export.command(short_help="Write units of systemd that run this mesh.")
@click.option("--user", metavar="USER", help="Whom the mesh runs as (default: you).")
@click.option(
    "--output",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="DIR",
    help="Write the units there (default: print them).",
)
@click.pass_obj
def systemd(place: Place, user: str | None, output: Path | None) -> None:
    """Write units of systemd that run this mesh: a service, and a socket for fixed upstream ports.

    The service says when it is ready, is watched, stops in order, and may write only to the
    folders of the mesh. Read it before you install it: each setting says why it is there.

    \b
    meshrun export systemd --output units
    sudo cp units/* /etc/systemd/system/ && sudo systemctl daemon-reload
    sudo systemctl enable --now meshrun-shop     (where the mesh is called shop)

    Run it again when the folders, fixed ports or `stop` timeouts in mesh.toml change.
    """
    from meshrun.supervisor import systemd_unit

    name = _user(user)
    given = _given(place, name)
    unit = systemd_unit.unit_name(given.mesh)
    units = {f"{unit}.service": systemd_unit.service(given)}
    socket = systemd_unit.sockets(given)
    if socket is not None:
        units[f"{unit}.socket"] = socket
    for warning in _warnings(place, name, given.writable):
        click.echo(f"warning: {warning}", err=True)
    if output is None:
        # As `systemctl cat` shows several.
        click.echo(
            "\n".join(f"# {_UNITS}/{file}\n{text}" for file, text in units.items()), nl=False
        )
    else:
        _write(output, units, unit)


def _user(wanted: str | None) -> str | None:
    """Return the name of whom to run as, None for root."""
    from meshrun.supervisor.systemd_unit import USER_NAME

    if wanted is None:
        try:
            wanted = pwd.getpwuid(os.geteuid()).pw_name
        except KeyError:
            wanted = str(os.geteuid())
    if not USER_NAME.fullmatch(wanted):
        raise click.BadParameter(f"{wanted!r} cannot be the name of a user", param_hint="--user")
    return None if wanted in ("root", "0") else wanted


def _given(place: Place, user: str | None) -> "systemd_unit.Service":
    from meshrun.supervisor import systemd_unit
    from meshrun.supervisor.bodies import app_policy
    from meshrun.supervisor.cli import offline
    from meshrun.supervisor.run import longest_stop_s

    configuration = place.configuration()
    planned = offline.plan(place, configuration, offline.remembered_ports(place))
    file, state = place.config_file().absolute(), place.state_path()
    arguments = [f"--config={file}"]
    if place.state_dir is not None or os.environ.get(VARIABLE):
        arguments.append(f"--state-dir={state}")
    policies = [app_policy(i.app) for i in planned.instances if i.app is not None]
    grace_s = max((policy.stop_timeout_s for policy in policies), default=0.0)
    longest_s = max((policy.longest_stop_s for policy in policies), default=0.0)
    return systemd_unit.Service(
        mesh=configuration.mesh.name,
        meshrun=_meshrun(),
        arguments=tuple(arguments),
        folder=str(file.parent),
        user=user,
        writable=_outermost([str(file.parent), str(state), *_folders(planned)]),
        search=_search(),
        ports=_fixed_ports(planned),
        longest_stop_s=longest_stop_s(grace_s, longest_s),
    )


def _search() -> tuple[str, ...]:
    folders = os.environ.get("PATH", "").split(":")
    return tuple(dict.fromkeys(folder for folder in folders if folder.startswith("/")))


def _meshrun() -> tuple[str, ...]:
    script = Path(sys.executable).with_name("meshrun")
    if os.access(script, os.X_OK):
        return (str(script),)
    return (sys.executable, "-P", "-m", "meshrun")


def _folders(planned: "Plan") -> list[str]:
    """Return where the apps run; not `/`, which would make everything writable."""
    found = [i.cwd for i in planned.instances if i.app is not None and os.path.isdir(i.cwd)]
    return [os.path.abspath(folder) for folder in found if os.path.abspath(folder) != "/"]


def _outermost(folders: Iterable[str]) -> tuple[str, ...]:
    """Leave out what lies within another one."""
    unique = list(dict.fromkeys(folders))
    return tuple(
        one
        for one in unique
        if not any(other != one and Path(one).is_relative_to(other) for other in unique)
    )


def _fixed_ports(planned: "Plan") -> tuple[int, ...]:
    return tuple(
        upstream.port
        for instance in planned.instances
        if instance.app is not None
        for reference, upstream in zip(instance.app.upstreams, instance.upstreams, strict=True)
        if reference.port is not None
    )


def _warnings(place: Place, user: str | None, writable: Iterable[str]) -> list[str]:
    """Say what would keep the service from starting."""
    found = []
    state = place.state_path()
    owner = "root" if user is None else user
    try:
        uid = pwd.getpwnam(owner).pw_uid if not owner.isdecimal() else int(owner)
    except KeyError:
        return [f"there is no user {owner} here"]
    missing = [path for path in writable if not os.path.isdir(path)]
    found += [
        f"{path} is not there, and the service cannot make it; make it with: "
        f"install -d -m 700 -o {owner} {shlex.quote(path)}"
        for path in missing
    ]
    if state.is_dir() and state.stat().st_uid != uid:
        found.append(
            f"the state folder {state} does not belong to {owner}, who shall run the mesh; "
            f"change that with: chown -R {owner} {shlex.quote(str(state))}"
        )
    return found


def _write(folder: Path, units: Mapping[str, str], unit: str) -> None:
    from meshrun.supervisor.systemd_unit import HEADER

    folder.mkdir(parents=True, exist_ok=True)
    for file, text in units.items():
        path = folder / file
        if path.exists() and not path.read_bytes().startswith(HEADER.encode()):
            raise MeshrunError(f"cannot write {path}: there is one that meshrun did not write")
        temporary = path.with_name(f".{file}.new")
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
        click.echo(f"wrote {path}")
    here = " ".join(shlex.quote(str(folder / file)) for file in units)
    click.echo(
        f"install it with: sudo cp {here} {_UNITS}/ && sudo systemctl daemon-reload && "
        f"sudo systemctl enable --now {' '.join(sorted(units, reverse=True))}"
    )
