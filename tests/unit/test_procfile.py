"""Procfiles are read as foreman reads them, and no line is skipped in silence."""

from pathlib import Path

import pytest

from meshrun.supervisor import plan
from meshrun.supervisor.configuration.model import Configuration, Mesh
from meshrun.supervisor.configuration.procfile import Entry, apps, parse, service_name
from meshrun.supervisor.errors import Finding


def test_a_line_is_a_name_and_a_command_for_a_shell() -> None:
    entries, findings = parse("web: ./web -p $PORT\r\n\r\n# a comment\nworker:sleep 1: 2 \n", "P")
    assert entries == (Entry("web", "./web -p $PORT", 1), Entry("worker", "sleep 1: 2", 4))
    assert findings == ()


def test_names_become_service_names() -> None:
    assert service_name("Web_Worker") == "web-worker"
    assert parse("Web_Worker: true", "P")[0] == (Entry("web-worker", "true", 1),)


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("web ./web", 1, 'not "name: command"; a name has letters, digits, _ and -'),
        ("web:", 1, 'not "name: command"; a name has letters, digits, _ and -'),
        ("web: \t", 1, 'not "name: command"; a name has letters, digits, _ and -'),
        ("we.b: true", 1, 'not "name: command"; a name has letters, digits, _ and -'),
        ("web: true\nWEB: true", 2, 'the process "web" is defined on line 1 already'),
        (
            "_web: true",
            1,
            'the process "_web" cannot be a service, whose name must be a name of at most 63 of '
            'a-z, 0-9 and -, with - not at an end, not "-web" (did you mean "web"?)',
        ),
        ("web: true\0", 1, "a command must not hold a NUL character"),
    ],
)
def test_any_other_line_is_reported(text: str, line: int, message: str) -> None:
    assert parse(text, "Procfile")[1] == (Finding("Procfile", line, 1, message),)


def test_an_empty_procfile_is_reported() -> None:
    findings = parse("# nothing\n", "Procfile")[1]
    assert findings == (
        Finding("Procfile", 0, 0, 'no process is defined; a line is "name: command"'),
    )


def test_ports_are_a_hundred_apart() -> None:
    entries = (Entry("web", "./web", 1), Entry("worker", "./worker", 2))
    result, findings = apps(entries, 5000, {"A": "1"}, None, "Procfile")
    assert [(app.name, app.port) for app in result.values()] == [("web", 5000), ("worker", 5100)]
    assert result["web"].command == ("./web",)
    assert result["web"].shell
    assert not result["web"].expand
    assert result["web"].env_file == {"A": "1"}
    assert findings == ()


def test_a_process_keeps_its_port_when_others_are_not_started_and_instances_count_by_one() -> None:
    entries = (Entry("web", "./web", 1), Entry("worker", "./worker", 2), Entry("job", "./job", 3))
    result, _ = apps(entries, 6000, {"PORT": "6000"}, None, "Procfile")
    configuration = Configuration(
        file="Procfile",
        folder=Path("/srv"),
        mesh=Mesh(name="srv"),
        apps=result,
        services={},
        intentions=(),
    )
    selection = plan.Selection(names=("worker", "job"), scale={"worker": 3})
    made = plan.make(configuration, selection, {}, lambda _wish, _port: True, {"PORT": "1"}, None)
    # foreman: base + 100 * i + k, with i counting all of the Procfile (honcho: the selected only).
    assert {i.name: (i.environment or {})["PORT"] for i in made.instances} == {
        "worker.1": "6100",
        "worker.2": "6101",
        "worker.3": "6102",
        "job.1": "6200",
    }


def test_a_port_beyond_the_last_is_reported() -> None:
    entries = (Entry("web", "./web", 1), Entry("worker", "./worker", 2))
    result, findings = apps(entries, 65500, {}, None, "Procfile")
    assert list(result) == ["web"]
    assert [str(finding) for finding in findings] == [
        'Procfile:2:1: the process "worker" would get port 65600, over 65535: '
        "set a lower PORT in .env"
    ]
