"""What the commands can do where no mesh runs: from mesh.toml and the state folder."""

import contextlib
import os
import sqlite3
from collections.abc import Iterator, Mapping

from meshrun.proxy.intentions import Action, Intention
from meshrun.supervisor import listeners
from meshrun.supervisor import plan as planning
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.configuration.model import Configuration
from meshrun.supervisor.database import Database
from meshrun.supervisor.errors import MeshrunError, NotRunningError
from meshrun.supervisor.intention_book import IntentionBook, Pair
from meshrun.supervisor.plan import Plan, Selection
from meshrun.supervisor.ports import Wish
from meshrun.supervisor.statedir import AlreadyLockedError, StateDir

__all__ = [
    "NoStore",
    "configuration_if_any",
    "default_action",
    "in_file",
    "plan",
    "reading",
    "reading_book",
    "remembered_ports",
    "writing_book",
]

DATABASE = "state.db"


class NoStore:
    """No runtime intentions: there is no database yet."""

    def intentions(self) -> list[Intention]:
        """Return none."""
        return []

    def put_intention(self, intention: Intention) -> None:
        """Refuse: nothing is stored here."""
        raise AssertionError(f"{intention} put where nothing is stored")

    def delete_intention(self, pair: Pair) -> None:
        """Refuse: nothing is stored here."""
        raise AssertionError(f"{pair} deleted where nothing is stored")


def configuration_if_any(place: Place) -> Configuration | None:
    """Return the configuration, None where there is no mesh.toml. Raises ConfigError."""
    return None if place.found_config_file() is None else place.configuration()


def in_file(configuration: Configuration | None) -> tuple[Intention, ...]:
    """Return the intentions of the file."""
    return () if configuration is None else configuration.intentions


def default_action(configuration: Configuration | None) -> Action:
    """Return what holds where no intention matches."""
    return "deny" if configuration is None else configuration.mesh.default_intention


@contextlib.contextmanager
def reading(place: Place) -> Iterator[Database | None]:
    """Open the database only to read it; None where there is none yet."""
    try:
        state = place.open_state()
    except NotRunningError:
        yield None
        return
    with contextlib.closing(state):
        if not state.file(DATABASE).exists():
            yield None
            return
        with _errors_named(state):
            uri = f"file:{state.file(DATABASE)}?mode=ro"
            with contextlib.closing(sqlite3.connect(uri, uri=True, timeout=5.0)) as connection:
                yield Database(connection)


@contextlib.contextmanager
def _errors_named(state: StateDir) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        raise MeshrunError(f"cannot use {state.path / DATABASE}: {error}") from error


@contextlib.contextmanager
def reading_book(place: Place, configuration: Configuration | None) -> Iterator[IntentionBook]:
    """Lay the stored intentions over those of the file."""
    with reading(place) as database:
        yield IntentionBook(in_file(configuration), database or NoStore())


@contextlib.contextmanager
def writing_book(place: Place, configuration: Configuration | None) -> Iterator[IntentionBook]:
    """Own the state folder meanwhile, so that no run begins. Raises MeshrunError if one has it."""
    with contextlib.closing(place.open_state(create=True)) as state:
        try:
            state.lock()
        except AlreadyLockedError as error:
            raise MeshrunError(
                f"cannot change the intentions of the mesh in {state.path}: it is starting or "
                "stopping; try again"
            ) from error
        with _errors_named(state), contextlib.closing(Database.open(state)) as database:
            yield IntentionBook(in_file(configuration), database)


def remembered_ports(place: Place) -> dict[str, int]:
    """Return which port each holder had in the last run."""
    with reading(place) as database:
        return {} if database is None else database.ports()


def plan(
    place: Place,
    configuration: Configuration,
    remembered: Mapping[str, int],
    busy: list[tuple[Wish, int]] | None = None,
) -> Plan:
    """Plan what `meshrun up` would start now; starts nothing and holds no port.

    A port that the file gives and somebody else has is put into `busy` and planned all the same.
    Where the mesh runs, the ports that it has are its own.
    """
    own = set(remembered.values()) if place.running() is not None else set[int]()

    def claim(wish: Wish, port: int) -> bool:
        if (port in own and remembered.get(wish.holder) == port) or listeners.is_free(port):
            return True
        if wish.fixed != port:
            return False
        if busy is not None:
            busy.append((wish, port))
        return True

    return planning.make(configuration, Selection(), remembered, claim, os.environ, None)
