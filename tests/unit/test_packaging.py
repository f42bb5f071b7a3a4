"""What is installed is what the folders hold."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from support.sampling import WHOLE

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "src" / "meshrun"


def listed() -> list[str]:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())
    packages: list[str] = settings["tool"]["setuptools"]["packages"]
    return packages


def found() -> list[str]:
    """Return the package of each folder with an __init__.py."""
    return sorted(
        ".".join(("meshrun", *folder.relative_to(root).parts))
        for name in ("supervisor", "proxy", "src/meshrun")
        for root in [ROOT if name != "src/meshrun" else PACKAGE]
        for folder in {init.parent for init in (ROOT / name).rglob("__init__.py")}
    )


def test_the_list_of_packages_is_that_of_the_folders() -> None:
    assert sorted(listed()) == found()


@pytest.mark.parametrize("name", ["supervisor", "proxy"])
def test_the_packages_are_links_to_the_folders_at_the_top(name: str) -> None:
    link = PACKAGE / name
    assert link.is_symlink()
    assert str(link.readlink()) == f"../../{name}"
    assert link.resolve() == ROOT / name


@pytest.mark.long
@pytest.mark.skipif(not WHOLE, reason="builds with what pip downloads; see make test-long")
def test_a_wheel_holds_every_module(tmp_path: Path) -> None:
    copy = tmp_path / "copy"  # a build leaves its traces where it happens
    copy.mkdir()
    files = ["pyproject.toml", "README.md", "LICENSE", "src", "supervisor", "proxy"]
    subprocess.run(["cp", "-a", *[ROOT / name for name in files], copy], check=True)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", tmp_path, copy], check=True
    )
    (wheel,) = tmp_path.glob("*.whl")
    modules = {
        f"meshrun/{path.relative_to(ROOT)}"
        for name in ("supervisor", "proxy")
        for path in (ROOT / name).rglob("*.py")
    }
    modules |= {"meshrun/__init__.py", "meshrun/__main__.py", "meshrun/py.typed"}
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if not name.startswith("meshrun-")}
    assert packed == modules
