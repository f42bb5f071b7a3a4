"""Intentions in the JSON of Consul's API: whether they say what one can say, in Consul's words.

An intention that is read stands for itself, so it is `Sources[0]` of the config entry that Consul
makes of it, as in Consul's messages (structs/config_entry_intentions.go).
"""

import json
from collections.abc import Callable, Sequence
from typing import get_args

from meshrun.proxy.intentions import WILDCARD, Action, Permission
from meshrun.supervisor.configuration.conditions import (
    METHODS,
    MOST_HEADERS,
    MOST_PERMISSIONS,
    exact_path,
    header_name,
    header_text,
    path_prefix,
    regular_expression,
)
from meshrun.supervisor.configuration.values import UnfitError
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.intention_json import (
    HeaderRecord,
    HttpRecord,
    PermissionRecord,
    permission_of,
)

__all__ = ["Effect", "UnfitIntentionError", "effect"]

# Action, permissions, and whether it is a dry run, as an Intention has them.
Effect = tuple[Action, tuple[Permission, ...], bool]

ACTIONS: tuple[Action, ...] = get_args(Action)


class UnfitIntentionError(MeshrunError):
    """An intention does not say what an intention can say."""


def effect(
    destination: str,
    action: str | None,
    permissions: Sequence[PermissionRecord] | None,
    *,
    dry_run: bool = False,
) -> Effect:
    """Return what an intention for `destination` does. Raises UnfitIntentionError."""
    if not permissions:
        for known in ACTIONS:
            if action == known:
                if dry_run and known == "allow":
                    raise UnfitIntentionError(
                        "DryRun would deny nothing: it is for an Action of 'deny', "
                        "and for Permissions"
                    )
                return known, (), dry_run
        raise UnfitIntentionError("Sources[0].Action must be set to 'allow' or 'deny'")
    if action:
        raise UnfitIntentionError("Sources[0].Action must be omitted if Permissions are specified")
    if destination == WILDCARD:
        raise UnfitIntentionError(
            "Sources[0].Permissions cannot be specified on intentions with wildcarded destinations"
        )
    if len(permissions) > MOST_PERMISSIONS:
        raise UnfitIntentionError(
            f"Sources[0].Permissions has {len(permissions)} entries, over {MOST_PERMISSIONS}"
        )
    for index, record in enumerate(permissions):
        _check_permission(f"Sources[0].Permissions[{index}]", record)
    return "deny", tuple(permission_of(record) for record in permissions), dry_run


def _check_permission(where: str, record: PermissionRecord) -> None:
    if record.action not in ACTIONS:
        raise UnfitIntentionError(f"{where}.Action must be set to 'allow' or 'deny'")
    if record.http is None:
        raise UnfitIntentionError(f"{where}.HTTP is required")
    where = f"{where}.HTTP"
    http = record.http
    _check_path(where, http)
    _check_headers(where, http.header or ())
    _check_methods(where, http.methods or ())
    if not (http.path_exact or http.path_prefix or http.path_regex or http.header or http.methods):
        raise UnfitIntentionError(f"{where} should not be empty")


def _check_path(where: str, http: HttpRecord) -> None:
    for name, path in (("PathExact", http.path_exact), ("PathPrefix", http.path_prefix)):
        if path and not path.startswith("/"):
            raise UnfitIntentionError(f"{where}.{name} doesn't start with '/': {json.dumps(path)}")
    if sum(map(bool, (http.path_exact, http.path_prefix, http.path_regex))) > 1:
        raise UnfitIntentionError(
            f"{where} should only contain at most one of PathExact, PathPrefix, or PathRegex"
        )
    _fit(f"{where}.PathExact", http.path_exact, exact_path)
    _fit(f"{where}.PathPrefix", http.path_prefix, path_prefix)
    _fit(f"{where}.PathRegex", http.path_regex, regular_expression)


def _check_headers(where: str, headers: Sequence[HeaderRecord]) -> None:
    if len(headers) > MOST_HEADERS:
        raise UnfitIntentionError(f"{where}.Header has {len(headers)} entries, over {MOST_HEADERS}")
    for index, header in enumerate(headers):
        at = f"{where}.Header[{index}]"
        if not header.name:
            raise UnfitIntentionError(f"{at} missing required Name field")
        texts = (header.exact, header.prefix, header.suffix, header.contains)
        if sum(map(bool, (header.present, header.regex, *texts))) != 1:
            raise UnfitIntentionError(
                f"{at} should only contain one of Present, Exact, Prefix, Suffix, or Regex"
            )
        if header.ignore_case and (header.present or header.regex):
            raise UnfitIntentionError(
                f"{at} should set one of Exact, Prefix, Suffix, or Contains when using IgnoreCase"
            )
        _fit(f"{at}.Name", header.name, header_name)
        _fit(f"{at}.Exact", header.exact, header_text("exact"))
        _fit(f"{at}.Prefix", header.prefix, header_text("prefix"))
        _fit(f"{at}.Suffix", header.suffix, header_text("suffix"))
        _fit(f"{at}.Contains", header.contains, header_text("contains"))
        _fit(f"{at}.Regex", header.regex, regular_expression)


def _check_methods(where: str, methods: Sequence[str]) -> None:
    """Check names of methods, of which Consul takes lower case for upper."""
    seen: set[str] = set()
    for name in methods:
        written = json.dumps(name)
        if name.upper() not in METHODS:
            raise UnfitIntentionError(f"{where}.Methods contains an invalid method {written}")
        if name.upper() in seen:
            raise UnfitIntentionError(f"{where}.Methods contains {written} more than once")
        seen.add(name.upper())


def _fit(where: str, value: str, fit: Callable[[object], object]) -> None:
    try:
        if value:
            fit(value)
    except UnfitError as error:
        raise UnfitIntentionError(f"{where} {error}") from error
