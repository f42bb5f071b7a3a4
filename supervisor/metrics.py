"""The counters of a run as text for Prometheus. Pure.

The format is that of Prometheus' "Exposition formats: text-based format", version 0.0.4. A label
is a name from the configuration, from a certificate of this mesh, or one of a few words of ours:
nobody who calls can make a series.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

from meshrun.proxy.messages import LATENCY_BOUNDS_S, Connections, Exchanges, Stats, Verdicts

__all__ = ["CONTENT_TYPE", "InstanceMetrics", "render"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]  # what follows the family's name, labels, value

_BOUNDS = (*(repr(bound) for bound in LATENCY_BOUNDS_S), "+Inf")


@dataclass(frozen=True, slots=True, kw_only=True)
class InstanceMetrics:
    """What there is to say of one instance and its sidecar.

    `stats` is None where the sidecar did not answer in time. `expires_at` is when the first leaf of
    its workers expires (wall clock), None where none is served. `restarts` is None for what meshrun
    does not start.
    """

    service: str
    instance: str
    ready: bool
    stats: Stats | None
    expires_at: float | None
    restarts: int | None
    sidecar_restarts: int


@dataclass(frozen=True, slots=True)
class _Family:
    """One metric, whatever labels it has."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    samples: Iterable[Sample]

    def lines(self) -> Iterable[str]:
        yield f"# HELP {self.name} {_escaped_help(self.meaning)}"
        yield f"# TYPE {self.name} {self.kind}"
        for suffix, labels, value in self.samples:
            shown = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            yield f"{self.name}{suffix}{f'{{{shown}}}' if shown else ''} {value!r}"


def render(mesh: str, version: str, started_at: float, instances: Sequence[InstanceMetrics]) -> str:
    """Return the page; `started_at` in wall-clock seconds."""
    answered = [(i, i.stats) for i in instances if i.stats is not None]
    families = (
        _Family(
            "meshrun_up",
            "gauge",
            "1: the mesh runs.",
            [("", {"mesh": mesh, "version": version}, 1)],
        ),
        _Family(
            "meshrun_start_time_seconds",
            "gauge",
            "When the mesh was started, in seconds since the epoch.",
            [("", {}, started_at)],
        ),
        *_of_instances(instances),
        *_of_requests(answered),
        *_of_connections(answered),
        *_of_bytes(answered),
        *_of_intentions(answered),
        _Family(
            "meshrun_records_lost_total",
            "counter",
            "Records of requests and connections that were dropped, for the access log and taps.",
            [("", _of(i), stats.lost_records) for i, stats in answered],
        ),
    )
    return "".join(f"{line}\n" for family in families for line in family.lines())


Answered = Sequence[tuple[InstanceMetrics, Stats]]


def _of(instance: InstanceMetrics) -> dict[str, str]:
    return {"service": instance.service, "instance": instance.instance}


def _towards(instance: InstanceMetrics, counted: Connections | Verdicts) -> Labels:
    return {
        "source": counted.source,
        "destination": instance.service,
        "instance": instance.instance,
    }


def _of_instances(instances: Sequence[InstanceMetrics]) -> Iterable[_Family]:
    yield _Family(
        "meshrun_instance_ready",
        "gauge",
        "Whether an instance takes calls and its sidecar serves.",
        [("", _of(i), int(i.ready)) for i in instances],
    )
    yield _Family(
        "meshrun_sidecar_answered",
        "gauge",
        "Whether a sidecar said in time what it has counted; if not it is left out below.",
        [("", _of(i), int(i.stats is not None)) for i in instances],
    )
    yield _Family(
        "meshrun_certificate_expiry_timestamp_seconds",
        "gauge",
        "When the certificate that a sidecar serves expires, in seconds since the epoch.",
        [("", _of(i), i.expires_at) for i in instances if i.expires_at is not None],
    )
    yield _Family(
        "meshrun_restarts_total",
        "counter",
        "How often an app or a process of its sidecar was started again.",
        [
            ("", {"app": i.service, "instance": i.instance, "process": process}, restarts)
            for i in instances
            for process, restarts in (("app", i.restarts), ("sidecar", i.sidecar_restarts))
            if restarts is not None
        ],
    )


