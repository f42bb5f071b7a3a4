"""Logs on disk: every byte of every line, their tails, their turning over, and a full disk."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshrun.supervisor import logs
from meshrun.supervisor.logs import MESH, Line, Logs, tail
from meshrun.supervisor.statedir import StateDir

NOON = 1_790_000_000.25


@pytest.fixture
def state(tmp_path: Path) -> Iterator[StateDir]:
    opened = StateDir.open(tmp_path / "state", create=True)
    yield opened
    opened.close()


def never(text: str) -> None:
    raise AssertionError(text)


def written(state: StateDir, **by: list[bytes]) -> None:
    """Write lines of instances as one run does."""
    run = Logs(state, lambda: NOON, never)
    for instance, lines in by.items():
        run.write(instance, "stdout", lines)
    run.close()


def contents(lines: list[Line]) -> list[bytes]:
    return [line.content for line in lines]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(lines=st.lists(st.binary(max_size=40).map(lambda b: b.replace(b"\n", b"")), max_size=5))
def test_what_was_written_is_what_is_read(state: StateDir, lines: list[bytes]) -> None:
    before = len(tail(state, "web.1", None))
    run = Logs(state, lambda: NOON, never)
    run.write("web.1", "stdout", lines)
    run.write("web.1", "stderr", lines)
    run.close()
    read = tail(state, "web.1", None)[before:]
    assert contents(read) == lines * 2
    assert [line.stream for line in read] == ["stdout"] * len(lines) + ["stderr"] * len(lines)
    assert {line.at for line in read} <= {NOON}


def test_a_tail_is_the_last_lines(state: StateDir) -> None:
    written(state, a=[b"1", b"2", b"3"], b=[b"x"])
    assert contents(tail(state, "a", 2)) == [b"2", b"3"]
    assert contents(tail(state, "a", 0)) == []
    assert contents(tail(state, "none", 5)) == []


def test_a_tail_is_read_from_the_end_in_blocks(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = [b"%d" % number * (number % 7) for number in range(200)]
    written(state, a=lines)
    assert contents(tail(state, "a", None)) == lines
    for block in (1, 7, 64, 1000):
        monkeypatch.setattr(logs, "READ_BYTES", block)
        assert contents(tail(state, "a", 50)) == lines[-50:]
        assert contents(tail(state, "a", None)) == lines


def test_a_short_tail_reads_one_block(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    written(state, a=[b"x" * 1000] * 1000)
    reads: list[int] = []
    pread = os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    assert len(tail(state, "a", 1)) == 1
    assert reads == [logs.READ_BYTES]


def test_a_tail_ends_where_it_is_told_though_the_run_writes_on(state: StateDir) -> None:
    written(state, a=[b"1", b"2"])
    until = logs.end(state, "a")
    written(state, a=[b"3"])
    assert contents(tail(state, "a", 1, until)) == [b"2"]
    folder = state.file("logs")
    (folder / "a.log").rename(folder / "a.log.1")
    written(state, a=[b"4"])
    assert contents(tail(state, "a", None, until)) == [b"1", b"2"]
    assert contents(tail(state, "a", None)) == [b"1", b"2", b"3", b"4"]


def test_instances_with_logs_are_listed_without_meshruns_own(state: StateDir) -> None:
    assert logs.instances(state) == []
    written(state, **{"web.2": [b"1"], "api.1": [b"1"], MESH: [b"1"]})
    assert logs.instances(state) == ["api.1", "web.2"]


def test_a_second_run_goes_on_in_the_same_file(state: StateDir) -> None:
    written(state, a=[b"first"])
    written(state, a=[b"second"])
    assert contents(tail(state, "a", None)) == [b"first", b"second"]


def test_a_file_that_somebody_removed_is_made_again_when_it_would_be_turned_over(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ROTATE_BYTES", 100)
    run = Logs(state, lambda: NOON, never)
    run.write("a", "stdout", [b"1"])
    state.file("logs/a.log").unlink()
    run.write("a", "stdout", [b"x" * 100])
    run.write("a", "stdout", [b"3"])
    run.close()
    assert contents(tail(state, "a", None)) == [b"3"]


def test_a_file_is_turned_over_when_it_has_grown_enough(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ROTATE_BYTES", 100)
    run = Logs(state, lambda: NOON, never)
    for number in range(10):
        run.write("a", "stdout", [b"line %d" % number])
    run.close()
    kept = contents(tail(state, "a", None))
    assert kept == [b"line %d" % number for number in range(10)][-len(kept) :]
    assert 3 <= len(kept) < 10
    assert sorted(os.listdir(state.file("logs"))) == ["a.log", "a.log.1"]


def test_lines_that_are_none_are_left_out(state: StateDir) -> None:
    written(state, a=[b"good"])
    with (state.file("logs") / "a.log").open("ab") as file:
        file.write(b"\nrubbish\n2026-01-01T00:00:00.000000Z X odd\n")
        file.write(b"2026-99-01T00:00:00.000000Z O never\nhalf")
    assert contents(tail(state, "a", None)) == [b"good"]


def test_the_last_ten_lines_are_kept_to_show_with_a_failure(state: StateDir) -> None:
    run = Logs(state, lambda: NOON, never)
    run.write("a", "stdout", [b"%d" % number for number in range(8)])
    run.write("a", "stderr", [b"\xff", b"oops", b"end"])
    assert run.last("a") == [*map(str, range(1, 8)), "\N{REPLACEMENT CHARACTER}", "oops", "end"]
    assert run.last("b") == []
    run.close()


def test_followers_are_told_until_they_leave(state: StateDir) -> None:
    run = Logs(state, lambda: NOON, never)
    told: list[Line] = []
    leave = run.follow(told.extend)
    run.write("a", "stdout", [b"1"])
    leave()
    run.write("a", "stdout", [b"2"])
    run.close()
    assert told == [Line(NOON, "a", "stdout", b"1")]


def test_a_full_disk_is_said_once_and_output_is_still_shown(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[str] = []
    run = Logs(state, lambda: NOON, complaints.append)
    told: list[Line] = []
    run.follow(told.extend)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(logs._File, "append", full)
        run.write("a", "stdout", [b"1"])
        run.write("a", "stdout", [b"2"])
    assert complaints == ["cannot write the logs: No space left on device; output is only shown"]
    assert contents(told) == [b"1", b"2"]
    run.write("a", "stdout", [b"3"])
    run.close()
    assert contents(tail(state, "a", None)) == [b"3"]


def test_a_link_in_place_of_a_log_is_not_followed(state: StateDir, tmp_path: Path) -> None:
    complaints: list[str] = []
    run = Logs(state, lambda: NOON, complaints.append)
    (tmp_path / "victim").write_bytes(b"precious")
    (state.file("logs") / "a.log").symlink_to(tmp_path / "victim")
    run.write("a", "stdout", [b"1"])
    run.close()
    assert len(complaints) == 1
    assert (tmp_path / "victim").read_bytes() == b"precious"
