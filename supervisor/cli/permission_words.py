"""Permissions in words, for who reads what decides."""

from collections.abc import Sequence

from meshrun.proxy.intentions import HeaderMatch, Permission

__all__ = ["conditions", "numbered"]


def conditions(permission: Permission) -> str:
    """Return what a request must be: `GET, HEAD, path begins with /v1, header x-role is "a"`."""
    parts = [*permission.methods]
    for words, path in (
        ("is", permission.path_exact),
        ("begins with", permission.path_prefix),
        ("matches", permission.path_regex),
    ):
        if path:
            parts.append(f"path {words} {path}")
    return ", ".join([*parts, *map(_header, permission.headers)])


def _header(match: HeaderMatch) -> str:
    if match.present:
        return f"header {match.name} is {'absent' if match.invert else 'present'}"
    for words, inverted, text in (
        ("is", "is not", match.exact),
        ("begins with", "does not begin with", match.prefix),
        ("ends with", "does not end with", match.suffix),
        ("contains", "does not contain", match.contains),
        ("matches", "does not match", match.regex),
    ):
        if text:
            case = " in any case" if match.ignore_case else ""
            return f'header {match.name} {inverted if match.invert else words} "{text}"{case}'
    return f"header {match.name}"


def numbered(permissions: Sequence[Permission], deciding: int | None) -> list[str]:
    """Return a line for each permission, in order, that with the number `deciding` marked."""
    width = len(str(len(permissions)))
    return [
        f"{'>' if number == deciding else ' '} {number:>{width}} {permission.action:<5}  "
        f"{conditions(permission)}"
        for number, permission in enumerate(permissions, start=1)
    ]
