"""Which mesh.toml, and which state folder."""

from pathlib import Path

import pytest

from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.errors import ConfigError, NotRunningError


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in an empty folder of a project."""
    monkeypatch.delenv("MESHRUN_STATE_DIR", raising=False)
    inside = tmp_path / "project" / "inside"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    return inside.parent


def test_without_a_file_the_state_is_here(folder: Path) -> None:
    assert Place().state_path() == folder / "inside" / ".meshrun"


def test_the_state_is_beside_the_file(folder: Path) -> None:
    (folder / "mesh.toml").write_text("")
    assert Place().state_path() == folder / ".meshrun"


def test_the_file_says_where_the_state_is(folder: Path) -> None:
    (folder / "mesh.toml").write_text('[mesh]\nstate_dir = "var/state"\n')
    assert Place().state_path() == folder / "var" / "state"


def test_the_key_counts_only_where_it_belongs(folder: Path) -> None:
    (folder / "mesh.toml").write_text('[apps.web.env]\nstate_dir = "elsewhere"\n')
    assert Place().state_path() == folder / ".meshrun"


def test_the_key_may_be_written_with_escapes(folder: Path) -> None:
    (folder / "mesh.toml").write_text('[mesh]\n"state\\u005fdir" = "var"\n')
    assert Place().state_path() == folder / "var"


def test_a_broken_file_still_says_where_the_state_is(folder: Path) -> None:
    (folder / "mesh.toml").write_text('[mesh]\nstate_dir = "var"\n[apps.\n')
    assert Place().state_path() == folder / "var"


def test_a_broken_file_without_the_key_means_the_default(folder: Path) -> None:
    (folder / "mesh.toml").write_bytes(b"[apps.\n# state_dir\xff")
    assert Place().state_path() == folder / ".meshrun"


def test_the_option_goes_before_the_environment_before_the_file(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder / "mesh.toml").write_text('[mesh]\nstate_dir = "file"\n')
    monkeypatch.setenv("MESHRUN_STATE_DIR", "environment")
    assert Place().state_path() == folder / "inside" / "environment"
    assert Place(state_dir=Path("option")).state_path() == folder / "inside" / "option"


def test_a_named_file_that_cannot_be_read_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"other\.toml: cannot be read: no such file"):
        Place(config=Path("other.toml")).state_path()


def test_no_folder_means_not_running() -> None:
    with pytest.raises(NotRunningError, match="no mesh runs here"):
        Place().client()
    assert Place().running() is None


def test_a_folder_without_a_listener_means_not_running() -> None:
    Place().open_state(create=True).close()
    assert Place().running() is None
