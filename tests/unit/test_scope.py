"""Which files count as files of an app."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.configuration.meshfile import load
from meshrun.supervisor.configuration.model import Watch
from meshrun.supervisor.watching.scope import Root, Scope

FOLDER = "/srv/shop"
STATE = "/srv/shop/state"


def scope(tmp_path: Path, watch: str) -> Scope:
    """Return what `watch`, in the words of mesh.toml, means for an app in FOLDER."""
    for folder in ("src", "templates"):
        (tmp_path / folder).mkdir(exist_ok=True)
    (tmp_path / "one.conf").touch()
    (tmp_path / "mesh.toml").write_text(f'[apps.web]\ncommand = "web"\nwatch = {watch}\n')
    found = load(tmp_path / "mesh.toml", {}).apps["web"].watch
    assert found is not None
    return Scope(FOLDER, found, (STATE, f"{FOLDER}/mesh.toml"))


def hears_of(scope: Scope, path: str) -> bool:
    """Tell whether a change of a file is heard of: its folders are entered, and it counts."""
    for root in scope.roots:
        absolute = f"{FOLDER}/{path}"
        if absolute == root.path:
            return True
        if root.path != "/" and not absolute.startswith(f"{root.path}/"):
            continue
        parts = tuple(absolute.removeprefix(root.path).strip("/").split("/"))
        entered = all(scope.enters(root, parts[:n]) for n in range(1, len(parts)))
        if entered and scope.counts(root, parts):
            return True
    return False


@pytest.mark.parametrize(
    ("watch", "heard", "unheard"),
    [
        ("true", ["a.py", "src/deep/b.c", ".env", "logs/x.log", "swap"], ["mesh.toml"]),
        ('["src"]', ["src/a.py", "src/b/c"], ["a.py", "srcs/a.py"]),
        ('["./src/", "one.conf"]', ["src/a.py", "one.conf"], ["two.conf", "one.conf.d"]),
        ('["templates/*.html"]', ["templates/a.html"], ["templates/a/b.html", "templates/a.py"]),
        ('["**/*.py"]', ["a.py", "src/b/c.py"], ["src/b/c.pyx", "a.p"]),
        ('["src/**"]', ["src/a", "src/b/c"], ["a"]),
        ('["src/*/views/**/*.j2"]', ["src/a/views/x.j2", "src/a/views/b/c.j2"], ["src/views/x.j2"]),
        ('{ ignore = ["*.log", "build"] }', ["a.py"], ["a.log", "b/c.log", "build/a", "x/build/a"]),
        ('{ ignore = ["/build"] }', ["x/build/a", "builds"], ["build/a", "build"]),
        ('{ ignore = ["src/gen/"] }', ["gen/a", "src/general"], ["src/gen/a", "src/gen/b/c"]),
        ('{ paths = ["src"], ignore = ["src/**/x"] }', ["src/y"], ["src/x", "src/a/b/x"]),
        ('{ paths = ["mesh.toml"] }', ["mesh.toml"], ["a"]),
    ],
)
def test_paths_patterns_and_what_is_ignored(
    tmp_path: Path, watch: str, heard: list[str], unheard: list[str]
) -> None:
    found = scope(tmp_path, watch)
    assert [path for path in heard if not hears_of(found, path)] == []
    assert [path for path in unheard if hears_of(found, path)] == []


@pytest.mark.parametrize(
    "path",
    [
        *(".git/index", "a/.hg/x", ".svn/x", "node_modules/left-pad/index.js", "a/__pycache__/b"),
        *(".venv/bin/python", "venv/x", ".mypy_cache/x", ".pytest_cache/x", ".ruff_cache/x"),
        *("a.pyc", ".a.py.swp", "a.py~", "#a.py#", ".#a.py", "4913", "a.py___jb_tmp___"),
        *("state/run.json", "state/logs/web.1.log", ".meshrun/logs/web.1.log"),
    ],
)
def test_what_tools_editors_and_meshrun_itself_write_is_no_change(
    tmp_path: Path, path: str
) -> None:
    assert not hears_of(scope(tmp_path, "true"), path)


def test_what_is_named_counts_whatever_it_is_called() -> None:
    named = Scope("/srv/node_modules/a", Watch(), ("/srv/node_modules/a",))
    assert named.counts(named.roots[0], ("index.js",)) is False  # all of it is spared
    named = Scope("/srv/node_modules/a", Watch())
    assert named.counts(named.roots[0], ("index.js",))


def test_a_file_is_called_by_its_way_from_the_folder_of_the_app(tmp_path: Path) -> None:
    found = scope(tmp_path, "true")
    assert found.called(f"{FOLDER}/src/a.py") == "src/a.py"
    assert found.called("/etc/hosts") == "/etc/hosts"
    assert found.called(f"{FOLDER}/\x1b[2J\n\udcff.py") == "?[2J??.py"


WORDS = st.lists(st.sampled_from(["a", "b", "*", "**", "?", "[ab]", "a*"]), max_size=6)
PLAIN = st.lists(st.sampled_from(["a", "b", "ab"]), min_size=1, max_size=6)


@given(WORDS.map(tuple), PLAIN.map(tuple))
def test_whatever_counts_is_in_folders_that_are_entered(
    pattern: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    found = Scope(FOLDER, Watch())
    root = Root(FOLDER, pattern)
    if found.counts(root, parts):
        assert all(found.enters(root, parts[:length]) for length in range(1, len(parts)))


@given(PLAIN.map(tuple), st.integers(0, 6))
def test_two_stars_stand_for_any_number_of_folders(parts: tuple[str, ...], at: int) -> None:
    found = Scope(FOLDER, Watch())
    pattern = (*parts[: at % len(parts)], "**", parts[-1])
    assert found.counts(Root(FOLDER, pattern), parts)
