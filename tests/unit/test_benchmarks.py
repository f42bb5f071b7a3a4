"""The pure parts of the benchmarks: comparisons, tables, charts, configurations of the peers."""

import json
import math
import re
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from xml.etree import ElementTree as ET

import pytest
from benchmarks import (
    backend,
    charts,
    contenders,
    http_proxies,
    openloop,
    proxies,
    report,
    results,
    suites,
    supervision,
)
from benchmarks.certificates import Credentials
from benchmarks.contenders import CONTENDERS, mesh_file
from benchmarks.document import DOCUMENT
from benchmarks.numbers import shown
from benchmarks.peers import PEERS, Envoy, HAProxy, Nginx, Peer, Side, Stunnel
from benchmarks.results import Better, Machine, Measurement, Run, compare
from benchmarks.rule import Protocol, Rule

CLIENT = "spiffe://bench.mesh/ns/default/dc/local/svc/client"
SIDE = Side(
    listen_port=22001,
    target_port=22002,
    credentials=Credentials(
        identity="spiffe://bench.mesh/ns/default/dc/local/svc/backend",
        root=Path("/keys/root.pem"),
        certificate=Path("/keys/own.crt.pem"),
        key=Path("/keys/own.key.pem"),
        pair=Path("/keys/own.pem"),
    ),
    peer_identity=CLIENT,
    peer_name="client.bench.mesh",
)


def measured(
    contender: str,
    *rounds: float,
    metric: str = "requests",
    unit: str = "requests/s",
    better: Better = "higher",
) -> Measurement:
    return Measurement(
        suite="proxies",
        workload="requests-32",
        contender=contender,
        metric=metric,
        unit=unit,
        better=better,
        rounds=rounds,
    )


def p99(contender: str, *rounds: float) -> Measurement:
    return measured(contender, *rounds, metric="p99", unit="ms", better="lower")


def a_run(*measurements: Measurement) -> Run:
    return Run(
        suite="proxies",
        at="2026-01-02T03:04:05+00:00",
        meshrun="1.2.3",
        machine=Machine(
            cpu="a <CPU> & more",
            cores=2,
            memory_bytes=8 << 30,
            kernel="6.1",
            system="Debian",
            python="3.11",
            openssl="OpenSSL 3",
        ),
        versions={"haproxy": "2.6"},
        rounds=3,
        seconds=5.0,
        measurements=list(measurements),
        notes=["stunnel was not installed"],
    )


RUN = a_run(
    measured("meshrun", 20_000, 22_000, 21_000),
    measured("haproxy", 30_000, 28_000, 29_000),
    measured("envoy", 20_500, 23_000, 21_500),
    measured("direct", 90_000, 95_000, 99_000),
    p99("meshrun", 2.0, 2.2, 1.8),
    p99("haproxy", 4.0, 4.4, 3.6),
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (25525.4, "25,525"),
        (999.6, "1,000"),
        (118.2, "118"),
        (36.52, "36.5"),
        (1.444, "1.44"),
        (0.2871, "0.287"),
        (0.00012, "0.000"),
        (0, "0"),
    ],
)
def test_figures_are_written_with_three_digits_that_count(value: float, text: str) -> None:
    assert shown(value) == text


def test_a_ratio_is_over_one_where_the_product_is_better_whatever_is_better() -> None:
    rates = compare(measured("meshrun", 20, 20, 20), measured("envoy", 10, 10, 10))
    times = compare(p99("meshrun", 20, 20, 20), p99("envoy", 10, 10, 10))
    assert rates is not None
    assert times is not None
    assert (rates.ratio, times.ratio) == (2.0, 0.5)


def test_rounds_that_overlap_are_not_apart() -> None:
    ours = measured("meshrun", 10, 12, 14)
    overlapping = compare(ours, measured("envoy", 14, 16, 18))
    apart = compare(ours, measured("envoy", 15, 16, 18))
    assert overlapping is not None
    assert apart is not None
    assert not overlapping.apart
    assert apart.apart


def test_what_is_not_the_same_thing_is_not_compared() -> None:
    assert compare(measured("meshrun", 1), p99("envoy", 1)) is None
    assert compare(measured("meshrun", 0), measured("envoy", 0)) is None


def test_against_nothing_at_all_one_wins_and_the_other_loses() -> None:
    more, less = measured("meshrun", 1), measured("meshrun", 0)
    against_less = compare(more, measured("envoy", 0))
    against_more = compare(less, measured("envoy", 1))
    assert against_less is not None
    assert against_more is not None
    assert (against_less.ratio, against_more.ratio) == (math.inf, 0)


def test_a_run_is_read_as_it_was_written() -> None:
    assert results.decode(results.encode(RUN)) == RUN


def test_the_tables_say_where_the_product_loses() -> None:
    text = report.render(RUN, {"requests-32": "What it does."}, "benchmarks")
    assert "| requests-32 | requests | 21,000 requests/s | **0.72 loses** | 0.98 even |" in text
    assert "| requests-32 | p99 | 2.00 ms | 2.00 wins | - |" in text
    assert "| haproxy | 29,000 (28,000 - 30,000) | **0.72 loses** | 4.00 (3.60 - 4.40) |" in text
    assert "What it does." in text
    assert "- stunnel was not installed." in text


