"""The intentions of a mesh in their two layers: those of the file, and the runtime ones over them.

The rules of changing them stand here once, for the API of a running mesh and for the command that
works without one.
"""

from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from meshrun.proxy.intentions import Action, Intention, Permission, layered
from meshrun.supervisor.errors import MeshrunError

__all__ = [
    "IntentionBook",
    "IntentionExistsError",
    "IntentionInFileError",
    "IntentionNotFoundError",
    "IntentionStore",
    "Pair",
    "not_found",
]

Pair = tuple[str, str]


class IntentionExistsError(MeshrunError):
    """The pair has an intention already, in the file or at run time."""


class IntentionNotFoundError(MeshrunError):
    """There is no such intention."""


class IntentionInFileError(MeshrunError):
    """The intention stands only in the file, where no command deletes it."""


class IntentionStore(Protocol):
    """Where runtime intentions are kept (`meshrun.supervisor.database.Database`)."""

    def intentions(self) -> list[Intention]:
        """Return the runtime intentions."""

    def put_intention(self, intention: Intention) -> None:
        """Add or replace the intention of a pair."""

    def delete_intention(self, pair: Pair) -> None:
        """Delete the intention of a pair."""


class IntentionBook:
    """The intentions of the file, `base`, under those of `store`."""

    def __init__(self, base: Sequence[Intention], store: IntentionStore) -> None:
        self._base = {intention.pair: intention for intention in base}
        self._store = store

    def rebase(self, base: Sequence[Intention]) -> None:
        """Take other intentions of the file; the runtime ones lie over them as before."""
        self._base = {intention.pair: intention for intention in base}

    def effective(self) -> list[Intention]:
        """Return what is in force, in evaluation order."""
        return layered(self._base.values(), self._store.intentions())

    def find(self, sought: Pair | str) -> Intention | None:
        """Return the intention in force of a pair, or with an id; None if there is none."""
        for intention in self.effective():
            if sought == (intention.pair if isinstance(sought, tuple) else intention.id):
                return intention
        return None

    def create(
        self,
        source: str,
        destination: str,
        action: Action,
        *,
        permissions: tuple[Permission, ...] = (),
        dry_run: bool = False,
        description: str,
        meta: Mapping[str, str],
        replace: bool,
        now: float,
        id: str,  # noqa: A002 - as the field of Intention
    ) -> Intention:
        """Make a runtime intention and return it.

        `now` is wall-clock seconds. One that replaces a runtime intention keeps its id and time of
        creation. Raises IntentionExistsError if the pair has one in either layer, unless `replace`.
        """
        made = Intention(
            source=source,
            destination=destination,
            action=action,
            permissions=permissions,
            dry_run=dry_run,
            id=id,
            origin="runtime",
            where="runtime",
            description=description,
            meta=dict(meta),
            created_at=now,
        )
        existing = self.find(made.pair)
        if existing is not None and not replace:
            raise _exists_error(made, existing)
        if existing is not None and existing.origin == "runtime":
            made = msgspec.structs.replace(made, id=existing.id, created_at=existing.created_at)
        self._store.put_intention(made)
        return made

    def delete(self, pair: Pair) -> Intention:
        """Delete the runtime intention of a pair and return it; the file's is in force again.

        Raises IntentionInFileError if it stands only in the file, IntentionNotFoundError.
        """
        existing = self.find(pair)
        if existing is None:
            raise IntentionNotFoundError(not_found(pair))
        if existing.origin == "file":
            # Of permissions, too, the opposite that opens nothing.
            closes = existing.permissions or existing.action == "allow"
            opposite = "deny" if closes else "allow"
            raise IntentionInFileError(
                f"cannot delete {existing}: it stands in {existing.where}; remove it there, or "
                f"overrule it with: meshrun intentions create -{opposite} -replace "
                f"{_shell(existing.source)} {_shell(existing.destination)}"
            )
        self._store.delete_intention(pair)
        return existing


def _exists_error(wanted: Intention, existing: Intention) -> IntentionExistsError:
    """Return the error of creating what is there already."""
    return IntentionExistsError(
        f"cannot create {wanted}: the intention {existing} "
        f"exists already ({_place(existing)}); use -replace to replace it"
    )


def not_found(sought: Pair | str) -> str:
    """Say that there is no such intention, in Consul's words."""
    if isinstance(sought, str):
        return f'Intention not found with ID "{sought}"'
    return f'Intention not found with source "{sought[0]}" and destination "{sought[1]}"'


def _place(intention: Intention) -> str:
    return intention.where if intention.origin == "file" else "made at run time"


def _shell(name: str) -> str:
    """Return a name as one types it into a shell: `*` would be the names of files."""
    return "'*'" if name == "*" else name
