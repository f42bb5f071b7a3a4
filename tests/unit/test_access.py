"""The access log and its followers: who is told what, and what stands in the file."""

import json
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.messages import Record, Recorded
from meshrun.supervisor import access, logreading, logs, plan
from meshrun.supervisor.access import Access, Entry, Lost
from meshrun.supervisor.configuration.model import App, Configuration, Mesh, UpstreamReference
from meshrun.supervisor.logs import ACCESS, Logs
from meshrun.supervisor.plan import Instance, Selection
from meshrun.supervisor.statedir import StateDir

NOON = 1_790_000_000.25

RECORD = Record(
    at=NOON,
    kind="request",
    source="web",
    identity="spiffe://shop.mesh/ns/default/dc/local/svc/web",
    destination="db",
    duration_s=0.0012345678,
    method="GET",
    path="/items",
    protocol="HTTP/1.1",
    status=200,
    received_bytes=1,
    sent_bytes=0,
)


def instances() -> dict[str, Instance]:
    """Return web and api, which call db, and db."""

    def app(name: str, *upstreams: str) -> App:
        references = tuple(UpstreamReference(service=u, name=u) for u in upstreams)
        return App(name=name, command=("run",), upstreams=references)

    apps = [app("web", "db"), app("api", "db"), app("db"), app("other")]
    configuration = Configuration(
        file="mesh.toml",
        folder=Path("/"),
        mesh=Mesh(name="shop"),
        apps={each.name: each for each in apps},
        services={},
        intentions=(),
    )
    made = plan.make(configuration, Selection(), {}, lambda _wish, _port: True, {}, None)
    return {instance.service: instance for instance in made.instances}


INSTANCES = instances()


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    opened = StateDir.open(tmp_path / "state", create=True)
    yield opened
    opened.close()


def never(text: str) -> None:
    raise AssertionError(text)


@pytest.fixture
def files(state: StateDir) -> Iterator[Logs]:
    opened = Logs(state, lambda: NOON, never)
    yield opened
    opened.close()


def recorded(*sources: str, lost: int = 0) -> Recorded:
    records = tuple(msgspec.structs.replace(RECORD, source=source) for source in sources)
    return Recorded(records=records, lost=lost)


def test_a_request_is_a_line_of_json_with_what_there_is(state: StateDir, files: Logs) -> None:
    Access(files, lambda: NOON, logging=True).take(INSTANCES["db"], recorded("web"))
    (line,) = access.tail(state, (), None)
    assert json.loads(line) == {
        "time": "2026-09-21T14:13:20.250000Z",
        "kind": "request",
        "source": "web",
        "identity": "spiffe://shop.mesh/ns/default/dc/local/svc/web",
        "destination": "db",
        "instance": "db.1",
        "reporter": "destination",
        "duration_s": 0.001235,
        "received_bytes": 1,
        "sent_bytes": 0,
        "method": "GET",
        "path": "/items",
        "protocol": "HTTP/1.1",
        "status": 200,
    }


def test_lost_ones_are_a_line_too(state: StateDir, files: Logs) -> None:
    Access(files, lambda: NOON, logging=True).take(INSTANCES["db"], recorded(lost=7))
    (line,) = access.tail(state, ["db.1"], None)
    assert json.loads(line) == {
        "kind": "lost",
        "time": "2026-09-21T14:13:20.250000Z",
        "instance": "db.1",
        "lost": 7,
    }
    lost = access.read(line)
    assert isinstance(lost, Lost)
    assert lost.lost == 7


@given(text=st.text(st.characters(max_codepoint=255)))
def test_whatever_bytes_a_caller_sends_a_terminal_obeys_none_of_them(text: str) -> None:
    record = msgspec.structs.replace(RECORD, path=text, user_agent=text, authority=text)
    entry = Entry.of(record, "db.1")
    assert entry.path.isprintable()
    assert entry.user_agent == entry.path
    encoded = msgspec.json.encode(entry)
    assert b"\n" not in encoded
    assert access.read(encoded) == entry
    if text.isascii() and text.isprintable():
        assert entry.path == text


