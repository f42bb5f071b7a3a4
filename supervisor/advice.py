"""What is valid in mesh.toml and yet seldom meant: said by `check` and when the mesh starts."""

import re
from collections.abc import Iterable, Iterator

from meshrun.supervisor.plan import Plan

__all__ = ["advice"]

# As `${NAME}` would be; after another dollar sign somebody has thought of it.
_AS_A_SHELL_WOULD = re.compile(r"(?<!\$)\$([A-Z_][A-Z0-9_]*)")


def advice(plan: Plan) -> list[str]:
    """Return a sentence for each thing that is seldom meant."""
    return [sentence for name in plan.configuration.apps for sentence in _unexpanded(plan, name)]


def _unexpanded(plan: Plan, name: str) -> Iterator[str]:
    """Say which variables of meshrun's in a command stay as they are, where no shell is in sight.

    A word with blanks in it is a script for somebody else who expands (`sh -c "exec web $PORT"`).
    """
    app = plan.configuration.apps[name]
    instance = next(iter(plan.of(name)), None)
    if instance is None:
        return
    known = instance.environment or {}
    by_shell = app.shell or not app.expand
    for variable in () if by_shell else _as_a_shell_would(app.command):
        if variable in known:
            yield (
                f"apps.{name}.command has ${variable}, which nobody expands: "
                f"write ${{{variable}}}, or say shell = true"
            )
    for hook, words in (("on_ready", app.hooks.on_ready), ("on_exit", app.hooks.on_exit)):
        for variable in _as_a_shell_would(words):
            if variable in known:
                yield (
                    f"apps.{name}.hooks.{hook} has ${variable}, which nobody expands: "
                    f"write ${{{variable}}}"
                )


def _as_a_shell_would(words: Iterable[str]) -> list[str]:
    single = [word for word in words if not any(letter.isspace() for letter in word)]
    found = [match[1] for word in single for match in _AS_A_SHELL_WOULD.finditer(word)]
    return list(dict.fromkeys(found))
