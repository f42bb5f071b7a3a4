"""Finds and loads mesh.toml, or a Procfile, with the files that they name.

Everything that is wrong is found before anything is refused: one `ConfigError` has all findings.
"""

import os
import re
from collections.abc import Mapping
from pathlib import Path

import tomli

from meshrun.supervisor.configuration import dotenv, procfile, references
from meshrun.supervisor.configuration.interpolation import (
    ExpansionTooLongError,
    UnsetVariableError,
    expand,
)
from meshrun.supervisor.configuration.model import App, Configuration, Mesh
from meshrun.supervisor.configuration.sections import (
    mesh_name,
    read_app,
    read_intentions,
    read_mesh,
    read_services,
)
from meshrun.supervisor.configuration.tables import Document, Place, Table, dotted
from meshrun.supervisor.configuration.toml_positions import locate
from meshrun.supervisor.configuration.users import Machine
from meshrun.supervisor.configuration.values import HIGHEST_PORT, UnfitError, address, quoted, text
from meshrun.supervisor.configuration.watch import written_at
from meshrun.supervisor.errors import ConfigError, Finding
from meshrun.supervisor.machine import ThisMachine
from meshrun.supervisor.suggest import hint

__all__ = ["FILE_NAME", "find", "load", "load_procfile"]

FILE_NAME = "mesh.toml"

TOP_KEYS = ("mesh", "apps", "services", "intentions")
TOP_KEYS_LATER = ("api", "ca")
# Certificates, the lock, and what other programs have been told hang on them.
FIXED_MESH_KEYS = ("name", "state_dir", "ports", "app_ports")
INSTANCE_VARIABLES = ("PORT", "MESHRUN_INSTANCE", "MESHRUN_IDENTITY", "MESHRUN_RUN_ID")

_LARGEST_FILE = 1 << 20
_TOML_ERROR = re.compile(r"(.*?) \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)", re.S)
_PLAINER = {
    "Illegal character '\\n'": "a string does not end on its line",
    "Cannot overwrite a value": "this key has a value already",
}
"""What tomli says of the two most common mistakes, in the words of who made them."""


def find(start: Path, named: Path | None, uid: int) -> Path:
    """Return the mesh.toml to use: the `named` one, else that in `start` or the nearest parent.

    Raises ConfigError where there is none, or where the one in a parent folder belongs to another
    user than `uid`: who may write to /tmp could otherwise have their programs run by us.
    """
    if named is not None:
        return named
    start = start.absolute()
    for folder in (start, *start.parents):
        path = folder / FILE_NAME
        try:
            owners = {path.lstat().st_uid, path.stat().st_uid}
        except (FileNotFoundError, NotADirectoryError, PermissionError):
            continue
        except OSError as error:
            raise _refused(str(path), f"cannot be looked at: {error.strerror}") from error
        if folder != start and owners != {uid}:
            raise _refused(
                str(path),
                f"belongs to another user (uid {max(owners - {uid})}) and stands in a parent "
                f"folder: name it with -f {path} if you trust it",
            )
        return path
    raise _refused(
        FILE_NAME,
        f"cannot find it in {start} or a folder above: write one, or name it with -f FILE; "
        "`meshrun up --procfile Procfile` needs none",
    )


def load(
    path: Path,
    environ: Mapping[str, str],
    running: Mesh | None = None,
    machine: Machine | None = None,
) -> Configuration:
    """Read and check a mesh.toml; `environ` is the caller's environment. Raises ConfigError.

    `running` is the mesh that runs from it already, some of which cannot change any more. `machine`
    is where it shall run: this one unless another is given.
    """
    file = _called(path)
    source = _read(path, file).replace("\r\n", "\n")
    values = _parsed(source, file)
    document = Document(file, locate(source))
    loader = _Loader(document, path, environ, machine)
    configuration = loader.load(Table(document, (), values), running)
    if document.findings:
        raise ConfigError(sorted(set(document.findings)))
    return configuration


def load_procfile(path: Path, environ: Mapping[str, str]) -> Configuration:
    """Read and check a Procfile, and the `.env` beside it. Raises ConfigError."""
    file = _called(path)
    folder = _folder(path)
    document = Document(file, locate(""))
    apps = _Loader(document, path, environ).read_procfile(path)
    if document.findings:
        raise ConfigError(sorted(set(document.findings)))
    return Configuration(
        file=file,
        folder=folder,
        mesh=Mesh(name=mesh_name(folder.name)),
        apps=apps,
        services={},
        intentions=(),
    )


