"""What an app's `depends_on` says: names, conditions, or a table for each."""

from typing import get_args

from meshrun.supervisor.configuration.model import Condition, Dependency, OnRestart
from meshrun.supervisor.configuration.tables import Table, dotted
from meshrun.supervisor.configuration.values import choice, quoted

__all__ = ["KEYS", "read_depends_on"]

KEYS = ("condition", "on_restart")

_CONDITIONS: tuple[Condition, ...] = get_args(Condition)
_ON_RESTART: tuple[OnRestart, ...] = get_args(OnRestart)


def read_depends_on(table: Table) -> dict[str, Dependency]:
    """Read `depends_on` of an app; a list of names means that each must be ready."""
    if isinstance(table.values.get("depends_on", []), list):
        return _read_array(table)
    depends_on = table.table("depends_on", '{ backend = "ready" }')
    if depends_on is None:
        return {}
    return {name: _read_dependency(depends_on, name) for name in depends_on.values}


def _read_array(table: Table) -> dict[str, Dependency]:
    result: dict[str, Dependency] = {}
    for path, name in table.strings("depends_on", '["backend"]'):
        if name in result:
            table.document.report_value(path, f"{dotted(path)} names {quoted(name)} a second time")
        result[name] = Dependency()
        place = table.document.value(path)
        table.document.elsewhere.setdefault((*path[:-1], name), place)
    return result


def _read_dependency(depends_on: Table, name: str) -> Dependency:
    # An unfit condition still is a wish for an order: names and circles are checked with it.
    if not isinstance(depends_on.values[name], dict):
        condition = depends_on.read(name, choice(_CONDITIONS), None)
        return Dependency(condition=condition or "started")
    table = depends_on.nested(depends_on.values[name], (*depends_on.path, name))
    assert table is not None
    table.allow(KEYS)
    return Dependency(
        condition=table.read("condition", choice(_CONDITIONS), Dependency().condition),
        on_restart=table.read("on_restart", choice(_ON_RESTART), Dependency().on_restart),
    )
