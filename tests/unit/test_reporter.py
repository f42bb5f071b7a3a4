"""The words in which denials are told, to the timeline and to the log."""

import asyncio
from pathlib import Path

import pytest

from meshrun.proxy.messages import Denied
from meshrun.supervisor import plan
from meshrun.supervisor.configuration.model import App, Configuration, Mesh
from meshrun.supervisor.happening import Happening
from meshrun.supervisor.journal import open_journal
from meshrun.supervisor.plan import Selection, Worker
from meshrun.supervisor.reporter import Reporter
from meshrun.supervisor.timeline import Timeline

WHY = "intention web => db (deny), mesh.toml:3"


def worker(folder: Path) -> Worker:
    configuration = Configuration(
        file="mesh.toml",
        folder=folder,
        mesh=Mesh(name="shop"),
        apps={"db": App(name="db", command=("true",))},
        services={},
        intentions=(),
    )
    made = plan.make(configuration, Selection(), {}, lambda _wish, _port: True, {}, None)
    return made.instances[0].sidecar[0]


def told(folder: Path, report: Denied) -> tuple[Happening, str]:
    """Report a denial; return the event and the first line of the log."""
    events: list[Happening] = []
    lines: list[str] = []

    async def run() -> None:
        timeline = Timeline(events.extend, lambda: 1.0)
        journal = open_journal(lines.append, colour=False)
        reporter = Reporter(timeline, journal, lambda _: [], lambda *_: None)
        reporter.denied(worker(folder), report)
        timeline.flush()

    asyncio.run(run())
    (event,) = events
    return event, lines[0]


@pytest.mark.parametrize(
    ("report", "kind", "message", "line"),
    [
        (
            Denied(kind="intention", source="web", reason=WHY),
            "denied",
            f"web may not call db: {WHY}",
            f"warning: denied: web may not call db: {WHY}",
        ),
        (
            Denied(kind="intention", source="web", reason=WHY, request="GET /admin", count=3),
            "denied",
            f"web may not call db (GET /admin): {WHY}",
            f"warning: denied: web may not call db (GET /admin): {WHY}  times=3",
        ),
        (
            Denied(kind="intention", source="web", reason=WHY, request="GET /", live=True),
            "denied",
            f"live connection cut: web may not call db (GET /): {WHY}",
            f"warning: denied: live connection cut: web may not call db (GET /): {WHY}",
        ),
        (
            Denied(kind="intention", source="web", reason=WHY, dry_run=True),
            "would-deny",
            f"web would be denied at db: {WHY}",
            f"warning: dry run: web would be denied at db: {WHY}",
        ),
        (
            Denied(kind="intention", source="web", reason=WHY, request="GET /x", dry_run=True),
            "would-deny",
            f"web would be denied at db (GET /x): {WHY}",
            f"warning: dry run: web would be denied at db (GET /x): {WHY}",
        ),
        (
            Denied(kind="peer", source="127.0.0.1:9", reason="no certificate"),
            "denied",
            "a stranger was refused at db: no certificate",
            "warning: denied: a stranger was refused at db: no certificate",
        ),
        (
            Denied(kind="request", source="web", reason="cannot take the request: no Host"),
            "denied",
            "web sent db what is no request: cannot take the request: no Host",
            "warning: denied: web sent db what is no request: cannot take the request: no Host",
        ),
    ],
)
def test_a_denial_is_told(
    report: Denied, kind: str, message: str, line: str, tmp_path: Path
) -> None:
    event, said = told(tmp_path, report)
    assert (event.kind, event.message, event.count) == (kind, message, report.count)
    assert (event.source, event.destination) == (report.source, "db")
    assert said == line


def test_an_example_of_a_request_reaches_no_terminal_as_it_was_chosen(tmp_path: Path) -> None:
    request = "GET /\x1b[2J\n" + "a" * 10_000
    event, said = told(
        tmp_path, Denied(kind="intention", source="web", reason=WHY, request=request)
    )
    assert event.message.startswith("web may not call db (GET /?[2J?aaa")
    for text in (event.message, said):
        assert text.isprintable()
        assert len(text) < 300
