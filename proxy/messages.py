"""The vocabulary of the channel between the control plane and one worker of a sidecar.

One channel per worker, inherited at the fork, so the channel is the identity: nothing in a message
says who sent it. The control plane sends whole snapshots with a version; the sidecar answers
`Enforced` once every listener and every live connection obeys that version.

On the wire a message is a 4-byte big-endian length and that many bytes of MessagePack; see
`meshrun.proxy.channel`.
"""

from typing import Generic, Literal, TypeVar

import msgspec

from meshrun.proxy.intentions import Action, Intention, Protocol

__all__ = [
    "LATENCY_BOUNDS_S",
    "MOST_CONNECTIONS",
    "TOLD_TEXTS",
    "ConnectionFailed",
    "Connections",
    "Denied",
    "Drained",
    "Ejection",
    "Endpoint",
    "Enforced",
    "Exchanges",
    "FromSidecar",
    "Inbound",
    "LeafIssued",
    "LeafRefused",
    "LeafRequested",
    "Logged",
    "Protocol",
    "Record",
    "Recorded",
    "Renew",
    "Reporter",
    "Requests",
    "Serving",
    "Share",
    "Snapshot",
    "Stats",
    "StatsRequested",
    "ToSidecar",
    "Told",
    "Upstream",
    "Verdicts",
]

# Which sidecar saw it: the caller's or that of the called (Istio's term).
Reporter = Literal["source", "destination"]

# Upper bounds of the buckets of a latency histogram, each included; one more bucket has the rest.
LATENCY_BOUNDS_S = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

# Each takes two descriptors, of which a sidecar has 65,536 where the system allows it.
MOST_CONNECTIONS = 10_000


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    """The inbound listener of one ready instance of a service.

    `tunnels` says that it may speak the protocol of tunnels; one that does not is served all the
    same, and so is one of which this is said in error.
    """

    instance: str
    host: str
    port: int
    tunnels: bool = True


class Share(msgspec.Struct, frozen=True, kw_only=True):
    """A service that takes `weight` parts of the requests to an upstream."""

    service: str
    identity: str
    weight: int
    endpoints: tuple[Endpoint, ...]


class Ejection(msgspec.Struct, frozen=True, kw_only=True):
    """When an endpoint gets no requests for a while: after `failures` in a row, for `first_s`.

    Each time it fails again the while is longer, up to `longest_s`.
    """

    failures: int = 5
    first_s: float = 30.0
    longest_s: float = 300.0


class Requests(msgspec.Struct, frozen=True, kw_only=True):
    """What an upstream does with each request, where its protocol is not tcp.

    `timeout_s` is for the whole, retries included, None for none. More than `most_in_flight` at the
    same time are answered with 503, and so are more than `most_pending` that wait for a connection.
    `remove_headers` (lower case) are taken from what the app sends, `set_headers` put in.
    """

    timeout_s: float | None = 15.0
    retries: int = 1
    most_in_flight: int = 1024
    most_pending: int = 1024
    ejection: Ejection = Ejection()
    set_headers: tuple[tuple[str, str], ...] = ()
    remove_headers: tuple[str, ...] = ()


class Upstream(msgspec.Struct, frozen=True, kw_only=True):
    """A service that the app calls, seen by it as the local listener `name`.

    `identity` is the SPIFFE ID that every endpoint must prove. `connect_timeout_s` bounds how long
    a connection is parked while no endpoint takes it. More than `max_connections` at the same time
    are refused; one on which nothing moves for `idle_timeout_s` is cut.

    `split` are the services that share the requests; where it is empty `service` takes them all.
    """

    name: str
    service: str
    identity: str
    connect_timeout_s: float
    endpoints: tuple[Endpoint, ...]
    max_connections: int = MOST_CONNECTIONS
    idle_timeout_s: float | None = None
    protocol: Protocol = "tcp"
    requests: Requests = Requests()
    split: tuple[Share, ...] = ()


class Inbound(msgspec.Struct, frozen=True, kw_only=True):
    """Where the app itself listens; `connect_timeout_s` bounds how long its dial is repeated.

    More than `max_connections` at the same time are refused; one on which nothing moves for
    `idle_timeout_s` is cut. `draining` says that no caller is sent here any more, and asks for a
    `Drained` when those that are here have gone.
    """

    host: str
    port: int
    connect_timeout_s: float
    max_connections: int = MOST_CONNECTIONS
    idle_timeout_s: float | None = None
    protocol: Protocol = "tcp"
    draining: bool = False


class Snapshot(msgspec.Struct, frozen=True, kw_only=True, tag="snapshot"):
    """All that a sidecar must know, whole. `roots` are DER certificates, all of them trusted.

    `records` says that it shall tell of each request and connection (access log, tap).
    """

    version: int
    service: str
    instance: str
    identity: str
    roots: tuple[bytes, ...]
    default_action: Action
    intentions: tuple[Intention, ...]
    inbound: Inbound | None
    upstreams: tuple[Upstream, ...]
    records: bool = False


class LeafIssued(msgspec.Struct, frozen=True, kw_only=True, tag="leaf-issued"):
    """The answer to a `LeafRequested`: DER certificates, leaf first, then intermediates.

    `issued_at` and `not_after` are wall-clock seconds since the epoch.
    """

    request: int
    chain: tuple[bytes, ...]
    issued_at: float
    not_after: float


class LeafRefused(msgspec.Struct, frozen=True, kw_only=True, tag="leaf-refused"):
    """The control plane did not sign the request, for `reason`."""

    request: int
    reason: str


class Renew(msgspec.Struct, frozen=True, kw_only=True, tag="renew"):
    """The sidecar shall get itself a new leaf now (`meshrun certs rotate`)."""


