"""Runtime intentions in the database, also those that an earlier version wrote."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from meshrun.proxy.intentions import HeaderMatch, Intention, Permission
from meshrun.supervisor.database import Database
from meshrun.supervisor.statedir import StateDir


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    with (
        contextlib.closing(StateDir.open(tmp_path / "state", create=True)) as state,
        contextlib.closing(Database.open(state)) as opened,
    ):
        yield opened


MADE = Intention(
    source="web",
    destination="db",
    action="deny",
    permissions=(
        Permission(action="deny", path_prefix="/admin"),
        Permission(
            action="allow",
            methods=("GET",),
            headers=(HeaderMatch(name="x-role", regex="a.*", invert=True),),
        ),
    ),
    dry_run=True,
    id="1",
    origin="runtime",
    where="runtime",
    meta={"a": "b"},
    created_at=2.5,
)


def test_an_intention_is_kept_whole(database: Database) -> None:
    database.put_intention(MADE)
    assert database.intentions() == [MADE]
    database.delete_intention(MADE.pair)
    assert database.intentions() == []


class Before(msgspec.Struct, kw_only=True):
    """An intention as it was before there were permissions."""

    source: str
    destination: str
    action: str
    id: str = ""
    origin: str = "runtime"
    where: str = "runtime"
    description: str = ""
    meta: dict[str, str] = {}
    created_at: float = 0.0


def test_an_intention_of_an_earlier_version_is_read(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = Before(source="web", destination="db", action="allow", id="1", created_at=1.0)
    kept = msgspec.msgpack.encode(before)
    monkeypatch.setattr(msgspec.msgpack, "encode", lambda _: kept)
    database.put_intention(MADE)
    assert database.intentions() == [
        Intention(
            source="web",
            destination="db",
            action="allow",
            id="1",
            origin="runtime",
            where="runtime",
            created_at=1.0,
        )
    ]


def test_an_earlier_version_denies_what_has_permissions(database: Database) -> None:
    record = msgspec.msgpack.encode(MADE)
    assert msgspec.msgpack.decode(record, type=Before).action == "deny"
