"""`.env` files, as foreman reads them.

Foreman's grammar (lib/foreman/env.rb): `NAME=value` to the end of the line; single quotes are
taken off; in double quotes a backslash and `n` is a newline, and a backslash before any other
character is taken off. No `export`, no comment behind a value, no expansion. Foreman skips every
other line; here only blank lines and comments are, the rest is reported.
"""

import re
from dataclasses import dataclass

from meshrun.supervisor.errors import Finding

__all__ = ["Variable", "parse", "values"]

_ASSIGNMENT = re.compile(r"([A-Za-z_0-9]+)=(.*)", re.ASCII | re.DOTALL)
_ESCAPED = re.compile(r"\\(.)")


@dataclass(frozen=True, slots=True)
class Variable:
    """One line of the file."""

    name: str
    value: str
    line: int


def parse(text: str, file: str) -> tuple[tuple[Variable, ...], tuple[Finding, ...]]:
    """Return the variables of `text`, and what is wrong in it; `file` is what messages call it."""
    variables: list[Variable] = []
    findings: list[Finding] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        assignment = _ASSIGNMENT.fullmatch(line)
        if assignment is None:
            findings.append(Finding(file, number, 1, _complaint(line)))
        elif "\0" in line:
            findings.append(
                Finding(file, number, line.index("\0") + 1, "a value must not hold a NUL character")
            )
        else:
            variables.append(Variable(assignment[1], _unquoted(assignment[2]), number))
    return tuple(variables), tuple(findings)


def values(variables: tuple[Variable, ...]) -> dict[str, str]:
    """Return the values by name; of a name that stands twice, the last."""
    return {variable.name: variable.value for variable in variables}


def _unquoted(value: str) -> str:
    if len(value) >= 2 and value[0] == value[-1] == "'":
        return value[1:-1]
    if len(value) >= 2 and value[0] == value[-1] == '"':
        return _ESCAPED.sub(r"\1", value[1:-1].replace("\\n", "\n"))
    return value


def _complaint(line: str) -> str:
    """Say what is wrong without quoting the line, which may hold a secret."""
    if line.lstrip().startswith("export "):
        return 'not NAME=value: leave "export" out'
    if "=" not in line:
        return 'not NAME=value: there is no "="'
    return "not NAME=value: a name has letters, digits and _, and no blanks around it"
