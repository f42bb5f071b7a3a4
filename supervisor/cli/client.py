"""The API of a running mesh, called over the control socket in its state folder."""

import socket
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import TypeVar
from urllib.parse import quote, urlencode

import msgspec

from meshrun.supervisor.cli.records import (
    Check,
    Done,
    Event,
    Explanation,
    InstanceRow,
    Leaf,
    OneOff,
    Outcome,
    Root,
    RunInfo,
    Stopping,
    Verdict,
)
from meshrun.supervisor.cli.request_options import Asking
from meshrun.supervisor.cli.transport import Response, TransportError, exchange
from meshrun.supervisor.errors import MeshrunError, NotRunningError
from meshrun.supervisor.intention_json import IntentionRecord, PermissionRecord
from meshrun.supervisor.logreading import LogLine
from meshrun.supervisor.statedir import StateDir

__all__ = ["ApiError", "Client"]

T = TypeVar("T")
Query = Mapping[str, str] | Sequence[tuple[str, str]]

CONNECT_TIMEOUT_S = 5.0
# What only has to look something up; a supervisor that was stopped (SIGSTOP) must not hang `ps`.
ANSWER_TIMEOUT_S = 15.0
# What waits until every sidecar enforces it.
ENFORCE_TIMEOUT_S = 60.0


