"""The page for Prometheus: a strict reader finds on it what was counted, and nothing else."""

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st
from support.exposition import Family, read

from meshrun.proxy.messages import LATENCY_BOUNDS_S, Connections, Exchanges, Stats, Verdicts
from meshrun.supervisor.metrics import InstanceMetrics, render


def instance(
    stats: Stats | None, name: str = "api.1", expires_at: float | None = 2e9, restarts: int = 3
) -> InstanceMetrics:
    return InstanceMetrics(
        service=name.rpartition(".")[0],
        instance=name,
        ready=True,
        stats=stats,
        expires_at=expires_at,
        restarts=restarts,
        sidecar_restarts=1,
    )


def page(*instances: InstanceMetrics, mesh: str = "shop") -> dict[str, Family]:
    return read(render(mesh, "0.1.0", 1_790_000_000.25, instances))


def exchanges(source: str, status_class: int, counts: Sequence[int], **more: str) -> Exchanges:
    return Exchanges(
        source=source,
        destination=more.get("destination", "api"),
        reporter="source" if more.get("reporter") == "source" else "destination",
        status_class=status_class,
        buckets=tuple(counts),
        duration_s=sum(counts) / 8,
        received_bytes=10,
        sent_bytes=20,
    )


COUNTS = st.lists(
    st.integers(0, 1 << 53),
    min_size=len(LATENCY_BOUNDS_S) + 1,
    max_size=len(LATENCY_BOUNDS_S) + 1,
)
ANY_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(series=st.dictionaries(st.tuples(ANY_TEXT, st.integers(0, 9)), COUNTS, max_size=4))
def test_whatever_was_counted_reads_back(series: dict[tuple[str, int], list[int]]) -> None:
    told = tuple(exchanges(source, status, counts) for (source, status), counts in series.items())
    found = page(instance(Stats(number=1, exchanges=told)))
    requests, seconds = found["meshrun_requests_total"], found["meshrun_request_duration_seconds"]
    for (source, status), counts in series.items():
        labels = {
            "source": source,
            "destination": "api",
            "instance": "api.1",
            "reporter": "destination",
            "status_class": f"{status}xx" if status else "none",
        }
        assert requests.value(**labels) == float(sum(counts))
        assert seconds.value("_count", **labels) == float(sum(counts))
        assert seconds.value("_sum", **labels) == sum(counts) / 8
        for number, bound in enumerate(LATENCY_BOUNDS_S):
            below = seconds.value("_bucket", **labels, le=str(bound))
            assert below == float(sum(counts[: number + 1]))
    assert len(requests.samples) == len(series)


@given(name=ANY_TEXT)
def test_a_label_is_what_it_was_whatever_is_in_it(name: str) -> None:
    assert page(mesh=name)["meshrun_up"].value(mesh=name, version="0.1.0") == 1


def test_connections_decisions_and_bytes_are_told_by_pair() -> None:
    found = page(
        instance(
            Stats(
                number=1,
                exchanges=(
                    exchanges("web", 2, [1] * 13),
                    exchanges("web", 4, [1] * 13),
                    exchanges("api", 5, [1] * 13, destination="db", reporter="source"),
                ),
                connections=(
                    Connections(source="web", opened=5, open=2, received_bytes=100, sent_bytes=200),
                ),
                verdicts=(Verdicts(source="web", allowed=7, denied=1, dry_run_denied=2),),
                lost_records=4,
            )
        )
    )
    pair = {"source": "web", "destination": "api", "instance": "api.1"}
    assert found["meshrun_connections_total"].value(**pair) == 5
    assert found["meshrun_connections_open"].value(**pair) == 2
    assert found["meshrun_received_bytes_total"].value(**pair) == 120
    assert found["meshrun_sent_bytes_total"].value(**pair) == 240
    assert found["meshrun_sent_bytes_total"].value(source="api", reporter="source") == 20
    assert found["meshrun_intentions_allowed_total"].value(**pair) == 7
    assert found["meshrun_intentions_denied_total"].value(**pair, dry_run="false") == 1
    assert found["meshrun_intentions_denied_total"].value(**pair, dry_run="true") == 2
    assert found["meshrun_records_lost_total"].value(instance="api.1") == 4


def test_instances_are_told_by_name_and_what_there_is_none_of_is_left_out() -> None:
    found = page(
        instance(Stats(number=1), "api.1"),
        instance(None, "api.2", expires_at=None),
        InstanceMetrics(
            service="db",
            instance="db.1",
            ready=False,
            stats=Stats(number=1),
            expires_at=2e9,
            restarts=None,
            sidecar_restarts=0,
        ),
    )
    answered = found["meshrun_sidecar_answered"]
    assert [answered.value(instance=name) for name in ("api.1", "api.2", "db.1")] == [1, 0, 1]
    ready = found["meshrun_instance_ready"]
    assert [ready.value(instance=name) for name in ("api.1", "db.1")] == [1, 0]
    restarts = found["meshrun_restarts_total"]
    assert restarts.value(app="api", instance="api.1", process="app") == 3
    assert restarts.value(app="db", instance="db.1", process="sidecar") == 0
    assert len(restarts.samples) == 5, "of an external there is no app to restart"
    expiry = found["meshrun_certificate_expiry_timestamp_seconds"]
    assert expiry.value(service="api", instance="api.1") == 2e9
    assert len(expiry.samples) == 2
    lost = found["meshrun_records_lost_total"]
    assert {dict(labels)["instance"] for _, labels in lost.samples} == {"api.1", "db.1"}


def test_every_metric_has_its_meaning_also_before_there_is_anything_to_count() -> None:
    found = page()
    assert len(found) > 10
    assert all(family.meaning.endswith(".") for family in found.values())
    assert found["meshrun_start_time_seconds"].value() == 1_790_000_000.25