class _Loader:
    """Reads one configuration and the files that it names, and keeps what is wrong in them."""

    def __init__(
        self,
        document: Document,
        path: Path,
        environ: Mapping[str, str],
        machine: Machine | None = None,
    ) -> None:
        self._machine = machine or ThisMachine()
        self._document = document
        self._path = path
        self._folder = _folder(path)
        self._environ = environ

    def load(self, top: Table, running: Mesh | None) -> Configuration:
        top.allow(TOP_KEYS, TOP_KEYS_LATER)
        mesh = read_mesh(top, mesh_name(self._folder.name))
        if running is not None:
            self._check_unchanged(mesh, running)
        intentions = read_intentions(top, self._path.name)
        configuration = Configuration(
            file=self._document.file,
            folder=self._folder,
            mesh=mesh,
            apps=self._read_apps(top),
            services=read_services(top),
            intentions=tuple(intention for _, intention in intentions),
        )
        self._check_addresses(configuration)
        for table in top.tables("apps"):
            self._check_watched(table, configuration.apps[str(table.path[-1])])
        references.check(self._document, configuration, intentions, self._environ)
        return configuration

    def _check_unchanged(self, mesh: Mesh, running: Mesh) -> None:
        for key in FIXED_MESH_KEYS:
            wanted, there = getattr(mesh, key), getattr(running, key)
            if wanted != there:
                self._document.report_value(
                    ("mesh", key),
                    f"mesh.{key} cannot change under a running mesh, from {there} to {wanted}: "
                    "put it back, or end the mesh with `meshrun down` and start it again with "
                    "`meshrun up`",
                )

    def _read_apps(self, top: Table) -> dict[str, App]:
        apps = self._read_named_procfile(top)
        for table in top.tables("apps"):
            name = str(table.path[-1])
            apps[name] = read_app(table, apps.get(name), self._read_env_file, self._machine)
        return apps

    def _read_named_procfile(self, top: Table) -> dict[str, App]:
        mesh = top.values.get("mesh")
        if not isinstance(mesh, dict) or "procfile" not in mesh:
            return {}
        named = Table(self._document, ("mesh",), mesh).read("procfile", text, None)
        if named is None:
            return {}
        path = self._folder / named
        try:
            return self.read_procfile(path)
        except ConfigError as error:
            self._document.report_value(("mesh", "procfile"), str(error))
            return {}

    def read_procfile(self, path: Path) -> dict[str, App]:
        """Return the apps of a Procfile. Raises ConfigError where it cannot be read at all."""
        file = _called(path)
        entries, findings = procfile.parse(_read(path, file), file)
        self._document.findings += findings
        for entry in entries:
            place = Place(file, entry.line, 1)
            self._document.elsewhere |= {
                ("apps", entry.name): place,
                ("apps", entry.name, "port"): place,
            }
        variables = self._read_dotenv_beside(path)
        folder = _folder(path)
        # A folder's name is no text to expand: its $ stand for themselves.
        cwd = None if folder == self._folder else str(folder).replace("$", "$$")
        env = dotenv.values(variables)
        apps, findings = procfile.apps(entries, self._base_port(path, variables), env, cwd, file)
        self._document.findings += findings
        return apps

    def _read_dotenv_beside(self, path: Path) -> tuple[dotenv.Variable, ...]:
        beside = path.parent / ".env"
        if not beside.is_file():  # a folder of that name is likely a virtual environment
            return ()
        try:
            return self._read_variables(beside)
        except ConfigError as error:
            self._document.findings += error.findings
            return ()

    def _read_variables(self, path: Path) -> tuple[dotenv.Variable, ...]:
        file = _called(path)
        variables, findings = dotenv.parse(_read(path, file), file)
        self._document.findings += findings
        return variables

    def _base_port(self, path: Path, variables: tuple[dotenv.Variable, ...]) -> int:
        file, line, written = "the environment", 0, self._environ.get("PORT")
        for variable in variables:
            if variable.name == "PORT":
                file, line, written = _called(path.parent / ".env"), variable.line, variable.value
        if written is None:
            return procfile.DEFAULT_BASE_PORT
        if re.fullmatch(r"[0-9]{1,5}", written, re.ASCII) and 1 <= int(written) <= HIGHEST_PORT:
            return int(written)
        message = f"PORT must be a number from 1 to {HIGHEST_PORT}, not {quoted(written)}"
        self._document.findings.append(Finding(file, line, 1 if line else 0, message))
        return procfile.DEFAULT_BASE_PORT

    def _read_env_file(self, table: Table) -> dict[str, str]:
        named = table.read("env_file", text, None)
        path = (*table.path, "env_file")
        if named is None:
            return {}
        known = self._known(str(table.path[-1]))
        try:
            file = self._folder / expand(named, known)
            return dotenv.values(self._read_variables(file))
        except UnsetVariableError as error:
            per_instance = error.name in INSTANCE_VARIABLES or error.name.startswith("UPSTREAM_")
            why = ": env_file is read before an instance has its variables" if per_instance else ""
            self._document.report_value(path, f"{error}{why or hint(error.name, known)}")
        except (ExpansionTooLongError, ConfigError) as error:
            self._document.report_value(path, str(error))
        return {}

    def _known(self, app: str) -> dict[str, str]:
        """Return the variables that are the same for all instances of an app."""
        known = {**self._environ, "MESHRUN_APP": app}
        for name in INSTANCE_VARIABLES:
            known.pop(name, None)
        return known

    def _check_watched(self, table: Table, app: App) -> None:
        """Report what is to be watched and is not there: most likely it is misspelt."""
        if app.watch is None:
            return
        known = {**self._known(app.name), **(app.account.variables if app.account else {})}
        try:
            cwd = Path(expand(app.cwd or "", {**known, **app.env_file})).expanduser()
        except (UnsetVariableError, ExpansionTooLongError, RuntimeError):
            return  # each instance may have a folder of its own; else others report it
        folder = self._folder / cwd
        for index, watched in enumerate(app.watch.paths):
            base = folder / watched.base
            why = _unwatchable(base, want_folder=bool(watched.pattern))
            if why is not None:
                self._document.report_value(
                    written_at(table, index), f"cannot watch {_called(base)} for {app.name}: {why}"
                )

    def _check_addresses(self, configuration: Configuration) -> None:
        for service in configuration.services.values():
            path = ("services", service.name, "address")
            if not service.address:
                continue
            try:
                address(expand(service.address, self._environ))
            except UnfitError as error:
                self._document.report_value(path, f"{dotted(path)} {error}")
            except UnsetVariableError as error:
                self._document.report_value(path, f"{error}{hint(error.name, self._environ)}")
            except ExpansionTooLongError as error:
                self._document.report_value(path, str(error))