class ApiError(MeshrunError):
    """The mesh refused; `status` is HTTP's, the message the API's own."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Client:
    """Calls the supervisor that runs in a state folder, one connection a call.

    Every method raises NotRunningError where none runs, ApiError where it refuses, MeshrunError
    where it cannot be understood.
    """

    def __init__(self, state: StateDir) -> None:
        self._state = state

    def is_running(self) -> bool:
        """Tell whether somebody listens on the control socket."""
        try:
            self._state.connect(CONNECT_TIMEOUT_S).close()
        except NotRunningError:
            return False
        return True

    def run(self) -> RunInfo:
        """Return what runs."""
        return self._ask("GET", "/v1/meshrun/run", RunInfo)

    def instances(self) -> list[InstanceRow]:
        """Return the state of every instance."""
        return self._ask("GET", "/v1/meshrun/instances", list[InstanceRow])

    def wait(self, timeout_s: float) -> Verdict:
        """Wait until all is ready or something failed, `timeout_s` at most."""
        return self._ask(
            "GET",
            "/v1/meshrun/wait",
            Verdict,
            query={"timeout": f"{timeout_s:g}"},
            timeout_s=timeout_s + ANSWER_TIMEOUT_S,
        )

    def act(self, action: str, names: Sequence[str]) -> list[Outcome]:
        """Do `start`, `stop` or `restart`; returns when it is done, however long that takes."""
        path = f"/v1/meshrun/{quote(action)}"
        return self._ask("POST", path, list[Outcome], body={"names": names}, timeout_s=None)

    def reload(self, *, dry_run: bool) -> list[Done]:
        """Have a changed file applied; returns when that is done, however long it takes.

        A file that is wrong is an ApiError with the status 422.
        """
        body = {"dry_run": dry_run}
        return self._ask("POST", "/v1/meshrun/reload", list[Done], body=body, timeout_s=None)

    def scale(self, instances: Mapping[str, int]) -> list[Done]:
        """Have other numbers of instances run; returns when they do, however long it takes."""
        body = {"instances": instances}
        return self._ask("POST", "/v1/meshrun/scale", list[Done], body=body, timeout_s=None)

    def down(self) -> Stopping:
        """Tell the run to end."""
        return self._ask("POST", "/v1/meshrun/down", Stopping)

    def logs(
        self,
        names: Sequence[str],
        last: int | None,
        *,
        follow: bool,
        since: float | None = None,
    ) -> Iterator[LogLine]:
        """Yield lines of output since a wall-clock time, with `follow` until the run ends."""
        query = [("app", name) for name in names] + _last(last, follow=follow)
        if since is not None:
            query.append(("since", f"{since:.6f}"))
        return self._stream("/v1/meshrun/logs", LogLine, query, follow=follow)

    def events(self, last: int | None, *, follow: bool) -> Iterator[Event]:
        """Yield events, with `follow` until the run ends."""
        query = _last(last, follow=follow)
        return self._stream("/v1/meshrun/events", Event, query, follow=follow)

    def access(
        self, names: Sequence[str], last: int | None, *, follow: bool
    ) -> Generator[bytes, None, None]:
        """Yield the JSON of entries of the access log, with `follow` until the run ends."""
        query = [("app", name) for name in names] + _last(last, follow=follow)
        return self._lines("/v1/meshrun/access", query, follow=follow)

    def tap(
        self, source: str, destination: str, *, quiet_s: float | None = None
    ) -> Generator[bytes, None, None]:
        """Yield the JSON of what goes from a source (or `*`) to a destination, as it happens.

        Returns when the sidecars record; they do until it is closed. That nothing comes for
        `quiet_s` is an error, None for never.
        """
        query = {"source": source, "destination": destination}
        return self._lines("/v1/meshrun/tap", query, follow=True, quiet_s=quiet_s)

    def metrics(self) -> str:
        """Return the page for Prometheus."""
        return self._fetch("GET", "/metrics").decode()

    def begin_one_off(self, app: str, program: str) -> tuple[OneOff, Generator[bytes, None, None]]:
        """Get a sidecar for a command of an app; returns when that serves.

        It is there until the second value is closed, or this process ends.
        """
        query = {"app": app, "program": program}
        lines = self._lines("/v1/meshrun/one-off", query, follow=True, method="POST")
        try:
            return _decoded(next(lines), OneOff), lines
        except BaseException:
            lines.close()
            raise

    def env(self, instance: str) -> dict[str, str]:
        """Return the environment of an instance."""
        return self._ask("GET", f"/v1/meshrun/env/{quote(instance, safe='')}", dict[str, str])

    def why(self, app: str) -> list[Explanation]:
        """Return why the instances of an app are in their state."""
        return self._ask("GET", f"/v1/meshrun/why/{quote(app, safe='')}", list[Explanation])

    def certs(self) -> list[Leaf]:
        """Return the leaf of every sidecar."""
        return self._ask("GET", "/v1/meshrun/certs", list[Leaf])

    def roots(self) -> list[Root]:
        """Return the trusted roots."""
        return self._ask("GET", "/v1/meshrun/roots", list[Root])

    def rotate(self, names: Sequence[str]) -> list[Leaf]:
        """Have new leaves issued; returns when the sidecars serve them."""
        return self._ask(
            "POST",
            "/v1/meshrun/certs/rotate",
            list[Leaf],
            body={"names": names},
            timeout_s=ENFORCE_TIMEOUT_S,
        )

    def intentions(self) -> list[IntentionRecord]:
        """Return the intentions in force, in evaluation order."""
        return self._ask("GET", "/v1/connect/intentions", list[IntentionRecord])

    def put_intention(
        self,
        source: str,
        destination: str,
        action: str,
        *,
        permissions: Sequence[PermissionRecord] = (),
        dry_run: bool = False,
        description: str,
        meta: Mapping[str, str],
        replace: bool,
    ) -> None:
        """Create an intention, or with `replace` put it in place of another.

        With `permissions` the action is left out. Returns when every sidecar enforces it.
        """
        pair = {"source": source, "destination": destination}
        decides = {"Permissions": permissions} if permissions else {"Action": action}
        dry = {"DryRun": True} if dry_run else {}
        notes = {"Description": description, "Meta": meta}
        body = {"SourceType": "consul", **decides, **dry, **notes}
        self._ask(
            "PUT",
            "/v1/connect/intentions/exact",
            bool,
            query={**pair, "replace": "1" if replace else "0"},
            body=body,
            timeout_s=ENFORCE_TIMEOUT_S,
        )

    def delete_intention(self, source: str, destination: str) -> None:
        """Delete a runtime intention; returns when no sidecar follows it any more."""
        self._ask(
            "DELETE",
            "/v1/connect/intentions/exact",
            bool,
            query={"source": source, "destination": destination},
            timeout_s=ENFORCE_TIMEOUT_S,
        )

    def match_intentions(self, by: str, name: str) -> list[IntentionRecord]:
        """Return the intentions that name a source or destination, in evaluation order."""
        found = self._ask(
            "GET",
            "/v1/connect/intentions/match",
            dict[str, list[IntentionRecord]],
            query={"by": by, "name": name},
        )
        return found.get(name, [])

    def check_intention(self, source: str, destination: str, about: Asking) -> Check:
        """Return whether a source may call a destination, or make the request that is described."""
        query = [("source", source), ("destination", destination), *about.query()]
        return self._ask("GET", "/v1/connect/intentions/check", Check, query=query)

    def _ask(
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        query: Query = (),
        body: object = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> T:
        answer = self._fetch(method, path, query=query, body=body, timeout_s=timeout_s)
        return _decoded(answer, kind)

    def _fetch(
        self,
        method: str,
        path: str,
        *,
        query: Query = (),
        body: object = None,
        timeout_s: float | None = ANSWER_TIMEOUT_S,
    ) -> bytes:
        with self._state.connect(CONNECT_TIMEOUT_S) as connection:
            connection.settimeout(timeout_s)
            target = f"{path}?{urlencode(query)}" if query else path
            content = None if body is None else msgspec.json.encode(body)
            try:
                response = exchange(connection, method, target, content)
                answer = response.body()
            except TransportError as error:
                raise self._lost(error) from error
        _refuse(response, answer)
        return answer

    def _stream(self, path: str, kind: type[T], query: Query, *, follow: bool) -> Iterator[T]:
        return (_decoded(line, kind) for line in self._lines(path, query, follow=follow))

    def _lines(
        self,
        path: str,
        query: Query,
        *,
        follow: bool,
        method: str = "GET",
        quiet_s: float | None = None,
    ) -> Generator[bytes, None, None]:
        # Asked here and not with the first line: whoever calls knows that it has begun.
        connection = self._state.connect(CONNECT_TIMEOUT_S)
        with ExitStack() as stack:
            stack.enter_context(connection)
            connection.settimeout(quiet_s if follow else ANSWER_TIMEOUT_S)
            target = f"{path}?{urlencode(query)}" if query else path
            try:
                response = exchange(connection, method, target, None)
                if response.status >= 400:
                    _refuse(response, response.body())
            except TransportError as error:
                raise self._lost(error) from error
            stack.pop_all()
        lines = self._read_lines(connection, response, follow=follow)
        next(lines)  # from here on to close it is to close the connection
        return lines

    def _read_lines(
        self, connection: socket.socket, response: Response, *, follow: bool
    ) -> Generator[bytes, None, None]:
        with connection:
            try:
                yield b""
                yield from response.lines()
            except TransportError as error:
                # A stream that is followed ends with the mesh, and that is no error.
                if not (follow and not self.is_running()):
                    raise self._lost(error) from error

    def _lost(self, error: Exception) -> MeshrunError:
        return MeshrunError(f"cannot talk to the mesh in {self._state.path}: {error}")


def _last(last: int | None, *, follow: bool) -> list[tuple[str, str]]:
    query = [] if last is None else [("n", str(last))]
    return [*query, ("follow", "1")] if follow else query


def _refuse(response: Response, answer: bytes) -> None:
    if response.status >= 400:
        message = answer.decode(errors="replace").strip() or f"HTTP status {response.status}"
        raise ApiError(response.status, message)


def _decoded(content: bytes, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(content, type=kind)
    except msgspec.DecodeError as error:
        raise MeshrunError(
            f"cannot understand the answer of the running mesh: {error}; "
            "was it started by another version of meshrun?"
        ) from error
