"""The names that a shell completes: of apps, of instances, of services.

From mesh.toml as it stands, however much of it is wrong, else from the running mesh. Nothing here
checks anything: while somebody types, a wrong configuration is the usual case.
"""

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from click.shell_completion import CompletionItem

from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.errors import MeshrunError

__all__ = ["complete_app", "complete_scale", "complete_service"]

# What nobody can be called is left out: a shell would expand it.
_SOUND = re.compile(r"[a-z0-9.-]{1,80}=?", re.ASCII)


def complete_app(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Complete an app, and behind a dot an instance of the running mesh."""
    place = context.ensure_object(Place)
    names: Iterable[str] = _instances(place) if "." in incomplete else _apps(place)
    given = {name for value in context.params.values() for name in _words(value)}
    return _matching([name for name in names if name not in given], incomplete)


def complete_scale(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Complete the APP of APP=N."""
    names = _apps(context.ensure_object(Place))
    return _matching([f"{name}=" for name in names], incomplete)


def complete_service(
    context: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem[str]]:
    """Complete an app or an external service."""
    return _matching(_services(context.ensure_object(Place)), incomplete)


def _words(value: object) -> Sequence[str]:
    return value if isinstance(value, tuple) else ()


def _matching(names: Iterable[str], incomplete: str) -> list[CompletionItem[str]]:
    return [
        CompletionItem(name)
        for name in dict.fromkeys(names)
        if name.startswith(incomplete) and _SOUND.fullmatch(name)
    ]


def _apps(place: Place) -> list[str]:
    written = _written(place)
    if written is not None:
        return written[0]
    try:
        return [row.app for row in place.client().instances() if row.state != "external"]
    except MeshrunError:
        return []


def _services(place: Place) -> list[str]:
    written = _written(place)
    if written is not None:
        return [*written[0], *written[1]]
    try:
        return list(place.client().run().protocols)
    except MeshrunError:
        return []


def _instances(place: Place) -> list[str]:
    try:
        return [row.instance for row in place.client().instances()]
    except MeshrunError:
        return []


def _written(place: Place) -> tuple[list[str], list[str]] | None:
    """Return the apps and the external services of mesh.toml; None where it cannot be read."""
    import tomli

    try:
        file = place.config_file()
        tables = tomli.loads(file.read_text(encoding="utf-8"))
    except (MeshrunError, OSError, ValueError, RecursionError):
        return None
    mesh = tables.get("mesh")
    procfile = mesh.get("procfile") if isinstance(mesh, dict) else None
    from_procfile = _processes(file.parent / procfile) if isinstance(procfile, str) else []
    return [*from_procfile, *_keys(tables.get("apps"))], _keys(tables.get("services"))


def _keys(table: object) -> list[str]:
    return list(table) if isinstance(table, dict) else []


def _processes(path: Path) -> list[str]:
    from meshrun.supervisor.configuration import procfile

    try:
        entries, _ = procfile.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, ValueError):
        return []
    return [entry.name for entry in entries]