def _parsed(source: str, file: str) -> dict[str, object]:
    try:
        return tomli.loads(source)
    except tomli.TOMLDecodeError as error:
        raise ConfigError([_syntax_finding(str(error), source, file)]) from error
    except ValueError as error:  # Python itself refuses to read integers of over 4300 digits
        raise _refused(file, f"not valid TOML: {error}") from error
    except RecursionError as error:
        raise _refused(file, "cannot be read: arrays or keys are nested too deeply") from error


def _syntax_finding(message: str, source: str, file: str) -> Finding:
    """Take apart tomli's message; only its newest versions have line and column as attributes."""
    match = _TOML_ERROR.fullmatch(message)
    if match is None:
        return Finding(file, 0, 0, f"not valid TOML: {message}")
    reason = _PLAINER.get(match[1], match[1][:1].lower() + match[1][1:])
    if match[2] is not None:
        return Finding(file, int(match[2]), int(match[3]), f"not valid TOML: {reason}")
    line = source.count("\n") + 1
    column = len(source) - (source.rfind("\n") + 1) + 1
    return Finding(file, line, column, f"not valid TOML: {reason}, at the end of the file")


def _read(path: Path, file: str) -> str:
    """Return the text of a file. Raises ConfigError."""
    try:
        with path.open("rb") as stream:
            content = stream.read(_LARGEST_FILE + 1)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise _refused(file, f"cannot be read: {str(reason).lower()}") from error
    if len(content) > _LARGEST_FILE:
        raise _refused(file, f"cannot be read: it is larger than {_LARGEST_FILE >> 20} MiB")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = content[: error.start]
        line = before.count(b"\n") + 1
        column = len(before[before.rfind(b"\n") + 1 :].decode("utf-8", "replace")) + 1
        message = f"not UTF-8: byte 0x{content[error.start]:02x}"
        raise ConfigError([Finding(file, line, column, message)]) from error


def _unwatchable(path: Path, *, want_folder: bool) -> str | None:
    """Say why a file or folder cannot be watched, None where it can."""
    try:
        is_folder = path.is_dir()
        path.stat()
    except OSError as error:
        return str(error.strerror).lower()
    if want_folder and not is_folder:
        return "it is no folder"
    if is_folder and not os.access(path, os.R_OK | os.X_OK):
        return "permission denied"
    return None


def _folder(path: Path) -> Path:
    """Return the folder of a file: by the name that it was given, unless that ends in `..`."""
    folder = path.absolute().parent
    return folder.resolve() if ".." in folder.parts else folder


def _called(path: Path) -> str:
    """Return the name that the user would call a file by: below the working folder, relative."""
    absolute = os.path.abspath(path)
    try:
        below = Path(absolute).relative_to(Path.cwd())
    except (ValueError, FileNotFoundError):
        return str(path)
    return str(below)


def _refused(file: str, message: str) -> ConfigError:
    return ConfigError([Finding(file, 0, 0, message)])