def test_the_summary_says_which_aims_are_missed() -> None:
    aims = {("requests-32", "requests"): 25_000.0, ("requests-32", "p99"): 2.0}
    text = report.summary(RUN.measurements, aims)
    assert "| requests-32 | requests | 21,000 requests/s | **25,000 missed** |" in text
    assert "| requests-32 | p99 | 2.00 ms | 2.00 reached |" in text
    assert "aim" not in report.summary(RUN.measurements)


def test_every_row_of_a_table_has_as_many_cells_as_its_head() -> None:
    tables = re.findall(r"(?:^\|.*\|\n?)+", report.render(RUN, {}, "c"), re.MULTILINE)
    assert len(tables) == 2
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1


def test_results_replace_what_stands_between_their_marks_and_nothing_else() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    once = report.insert(document, "proxies", "new")
    assert report.insert(once, "proxies", "new") == once
    begin, end = "<!-- results of proxies: begin -->", "<!-- results of proxies: end -->"
    assert f"{begin}\n\nnew\n\n{end}" in once
    assert once.partition(begin)[0] == document.partition(begin)[0]
    assert once.partition(end)[2] == document.partition(end)[2]


def test_a_document_without_a_place_for_the_results_is_an_error() -> None:
    with pytest.raises(report.MissingMarksError, match="results of proxies: begin"):
        report.insert("# Title\n", "proxies", "new")


def test_the_document_has_a_place_for_every_suite() -> None:
    document = DOCUMENT.read_text(encoding="utf-8")
    for suite in suites.MODULES:
        assert "new" in report.insert(document, suite, "new")


def test_a_chart_is_well_formed_and_shows_every_contender_in_every_panel() -> None:
    root = ET.fromstring(charts.draw("requests-32", RUN.measurements))
    name = "{http://www.w3.org/2000/svg}"
    assert len(root.findall(f"{name}rect")) == 5
    assert len(root.findall(f"{name}rect[@class='ours']")) == 2
    texts = [text.text for text in root.findall(f"{name}text")]
    assert texts.count("haproxy") == 2
    assert "direct" not in texts
    width = float(root.attrib["width"])
    for rect in root.findall(f"{name}rect"):
        assert 0 < float(rect.attrib["x"]) + float(rect.attrib["width"]) < width


def test_a_chart_escapes_names() -> None:
    drawn = charts.draw('<&"', [measured('<&"', 1, metric="<m>", unit="&")])
    assert '<&"' in [element.text for element in ET.fromstring(drawn)]


@pytest.mark.parametrize(
    "peer",
    [
        *(pytest.param(peer, id=peer.name) for peer in PEERS),
        pytest.param(Envoy(Rule("http2", "GET")), id="envoy with a rule"),
        pytest.param(HAProxy(Rule("http2", "GET")), id="haproxy with a rule"),
    ],
)
def test_every_configuration_says_what_all_share(peer: Peer) -> None:
    for text in (peer.server_side(SIDE), peer.client_side(SIDE)):
        assert "TLSv1" in text
        assert re.search(r"TLSv1[._]3", text)
        for part in ("22001", "22002", "/keys/root.pem"):
            assert part in text


@pytest.mark.parametrize(
    ("build", "lines"),
    [
        (HAProxy().server_side, ["verify required", "no-tls-tickets", "tune.ssl.cachesize 0"]),
        (HAProxy().client_side, ["verify required", "no-ssl-reuse"]),
        (Nginx().server_side, ["ssl_verify_client on;", "ssl_session_tickets off;"]),
        (Nginx().client_side, ["proxy_ssl_verify on;", "proxy_ssl_name client.bench.mesh;"]),
        (Stunnel().server_side, ["requireCert = yes", "verifyChain = yes", "sessionResume = no"]),
        (Stunnel().client_side, ["client = yes", "verifyChain = yes", "sessionResume = no"]),
    ],
)
def test_both_sides_verify_and_resume_nothing(
    build: Callable[[Side], str], lines: list[str]
) -> None:
    text = build(SIDE)
    for line in lines:
        assert line in text


def test_haproxy_looks_for_the_identity_as_it_is_encoded() -> None:
    encoded = f"86{len(CLIENT):02X}{CLIENT.encode().hex().upper()}"
    assert f"ssl_c_der,hex -m sub {encoded} " in HAProxy().server_side(SIDE)
    with pytest.raises(ValueError, match="more than 127 bytes"):
        HAProxy().server_side(replace(SIDE, peer_identity="spiffe://" + "a" * 127))


def test_nginx_verifies_nobody_without_a_name() -> None:
    assert "proxy_ssl_verify off;" in Nginx().client_side(replace(SIDE, peer_name=None))


