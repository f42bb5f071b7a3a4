"""`meshrun completion`: what a shell needs to complete meshrun's commands, and its answers.

The script comes from click and asks `meshrun` itself, with a variable in its environment: see
`answer`.
"""

import os
import signal
import sys

import click
from click.shell_completion import ShellComplete, get_completion_class

from meshrun.supervisor.cli import COMPLETION_VARIABLE
from meshrun.supervisor.cli.place import Place

__all__ = ["answer", "completion"]

# A prompt does not wait: a supervisor that was stopped (SIGSTOP) would answer never.
LIMIT_S = 2.0
SHELLS = ("bash", "zsh", "fish")


@click.command(short_help="Print the script that makes a shell complete meshrun.")
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Print the script that makes a shell complete meshrun's commands, options and apps.

    \b
    eval "$(meshrun completion bash)"   in ~/.bashrc (bash 4.4 or newer)
    eval "$(meshrun completion zsh)"    in ~/.zshrc, after compinit
    meshrun completion fish | source    in ~/.config/fish/config.fish

    Apps are those of the mesh.toml that the command line means, instances (`web.2`) those of the
    running mesh.
    """
    script = _for(context.find_root().command, shell)
    assert script is not None
    # Not the shell's own `source`: it would start a bash to ask for its version.
    click.echo(ShellComplete.source(script))


def _for(program: click.Command, shell: str) -> ShellComplete | None:
    found = get_completion_class(shell)
    return (
        None if found is None else found(program, {"obj": Place()}, "meshrun", COMPLETION_VARIABLE)
    )


def answer(program: click.Command, wanted: str) -> int:
    """Print what could stand at the cursor, as a shell's script asks; returns the exit code.

    `wanted` says in whose words: `bash_complete`. Whatever is wrong, nothing but completions gets
    into the prompt.
    """
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    shell, _, instruction = wanted.partition("_")
    asked = _for(program, shell)
    if asked is None or instruction != "complete":
        return 1
    try:
        found = asked.complete()
    except Exception:  # noqa: BLE001 - a half-written command line may be anything
        return 1
    if found:
        click.echo(found)
    return 0
