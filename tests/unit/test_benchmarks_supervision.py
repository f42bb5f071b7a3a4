"""The suite of the process manager: what each runs, what apps say, and what is asked of whom."""

import shlex
import tomllib
from configparser import RawConfigParser
from pathlib import Path

import pytest
from benchmarks import supervision
from benchmarks.managers import MANAGERS, Honcho, Meshrun, Supervisord
from benchmarks.managers.crew import parse
from benchmarks.programs import BenchmarkError

from meshrun.supervisor.configuration import procfile

APPS = {"app-001": ["/bin/sh", "/a folder/app.sh", "app-001"], "app-002": ["/bin/sh", "x", "y"]}


def test_meshrun_gets_a_table_for_each_app() -> None:
    name, text = Meshrun().configuration(APPS)
    mesh = tomllib.loads(text)
    assert name == "mesh.toml"
    assert {app: table["command"] for app, table in mesh["apps"].items()} == APPS


def test_supervisord_gets_a_program_for_each_app_and_restarts_it() -> None:
    _, text = Supervisord().configuration(APPS)
    parser = RawConfigParser()
    parser.read_string(text)
    programs = {
        section.removeprefix("program:"): parser[section]
        for section in parser.sections()
        if section.startswith("program:")
    }
    assert {name: shlex.split(program["command"]) for name, program in programs.items()} == APPS
    assert {program["autorestart"] for program in programs.values()} == {"true"}


def test_honcho_gets_a_line_for_each_app() -> None:
    _, text = Honcho().configuration(APPS)
    entries, findings = procfile.parse(text, "Procfile")
    assert not findings
    assert {entry.name: shlex.split(entry.command) for entry in entries} == APPS


def test_what_apps_say_may_come_in_pieces() -> None:
    assert parse(b"app-001 17\napp-002 18\napp-0") == (
        [("app-001", 17), ("app-002", 18)],
        b"app-0",
    )
    assert parse(b"") == ([], b"")


def test_every_workload_is_described_and_comes_from_one_trial() -> None:
    assert set(supervision.DESCRIPTIONS) == set(supervision.WORKLOADS)
    measured = [workload for trial in supervision.TRIALS for workload in trial.workloads]
    assert sorted(measured) == sorted(supervision.WORKLOADS)


def test_an_aim_is_of_something_that_is_measured() -> None:
    assert {workload for workload, _ in supervision.AIMS} <= set(supervision.WORKLOADS)


def test_every_manager_does_what_it_can_and_no_more() -> None:
    able = {
        workload: [manager.name for manager in MANAGERS if trial.able(manager)]
        for trial in supervision.TRIALS
        for workload in trial.workloads
    }
    everybody = ["meshrun", "supervisord", "honcho"]
    assert able[supervision.UP] == able[supervision.HELD] == everybody
    assert able[supervision.CRASH] == able[supervision.RELOAD] == ["meshrun", "supervisord"]


def test_who_decides_about_no_calls_says_so(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="cannot decide about calls under honcho"):
        Honcho().decide(tmp_path, allowed=True)
