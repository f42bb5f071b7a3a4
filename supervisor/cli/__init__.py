"""The commands of `meshrun`: `main` finds the one that is called, and says how it ended.

A module here has the commands of one noun. None of them imports at its top what only some calls
need: `meshrun ps` answers in 0.15 s, and an import can cost half of that.
"""

import io
import os
import sys
from collections.abc import Sequence

import click

from meshrun.supervisor.cli.arguments import with_two_dashes
from meshrun.supervisor.cli.group import LazyGroup, spelled
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.errors import ConfigError, MeshrunError, NotRunningError

__all__ = ["main", "program", "run"]

# In the environment of a call by which a shell asks what could stand at the cursor.
COMPLETION_VARIABLE = "_MESHRUN_COMPLETE"

_HERE = "meshrun.supervisor.cli"

program = LazyGroup(
    modules={
        "up": f"{_HERE}.up",
        "down": f"{_HERE}.down",
        "ps": f"{_HERE}.ps",
        "logs": f"{_HERE}.output",
        "events": f"{_HERE}.output",
        "tap": f"{_HERE}.tap",
        "metrics": f"{_HERE}.metrics",
        "start": f"{_HERE}.control",
        "stop": f"{_HERE}.control",
        "restart": f"{_HERE}.control",
        "reload": f"{_HERE}.changes",
        "scale": f"{_HERE}.changes",
        "check": f"{_HERE}.check",
        "env": f"{_HERE}.env",
        "run": f"{_HERE}.oneoff",
        "why": f"{_HERE}.why",
        "intentions": f"{_HERE}.intentions",
        "certs": f"{_HERE}.certs",
        "export": f"{_HERE}.export",
        "completion": f"{_HERE}.completion",
    },
    aliases={"intention": "intentions"},
    summary="Run the apps of one machine as a service mesh.\n\n"
    "meshrun reads mesh.toml, starts each app beside its own sidecar, and lets apps call each "
    "other over mutual TLS where an intention allows it.",
)


def main() -> None:
    """Run the command line of this process and exit."""
    for stream in (sys.stdout, sys.stderr):
        # What a locale cannot show must not end a command.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if completing := os.environ.get(COMPLETION_VARIABLE):
        from meshrun.supervisor.cli import completion

        sys.exit(completion.answer(program, completing))
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns the exit code: 0 done, 1 failed, 2 usage or configuration."""
    try:
        code = _invoke(arguments)
        sys.stdout.flush()
    except ConfigError as error:
        click.echo(str(error), err=True)
        return 2
    except NotRunningError as error:
        click.echo(f"meshrun: {error}; start it with: meshrun up", err=True)
        return 1
    except MeshrunError as error:
        click.echo(f"meshrun: {error}", err=True)
        return 1
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:
        # Whoever read us has enough (`| head`); the interpreter must not try to flush once more.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        click.echo(f"meshrun: {error}", err=True)
        return 1
    return code


def _invoke(arguments: Sequence[str]) -> int:
    spelling = spelled(program, click.Context(program, **program.context_settings))
    colour = False if os.environ.get("NO_COLOR") else None
    words = with_two_dashes(arguments, spelling)
    try:
        with program.make_context("meshrun", words, obj=Place(), color=colour) as context:
            result = program.invoke(context)
    except click.exceptions.Exit as ended:
        return ended.exit_code
    return result if isinstance(result, int) else 0
