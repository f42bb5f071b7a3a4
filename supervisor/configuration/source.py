"""Where a configuration comes from: to read it again as it was read, when it has changed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from meshrun.supervisor.configuration import meshfile
from meshrun.supervisor.configuration.model import Configuration, Mesh

__all__ = ["Source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """A mesh.toml, or with `procfile` a Procfile; `environ` is the environment of who named it."""

    path: Path
    environ: Mapping[str, str]
    procfile: bool = False

    def load(self, running: Mesh | None = None) -> Configuration:
        """Read and check it; `running` as in `meshfile.load`. Raises ConfigError."""
        if self.procfile:
            return meshfile.load_procfile(self.path, self.environ)
        return meshfile.load(self.path, self.environ, running)