class LeafRequested(msgspec.Struct, frozen=True, kw_only=True, tag="leaf-requested"):
    """A PKCS#10 request in DER for a key that never leaves the sidecar."""

    request: int
    csr: bytes


class Serving(msgspec.Struct, frozen=True, kw_only=True, tag="serving"):
    """Every new handshake now uses the leaf with this serial number (hexadecimal)."""

    serial: str


class Enforced(msgspec.Struct, frozen=True, kw_only=True, tag="enforced"):
    """Every listener and live connection obeys this version of the snapshot."""

    version: int


class Drained(msgspec.Struct, frozen=True, kw_only=True, tag="drained"):
    """Nothing goes to the app any more, under this version of the snapshot, which asked for that.

    A connection of tcp counts until it is closed, of HTTP only its requests do.
    """

    version: int


class Denied(msgspec.Struct, frozen=True, kw_only=True, tag="denied"):
    """A caller was refused: by an intention, as a peer, or for what it sent, which is no request.

    `source` is a service name, or for a peer that proved no identity what is known of it.
    `by_default` says that no intention matched. `live` says that it was a live connection, cut
    because an intention changed. `dry_run` says that it was let through all the same. `request` is
    one of the HTTP requests that were refused: `GET /admin`. `count` is how many were refused alike
    since the last message that said so.
    """

    kind: Literal["intention", "peer", "request"]
    source: str
    reason: str
    by_default: bool = False
    live: bool = False
    dry_run: bool = False
    request: str = ""
    count: int = 1


class ConnectionFailed(msgspec.Struct, frozen=True, kw_only=True, tag="connection-failed"):
    """A connection found no counterpart in time or no room, or was cut because nothing moved on it.

    It is one to the app (`upstream=None`) or to an upstream.

    `count` is how many failed alike since the last message that said so.
    """

    upstream: str | None
    reason: str
    count: int = 1


class Logged(msgspec.Struct, frozen=True, kw_only=True, tag="logged"):
    """A line for meshrun's own log."""

    level: Literal["debug", "info", "warning", "error"]
    message: str


class StatsRequested(msgspec.Struct, frozen=True, kw_only=True, tag="stats-requested"):
    """The sidecar shall answer with its `Stats` of this number."""

    number: int


class Exchanges(msgspec.Struct, frozen=True, kw_only=True):
    """The requests from `source` to `destination` whose status began with `status_class`.

    That is 0 where the caller was gone before there was a status. `buckets` are one for each of
    `LATENCY_BOUNDS_S` and one beyond, not cumulative; `duration_s` is the sum of all. Received is
    what the caller sent, sent is what it got.
    """

    source: str
    destination: str
    reporter: Reporter
    status_class: int
    buckets: tuple[int, ...]
    duration_s: float
    received_bytes: int
    sent_bytes: int


class Connections(msgspec.Struct, frozen=True, kw_only=True):
    """The tcp connections from `source` to the app, with what the open ones have carried so far."""

    source: str
    opened: int
    open: int
    received_bytes: int
    sent_bytes: int


class Verdicts(msgspec.Struct, frozen=True, kw_only=True):
    """How it was decided about calls from `source`.

    `dry_run_denied` are those that a rule on trial would have denied, whatever came of them.
    """

    source: str
    allowed: int
    denied: int
    dry_run_denied: int


class Stats(msgspec.Struct, frozen=True, kw_only=True, tag="stats"):
    """The answer to the `StatsRequested` of this number: what a worker counted since its start.

    `lost_records` are those that were dropped because the control plane did not take them in time.
    """

    number: int
    exchanges: tuple[Exchanges, ...] = ()
    connections: tuple[Connections, ...] = ()
    verdicts: tuple[Verdicts, ...] = ()
    lost_records: int = 0


Moment = TypeVar("Moment")

# What of it callers have written, or what has failed in their way: it is cut, and escaped.
TOLD_TEXTS = ("method", "path", "request_id", "authority", "user_agent", "failure")


class Told(msgspec.Struct, Generic[Moment], frozen=True, kw_only=True):
    """What is told of one request or tcp connection that is over; `at` is when it began.

    `identity` is the SPIFFE ID that the caller proved, `status` 0 where there was none. `path` is
    without its query: queries hold secrets. `denied` says that it was refused, or cut, by an
    intention, `dry_run` that a rule on trial would have; `failure` is why it was not answered by
    the app, or not to its end, in the sidecar's own words.
    """

    at: Moment
    kind: Literal["request", "connection"]
    source: str
    identity: str
    destination: str
    duration_s: float
    reporter: Reporter = "destination"
    method: str = ""
    path: str = ""
    protocol: str = ""
    status: int = 0
    received_bytes: int = 0
    sent_bytes: int = 0
    request_id: str = ""
    authority: str = ""
    user_agent: str = ""
    denied: bool = False
    dry_run: bool = False
    failure: str = ""


class Record(Told[float], frozen=True, kw_only=True):
    """What a sidecar tells; in wall-clock seconds, with text as Latin-1, a character for a byte."""


class Recorded(msgspec.Struct, frozen=True, kw_only=True, tag="recorded"):
    """What went over a worker, while its snapshot asks for that.

    `lost` are more since the last such message, dropped because the channel was full.
    """

    records: tuple[Record, ...]
    lost: int = 0


ToSidecar = Snapshot | LeafIssued | LeafRefused | Renew | StatsRequested
FromSidecar = (
    LeafRequested
    | Serving
    | Enforced
    | Drained
    | Denied
    | ConnectionFailed
    | Logged
    | Stats
    | Recorded
)
