"""Intentions in the JSON of Consul's API, as they are shown and sent."""

from collections.abc import Sequence
from typing import Literal

import msgspec

from meshrun.proxy.intentions import (
    Action,
    HeaderMatch,
    Intention,
    Permission,
    precedence,
)

__all__ = [
    "HeaderRecord",
    "HttpRecord",
    "IntentionRecord",
    "PermissionRecord",
    "permission_of",
    "permission_records",
]


class _Strict(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    rename="pascal",
    omit_defaults=True,
    forbid_unknown_fields=True,
):
    """A part of a permission, of which no condition may be overlooked."""


class HeaderRecord(_Strict, frozen=True, kw_only=True):
    """A condition on a header."""

    name: str = ""
    present: bool = False
    exact: str = ""
    prefix: str = ""
    suffix: str = ""
    contains: str = ""
    regex: str = ""
    invert: bool = False
    ignore_case: bool = False


class HttpRecord(_Strict, frozen=True, kw_only=True):
    """The conditions of a permission."""

    path_exact: str = ""
    path_prefix: str = ""
    path_regex: str = ""
    header: list[HeaderRecord] | None = None
    methods: list[str] | None = None


class PermissionRecord(_Strict, frozen=True, kw_only=True):
    """A permission."""

    action: str = ""
    http: HttpRecord | None = msgspec.field(name="HTTP", default=None)


class IntentionRecord(msgspec.Struct, frozen=True, kw_only=True, rename="pascal"):
    """An intention; times in RFC 3339. It has an action or permissions."""

    id: str = msgspec.field(name="ID")
    description: str = ""
    source_ns: str = msgspec.field(name="SourceNS", default="default")
    source_name: str
    destination_ns: str = msgspec.field(name="DestinationNS", default="default")
    destination_name: str
    source_type: str = "consul"
    action: Action | msgspec.UnsetType = msgspec.UNSET
    permissions: list[PermissionRecord] | msgspec.UnsetType = msgspec.UNSET
    dry_run: bool = False
    meta: dict[str, str] = {}
    precedence: int
    created_at: str
    updated_at: str
    origin: Literal["file", "runtime"]
    where: str = ""

    @classmethod
    def of(cls, intention: Intention) -> "IntentionRecord":
        """Return the record of an intention."""
        created = _rfc3339(intention.created_at)
        records = permission_records(intention.permissions)
        return cls(
            id=intention.id,
            description=intention.description,
            source_name=intention.source,
            destination_name=intention.destination,
            action=msgspec.UNSET if records else intention.action,
            permissions=records or msgspec.UNSET,
            dry_run=intention.dry_run,
            meta=intention.meta,
            precedence=precedence(intention),
            created_at=created,
            updated_at=created,
            origin=intention.origin,
            where=intention.where,
        )

    def intention(self) -> Intention:
        """Return the intention of this record, which is trusted to be one."""
        return Intention(
            source=self.source_name,
            destination=self.destination_name,
            action="deny" if self.action is msgspec.UNSET else self.action,
            permissions=tuple(permission_of(record) for record in self.permissions or ()),
            dry_run=self.dry_run,
            id=self.id,
            origin=self.origin,
            where=self.where,
            description=self.description,
            meta=self.meta,
            created_at=_wall_clock_s(self.created_at),
        )


def _rfc3339(at: float) -> str:
    from datetime import UTC, datetime

    return datetime.fromtimestamp(at, tz=UTC).isoformat().replace("+00:00", "Z")


def _wall_clock_s(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def permission_records(permissions: Sequence[Permission]) -> list[PermissionRecord]:
    """Return permissions as Consul shows them."""
    return [
        PermissionRecord(
            action=permission.action,
            http=HttpRecord(
                path_exact=permission.path_exact,
                path_prefix=permission.path_prefix,
                path_regex=permission.path_regex,
                header=[
                    HeaderRecord(**msgspec.structs.asdict(header)) for header in permission.headers
                ]
                or None,
                methods=list(permission.methods) or None,
            ),
        )
        for permission in permissions
    ]


def permission_of(record: PermissionRecord) -> Permission:
    """Return the permission of a record, which is trusted to be one."""
    http = record.http or HttpRecord()
    return Permission(
        action="allow" if record.action == "allow" else "deny",
        methods=tuple(name.upper() for name in http.methods or ()),
        path_exact=http.path_exact,
        path_prefix=http.path_prefix,
        path_regex=http.path_regex,
        headers=tuple(
            HeaderMatch(**(msgspec.structs.asdict(header) | {"name": header.name.lower()}))
            for header in http.header or ()
        ),
    )
