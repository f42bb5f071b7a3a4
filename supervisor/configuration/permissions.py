"""What an `[[intentions]]` does: allows, denies, or has permissions that do, one by one."""

from collections.abc import Iterator
from typing import get_args

from meshrun.proxy.intentions import Action
from meshrun.proxy.permissions import HeaderMatch, Permission
from meshrun.supervisor.configuration.conditions import (
    METHODS,
    MOST_HEADERS,
    MOST_PERMISSIONS,
    exact_path,
    header_name,
    header_text,
    method,
    path_prefix,
    regular_expression,
)
from meshrun.supervisor.configuration.tables import Table, dotted
from meshrun.supervisor.configuration.toml_positions import KeyPath
from meshrun.supervisor.configuration.values import boolean, choice

__all__ = [
    "ACTIONS",
    "CONDITION_KEYS",
    "EFFECT_KEYS",
    "HEADER_KEYS",
    "PERMISSION_KEYS",
    "read_effect",
]

ACTIONS: tuple[Action, ...] = get_args(Action)

PATH_KEYS = ("path_exact", "path_prefix", "path_regex")
CONDITION_KEYS = ("methods", *PATH_KEYS, "headers")
PERMISSION_KEYS = ("action", *CONDITION_KEYS)
EFFECT_KEYS = (*PERMISSION_KEYS, "permissions", "dry_run")
MATCHER_KEYS = ("present", "exact", "prefix", "suffix", "contains", "regex")
HEADER_KEYS = ("name", *MATCHER_KEYS, "invert", "ignore_case")

_EXAMPLE = '{ action = "deny", path_prefix = "/admin" }'


def read_effect(table: Table) -> tuple[Action, tuple[Permission, ...], bool]:
    """Return action, permissions and whether it is a dry run; with permissions a deny."""
    action, permissions = _read_action_or_permissions(table)
    dry_run = table.read("dry_run", boolean, False)
    if dry_run and action == "allow":
        table.document.report_value(
            (*table.path, "dry_run"),
            f"{dotted(table.path)}.dry_run = true would deny nothing: it is for "
            'action = "deny" and for permissions',
        )
    return action, permissions, dry_run


def _read_action_or_permissions(table: Table) -> tuple[Action, tuple[Permission, ...]]:
    conditions = [key for key in CONDITION_KEYS if key in table]
    if "permissions" in table:
        for key in ("action", *conditions):
            if key in table:
                table.document.report_key(
                    (*table.path, key),
                    f"{dotted(table.path)} has both {key} and permissions: put {key} into one of "
                    "the permissions",
                )
        return "deny", _read_permissions(table)
    action: Action = table.read("action", choice(ACTIONS), "allow")
    if not conditions:
        return action, ()
    if action == "deny":
        table.document.report_value(
            (*table.path, "action"),
            f'{dotted(table.path)} has action = "deny" with {conditions[0]}, which is short for '
            "one permission that allows: write "
            f'permissions = [{{ action = "deny", {conditions[0]} = … }}]',
        )
    return "deny", (_read_permission(table, "allow"),)


def _read_permissions(table: Table) -> tuple[Permission, ...]:
    permissions: list[Permission] = []
    reached: dict[tuple[object, ...], KeyPath] = {}
    for inner in _tables(table, "permissions", _EXAMPLE, MOST_PERMISSIONS):
        inner.allow(PERMISSION_KEYS)
        at = inner.path
        found = len(table.document.findings)
        permission = _read_permission(inner, inner.required("action", choice(ACTIONS), "deny"))
        if not any(key in inner for key in CONDITION_KEYS):
            table.document.report_key(
                at,
                f"{dotted(at)} has no condition: give it methods, a path or headers, or "
                'path_prefix = "/" if it is about every request',
            )
        # What is wrong in itself is not compared: a default stands in for it.
        elif len(table.document.findings) == found:
            permissions.append(permission)
            first = reached.setdefault(_conditions(permission), at)
            if first != at:
                table.document.report_key(
                    at, f"{dotted(at)} is never reached: {dotted(first)} has the same conditions"
                )
    return tuple(permissions)