def _of_requests(answered: Answered) -> Iterable[_Family]:
    series = [
        (
            {
                "source": e.source,
                "destination": e.destination,
                "instance": instance.instance,
                "reporter": e.reporter,
                "status_class": f"{e.status_class}xx" if e.status_class else "none",
            },
            e,
        )
        for instance, stats in answered
        for e in stats.exchanges
    ]
    yield _Family(
        "meshrun_requests_total",
        "counter",
        "HTTP requests that are over; of the reporter source those that never reached a sidecar of "
        "the destination.",
        [("", labels, sum(e.buckets)) for labels, e in series],
    )
    yield _Family(
        "meshrun_request_duration_seconds",
        "histogram",
        "From the head of a request to the end of its response.",
        [
            sample
            for labels, e in series
            for sample in (
                *(
                    ("_bucket", {**labels, "le": bound}, count)
                    for bound, count in zip(_BOUNDS, accumulate(e.buckets), strict=True)
                ),
                ("_sum", labels, e.duration_s),
                ("_count", labels, sum(e.buckets)),
            )
        ],
    )


def _of_connections(answered: Answered) -> Iterable[_Family]:
    series = [(_towards(i, c), c) for i, stats in answered for c in stats.connections]
    yield _Family(
        "meshrun_connections_total",
        "counter",
        "TCP connections that reached the app.",
        [("", labels, c.opened) for labels, c in series],
    )
    yield _Family(
        "meshrun_connections_open",
        "gauge",
        "Those of them that are open now.",
        [("", labels, c.open) for labels, c in series],
    )


def _of_bytes(answered: Answered) -> Iterable[_Family]:
    moved: dict[tuple[str, str, str, str], tuple[int, int]] = {}
    for instance, stats in answered:
        parts: list[tuple[str, str, str, Connections | Exchanges]] = [
            *((e.source, e.destination, e.reporter, e) for e in stats.exchanges),
            *((c.source, instance.service, "destination", c) for c in stats.connections),
        ]
        for source, destination, reporter, part in parts:
            key = (source, destination, instance.instance, reporter)
            received, sent = moved.get(key, (0, 0))
            moved[key] = (received + part.received_bytes, sent + part.sent_bytes)
    series = [
        (dict(zip(("source", "destination", "instance", "reporter"), key, strict=True)), sizes)
        for key, sizes in moved.items()
    ]
    yield _Family(
        "meshrun_received_bytes_total",
        "counter",
        "Bytes that callers sent: bodies of HTTP requests, and all of a TCP connection.",
        [("", labels, received) for labels, (received, _) in series],
    )
    yield _Family(
        "meshrun_sent_bytes_total",
        "counter",
        "Bytes that callers were sent: bodies of HTTP responses, and all of a TCP connection.",
        [("", labels, sent) for labels, (_, sent) in series],
    )


def _of_intentions(answered: Answered) -> Iterable[_Family]:
    series = [(_towards(i, v), v) for i, stats in answered for v in stats.verdicts]
    yield _Family(
        "meshrun_intentions_allowed_total",
        "counter",
        "Connections and HTTP requests that intentions allowed.",
        [("", labels, v.allowed) for labels, v in series],
    )
    yield _Family(
        "meshrun_intentions_denied_total",
        "counter",
        "Those that they denied; with dry_run those that a rule on trial would have denied.",
        [
            ("", {**labels, "dry_run": dry_run}, count)
            for labels, v in series
            for dry_run, count in (("false", v.denied), ("true", v.dry_run_denied))
        ],
    )


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _escaped_help(text: str) -> str:
    return text.replace("\\", r"\\").replace("\n", r"\n")