def test_utf_8_that_a_caller_sends_is_shown_as_what_it_means() -> None:
    latin1 = "caf\u00e9 \N{SNOWMAN}".encode().decode("latin-1")
    entry = Entry.of(msgspec.structs.replace(RECORD, user_agent=latin1), "db.1")
    assert entry.user_agent == "caf\u00e9 \N{SNOWMAN}"
    cut = Entry.of(msgspec.structs.replace(RECORD, user_agent=latin1[:4] + "\x1b[2J"), "db.1")
    assert cut.user_agent == r"caf\xc3\x1b[2J"


def test_only_those_who_are_named_are_read_back_the_last_of_them(
    state: StateDir, files: Logs
) -> None:
    log = Access(files, lambda: NOON, logging=True)
    for source in ("web", "api", "web", "other", "web"):
        log.take(INSTANCES["db"], recorded(source))

    def sources(names: list[str], last: int | None) -> list[str]:
        return [json.loads(line)["source"] for line in access.tail(state, names, last)]

    assert sources([], None) == ["web", "api", "web", "other", "web"]
    assert sources(["api", "other"], None) == ["api", "other"]
    assert sources(["web"], 2) == ["web", "web"]
    assert sources(["db"], 1) == sources(["db.1"], 1) == ["web"]
    assert sources(["db.2"], None) == []


def test_lines_that_are_no_entries_are_left_out(state: StateDir, files: Logs) -> None:
    files.append(ACCESS, b'{"time":1}\n\xff\n[]\n')
    Access(files, lambda: NOON, logging=True).take(INSTANCES["db"], recorded("web"))
    files.append(ACCESS, b'{"time":"2026-')
    assert len(access.tail(state, (), None)) == 1


def test_the_log_is_turned_over_as_the_others_are(
    state: StateDir, files: Logs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ROTATE_BYTES", 1000)
    log = Access(files, lambda: NOON, logging=True)
    for _ in range(10):
        log.take(INSTANCES["db"], recorded("web"))
    assert sorted(path.name for path in state.file("logs").iterdir()) == [
        "access.log",
        "access.log.1",
    ]
    assert 2 <= len(access.tail(state, (), None)) < 10
    assert logreading.instances(state) == []


def test_without_a_log_only_those_record_who_may_see_what_is_tapped(
    state: StateDir, files: Logs
) -> None:
    taps = Access(files, lambda: NOON, logging=False)

    def recording() -> set[str]:
        return {name for name, instance in INSTANCES.items() if taps.wanted_of(instance)}

    assert recording() == set()
    leave_all = taps.follow(lambda _: None, destination="db")
    assert recording() == {"web", "api", "db"}
    leave_web = taps.follow(lambda _: None, source="web", destination="db")
    assert leave_all()
    assert not leave_all()
    assert recording() == {"web", "db"}
    leave_web()
    assert recording() == set()
    taps.take(INSTANCES["db"], recorded("web"))
    assert logreading.end(state, ACCESS) is None


def test_with_a_log_everybody_records(files: Logs) -> None:
    log = Access(files, lambda: NOON, logging=True)
    assert all(map(log.wanted_of, INSTANCES.values()))


def test_a_tap_is_told_what_it_asked_for_and_how_much_is_missing(files: Logs) -> None:
    taps = Access(files, lambda: NOON, logging=False)
    told: list[Entry | Lost] = []
    leave = taps.follow(told.extend, source="web", destination="db")
    taps.take(INSTANCES["db"], recorded("web", "api", "web", lost=3))
    taps.take(INSTANCES["other"], recorded(lost=9))
    elsewhere = msgspec.structs.replace(RECORD, destination="other", reporter="source")
    taps.take(INSTANCES["web"], Recorded(records=(elsewhere,)))
    unreached = msgspec.structs.replace(RECORD, reporter="source", status=503)
    taps.take(INSTANCES["web"], Recorded(records=(unreached,)))
    assert [(e.source, e.instance, e.status) for e in told if isinstance(e, Entry)] == [
        ("web", "db.1", 200),
        ("web", "db.1", 200),
        ("web", "web.1", 503),
    ]
    assert [(e.instance, e.lost) for e in told if isinstance(e, Lost)] == [("db.1", 3)]
    leave()
    taps.take(INSTANCES["db"], recorded("web"))
    assert len(told) == 4
