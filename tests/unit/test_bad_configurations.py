"""Each file in bad_configurations/ is refused with exactly the findings in its last comments."""

from pathlib import Path

import pytest

from meshrun.supervisor.configuration.meshfile import load
from meshrun.supervisor.errors import ConfigError

FILES = sorted((Path(__file__).parent / "bad_configurations").glob("*.toml"))
CALLER = {"HOME": "/home/caller"}
EXPECTED = "# mesh.toml:"


def test_the_table_is_there() -> None:
    assert len(FILES) >= 60


@pytest.mark.parametrize("file", FILES, ids=[file.stem for file in FILES])
def test_every_mistake_is_found_at_its_place(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = file.read_text()
    (tmp_path / "mesh.toml").write_text(text)
    monkeypatch.chdir(tmp_path)
    expected = [line.removeprefix("# ") for line in text.splitlines() if line.startswith(EXPECTED)]

    with pytest.raises(ConfigError) as refusal:
        load(Path("mesh.toml"), CALLER)

    assert str(refusal.value).splitlines() == expected
