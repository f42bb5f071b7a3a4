"""What is valid in mesh.toml and yet seldom meant."""

from dataclasses import replace
from pathlib import Path

import pytest

from meshrun.supervisor import plan
from meshrun.supervisor.advice import advice
from meshrun.supervisor.configuration.model import App, Configuration, Hooks, Mesh

WEB = App(name="web", command=("run",))


def said_of(app: App) -> list[str]:
    configuration = Configuration(
        file="mesh.toml",
        folder=Path("/srv/shop"),
        mesh=Mesh(name="shop"),
        apps={app.name: app},
        services={},
        intentions=(),
    )
    caller = {"HOME": "/root"}
    return advice(plan.make(configuration, plan.Selection(), {}, lambda *_: True, caller, "r1"))


@pytest.mark.parametrize("word", ["$PORT", "127.0.0.1:$PORT", "--home=$HOME", "$PORT$PORT"])
def test_a_variable_that_only_a_shell_would_expand_is_named_once(word: str) -> None:
    (sentence,) = said_of(replace(WEB, command=("run", word, word)))
    variable = "HOME" if "HOME" in word else "PORT"
    assert sentence == (
        f"apps.web.command has ${variable}, which nobody expands: "
        f"write ${{{variable}}}, or say shell = true"
    )


@pytest.mark.parametrize("word", ["$$PORT", "$NOBODY", "^a$", "$1", "exec web $PORT", "${PORT}"])
def test_what_is_meant_as_it_stands_is_not_mentioned(word: str) -> None:
    assert said_of(replace(WEB, command=("run", word))) == []


@pytest.mark.parametrize("app", [replace(WEB, shell=True), replace(WEB, expand=False)])
def test_nothing_is_said_where_a_shell_expands(app: App) -> None:
    assert said_of(replace(app, command=("run $PORT",))) == []
    assert said_of(replace(app, command=("$PORT",))) == []


def test_a_hook_is_looked_at_as_well() -> None:
    hooks = Hooks(on_ready=("announce", "$PORT"), on_exit=("sh", "-c", "echo $PORT"))
    (sentence,) = said_of(replace(WEB, hooks=hooks, shell=True, command=("run $PORT",)))
    assert sentence == ("apps.web.hooks.on_ready has $PORT, which nobody expands: write ${PORT}")
