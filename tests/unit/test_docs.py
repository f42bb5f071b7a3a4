"""The documents against the code: keys, commands, links, the drawing of a process's life."""

import itertools
import re
import runpy
import shlex
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import click
import msgspec
import pytest

from meshrun.proxy.http.heads import Request
from meshrun.proxy.intentions import Rules
from meshrun.supervisor import environment, lifecycle
from meshrun.supervisor.cli import program, records
from meshrun.supervisor.configuration import (
    depends_on,
    hooks,
    limits,
    meshfile,
    permissions,
    probes,
    sections,
    upstreams,
    watch,
)
from meshrun.supervisor.configuration import model as configuration
from meshrun.supervisor.errors import ConfigError

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
COMMANDS = ROOT / "docs" / "commands.md"
ARCHITECTURE = ROOT / "docs" / "architecture.md"
COMPLAINTS = ROOT / "docs" / "complaints.md"
DOCUMENTS = (README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))

# Each table of the README's reference, by its heading, and the keys that the parser takes there.
TABLES = {
    "`[mesh]`": sections.MESH_KEYS,
    "`[apps.NAME]`": sections.APP_KEYS,
    "upstreams": tuple(key for key in upstreams.KEYS if key not in upstreams.REQUEST_KEYS),
    "HTTP upstreams": upstreams.REQUEST_KEYS,
    "Limits of an app": limits.KEYS,
    "depends_on": depends_on.KEYS,
    "ready": probes.READY_KEYS,
    "alive": probes.ALIVE_KEYS,
    "watch": watch.KEYS,
    "hooks": (*hooks.KEYS, *environment.HOOK_VARIABLES),
    "stop": tuple(field.name.removesuffix("_s") for field in fields(configuration.Stop)),
    "`[services.NAME]`": sections.SERVICE_KEYS,
    "`[[intentions]]`": sections.INTENTION_KEYS,
    "permissions": permissions.PERMISSION_KEYS,
    "headers": permissions.HEADER_KEYS,
}
LATER = set(meshfile.TOP_KEYS_LATER)


def text(document: Path) -> str:
    return document.read_text(encoding="utf-8")


def section(document: Path, heading: str) -> str:
    """What stands under a heading, up to the next one."""
    found = re.search(
        rf"^#+ {re.escape(heading)}$\n(.*?)(?=^#+ |\Z)", text(document), re.MULTILINE | re.DOTALL
    )
    assert found, f"{document.name} has no heading {heading!r}"
    return found[1]


def first_cells(table: str) -> list[str]:
    return re.findall(r"^\| `([^`]+)`", table, re.MULTILINE)


@pytest.mark.parametrize("heading", TABLES)
def test_the_reference_has_every_key_that_the_parser_takes_and_no_other(heading: str) -> None:
    assert sorted(first_cells(section(README, heading))) == sorted(TABLES[heading])


def test_every_key_that_is_refused_until_later_is_listed_as_such() -> None:
    listed = set(re.findall(r"`([a-z_]+)`", section(README, "Not supported yet")))
    assert listed == LATER


def test_the_examples_of_configurations_are_valid(tmp_path: Path) -> None:
    (tmp_path / "Procfile").write_text("web: ./web\nworker: ./worker\n")
    (tmp_path / "templates").mkdir()
    examples = re.findall(r"```toml\n(.*?)```", text(README), re.DOTALL)
    assert examples
    for example in examples:
        (tmp_path / "mesh.toml").write_text(example)
        meshfile.load(tmp_path / "mesh.toml", {})


@pytest.mark.parametrize("path", ["mesh.toml", "examples/echo-go/mesh.toml"])
def test_the_configurations_of_the_repository_are_valid(path: str) -> None:
    loaded = meshfile.load(ROOT / path, {})
    assert {"echo-server", "echo-client"} <= set(loaded.apps)


