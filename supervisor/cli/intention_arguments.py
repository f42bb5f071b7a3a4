"""What the arguments of `meshrun intentions` mean; messages as in Consul where it has them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from meshrun.proxy.intentions import WILDCARD, Action, Intention, Permission
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.intention_json import PermissionRecord

__all__ = [
    "ArgumentsError",
    "Pairing",
    "meta_entry",
    "permissions_for",
    "read_wanted",
    "sought",
    "target",
    "two_services",
]

# In a mesh of one machine there is one of each; Consul's names for it are accepted.
DEFAULT = "default"

# A protocol, not a method, but some say it so.
ANY_METHOD = ("http", "*")

_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)


class ArgumentsError(MeshrunError):
    """The arguments do not make sense together."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """What was given: arguments, and the values of -from and -to."""

    names: tuple[str, ...]
    source: str | None = None
    destination: str | None = None


class _InFile(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """An intention as a file given to `create -file` has it."""

    source_name: str
    destination_name: str
    action: str | None = None
    permissions: list[PermissionRecord] | None = None
    dry_run: bool = False
    description: str = ""
    meta: dict[str, str] = {}
    jwt: object = msgspec.field(name="JWT", default=None)


def read_wanted(content: bytes, file: str) -> Intention:
    """Read an intention in the JSON of Consul's API. Raises ArgumentsError."""
    from meshrun.supervisor.intention_checks import UnfitIntentionError, effect

    try:
        found = msgspec.json.decode(content, type=_InFile)
    except msgspec.DecodeError as error:
        raise ArgumentsError(f"cannot read an intention from {file}: {error}") from error
    if found.jwt is not None:
        raise ArgumentsError(f"cannot create the intention in {file}: JWT is not supported")
    source, destination = target(found.source_name), target(found.destination_name)
    # Without a word the command allows, and so does a file.
    action = found.action or (None if found.permissions else "allow")
    try:
        decided = effect(destination, action, found.permissions, dry_run=found.dry_run)
    except UnfitIntentionError as error:
        raise ArgumentsError(f"cannot create the intention in {file}: {error}") from error
    return Intention(
        source=source,
        destination=destination,
        action=decided[0],
        permissions=decided[1],
        dry_run=decided[2],
        description=found.description,
        meta=found.meta,
    )


def permissions_for(verbs: Sequence[str], action: Action) -> tuple[Permission, ...]:
    """Return the permission that -verb stands for, none where any method is meant.

    `http` and `*` are any method. Raises ArgumentsError.
    """
    from meshrun.supervisor.configuration.conditions import method
    from meshrun.supervisor.configuration.values import UnfitError

    names = [name.strip() for verb in verbs for name in verb.split(",")]
    if any(name.lower() in ANY_METHOD for name in names):
        if len(names) > 1:
            raise ArgumentsError("-verb http and -verb '*' mean any method, and stand alone")
        return ()
    methods = []
    for name in names:
        try:
            methods.append(method(name.upper()))
        except UnfitError as error:
            raise ArgumentsError(f"cannot use -verb {name}: a method {error}") from error
    return (Permission(action=action, methods=tuple(dict.fromkeys(methods))),) if methods else ()


def two_services(given: Pairing) -> tuple[str, str]:
    """Return source and destination. Raises ArgumentsError."""
    named = given.source is not None or given.destination is not None
    if named and given.names:
        raise ArgumentsError("Source and destination are either two arguments or -from and -to")
    names = (given.source, given.destination) if named else given.names
    if len(names) != 2:
        raise ArgumentsError("Must specify two arguments: source and destination")
    source, destination = names
    if source is None or destination is None:
        raise ArgumentsError("Must specify both -from and -to")
    return target(source), target(destination)


def sought(given: Pairing) -> tuple[str, str] | str:
    """Return a pair, or the ID of an intention. Raises ArgumentsError."""
    if given.source is None and given.destination is None and len(given.names) == 1:
        name = given.names[0]
        if not _ID.fullmatch(name):
            raise ArgumentsError(
                f"Must specify two arguments, source and destination, or one ID; {name} is no ID"
            )
        return name.lower()
    return two_services(given)


def target(text: str) -> str:
    """Return the name of a service or `*`, from `name`, `ns/name` or `partition/ns/name`.

    Raises ArgumentsError.
    """
    *spaces, name = text.split("/")
    if len(spaces) > 2:
        raise ArgumentsError(f"cannot use {text}: input can contain at most two '/'")
    for space in spaces:
        if space != DEFAULT:
            raise ArgumentsError(
                f'cannot use {text}: a mesh of one machine has only the namespace "{DEFAULT}"'
            )
    if not name:
        raise ArgumentsError("Name is required")
    if WILDCARD in name and name != WILDCARD:
        raise ArgumentsError(
            f"cannot use {text}: wildcard character '*' cannot be used with partial values"
        )
    return name


def meta_entry(text: str) -> tuple[str, str]:
    """Return key and value of `key=value`. Raises ArgumentsError."""
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise ArgumentsError(f"cannot use -meta {text}: it must be KEY=VALUE")
    return key, value
