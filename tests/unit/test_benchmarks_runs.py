"""What `python -m benchmarks` does with suites: who is asked, in which order, and what is kept."""

import signal
from collections.abc import Mapping, Sequence
from pathlib import Path

import click
import pytest
from benchmarks import __main__ as command
from benchmarks import results, suites
from benchmarks.collection import Collection, Figures, installed, rotated, turns, versions
from benchmarks.programs import BenchmarkError
from benchmarks.results import Figure, Measurement, Settings
from benchmarks.suites import Suite
from click.testing import CliRunner

RATE = Figure("requests", "requests/s", "higher", 20_000.0)
P99 = Figure("p99", "ms", "lower", 2.0)


class Someone:
    def __init__(self, name: str, version: str | None) -> None:
        self.name = name
        self._version = version

    def version(self) -> str | None:
        return self._version


class Said(list[str]):
    """Settings whose words are kept."""

    def settings(self, rounds: int = 2, contenders: frozenset[str] | None = None) -> Settings:
        return Settings(
            rounds=rounds, seconds=1, quick=False, contenders=contenders, say=self.append,
            note=self.append,
        )  # fmt: skip


def suite(
    name: str, workloads: Sequence[str], contenders: Sequence[str], *, fails: bool = False
) -> Suite:
    def run(settings: Settings) -> list[Measurement]:
        if fails:
            raise BenchmarkError("nothing to measure with")
        collection = Collection(name, settings, workloads, contenders)
        collection.add(workloads[0], contenders[0], 0, [RATE])
        return collection.measurements()

    return Suite(name, run, dict, {}, workloads, contenders)


FOUND: Mapping[str, Suite] = {
    "first": suite("first", ["up", "down"], ["meshrun", "envoy"]),
    "second": suite("second", ["left"], ["meshrun", "honcho"]),
}


def names(*given: str) -> frozenset[str] | None:
    return frozenset(given) or None


@pytest.mark.parametrize(
    ("chosen", "only", "contenders", "expected"),
    [
        (names(), names(), names(), ["first", "second"]),
        (names("second"), names(), names(), ["second"]),
        (names(), names("up"), names(), ["first"]),
        (names(), names("up", "left"), names("honcho"), ["second"]),
        (names(), names(), names("envoy"), ["first"]),
    ],
)
def test_suites_without_anything_that_is_asked_for_are_left_out(
    chosen: frozenset[str] | None,
    only: frozenset[str] | None,
    contenders: frozenset[str] | None,
    expected: list[str],
) -> None:
    assert [s.name for s in command.select(FOUND, chosen, only, contenders)] == expected


@pytest.mark.parametrize(
    ("chosen", "only", "contenders", "said"),
    [
        (names("frist"), names(), names(), r'no suite "frist" \(did you mean "first"\?\); there'),
        (names(), names("lft"), names(), r'no workload "lft" \(did you mean "left"\?\); there are'),
        (names("first"), names("left"), names(), 'no workload "left"; there are up, down'),
        (names(), names(), names("envoi"), r'no contender "envoi" \(did you mean "envoy"\?\)'),
        (names(), names("left"), names("envoy"), "there are meshrun, honcho"),
    ],
)
def test_a_name_that_nothing_has_is_an_error_with_the_nearest(
    chosen: frozenset[str] | None,
    only: frozenset[str] | None,
    contenders: frozenset[str] | None,
    said: str,
) -> None:
    with pytest.raises(click.UsageError, match=said):
        command.select(FOUND, chosen, only, contenders)


def test_a_suite_that_cannot_be_measured_does_not_stop_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = {"broken": suite("broken", ["x"], ["meshrun"], fails=True), **FOUND}
    monkeypatch.setattr(suites, "available", lambda: found)
    # Those are of the process, which here is the one of the tests.
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(command, "_allow_many_descriptors", lambda: None)
    done = CliRunner().invoke(command.main, ["--no-docs", "--output", str(tmp_path)])
    assert done.exit_code == 1
    assert "broken: nothing to measure with" in done.output
    assert "cannot measure broken" in done.output
    kept = [results.decode(file.read_bytes()).suite for file in tmp_path.iterdir()]
    assert sorted(kept) == ["first", "second"]


