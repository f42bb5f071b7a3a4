"""How every command of meshrun is found, spelled and refused.

A group imports a command when it is called, gives it the global options (so that they may stand
before or after it), takes long options with one dash, and names the nearest right command.
"""

import copy
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path

import click

from meshrun.supervisor.cli.arguments import Spelling, with_two_dashes
from meshrun.supervisor.cli.place import Place

__all__ = ["Group", "LazyGroup", "place_of", "spelled"]


def place_of(context: click.Context) -> Place:
    """Return what the global options have said so far."""
    return context.ensure_object(Place)


def _take_config(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        place_of(context).config = value


def _take_state_dir(context: click.Context, _: click.Parameter, value: Path | None) -> None:
    if value is not None:
        place_of(context).state_dir = value


def _show_version(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value and not context.resilient_parsing:
        from meshrun import version

        click.echo(f"meshrun {version()}")
        context.exit()


def _global_options() -> list[click.Option]:
    path = click.Path(path_type=Path)
    return [
        click.Option(
            ["-f", "--config"],
            type=path,
            metavar="FILE",
            expose_value=False,
            callback=_take_config,
            help="The configuration (default: mesh.toml, here or in a parent folder).",
        ),
        click.Option(
            ["--state-dir"],
            type=path,
            metavar="DIR",
            expose_value=False,
            callback=_take_state_dir,
            help="The state folder (default: MESHRUN_STATE_DIR, else what mesh.toml says).",
        ),
        click.Option(
            ["--version"],
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_show_version,
            help="Show the version and exit.",
        ),
    ]


def spelled(command: click.Command, context: click.Context) -> Spelling:
    """Return the options that a command has."""
    flags: set[str] = set()
    valued: set[str] = set()
    for parameter in command.get_params(context):
        if isinstance(parameter, click.Option):
            names = {*parameter.opts, *parameter.secondary_opts}
            (flags if parameter.is_flag or parameter.count else valued).update(names)
    interspersed = command.allow_interspersed_args
    return Spelling(frozenset(flags), frozenset(valued), interspersed)


class Group(click.Group):
    """A group whose commands take the global options, and long options with one dash.

    `default` is the command that is meant where none is named.
    """

    default: str | None = None
    aliases: Mapping[str, str] = {}

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command with the global options that it does not have itself."""
        command = self.find(context, self.aliases.get(name, name))
        return None if command is None else _with_global_options(command)

    def find(self, context: click.Context, name: str) -> click.Command | None:
        """Return a command as it was written."""
        return super().get_command(context, name)

    def parse_args(self, context: click.Context, arguments: list[str]) -> list[str]:
        """Put the default command where none is named."""
        if self.default is not None and not _names_a_command(arguments, self, context):
            arguments = [self.default, *arguments]
        return super().parse_args(context, arguments)

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that the first argument names, and read the spelling of the rest."""
        name = arguments[0]
        command = self.get_command(context, name)
        if command is None:
            from meshrun.supervisor.suggest import hint

            known = [*self.list_commands(context), *self.aliases]
            context.fail(f'no such command "{name}"{hint(name, known)}')
        rest = with_two_dashes(arguments[1:], spelled(command, context))
        return command.name, command, rest


def _names_a_command(arguments: Sequence[str], group: Group, context: click.Context) -> bool:
    asks_for_help = bool(arguments) and arguments[0] in context.help_option_names
    return asks_for_help or (bool(arguments) and not arguments[0].startswith("-"))


def _with_global_options(command: click.Command) -> click.Command:
    given = copy.copy(command)
    taken = {name for parameter in command.params for name in parameter.opts}
    given.params = list(command.params)
    for option in _global_options():
        option.opts = [name for name in option.opts if name not in taken]
        if option.opts:
            given.params.append(option)
    return given


class LazyGroup(Group):
    """A group whose commands are imported when they are called."""

    def __init__(
        self, *, modules: Mapping[str, str], aliases: Mapping[str, str], summary: str
    ) -> None:
        options: list[click.Parameter] = [*_global_options()]
        settings = {"help_option_names": ["-h", "--help"]}
        super().__init__(name="meshrun", help=summary, params=options, context_settings=settings)
        self._modules = modules
        self.aliases = aliases

    def get_help_option_names(self, _context: click.Context) -> list[str]:
        """Return the same for every context: click keeps the help option that it makes first."""
        return ["-h", "--help"]

    def list_commands(self, context: click.Context) -> list[str]:
        """Return the commands in the order in which one meets them."""
        return list(self._modules)

    def find(self, context: click.Context, name: str) -> click.Command | None:
        """Import a command: the object in its module that has its name."""
        if name not in self._modules:
            return None
        command = getattr(import_module(self._modules[name]), name)
        assert isinstance(command, click.Command)
        return command
