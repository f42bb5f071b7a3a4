"""Procfiles, as foreman reads them.

Foreman's grammar (lib/foreman/procfile.rb): `name: command`, one a line. It skips every other line;
here only blank lines and comments are, the rest is reported. Process i (from 0), instance k
(from 1) gets PORT = base + 100 * i + k - 1.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from meshrun.supervisor.configuration.model import App
from meshrun.supervisor.configuration.values import HIGHEST_PORT, UnfitError
from meshrun.supervisor.configuration.values import service_name as fitting_service_name
from meshrun.supervisor.errors import Finding

__all__ = ["DEFAULT_BASE_PORT", "PORT_STEP", "Entry", "apps", "parse", "service_name"]

DEFAULT_BASE_PORT = 5000
PORT_STEP = 100

_ENTRY = re.compile(r"([A-Za-z0-9_-]+):\s*(.+)", re.ASCII | re.DOTALL)


@dataclass(frozen=True, slots=True)
class Entry:
    """One process of a Procfile; `name` is already a service name."""

    name: str
    command: str
    line: int


def service_name(name: str) -> str:
    """Return the service name of a process: `Web_Worker` is the service `web-worker`."""
    return name.lower().replace("_", "-")


def parse(text: str, file: str) -> tuple[tuple[Entry, ...], tuple[Finding, ...]]:
    """Return the processes of `text`, and what is wrong in it; `file` is what messages call it."""
    entries: dict[str, Entry] = {}
    findings: list[Finding] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        matched = _ENTRY.fullmatch(line)
        if matched is None or not matched[2].strip():
            findings.append(
                Finding(file, number, 1, 'not "name: command"; a name has letters, digits, _ and -')
            )
            continue
        complaint = _complaint(matched[1], matched[2], entries)
        if complaint:
            findings.append(Finding(file, number, 1, complaint))
        else:
            name = service_name(matched[1])
            entries[name] = Entry(name, matched[2].rstrip(), number)
    if not entries and not findings:
        findings.append(Finding(file, 0, 0, 'no process is defined; a line is "name: command"'))
    return tuple(entries.values()), tuple(findings)


def _complaint(written: str, command: str, entries: Mapping[str, Entry]) -> str | None:
    name = service_name(written)
    try:
        fitting_service_name(name)
    except UnfitError as error:
        return f'the process "{written[:64]}" cannot be a service, whose name {error}'
    if name in entries:
        return f'the process "{name}" is defined on line {entries[name].line} already'
    if "\0" in command:
        return "a command must not hold a NUL character"
    return None


def apps(
    entries: tuple[Entry, ...], base_port: int, env: Mapping[str, str], cwd: str | None, file: str
) -> tuple[dict[str, App], tuple[Finding, ...]]:
    """Return the apps that a Procfile describes, each with `env` beside its own environment.

    A process whose port would be over 65535 is reported.
    """
    result: dict[str, App] = {}
    findings: list[Finding] = []
    for index, entry in enumerate(entries):
        port = base_port + PORT_STEP * index
        if port > HIGHEST_PORT:
            findings.append(
                Finding(
                    file,
                    entry.line,
                    1,
                    f'the process "{entry.name}" would get port {port}, over {HIGHEST_PORT}: '
                    "set a lower PORT in .env",
                )
            )
            continue
        result[entry.name] = App(  # noqa: S604 - a value, nothing is run
            name=entry.name,
            command=(entry.command,),
            shell=True,
            expand=False,
            cwd=cwd,
            env_file=env,
            port=port,
            line=entry.line,
        )
    return result, tuple(findings)
