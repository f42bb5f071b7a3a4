"""Intentions read and changed: through the API of a running mesh, else in its file and database."""

import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Literal
from typing import Protocol as Interface

import click

from meshrun.proxy.intentions import WILDCARD, Intention, Protocol, decide
from meshrun.supervisor.cli.client import Client
from meshrun.supervisor.cli.place import Place
from meshrun.supervisor.cli.records import Check
from meshrun.supervisor.cli.request_options import Asking
from meshrun.supervisor.errors import ConfigError
from meshrun.supervisor.intention_book import Pair
from meshrun.supervisor.intention_json import permission_records

if TYPE_CHECKING:
    from meshrun.supervisor.configuration.model import Configuration
    from meshrun.supervisor.intention_book import IntentionBook

__all__ = ["Access", "open_access"]


class Access(Interface):
    """What the commands do with intentions."""

    def effective(self) -> Sequence[Intention]:
        """Return what is in force, in evaluation order."""

    def find(self, wanted: Pair | str) -> Intention | None:
        """Return the intention in force of a pair, or with an ID."""

    def match(self, by: Literal["source", "destination"], name: str) -> Sequence[Intention]:
        """Return what may decide about a source or a destination."""

    def check(self, pair: Pair, about: Asking) -> Check:
        """Decide about a pair, or about a request of one to the other."""

    def put(self, wanted: Intention, *, replace: bool) -> None:
        """Create, or with `replace` put in place of another; returns when it is enforced.

        Raises MeshrunError where the pair has one already and is not to be replaced.
        """

    def delete(self, pair: Pair) -> None:
        """Delete; raises MeshrunError where that cannot be."""

    def warn_of_unknown(self, pair: Pair) -> None:
        """Say on stderr which of the names no service has."""

    def protocol(self, service: str) -> Protocol | None:
        """Return what a service speaks, None where no service has that name."""


@contextlib.contextmanager
def open_access(place: Place) -> Iterator[Access]:
    """Reach the running mesh, or where none runs its file and database."""
    running = place.running()
    if running is not None:
        yield _Running(running, place)
        return
    from meshrun.supervisor.cli import offline

    yield _Stored(place, offline.configuration_if_any(place))


class _Running:
    """Intentions of a running mesh."""

    def __init__(self, client: Client, place: Place) -> None:
        self._client = client
        self._place = place

    def effective(self) -> Sequence[Intention]:
        return [record.intention() for record in self._client.intentions()]

    def find(self, wanted: Pair | str) -> Intention | None:
        return _find(self.effective(), wanted)

    def match(self, by: Literal["source", "destination"], name: str) -> Sequence[Intention]:
        return [record.intention() for record in self._client.match_intentions(by, name)]

    def check(self, pair: Pair, about: Asking) -> Check:
        return self._client.check_intention(*pair, about)

    def put(self, wanted: Intention, *, replace: bool) -> None:
        self._client.put_intention(
            *wanted.pair,
            wanted.action,
            permissions=permission_records(wanted.permissions),
            dry_run=wanted.dry_run,
            description=wanted.description,
            meta=wanted.meta,
            replace=replace,
        )

    def delete(self, pair: Pair) -> None:
        self._client.delete_intention(*pair)

    def warn_of_unknown(self, pair: Pair) -> None:
        known = {row.app for row in self._client.instances()}
        _warn_of_unknown(pair, known, lambda: _in_file(self._place))

    def protocol(self, service: str) -> Protocol | None:
        return self._client.run().protocols.get(service)


def _in_file(place: Place) -> set[str]:
    """Return the services of the file: a part of it may run only, or it may be broken by now."""
    from meshrun.supervisor.cli import offline

    try:
        return _services(offline.configuration_if_any(place))
    except ConfigError:
        return set()


def _services(configuration: "Configuration | None") -> set[str]:
    return set() if configuration is None else {*configuration.apps, *configuration.services}


class _Stored:
    """Intentions of a mesh that does not run; whoever changes them owns the folder meanwhile."""

    def __init__(self, place: Place, configuration: "Configuration | None") -> None:
        self._place = place
        self._configuration = configuration

    def effective(self) -> Sequence[Intention]:
        with self._reading() as book:
            return book.effective()

    def find(self, wanted: Pair | str) -> Intention | None:
        return _find(self.effective(), wanted)

    def match(self, by: Literal["source", "destination"], name: str) -> Sequence[Intention]:
        sides = (name, WILDCARD)
        return [
            i for i in self.effective() if (i.source if by == "source" else i.destination) in sides
        ]

    def check(self, pair: Pair, about: Asking) -> Check:
        from meshrun.supervisor.cli import offline

        decision = decide(
            self.effective(),
            *pair,
            offline.default_action(self._configuration),
            about.request(),
            protocol=self.protocol(pair[1]) or "http",
        )
        return Check(
            allowed=decision.allowed,
            reason=decision.reason,
            permission=decision.permission,
            dry_run=decision.dry_run,
        )

    def put(self, wanted: Intention, *, replace: bool) -> None:
        import uuid

        with self._writing() as book:
            book.create(
                *wanted.pair,
                wanted.action,
                permissions=wanted.permissions,
                dry_run=wanted.dry_run,
                description=wanted.description,
                meta=wanted.meta,
                replace=replace,
                now=time.time(),
                id=str(uuid.uuid4()),
            )

    def delete(self, pair: Pair) -> None:
        with self._writing() as book:
            book.delete(pair)

    def warn_of_unknown(self, pair: Pair) -> None:
        if self._configuration is not None:
            _warn_of_unknown(pair, _services(self._configuration), set)

    def protocol(self, service: str) -> Protocol | None:
        return None if self._configuration is None else self._configuration.protocol(service)

    def _reading(self) -> "AbstractContextManager[IntentionBook]":
        from meshrun.supervisor.cli import offline

        return offline.reading_book(self._place, self._configuration)

    def _writing(self) -> "AbstractContextManager[IntentionBook]":
        from meshrun.supervisor.cli import offline

        return offline.writing_book(self._place, self._configuration)


def _find(intentions: Iterable[Intention], wanted: Pair | str) -> Intention | None:
    for intention in intentions:
        if wanted == (intention.pair if isinstance(wanted, tuple) else intention.id):
            return intention
    return None


def _warn_of_unknown(pair: Pair, known: set[str], more: Callable[[], set[str]]) -> None:
    """Warn of names that are no service; `more` is asked only where `known` is not enough."""
    unknown = [name for name in pair if name != WILDCARD and name not in known]
    if not unknown:
        return
    from meshrun.supervisor.suggest import hint

    known = known | more()
    for name in unknown:
        if name not in known:
            message = f"warning: no service is called {name}{hint(name, known)}"
            click.echo(click.style(message, fg="yellow"), err=True)