def test_envoy_allows_one_identity_on_either_side() -> None:
    server = json.loads(Envoy().server_side(SIDE))["static_resources"]
    (chain,) = server["listeners"][0]["filter_chains"]
    policy = chain["filters"][0]["typed_config"]["rules"]["policies"]["caller"]
    assert policy["principals"] == [{"authenticated": {"principal_name": {"exact": CLIENT}}}]
    assert chain["transport_socket"]["typed_config"]["require_client_certificate"] is True
    client = json.loads(Envoy().client_side(SIDE))["static_resources"]
    tls = client["clusters"][0]["transport_socket"]["typed_config"]["common_tls_context"]
    (name,) = tls["validation_context"]["match_typed_subject_alt_names"]
    assert name == {"san_type": "URI", "matcher": {"exact": CLIENT}}


@pytest.mark.parametrize(
    ("protocol", "codec", "alpn", "version"),
    [
        ("http", "HTTP1", "http/1.1", "http_protocol_options"),
        ("http2", "HTTP2", "h2", "http2_protocol_options"),
        ("grpc", "HTTP2", "h2", "http2_protocol_options"),
    ],
)
def test_envoy_with_a_rule_allows_one_method_of_one_identity(
    protocol: Protocol, codec: str, alpn: str, version: str
) -> None:
    peer = Envoy(Rule(protocol, "GET"))
    server = json.loads(peer.server_side(SIDE))["static_resources"]
    (chain,) = server["listeners"][0]["filter_chains"]
    manager = chain["filters"][0]["typed_config"]
    rbac, router = manager["http_filters"]
    assert rbac["typed_config"]["rules"]["policies"]["caller"] == {
        "permissions": [{"header": {"name": ":method", "string_match": {"exact": "GET"}}}],
        "principals": [{"authenticated": {"principal_name": {"exact": CLIENT}}}],
    }
    assert router["name"] == "envoy.filters.http.router"
    assert manager["forward_client_cert_details"] == "SANITIZE_SET"
    client = json.loads(peer.client_side(SIDE))["static_resources"]
    for side in (server, client):
        (filters,) = side["listeners"][0]["filter_chains"]
        assert filters["filters"][0]["typed_config"]["codec_type"] == codec
        (options,) = side["clusters"][0]["typed_extension_protocol_options"].values()
        assert options["explicit_http_config"] == {version: {}}
    tls = chain["transport_socket"]["typed_config"]
    assert tls["require_client_certificate"] is True
    assert tls["common_tls_context"]["alpn_protocols"] == [alpn]


def test_haproxy_with_a_rule_allows_one_method() -> None:
    text = HAProxy(Rule("http", "GET")).server_side(SIDE)
    assert "mode http" in text
    assert "http-request deny deny_status 403 unless { method GET }" in text
    assert "alpn http/1.1" in text
    over_http2 = HAProxy(Rule("http2", "GET"))
    assert f"server target 127.0.0.1:{SIDE.target_port} proto h2" in over_http2.server_side(SIDE)
    assert re.search(r"bind \S+ backlog 4096 proto h2$", over_http2.client_side(SIDE), re.MULTILINE)


def test_the_mesh_allows_what_the_rule_says() -> None:
    mesh = tomllib.loads(mesh_file(8080, rule=Rule("grpc", "POST")))
    assert mesh["intentions"] == [{"from": "client", "to": "backend", "methods": ["POST"]}]
    assert mesh["services"]["backend"]["protocol"] == "grpc"


def test_the_mesh_allows_the_client_and_nobody_else() -> None:
    mesh = tomllib.loads(mesh_file(8080))
    assert mesh["intentions"] == [{"from": "client", "to": "backend"}]
    assert mesh["services"]["backend"]["address"] == "127.0.0.1:8080"


def test_the_bulk_path_is_served_from_a_file() -> None:
    text = backend.configuration(8080, Path("/files"), "nobody")
    assert "location = /bulk { root /files; }" in text
    assert "http2" not in text


def test_the_backend_speaks_http2_where_it_is_asked_for() -> None:
    text = backend.configuration(8080, Path("/files"), "nobody", http2=True)
    assert "listen 127.0.0.1:8080 backlog=4096 http2;" in text


@pytest.mark.parametrize(("share", "value"), [(0.5, 50), (0.99, 99), (0.999, 100), (0.001, 1)])
def test_a_percentile_is_a_latency_that_so_many_do_not_exceed(share: float, value: int) -> None:
    assert openloop.percentile(range(1, 101), share) == value


@pytest.mark.parametrize("suite", [proxies, http_proxies], ids=lambda suite: suite.SUITE)
def test_every_workload_is_described(suite: ModuleType) -> None:
    assert set(suite.DESCRIPTIONS) == set(suite.WORKLOADS)


def test_no_two_workloads_share_a_name() -> None:
    # A name alone says what is measured: `--only` takes no suite.
    names = [name for suite in (proxies, http_proxies, supervision) for name in suite.WORKLOADS]
    assert len(set(names)) == len(names)


def test_the_product_and_the_reference_take_part() -> None:
    judging = contenders.judging(Rule("http", "GET"))
    for some in (CONTENDERS, judging):
        assert {results.PRODUCT, results.REFERENCE} < {contender.name for contender in some}
    assert tuple(contender.name for contender in judging) == http_proxies.CONTENDERS
