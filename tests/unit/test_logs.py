"""Logs on disk: every byte of every line, their tails, their turning over, and a full disk."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from meshrun.supervisor import logreading, logs
from meshrun.supervisor.lines import Piece
from meshrun.supervisor.loglines import Line
from meshrun.supervisor.logreading import Reader
from meshrun.supervisor.logs import MESH, Logs, Output
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


def tail(
    state: StateDir, instance: str, last: int | None, since: float | None = None
) -> list[Line]:
    """Return the last lines of an instance."""
    reader = Reader(state)
    reader.add([instance], last=last, since=since)
    return all_of(reader)


def all_of(reader: Reader) -> list[Line]:
    """Read to the end and close."""
    lines = list(rest_of(reader))
    reader.close()
    assert reader.read() == []
    return lines


def rest_of(reader: Reader) -> Iterator[Line]:
    """Read what there is now."""
    while lines := reader.read():
        yield from lines


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
    assert [line.source for line in read] == ["stdout"] * len(lines) + ["stderr"] * len(lines)
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
        monkeypatch.setattr(logreading, "READ_BYTES", block)
        assert contents(tail(state, "a", 50)) == lines[-50:]
        assert contents(tail(state, "a", None)) == lines


def test_a_short_tail_reads_two_blocks(state: StateDir, monkeypatch: pytest.MonkeyPatch) -> None:
    written(state, a=[b"x" * 1000] * 1000)
    reads: list[int] = []
    pread = os.pread

    def counted(descriptor: int, size: int, offset: int) -> bytes:
        reads.append(size)
        return pread(descriptor, size, offset)

    monkeypatch.setattr(os, "pread", counted)
    assert len(tail(state, "a", 1)) == 1
    assert sum(reads) < 2 * logreading.READ_BYTES


def test_what_is_written_after_a_reader_was_made_is_not_for_it(state: StateDir) -> None:
    written(state, a=[b"1", b"2"])
    reader = Reader(state)
    reader.add(["a"])
    written(state, a=[b"3"])
    folder = state.file("logs")
    (folder / "a.log").rename(folder / "a.log.1")
    written(state, a=[b"4"])
    assert contents(all_of(reader)) == [b"1", b"2"]
    assert contents(tail(state, "a", None)) == [b"1", b"2", b"3", b"4"]


def test_lines_since_a_time(state: StateDir) -> None:
    times = iter(range(100, 200))
    run = Logs(state, lambda: next(times), never)
    for number in range(101, 111):
        run.write("a", "stdout", [b"%d" % number])
    run.close()
    assert contents(tail(state, "a", None, since=108.0)) == [b"108", b"109", b"110"]
    assert contents(tail(state, "a", 2, since=108.0)) == [b"109", b"110"]
    assert contents(tail(state, "a", 9, since=108.0)) == [b"108", b"109", b"110"]
    assert contents(tail(state, "a", None, since=111.0)) == []
    assert len(tail(state, "a", None, since=1.0)) == 10


def test_markers_come_with_the_lines_that_they_stand_between(state: StateDir) -> None:
    run = Logs(state, lambda: NOON, never)
    run.mark("a", 0, "started")
    run.write("a", "stdout", [b"1"])
    run.mark("a", 0, "ended:\nin two lines")
    run.mark("a", 1, "started")
    run.write("a", "stdout", [b"2"], 1)
    run.mark("a", 1, "ended")
    run.close()
    everything = [b"started", b"1", b"ended: in two lines", b"started", b"2", b"ended"]
    assert contents(tail(state, "a", None)) == everything
    assert contents(tail(state, "a", 2)) == everything[1:]
    assert contents(tail(state, "a", 1)) == [b"2", b"ended"]
    assert contents(tail(state, "a", 0)) == []
    assert [line.restarts for line in tail(state, "a", None)] == [0, 0, 0, 1, 1, 1]
    assert run.last("a") == ["1", "2"]


def test_the_lines_of_several_instances_are_in_the_order_of_their_times(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logreading, "READ_BYTES", 64)
    monkeypatch.setattr(logreading, "BATCH_LINES", 3)
    times = iter(range(1, 1000))
    run = Logs(state, lambda: next(times), never)
    for number in range(50):
        run.write(("a", "b", "c")[number % 7 % 3], "stdout", [b"%d" % number])
    run.close()
    reader = Reader(state)
    reader.add(["a", "b", "c"])
    assert contents(all_of(reader)) == [b"%d" % number for number in range(50)]


def test_a_follower_reads_on_from_file_to_file(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ROTATE_BYTES", 200)
    run = Logs(state, lambda: NOON, never)
    run.write("a", "stdout", [b"before"])
    reader = Reader(state, following=True)
    reader.add(["a", "b"], last=0)
    assert reader.read() == []
    followed: list[Line] = []
    for number in range(100):
        run.write(("a", "b")[number % 2], "stdout", [b"%d" % number])
        followed += rest_of(reader)
    assert contents(followed) == [b"%d" % number for number in range(100)]
    run.write("c", "stdout", [b"new"])
    reader.add(["c"], since=NOON)
    assert contents(list(rest_of(reader))) == [b"new"]
    reader.close()
    run.close()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=40
)
@given(reads=st.lists(st.booleans(), min_size=20, max_size=60), limit=st.integers(60, 400))
def test_a_follower_misses_nothing_that_is_there_and_hears_of_what_is_not(
    state: StateDir, reads: list[bool], limit: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logs, "ROTATE_BYTES", limit)
        run = Logs(state, lambda: NOON, never)
        reader = Reader(state, following=True)
        reader.add(["a"], last=0)
        followed: list[Line] = []
        for number, read in enumerate(reads):
            run.write("a", "stdout", [b"%d" % number])
            if read:
                followed += rest_of(reader)
        followed += rest_of(reader)
        run.close()
        reader.close()
    expected = 0
    for line in followed:
        if line.source == "marker":
            assert line.content == logreading.MISSED
            expected = -1
        else:
            assert expected in (-1, int(line.content))
            expected = int(line.content) + 1
    assert expected == len(reads)


def test_one_who_reads_all_hears_that_older_lines_are_gone(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ROTATE_BYTES", 100)
    written(state, a=[b"1"])
    written(state, a=[b"x" * 100])
    assert contents(tail(state, "a", None)) == [b"1", b"x" * 100]
    for number in range(2):
        written(state, a=[b"y" * 100, b"%d" % number])
    gone, *kept = tail(state, "a", None)
    assert (gone.source, gone.content, gone.at) == ("marker", logreading.GONE, NOON)
    assert contents(kept) == [b"y" * 100, b"1"]
    assert contents(tail(state, "a", 1)) == [b"1"]


def test_a_file_that_was_shortened_by_hand_is_read_from_its_beginning(state: StateDir) -> None:
    run = Logs(state, lambda: NOON, never)
    run.write("a", "stdout", [b"a long line that was there before"])
    reader = Reader(state, following=True)
    reader.add(["a"], last=0)
    assert reader.read() == []
    os.truncate(state.file("logs/a.log"), 0)
    assert reader.read() == []
    run.write("a", "stdout", [b"after"])
    assert contents(list(rest_of(reader))) == [b"after"]
    reader.close()
    run.close()


def test_a_line_that_a_killed_run_has_not_ended_takes_no_other_with_it(state: StateDir) -> None:
    written(state, a=[b"whole"])
    with (state.file("logs") / "a.log").open("ab") as file:
        file.write(b"2026-01-01T00:00:00.000000Z O0 ha")
    written(state, a=[b"next"])
    assert contents(tail(state, "a", None)) == [b"whole", b"ha", b"next"]


def test_lines_in_pieces_can_be_put_together(state: StateDir) -> None:
    run = Logs(state, lambda: NOON, never)
    run.write("a", "stdout", [b"1", Piece(b"be")])
    run.write("a", "stderr", [b"other"])
    run.write("a", "stdout", [b"gin"])
    run.close()
    shown = [(line.content, line.partial) for line in tail(state, "a", None)]
    assert shown == [(b"1", False), (b"be", True), (b"other", False), (b"gin", False)]


def test_instances_with_logs_are_listed_without_meshruns_own(state: StateDir) -> None:
    assert logreading.instances(state) == []
    written(state, **{"web.2": [b"1"], "api.1": [b"1"], MESH: [b"1"]})
    assert logreading.instances(state) == ["api.1", "web.2"]


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
    assert contents(tail(state, "a", None)) == [logreading.GONE, b"3"]


def test_a_file_is_turned_over_when_it_has_grown_enough(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ROTATE_BYTES", 150)
    run = Logs(state, lambda: NOON, never)
    for number in range(10):
        run.write("a", "stdout", [b"line %d" % number])
    run.close()
    kept = contents(tail(state, "a", None)[1:])
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
    told: list[Output] = []
    leave = run.follow(told.append)
    run.write("a", "stdout", [b"1"])
    leave()
    run.write("a", "stdout", [b"2"])
    run.close()
    assert told == [Output("a", "stdout", [b"1"])]


def test_a_full_disk_is_said_once_and_output_is_still_shown(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[str] = []
    run = Logs(state, lambda: NOON, complaints.append)
    told: list[Output] = []
    run.follow(told.append)

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(logs._File, "append", full)
        run.write("a", "stdout", [b"1"])
        run.write("a", "stdout", [b"2"])
    assert complaints == ["cannot write the logs: No space left on device; output is only shown"]
    assert [output.contents for output in told] == [[b"1"], [b"2"]]
    run.write("a", "stdout", [b"3"])
    run.close()
    missing, line = tail(state, "a", None)
    assert missing.text == "up to 2 lines are missing here: they could not be written"
    assert (missing.source, line.content) == ("marker", b"3")


def test_what_a_full_disk_has_taken_in_part_is_no_line_with_what_follows(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Logs(state, lambda: NOON, lambda _: None)
    run.write("a", "stdout", [b"1"])
    write = os.write

    def short(descriptor: int, content: bytes) -> int:
        if len(content) < 60:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, content[: len(content) - 59])

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", short)
        run.write("a", "stdout", [b"x" * 40])
    run.write("a", "stdout", [b"2"])
    run.close()
    lines = contents(tail(state, "a", None))
    assert lines[0] == b"1"
    assert lines[-1] == b"2"
    assert b"up to 1 lines are missing here: they could not be written" in lines


def test_a_log_that_cannot_be_turned_over_is_written_on(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    complaints: list[str] = []
    run = Logs(state, lambda: NOON, complaints.append)
    run.write("a", "stdout", [b"0"])

    def refuse(*_args: object, **_named: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    with monkeypatch.context() as patch:
        patch.setattr(logs, "ROTATE_BYTES", 10)
        patch.setattr(os, "open", refuse)
        run.write("a", "stdout", [b"1"])
        run.write("a", "stdout", [b"2"])
    run.write("a", "stdout", [b"3"])
    run.close()
    assert len(complaints) == 1
    assert contents(tail(state, "a", None)) == [b"0", b"1", b"2", b"3"]


def test_more_files_are_kept_where_more_are_wanted(
    state: StateDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "ROTATE_BYTES", 10)
    monkeypatch.setattr(logs, "KEPT_FILES", 3)
    run = Logs(state, lambda: NOON, never)
    for number in range(9):
        run.write("a", "stdout", [b"%d" % number])
    run.close()
    assert len(os.listdir(state.file("logs"))) == 4
    assert contents(tail(state, "a", None)[1:]) == [b"6", b"7", b"8"]


def test_a_link_in_place_of_a_log_is_not_followed(state: StateDir, tmp_path: Path) -> None:
    complaints: list[str] = []
    run = Logs(state, lambda: NOON, complaints.append)
    (tmp_path / "victim").write_bytes(b"precious")
    (state.file("logs") / "a.log").symlink_to(tmp_path / "victim")
    run.write("a", "stdout", [b"1"])
    run.close()
    assert len(complaints) == 1
    assert (tmp_path / "victim").read_bytes() == b"precious"