def test_an_option_that_names_nothing_is_an_error() -> None:
    done = CliRunner().invoke(command.main, ["--only", " , "])
    assert done.exit_code == 2
    assert "it names nothing" in done.output


def test_figures_are_kept_by_round_and_told_in_the_order_of_the_tables() -> None:
    said = Said()
    collection = Collection("first", said.settings(), ["up", "down"], ["meshrun", "envoy"])
    collection.add("down", "envoy", 0, [RATE])
    collection.add("up", "envoy", 0, [RATE, P99])
    collection.add("up", "meshrun", 0, [RATE])
    collection.add("up", "meshrun", 1, [Figure("requests", "requests/s", "higher", 22_000.0)])
    measured = collection.measurements()
    assert [(m.workload, m.contender, m.metric) for m in measured] == [
        ("up", "meshrun", "requests"),
        ("up", "envoy", "requests"),
        ("up", "envoy", "p99"),
        ("down", "envoy", "requests"),
    ]
    assert measured[0].rounds == (20_000.0, 22_000.0)
    assert said[1].split() == ["up", "1/2", "envoy", "20,000", "requests/s", "p99", "2.00", "ms"]


def test_a_round_that_fails_is_said_and_noted() -> None:
    said = Said()
    collection = Collection("first", said.settings(), ["up"], ["envoy"])
    collection.fail("up", "envoy", 1, OSError("gone"))
    assert said[0].split() == ["up", "2/2", "envoy", "failed:", "gone"]
    assert said[1] == "envoy failed in up, round 2: gone"
    assert collection.measurements() == []


def test_what_a_round_gives_is_kept_as_far_as_it_is_asked_for() -> None:
    collection = Collection("first", Said().settings(), ["up", "down"], ["envoy"])
    collection.take(["down"], "envoy", 0, lambda: {"up": [RATE], "down": [P99]})
    assert [(m.workload, m.metric) for m in collection.measurements()] == [("down", "p99")]


def test_what_somebody_cannot_do_is_no_failure() -> None:
    said = Said()
    collection = Collection("first", said.settings(), ["up"], ["envoy"])
    collection.take(["up"], "envoy", 0, lambda: {"up": []})
    assert (said, collection.measurements()) == ([], [])


def test_a_measurement_that_fails_loses_no_other() -> None:
    def die() -> Figures:
        raise ProcessLookupError("gone")

    said = Said()
    collection = Collection("first", said.settings(), ["up", "down"], ["envoy"])
    collection.take(["up", "down"], "envoy", 0, die)
    collection.take(["up"], "envoy", 1, lambda: {"up": [RATE]})
    assert "envoy failed in up, down, round 1: gone" in said
    assert [m.rounds for m in collection.measurements()] == [(20_000.0,)]


def test_the_version_is_told_of_whatever_is_installed() -> None:
    everybody = [Someone("meshrun", "1"), Someone("envoy", None)]
    assert versions(everybody, {"backend": "2", "gRPC": None}) == {"meshrun": "1", "backend": "2"}


def test_who_is_not_installed_is_noted_and_who_is_not_asked_for_is_not() -> None:
    said = Said()
    everybody = [Someone("meshrun", "1"), Someone("envoy", None), Someone("nginx", None)]
    present = installed(everybody, said.settings(contenders=frozenset({"meshrun", "envoy"})))
    assert [someone.name for someone in present] == ["meshrun"]
    assert said == [
        "envoy is not installed and left out; `make peers` installs it",
        "envoy was not installed",
    ]


def test_everybody_is_once_the_first() -> None:
    orders = [rotated("abc", number) for number in range(3)]
    assert [order[0] for order in orders] == ["a", "b", "c"]
    assert all(sorted(order) == ["a", "b", "c"] for order in orders)
    assert rotated([], 1) == []
    assert list(turns("ab", 2)) == [(0, "a"), (0, "b"), (1, "b"), (1, "a")]
