"""The mesh of the chaos run: however it is written, it is a mesh."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.town import CALLERS, PAIRS, RESTARTABLE, SCALABLE, Town

from meshrun.supervisor.configuration import meshfile

NAMES = st.sampled_from(RESTARTABLE)


@given(
    st.builds(
        Town,
        outside_port=st.just(9),
        instances=st.dictionaries(st.sampled_from(SCALABLE), st.integers(1, 4)),
        workers=st.dictionaries(NAMES, st.integers(1, 2)),
        notes=st.dictionaries(NAMES, st.integers(0, 9)),
        with_extra=st.booleans(),
    )
)
def test_every_way_to_write_the_file_is_valid(
    tmp_path_factory: pytest.TempPathFactory, town: Town
) -> None:
    file = tmp_path_factory.getbasetemp() / "town.toml"
    file.write_text(str(town))
    loaded = meshfile.load(file, {"PYTHON": "python3", "APPS": "/apps"})
    assert ("extra" in loaded.apps) is town.with_extra
    for name, app in loaded.apps.items():
        assert {upstream.service for upstream in app.upstreams} == set(CALLERS.get(name, {}))
    pairs = {(intention.source, intention.destination) for intention in loaded.intentions}
    assert pairs == {pair for pair in PAIRS if town.with_extra or pair[0] != "extra"}
