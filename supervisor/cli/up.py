"""`meshrun up`: the command that becomes the supervisor."""

import os
import secrets
import shutil
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import click

from meshrun.supervisor.cli.names import complete_app, complete_scale
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.cli.scale_argument import Scale

if TYPE_CHECKING:
    from meshrun.supervisor.configuration.model import Configuration
    from meshrun.supervisor.launching import Launcher
    from meshrun.supervisor.plan import Selection
    from meshrun.supervisor.sdnotify import Contact

__all__ = ["up"]


@click.command()
@click.argument("apps", nargs=-1, metavar="[APP…]", shell_complete=complete_app)
@click.option("-d", "--detach", is_flag=True, help="Go on in the background; see `meshrun down`.")
@click.option(
    "--wait",
    is_flag=True,
    help="Detach, and return when everything is ready, or at once when something fails.",
)
@click.option(
    "--timeout",
    default="60s",
    show_default=True,
    metavar="DURATION",
    help="How long --wait waits at most.",
)
@click.option("--no-deps", is_flag=True, help="Start only the apps named, not what they need.")
@click.option(
    "--scale",
    multiple=True,
    type=Scale(),
    metavar="APP=N",
    shell_complete=complete_scale,
    help="Run N instances of APP; may be repeated.",
)
@click.option(
    "--isolated",
    is_flag=True,
    help="Allocate every fixed port too, in a state folder of its own: a copy beside others.",
)
@click.option(
    "--procfile",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Run a Procfile, without a mesh.toml.",
)
@click.option(
    "--exit-code-from",
    metavar="APP",
    shell_complete=complete_app,
    help="Stop everything when APP ends, and exit with its code.",
)
@click.option("--abort-on-exit", is_flag=True, help="Stop everything when any app ends.")
@click.option("--detached", is_flag=True, hidden=True)
@click.pass_context
def up(
    ctx: click.Context,
    apps: tuple[str, ...],
    detach: bool,
    wait: bool,
    timeout: str,
    no_deps: bool,
    scale: tuple[tuple[str, int], ...],
    isolated: bool,
    procfile: Path | None,
    exit_code_from: str | None,
    abort_on_exit: bool,
    detached: bool,
) -> None:
    """Start the mesh: all apps, or those named and what they need.

    Runs in the foreground with one log; Ctrl-C stops everything in order, a second one kills. It
    ends by itself when every app has ended for good.

    \b
    meshrun up                          everything in mesh.toml
    meshrun up web --scale web=2        two instances of web, and what it needs
    meshrun up --wait && pytest         in the background, tests once all is ready
    meshrun up --exit-code-from tests   the app `tests` says how the run went

    With --exit-code-from APP is not started again when it ends, with --abort-on-exit no app is,
    whatever `restart` says. One whose completion another app waits for may complete.

    Exits 130 after Ctrl-C, 0 after TERM and `meshrun down`; 1 if it broke or, where it ended by
    itself, an app had failed; 2 if the configuration is wrong, and then nothing was started.
    """
    place = ctx.ensure_object(Place)
    if (detach or wait) and (exit_code_from is not None or abort_on_exit):
        option = "--exit-code-from" if exit_code_from is not None else "--abort-on-exit"
        how = "-d" if detach else "--wait"
        raise click.UsageError(
            f"{option} is about how this command ends, and with {how} it ends at once; leave one "
            "of them out"
        )
    if detach or wait:
        from meshrun.supervisor.cli import detaching

        timeout_s = _seconds(timeout)
        options = [
            *apps,
            *(["--no-deps"] if no_deps else ()),
            *(["--isolated"] if isolated else ()),
        ]
        options += [f"--scale={name}={number}" for name, number in scale]
        options += [f"--procfile={procfile}"] if procfile is not None else []
        ctx.exit(detaching.detach(place, options, timeout_s if wait else None))
    from meshrun.supervisor import activation, cgroup, sdnotify
    from meshrun.supervisor.launching import Launcher

    # What a service manager says is for this process, and for none that it starts.
    contact = sdnotify.contact(os.environ, os.getpid())
    handed = activation.take(os.environ, os.getpid())
    for name in sdnotify.VARIABLES:
        os.environ.pop(name, None)
    if detached:
        cgroup.leave()
    # Before anything else, the loop, threads and secrets above all: what is here is in every child.
    launcher = Launcher.start(silent=detached)
    # What only this process needs comes while the launcher imports what the sidecars need.
    from meshrun.supervisor.ends import EndRule
    from meshrun.supervisor.plan import Selection

    try:
        code = _run(
            launcher,
            place,
            Selection(
                names=apps,
                dependencies=not no_deps,
                scale=dict(scale),
                isolated=isolated,
                ends=EndRule(exit_code_from=exit_code_from, abort_on_exit=abort_on_exit),
            ),
            procfile,
            detached=detached,
            contact=None if detached else contact,
            handed=handed,
        )
    finally:
        launcher.end()
    ctx.exit(code)


def _seconds(timeout: str) -> float:
    from meshrun.supervisor.units import UnitError, seconds

    try:
        return seconds(timeout)
    except UnitError as error:
        raise click.BadParameter(str(error), param_hint="--timeout") from error


def _check_ends(configuration: "Configuration", selection: "Selection") -> None:
    """Refuse to wait for the end of what will not run."""
    wanted = selection.ends.exit_code_from
    if wanted is None:
        return
    from meshrun.supervisor.plan import instance_name, scaled, select
    from meshrun.supervisor.suggest import hint

    there = [name for name in select(configuration, selection) if name in configuration.apps]
    instances = scaled(configuration, selection, there)
    known = [
        name
        for app in instances.values()
        for name in (app.name, *(instance_name(app.name, k + 1) for k in range(app.instances)))
    ]
    if wanted not in known:
        raise click.BadParameter(
            f'no app "{wanted}" is started{hint(wanted, known)}', param_hint="--exit-code-from"
        )
    if instances[wanted.partition(".")[0]].every is not None:
        raise click.BadParameter(
            f"{wanted} runs at times (every), and so never ends for good",
            param_hint="--exit-code-from",
        )


def _run(
    launcher: "Launcher",
    place: Place,
    selection: "Selection",
    procfile: Path | None,
    *,
    detached: bool,
    contact: "Contact | None",
    handed: Mapping[int, socket.socket],
) -> int:
    import uvloop

    from meshrun.supervisor.cli import detaching
    from meshrun.supervisor.configuration.source import Source
    from meshrun.supervisor.preparation import prepare
    from meshrun.supervisor.supervise import supervise

    environ = dict(os.environ)
    file = procfile if procfile is not None else place.config_file()
    source = Source(path=file, environ=environ, procfile=procfile is not None)
    configuration = source.load()
    _check_ends(configuration, selection)
    state_path = place.state_path()
    throw_away = selection.isolated and place.state_dir is None
    if throw_away:
        state_path = state_path.with_name(f"{state_path.name}-{secrets.token_hex(4)}")
    prepared = prepare(source, configuration, selection, state_path, handed)

    def started() -> None:
        if detached:
            detaching.report_started(state_path)

    try:
        return uvloop.run(
            supervise(
                prepared,
                launcher,
                ends=selection.ends,
                foreground=not detached,
                on_started=started,
                contact=contact,
            )
        )
    finally:
        prepared.close()
        if throw_away:
            shutil.rmtree(state_path, ignore_errors=True)