@pytest.mark.parametrize(
    ("fields", "allowed"),
    [
        ([], True),
        ([("X-HTTP-Method-Override", "DELETE")], False),
        ([("X-HTTP-Method", "DELETE")], False),
        ([("x.method_override", "DELETE")], False),
    ],
)
def test_the_example_about_overridden_methods_denies_them(
    fields: list[tuple[str, str]], allowed: bool, tmp_path: Path
) -> None:
    examples = re.findall(r"```toml\n(.*?)```", section(README, "permissions"), re.DOTALL)
    (example,) = (each for each in examples if "x-http-method-override" in each)
    (tmp_path / "mesh.toml").write_text(example)
    loaded = meshfile.load(tmp_path / "mesh.toml", {})
    rules = Rules(loaded.intentions, "rails", loaded.mesh.default_intention, "http")
    request = Request(method="POST", path="/a", query="", authority="rails", fields=fields)
    assert rules.decide("web", request).allowed is allowed
    request.method = "DELETE"
    assert not rules.decide("web", request).allowed


def test_the_procfile_of_the_repository_is_valid() -> None:
    assert meshfile.load_procfile(ROOT / "Procfile.example", {}).apps["web"].port == 5000


def test_a_mistake_is_reported_in_the_form_that_the_reference_says(tmp_path: Path) -> None:
    (tmp_path / "mesh.toml").write_text('[apps.web]\ncomand = "./web"\n')
    with pytest.raises(ConfigError, match=r'mesh\.toml:2:1: .*did you mean "?command'):
        meshfile.load(tmp_path / "mesh.toml", {})


def test_the_table_of_variables_has_all_that_an_app_gets() -> None:
    names = environment.variables([("<NAME>", "http")], has_port=True)
    names |= environment.notify_variables("", 0.0)
    documented = section(README, "What an app gets in its environment")
    for name in (*names, "PYTHONUNBUFFERED"):
        assert f"`{name.replace('__NAME__', '_<NAME>_')}`" in documented


def modules(package: str) -> set[str]:
    return {path.stem for path in (ROOT / package).glob("*.py")} - {"__init__"}


@pytest.mark.parametrize("package", ["proxy", "proxy/http"])
def test_the_map_of_a_package_has_every_module(package: str) -> None:
    said = text(ROOT / package / "__init__.py")
    assert {name for name in modules(package) if f"`{name}`" not in said} == set()


@pytest.mark.parametrize(
    "package",
    [
        *("proxy", "proxy/http", "supervisor", "supervisor/configuration", "supervisor/probes"),
        "supervisor/watching",
    ],
)
def test_the_tour_has_a_room_for_every_module(package: str) -> None:
    said = section(ARCHITECTURE, "The rooms")
    assert {name for name in modules(package) if f"`{name}`" not in said} == set()


def command_lines(document: Path) -> Iterator[list[str]]:
    """Every call of meshrun in the code of a document, without what follows it in a shell."""
    markdown = text(document)
    blocks = re.findall(r"^```(?:console|sh|bash)\n(.*?)^```", markdown, re.MULTILINE | re.DOTALL)
    prose = re.sub(r"^```.*?^```", "", markdown, flags=re.MULTILINE | re.DOTALL)
    spans = re.findall(r"`(meshrun [^`]+)`", prose)
    lines = [line for block in blocks for line in re.findall(r"^\$ (.*)", block, re.MULTILINE)]
    for line in (*lines, *spans):
        for call in re.split(r"&&|;|\|(?!\w)|#", line):
            if call.strip().startswith("meshrun "):
                yield shlex.split(call.strip())[1:]


