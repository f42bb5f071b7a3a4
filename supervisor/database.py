"""state.db: what must outlive a run, in SQLite.

A change that was acknowledged is there after a crash (WAL, synchronous FULL). Only the supervisor
writes, and it holds the lock of the state folder; commands that run without one only read.
"""

import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager

import msgspec

from meshrun.proxy.intentions import Intention
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.happening import Happening
from meshrun.supervisor.statedir import StateDir

__all__ = ["Database"]

NAME = "state.db"
EVENTS_KEPT = 10_000

# One entry a version: what brings a database of the version before up to it.
_MIGRATIONS = (
    """
    CREATE TABLE intentions (
        source TEXT NOT NULL, destination TEXT NOT NULL, record BLOB NOT NULL,
        PRIMARY KEY (source, destination)) WITHOUT ROWID;
    CREATE TABLE ports (holder TEXT PRIMARY KEY, port INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE roots (
        trust_domain TEXT NOT NULL, certificate BLOB NOT NULL, active INTEGER NOT NULL,
        created_at REAL NOT NULL);
    CREATE TABLE events (id INTEGER PRIMARY KEY, record BLOB NOT NULL);
    """,
)


class Database:
    """The open database."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._db = connection

    @classmethod
    def open(cls, state: StateDir) -> "Database":
        """Open it, making or migrating it as needed; raises MeshrunError if it is unusable."""
        path = state.file(NAME)
        try:
            # Made here: SQLite would make it readable for all, and gives its mode to its logs.
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            os.close(os.open(NAME, flags, 0o600, dir_fd=state.descriptor))
            # SQLite follows a path: through the descriptor it cannot be led astray.
            connection = sqlite3.connect(str(path), isolation_level=None, timeout=5.0)
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute("PRAGMA synchronous = FULL")
            cls._migrate(connection)
            (state_of_it,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if state_of_it != "ok":
                raise sqlite3.DatabaseError(str(state_of_it))
        except (sqlite3.Error, OSError) as error:
            raise MeshrunError(
                f"cannot use {state.path / NAME}: {error}; move it away to begin anew "
                "(runtime intentions and port assignments are lost with it)"
            ) from error
        return cls(connection)

    @staticmethod
    def _migrate(connection: sqlite3.Connection) -> None:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise sqlite3.DatabaseError("it was written by a newer version of meshrun")
        for number, script in enumerate(_MIGRATIONS[version:], start=version + 1):
            connection.executescript(f"BEGIN; {script} PRAGMA user_version = {number}; COMMIT;")

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Cursor]:
        """Change several rows as one; an error undoes them all."""
        with closing(self._db.cursor()) as cursor:
            cursor.execute("BEGIN")
            try:
                yield cursor
                cursor.execute("COMMIT")
            except BaseException:
                # Of whatever kind: the next transaction must not find itself inside this one.
                if self._db.in_transaction:
                    cursor.execute("ROLLBACK")
                raise

    def close(self) -> None:
        """Close it."""
        self._db.close()

    # Intentions made at run time.

    def intentions(self) -> list[Intention]:
        """Return the runtime intentions."""
        rows = self._db.execute("SELECT record FROM intentions").fetchall()
        return [msgspec.msgpack.decode(record, type=Intention) for (record,) in rows]

    def put_intention(self, intention: Intention) -> None:
        """Add or replace the intention of a pair."""
        self._db.execute(
            "INSERT OR REPLACE INTO intentions VALUES (?, ?, ?)",
            (*intention.pair, msgspec.msgpack.encode(intention)),
        )

    def delete_intention(self, pair: tuple[str, str]) -> None:
        """Delete the intention of a pair."""
        self._db.execute("DELETE FROM intentions WHERE source = ? AND destination = ?", pair)

    # Ports, so that an address is the same in the next run.

    def ports(self) -> dict[str, int]:
        """Return which port each holder had in the last run."""
        return dict(self._db.execute("SELECT holder, port FROM ports").fetchall())

    def put_ports(self, ports: Mapping[str, int]) -> None:
        """Remember ports; those of holders not named stay."""
        with self._transaction() as cursor:
            cursor.executemany("INSERT OR REPLACE INTO ports VALUES (?, ?)", ports.items())

    # Roots: certificates only; the key is in a file of its own.

    def roots(self, trust_domain: str) -> list[bytes]:
        """Return the root certificates (PEM) of a trust domain, the active one first."""
        rows = self._db.execute(
            "SELECT certificate FROM roots WHERE trust_domain = ? "
            "ORDER BY active DESC, created_at DESC",
            (trust_domain,),
        ).fetchall()
        return [certificate for (certificate,) in rows]

    def put_root(self, trust_domain: str, certificate: bytes, created_at: float) -> None:
        """Make a certificate the active root of its trust domain, in place of any other."""
        with self._transaction() as cursor:
            cursor.execute("DELETE FROM roots WHERE trust_domain = ?", (trust_domain,))
            cursor.execute(
                "INSERT INTO roots VALUES (?, ?, 1, ?)", (trust_domain, certificate, created_at)
            )

    # The timeline.

    def add_events(self, events: Iterable[Happening]) -> None:
        """Append events, and let go of the oldest over the limit."""
        with self._transaction() as cursor:
            cursor.executemany(
                "INSERT INTO events (record) VALUES (?)",
                [(msgspec.msgpack.encode(event),) for event in events],
            )
            cursor.execute(
                "DELETE FROM events WHERE id <= (SELECT max(id) FROM events) - ?", (EVENTS_KEPT,)
            )

    def events(self, last: int) -> list[Happening]:
        """Return the last events, oldest first."""
        rows = self._db.execute(
            "SELECT record FROM events ORDER BY id DESC LIMIT ?", (last,)
        ).fetchall()
        return [msgspec.msgpack.decode(record, type=Happening) for (record,) in reversed(rows)]