def _conditions(permission: Permission) -> tuple[object, ...]:
    return (
        frozenset(permission.methods),
        permission.path_exact,
        permission.path_prefix,
        permission.path_regex,
        frozenset(permission.headers),
    )


def _read_permission(table: Table, action: Action) -> Permission:
    paths = [key for key in PATH_KEYS if key in table]
    for key in paths[1:]:
        table.document.report_key(
            (*table.path, key),
            f"{dotted(table.path)} has both {paths[0]} and {key}: a permission has one path",
        )
    return Permission(
        action=action,
        methods=_read_methods(table),
        path_exact=table.read("path_exact", exact_path, ""),
        path_prefix=table.read("path_prefix", path_prefix, ""),
        path_regex=table.read("path_regex", regular_expression, ""),
        headers=_read_headers(table),
    )


def _read_methods(table: Table) -> tuple[str, ...]:
    methods: list[str] = []
    for index, value in enumerate(_array(table, "methods", '["GET"]', len(METHODS))):
        path = (*table.path, "methods", index)
        name = table.fitted(value, path, method, None)
        if name in methods:
            table.document.report_value(path, f"{dotted(path)} names {name} a second time")
        elif name is not None:
            methods.append(name)
    return tuple(methods)


def _read_headers(table: Table) -> tuple[HeaderMatch, ...]:
    headers: list[HeaderMatch] = []
    for inner in _tables(table, "headers", '{ name = "x-role", exact = "admin" }', MOST_HEADERS):
        found = len(table.document.findings)
        header = _read_header(inner)
        if len(table.document.findings) > found:
            continue
        if header in headers:
            table.document.report_key(
                inner.path, f"{dotted(inner.path)} says the same as another one"
            )
        headers.append(header)
    return tuple(headers)


def _read_header(table: Table) -> HeaderMatch:
    table.allow(HEADER_KEYS)
    matchers = [key for key in MATCHER_KEYS if key in table]
    if len(matchers) != 1:
        found = f", not both {matchers[0]} and {matchers[1]}" if matchers else ""
        table.document.report_key(
            table.path, f"{dotted(table.path)} needs one of {', '.join(MATCHER_KEYS)}{found}"
        )
    if not table.read("present", boolean, True):
        table.document.report_value(
            (*table.path, "present"),
            f"{dotted(table.path)}.present = false: write present = true, invert = true",
        )
    ignore_case = table.read("ignore_case", boolean, False)
    if ignore_case and matchers in (["present"], ["regex"]):
        remedy = ": begin the expression with (?i)" if matchers == ["regex"] else ""
        table.document.report_key(
            (*table.path, "ignore_case"),
            f"{dotted(table.path)}.ignore_case is not for {matchers[0]}{remedy}",
        )
    return HeaderMatch(
        name=table.required("name", header_name, "").lower(),
        present="present" in table,
        exact=table.read("exact", header_text("exact"), ""),
        prefix=table.read("prefix", header_text("prefix"), ""),
        suffix=table.read("suffix", header_text("suffix"), ""),
        contains=table.read("contains", header_text("contains"), ""),
        regex=table.read("regex", regular_expression, ""),
        invert=table.read("invert", boolean, False),
        ignore_case=ignore_case,
    )


def _array(table: Table, key: str, example: str, most: int) -> list[object]:
    """Return the array under `key`, of which what is empty or too long is reported."""
    values = table.array(key, example)
    path = (*table.path, key)
    if table.values.get(key) == []:
        table.document.report_value(path, f"{dotted(path)} must not be empty")
    if len(values) > most:
        table.document.report_value(path, f"{dotted(path)} has {len(values)} entries, over {most}")
    return values


def _tables(table: Table, key: str, example: str, most: int) -> Iterator[Table]:
    for index, value in enumerate(_array(table, key, f"[{example}]", most)):
        inner = table.nested(value, (*table.path, key, index), example)
        if inner is not None:
            yield inner
