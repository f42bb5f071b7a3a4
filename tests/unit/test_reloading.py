"""What of a changed file is to run, where it was chosen before."""

from dataclasses import replace
from pathlib import Path

import pytest

from meshrun.supervisor.configuration.model import App, Configuration, Mesh
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.plan import Selection
from meshrun.supervisor.reloading import reselected


def configuration(**instances: int) -> Configuration:
    return Configuration(
        file="mesh.toml",
        folder=Path("/srv/shop"),
        mesh=Mesh(name="shop"),
        apps={
            name: App(name=name, command=("run",), instances=number)
            for name, number in instances.items()
        },
        services={},
        intentions=(),
    )


OLD = configuration(web=1, api=2, old=1)


def test_what_was_chosen_stays_chosen() -> None:
    chosen = Selection(names=("web",), dependencies=False, scale={"api": 5}, isolated=True)
    assert reselected(chosen, OLD, OLD) == chosen


def test_a_number_of_instances_stays_until_the_file_has_another_one() -> None:
    chosen = Selection(scale={"web": 3, "api": 5})
    found = reselected(chosen, OLD, configuration(web=1, api=4, old=1))
    assert found.scale == {"web": 3}


def test_what_is_gone_is_not_chosen_any_more() -> None:
    chosen = Selection(names=("web", "old"), scale={"old": 3})
    found = reselected(chosen, OLD, configuration(web=1, api=2))
    assert found == replace(chosen, names=("web",), scale={})


def test_nothing_that_was_named_being_left_does_not_mean_everything() -> None:
    with pytest.raises(MeshrunError, match=r"was called with \(old\) none is in it"):
        reselected(Selection(names=("old",)), OLD, configuration(web=1))
