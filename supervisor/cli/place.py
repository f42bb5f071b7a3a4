"""What the global options say: which configuration file and state folder a command is about."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from meshrun.supervisor.errors import ConfigError, Finding, NotRunningError
from meshrun.supervisor.statedir import StateDir

if TYPE_CHECKING:
    from meshrun.supervisor.cli.client import Client
    from meshrun.supervisor.configuration.model import Configuration

__all__ = ["VARIABLE", "Place"]

VARIABLE = "MESHRUN_STATE_DIR"
FILE_NAME = "mesh.toml"
DEFAULT_STATE_DIR = ".meshrun"

# Only for a file that is not valid TOML.
_STATE_DIR_LINE = re.compile(
    rb"""^[ \t]*state_dir[ \t]*=[ \t]*["']([^"'\\\n]+)["']""", re.MULTILINE
)


@dataclass(slots=True)
class Place:
    """The global options; every command gets them as its context object (`click.pass_obj`)."""

    config: Path | None = None
    state_dir: Path | None = None

    def config_file(self) -> Path:
        """Return the mesh.toml to use. Raises ConfigError where there is none."""
        # The one in the working folder needs no search and no question whose it is.
        if self.config is None and Path(FILE_NAME).is_file():
            return Path(FILE_NAME)
        from meshrun.supervisor.configuration import meshfile

        return meshfile.find(Path.cwd(), self.config, os.geteuid())

    def configuration(self) -> "Configuration":
        """Read and check the whole configuration. Raises ConfigError."""
        from meshrun.supervisor.configuration import meshfile

        return meshfile.load(self.config_file(), os.environ)

    def found_config_file(self) -> Path | None:
        """Return the mesh.toml to use, None where there is none and none was named.

        Raises ConfigError for one that must not be used.
        """
        try:
            return self.config_file()
        except ConfigError:
            here = Path.cwd()
            if any((folder / FILE_NAME).exists() for folder in (here, *here.parents)):
                raise
            return None

    def state_path(self) -> Path:
        """Return the state folder: by option, environment, mesh.toml, else `./.meshrun`.

        Of the file only that one key is read, and also from a broken one: `ps` and `down` must work
        while mesh.toml is being edited. Raises ConfigError if it cannot be read at all.
        """
        if self.state_dir is not None:
            return self.state_dir.absolute()
        if os.environ.get(VARIABLE):
            return Path(os.environ[VARIABLE]).absolute()
        file = self.found_config_file()
        if file is None:
            return Path(DEFAULT_STATE_DIR).absolute()
        folder = file.absolute().parent
        if ".." in folder.parts:
            folder = folder.resolve()
        return folder / _written_state_dir(file)

    def open_state(self, *, create: bool = False) -> StateDir:
        """Open the state folder. Raises NotRunningError where there is none, MeshrunError."""
        return StateDir.open(self.state_path(), create=create)

    def client(self) -> "Client":
        """Return a client of the mesh that runs here. Raises NotRunningError, MeshrunError."""
        from meshrun.supervisor.cli.client import Client

        return Client(self.open_state())

    def running(self) -> "Client | None":
        """Return a client of the mesh that runs here, None where none does."""
        try:
            client = self.client()
        except NotRunningError:
            return None
        return client if client.is_running() else None


def _written_state_dir(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise ConfigError([Finding(str(file), 0, 0, f"cannot be read: {reason}")]) from error
    # Reading TOML is worth its time only for a file that may say something about it.
    if b"state_dir" not in content and b"\\" not in content:
        return DEFAULT_STATE_DIR
    import tomli

    try:
        mesh = tomli.loads(content.decode()).get("mesh")
    except (ValueError, RecursionError):
        match = _STATE_DIR_LINE.search(content)
        return match[1].decode(errors="replace") if match else DEFAULT_STATE_DIR
    written = mesh.get("state_dir") if isinstance(mesh, dict) else None
    return written if isinstance(written, str) and written else DEFAULT_STATE_DIR
