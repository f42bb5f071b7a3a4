"""The upstreams of an app: the services that it calls, and what becomes of each of its requests.

Whether those services are there and speak HTTP is for
`meshrun.supervisor.configuration.references`.
"""

from meshrun.proxy.messages import MOST_CONNECTIONS, Ejection, Requests
from meshrun.supervisor.configuration.headers import header_value, settable_header
from meshrun.supervisor.configuration.model import UpstreamReference
from meshrun.supervisor.configuration.tables import Table, dotted
from meshrun.supervisor.configuration.toml_positions import KeyPath
from meshrun.supervisor.configuration.values import (
    HIGHEST_PORT,
    UnfitError,
    duration,
    idleness,
    integer,
    kind,
    limit,
    quoted,
    text,
    upstream_name,
    wait,
)

__all__ = ["KEYS", "REQUEST_KEYS", "read_upstreams"]

# Of upstreams whose protocol is not tcp.
REQUEST_KEYS = (
    *("request_timeout", "retries", "max_requests", "max_pending", "ejection"),
    *("set_headers", "remove_headers", "split"),
)
KEYS = (
    *("service", "as", "port", "connect_timeout", "max_connections", "idle_timeout"),
    *REQUEST_KEYS,
)
EJECTION_KEYS = ("failures", "time")

MOST_RETRIES = 10
MOST_FAILURES = 1000
MOST_SERVICES_IN_A_SPLIT = 32
HIGHEST_WEIGHT = 10_000
# Of the 100 that a request may have; the rest is the app's.
MOST_HEADERS = 32


def read_upstreams(table: Table) -> tuple[UpstreamReference, ...]:
    """Read the `upstreams` of an app."""
    values = table.array("upstreams", '["backend"]')
    paths: list[KeyPath] = [(*table.path, "upstreams", index) for index in range(len(values))]
    return tuple(_read(table, value, path) for value, path in zip(values, paths, strict=True))


def _read(table: Table, value: object, path: KeyPath) -> UpstreamReference:
    """Read one upstream; one that names no service has the service ``""``."""
    if isinstance(value, str):
        return UpstreamReference(service=value, name=value)
    if not isinstance(value, dict):
        table.document.report_value(
            path,
            f'{dotted(path)} must be a name or a table such as {{ service = "backend" }}, '
            f"not {kind(value)}",
        )
        return UpstreamReference(service="", name="")
    upstream = Table(table.document, path, value)
    upstream.allow(KEYS)
    service = upstream.required("service", text, "")
    return UpstreamReference(
        service=service,
        name=upstream.read("as", upstream_name, "" if "as" in upstream else service),
        port=upstream.read("port", integer(1, HIGHEST_PORT), None),
        connect_timeout_s=upstream.read("connect_timeout", wait, 5.0),
        max_connections=upstream.read("max_connections", limit, MOST_CONNECTIONS),
        idle_timeout_s=upstream.read("idle_timeout", idleness, None),
        requests=_read_requests(upstream),
        split=_read_split(upstream),
    )


def _read_requests(upstream: Table) -> Requests:
    default = Requests()
    removed = _read_removed(upstream)
    return Requests(
        timeout_s=upstream.read("request_timeout", duration(), default.timeout_s) or None,
        retries=upstream.read("retries", integer(0, MOST_RETRIES), default.retries),
        most_in_flight=upstream.read("max_requests", limit, default.most_in_flight),
        most_pending=upstream.read("max_pending", limit, default.most_pending),
        ejection=_read_ejection(upstream),
        set_headers=_read_set(upstream, removed),
        remove_headers=removed,
    )


def _read_ejection(upstream: Table) -> Ejection:
    default = Ejection()
    ejection = upstream.table("ejection", '{ failures = 5, time = "30s" }')
    if ejection is None:
        return default
    ejection.allow(EJECTION_KEYS)
    first_s = ejection.read("time", wait, default.first_s)
    return Ejection(
        failures=ejection.read("failures", integer(0, MOST_FAILURES), default.failures),
        first_s=first_s,
        longest_s=max(first_s, default.longest_s),
    )


def _read_removed(upstream: Table) -> tuple[str, ...]:
    removed: list[str] = []
    named = upstream.strings("remove_headers", '["x-debug"]')
    for path, written in named:
        name = upstream.fitted(written, path, settable_header, "").lower()
        if name in removed:
            upstream.document.report_value(path, f"{dotted(path)} names {quoted(name)} again")
        elif name:
            removed.append(name)
    _check_count(upstream, "remove_headers", len(named))
    return tuple(removed)


def _read_set(upstream: Table, removed: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    headers = upstream.table("set_headers", '{ "x-env" = "test" }')
    if headers is None:
        return ()
    found: list[tuple[str, str]] = []
    earlier: set[str] = set()
    for written in headers.values:
        path = (*headers.path, written)
        try:
            name = settable_header(written)
        except UnfitError as error:
            headers.document.report_key(path, f"{dotted(path)}: the name of a header {error}")
            continue
        # Names of headers differ in more than case (RFC 9110 5.1).
        if name.lower() in earlier:
            headers.document.report_key(path, f"{dotted(path)} sets {quoted(name.lower())} again")
        elif name.lower() in removed:
            headers.document.report_key(
                path, f"{dotted(path)} is in remove_headers too: to set a header replaces it"
            )
        earlier.add(name.lower())
        found.append((name, headers.read(written, header_value, "")))
    _check_count(upstream, "set_headers", len(headers.values))
    return tuple(found)


def _read_split(upstream: Table) -> tuple[tuple[str, int], ...]:
    split = upstream.table("split", "{ backend = 90, backend-v2 = 10 }")
    if split is None:
        return ()
    if not split.values:
        split.document.report_value(split.path, f"{dotted(split.path)} must name a service")
    _check_count(upstream, "split", len(split.values), MOST_SERVICES_IN_A_SPLIT)
    weight = integer(1, HIGHEST_WEIGHT)
    return tuple((service, split.read(service, weight, 1)) for service in split.values)


def _check_count(upstream: Table, key: str, count: int, most: int = MOST_HEADERS) -> None:
    if count > most:
        path = (*upstream.path, key)
        upstream.document.report_value(path, f"{dotted(path)} has {count} entries, over {most}")
