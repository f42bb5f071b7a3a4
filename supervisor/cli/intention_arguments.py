"""What the arguments of `meshrun intentions` mean; messages as in Consul where it has them."""

import re
from dataclasses import dataclass

import msgspec

from meshrun.proxy.intentions import WILDCARD, Action
from meshrun.supervisor.errors import MeshrunError

__all__ = [
    "ArgumentsError",
    "Pairing",
    "Wanted",
    "meta_entry",
    "read_wanted",
    "sought",
    "target",
    "two_services",
]

# In a mesh of one machine there is one of each; Consul's names for it are accepted.
DEFAULT = "default"

_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}", re.ASCII)


class ArgumentsError(MeshrunError):
    """The arguments do not make sense together."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """What was given: arguments, and the values of -from and -to."""

    names: tuple[str, ...]
    source: str | None = None
    destination: str | None = None


class Wanted(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """An intention to create, as a file given to `create -file` has it."""

    source_name: str
    destination_name: str
    action: Action = "allow"
    description: str = ""
    meta: dict[str, str] = {}
    permissions: list[msgspec.Raw] | None = None

    @property
    def pair(self) -> tuple[str, str]:
        """Source and destination."""
        return self.source_name, self.destination_name


def read_wanted(content: bytes, file: str) -> Wanted:
    """Read an intention in the JSON of Consul's API. Raises ArgumentsError."""
    try:
        wanted = msgspec.json.decode(content, type=Wanted)
    except msgspec.DecodeError as error:
        raise ArgumentsError(f"cannot read an intention from {file}: {error}") from error
    if wanted.permissions:
        raise ArgumentsError(
            f"cannot create the intention in {file}: intentions per HTTP request (Permissions) "
            "are not supported yet"
        )
    source, destination = target(wanted.source_name), target(wanted.destination_name)
    return msgspec.structs.replace(wanted, source_name=source, destination_name=destination)


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
