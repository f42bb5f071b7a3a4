"""How commands are found, spelled and refused, and with which exit codes."""

import importlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import pytest

from meshrun import version
from meshrun.supervisor import cli
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.errors import ConfigError, Finding, MeshrunError

# What only some calls of a short command need costs every one of them time.
HEAVY = {"aiohttp", "asyncio", "cryptography", "email", "http.client", "psutil", "rich", "uvloop"}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder."""
    monkeypatch.delenv("MESHRUN_STATE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("words", [["--version"], ["-version"], ["ps", "-version"]])
def test_the_version(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words) == 0
    assert capsys.readouterr().out == f"meshrun {version()}\n"


@pytest.mark.parametrize("words", [["-help"], ["-h"], ["ps", "-help"], ["intention", "-h"]])
def test_help(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(words) == 0
    assert "Usage: meshrun" in capsys.readouterr().out


def test_every_command_says_in_a_sentence_what_it_does() -> None:
    for name in cli.program.list_commands(click.Context(cli.program)):
        command = cli.program.get_command(click.Context(cli.program), name)
        assert command is not None
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        for one in (command, *inner):
            assert one.help, name
            assert one.help.split("\n\n")[0].rstrip().endswith((".", "`.")), one.help


def leaves() -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, with its whole name."""
    context = click.Context(cli.program)
    for name in cli.program.list_commands(context):
        command = cli.program.get_command(context, name)
        assert command is not None
        if isinstance(command, click.Group):
            inner = click.Context(command)
            for below in command.list_commands(inner):
                found = command.get_command(inner, below)
                assert found is not None
                yield f"{name} {below}", found
        else:
            yield name, command


@pytest.mark.parametrize(("name", "command"), [*leaves()], ids=str)
def test_the_help_of_every_command_shows_how_it_is_called(
    name: str, command: click.Command
) -> None:
    assert re.search(rf"meshrun .*\b{name}\b", command.help or ""), name


@pytest.mark.parametrize("words", [[], ["intentions"], ["certs"], ["export"]])
def test_no_summary_in_a_list_of_commands_is_cut(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.run([*words, "--help"]) == 0
    listed = capsys.readouterr().out.partition("\nCommands:\n")[2]
    assert listed
    assert "..." not in listed


def test_the_nearest_command_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["resart"]) == 2
    assert 'no such command "resart" (did you mean "restart"?)' in capsys.readouterr().err


def test_the_nearest_option_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ps", "-jsn"]) == 2
    error = capsys.readouterr().err
    assert "--jsn" in error
    assert "--json" in error


def test_global_options_stand_before_or_after(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (
        ["-state-dir", "there", "ps"],
        ["ps", "--state-dir=there"],
        ["intentions", "-state-dir", "there", "list"],
        ["intentions", "list", "-state-dir", "there"],
    ):
        assert cli.run(words) in (1, 2)
    error = capsys.readouterr().err
    assert error.count(str(folder / "there")) == 2
    assert error.count("There are no intentions.") == 2


def test_a_command_keeps_its_own_short_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["logs", "-f", "-config", "no.toml"]) == 2
    assert cli.run(["ps", "-f", "no.toml"]) == 2
    assert capsys.readouterr().err.count("no.toml: cannot be read") == 2


def test_not_running_says_what_to_do(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.run(["ps"]) == 1
    assert capsys.readouterr().err == (
        f"meshrun: no mesh runs here: there is no state folder {folder / '.meshrun'}; "
        "start it with: meshrun up\n"
    )


def _raising(error: BaseException) -> Callable[[Place], object]:
    def running(_: Place) -> object:
        raise error

    return running


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (MeshrunError("it broke"), 1, "meshrun: it broke\n"),
        (
            ConfigError([Finding("m.toml", 1, 2, "one"), Finding("m.toml", 3, 4, "two")]),
            2,
            "m.toml:1:2: one\nm.toml:3:4: two\n",
        ),
        (
            OSError(28, "No space left on device"),
            1,
            "meshrun: [Errno 28] No space left on device\n",
        ),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_errors_are_lines_and_exit_codes(
    error: BaseException,
    code: int,
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(Place, "client", _raising(error))
    assert cli.run(["ps"]) == code
    assert capsys.readouterr().err == said


def test_a_reader_that_has_enough_is_no_error() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb") as broken:
        process = subprocess.run(
            [sys.executable, "-m", "meshrun", "--help"],
            stdout=broken,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (process.returncode, process.stderr) == (1, b"")


@pytest.mark.parametrize(
    "words",
    [["ps"], ["--help"], ["up", "--help"], ["check"], ["env", "web"], ["intentions", "list"]],
    ids=" ".join,
)
def test_a_short_command_imports_nothing_heavy(words: list[str], folder: Path) -> None:
    (folder / "mesh.toml").write_text('[apps.web]\ncommand = "sleep 1"\n')
    assert not HEAVY & _imported(f"from meshrun.supervisor import cli; cli.run({words})")


def test_a_start_does_not_wait_for_what_only_the_api_needs() -> None:
    assert "aiohttp" not in _imported("import meshrun.supervisor.supervise")


def _imported(script: str) -> set[str]:
    process = subprocess.run(
        [sys.executable, "-c", f"import sys; {script}; print(chr(0), *sys.modules, sep=chr(10))"],
        capture_output=True,
        text=True,
        check=True,
    )
    return set(process.stdout.partition("\0")[2].split())


def test_every_command_is_where_the_table_says() -> None:
    for name in cli.program.list_commands(click.Context(cli.program)):
        command = cli.program.find(click.Context(cli.program), name)
        assert command is not None
        assert command.name == name
    assert importlib.import_module("meshrun.supervisor.cli.up").up.name == "up"


def test_every_command_and_option_is_in_the_reference() -> None:
    reference = (Path(__file__).parents[2] / "docs" / "commands.md").read_text()
    words = set(re.findall(r"[\w-]+", reference))
    context = click.Context(cli.program)
    for name in cli.program.list_commands(context):
        command = cli.program.get_command(context, name)
        assert command is not None
        inner = command.commands.values() if isinstance(command, click.Group) else ()
        for one in (command, *inner):
            assert one.name in words
            shown = [p for p in one.params if isinstance(p, click.Option) and not p.hidden]
            for option in shown:
                # Consul's way of writing them is as good.
                both = {*option.opts, *(spelling.removeprefix("-") for spelling in option.opts)}
                assert both & words, (name, option.opts)