def found_command(words: list[str]) -> tuple[click.Command, list[str]]:
    """The command that words name, and its arguments."""
    command: click.Command = program
    context = click.Context(program, **program.context_settings)
    while isinstance(command, click.Group) and words and re.fullmatch(r"[a-z]+", words[0]):
        inner = command.get_command(context, words[0])
        assert inner is not None, f"there is no command {words[0]}"
        command, words = inner, words[1:]
    return command, words


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_command_that_is_written_down_exists_with_its_options(document: Path) -> None:
    for line in command_lines(document):
        command, arguments = found_command(line)
        context = click.Context(command)
        options = {name for p in command.get_params(context) for name in p.opts}
        for argument in itertools.takewhile(lambda word: word != "--", arguments):
            written = argument.strip("[]").partition("=")[0]
            if written.startswith("-"):
                assert {written, f"-{written}"} & options, f"{' '.join(line)}: no option {written}"


def test_the_table_of_commands_has_every_command() -> None:
    documented = section(README, "Commands")
    for name in program.list_commands(click.Context(program)):
        assert f"`meshrun {name}" in documented


def all_tests(pattern: str) -> set[str]:
    """The names of all tests in files of a pattern."""
    return {
        name
        for file in (ROOT / "tests").rglob(pattern)
        for name in re.findall(r"^def (test_\w+)", text(file), re.MULTILINE)
    }


def test_every_test_that_shows_what_becomes_of_a_complaint_exists() -> None:
    named = re.findall(r"`(test_\w+)`", text(COMPLAINTS))
    assert set(named) - all_tests("test_*.py") == set()
    assert all_tests("test_common_complaints*.py") - set(named) == set()


def test_each_complaint_has_a_row_with_a_test() -> None:
    rows = re.findall(r"^\| (\d+) \|(.*)$", text(COMPLAINTS), re.MULTILINE)
    assert sorted(int(number) for number, _ in rows) == list(range(1, 26))
    assert all("`test_" in row.rpartition(" | ")[2] for _, row in rows)


def anchors(document: Path) -> set[str]:
    """The anchors that GitHub makes of a document's headings."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"(?ms)^```.*?^```", "", text(document)), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document.name)
def test_every_link_leads_somewhere(document: Path) -> None:
    prose = re.sub(r"(?ms)^```.*?^```", "", text(document))
    for link in re.findall(r"\]\(([^)\s]+)\)", prose):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.exists(), f"{document.name} links to {link}, which is not there"
        if anchor:
            assert anchor in anchors(target), f"{document.name} links to {link}: no such heading"


def test_the_drawing_of_a_process_s_life_is_what_the_table_says() -> None:
    drawn = runpy.run_path(str(ROOT / "docs" / "diagrams.py"))["drawn"]
    written = text(ARCHITECTURE)
    assert written == drawn(written), "run: python docs/diagrams.py"


def test_the_table_of_phases_has_each_phase_once_with_the_state_that_users_see() -> None:
    rows = re.findall(
        r"^\| ([A-Z_, ]+) \| ([a-z, -]+) \|", section(ARCHITECTURE, "The life of a process"), re.M
    )
    shown: dict[str, str] = {}
    for phases, states in rows:
        names = phases.split(", ")
        same = states == "the same"
        values = [name.lower() for name in names] if same else states.split(", ")
        shown |= dict(zip(names, values, strict=True))
    assert shown == {phase.name: phase.shown for phase in lifecycle.Phase}


@pytest.mark.parametrize(
    ("command", "record"), [("why", records.Explanation), ("events", records.Event)]
)
def test_the_keys_of_what_is_printed_as_json_are_listed(
    command: str, record: type[msgspec.Struct]
) -> None:
    listed = re.findall(r"`([a-z_]+(?:, [a-z_]+)+)`", section(COMMANDS, command))
    assert sorted(record.__struct_fields__) in [sorted(each.split(", ")) for each in listed]


def test_every_module_that_the_tour_names_exists() -> None:
    modules = {
        path.stem for folder in ("supervisor", "proxy") for path in (ROOT / folder).rglob("*.py")
    }
    named = re.findall(r"`([a-z_]+)`", section(ARCHITECTURE, "The rooms"))
    assert set(named) <= modules
