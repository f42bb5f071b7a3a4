"""What apps write: every line arrives, whole, however it is written, and nobody's memory grows."""

import contextlib
import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.fugitives import Terminal
from support.mesh import PATIENCE_S, Mesh
from support.output import kept, talker, written

from meshrun.supervisor.lines import LINE_LIMIT_BYTES
from meshrun.supervisor.logreading import GONE, MISSED
from meshrun.supervisor.logs import ROTATE_BYTES

MOST_GROWTH_BYTES = 48 * 1024 * 1024
ONCE = 'restart = "never"'
ON_A_TERMINAL = f"{ONCE}\ntty = true"


@contextlib.contextmanager
def watched(pid: int) -> Iterator[list[int]]:
    """Look at the memory of a process now and then; yields the sizes, the first one at once."""
    process = psutil.Process(pid)
    sizes = [process.memory_info().rss]
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.02):
            sizes.append(process.memory_info().rss)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield sizes
    finally:
        over.set()
        looking.join()


def await_end(mesh: Mesh, instance: str) -> None:
    """Wait until the last life of an app is over."""
    final = ("completed", "failed", "stopped")
    mesh.wait_for(lambda rows: rows[instance].state in final, deadline_s=4 * PATIENCE_S)


def numbers(lines: list[str]) -> list[int]:
    """Return the numbers that lines begin with."""
    return [int(line.partition(" ")[0]) for line in lines]


STAY = talker("stay", "stay")


# However much is written.


@pytest.mark.parametrize(
    ("count", "length"),
    [
        (400_000, 60),
        pytest.param(2_000_000, 93, marks=pytest.mark.slow),  # 200 MB
        pytest.param(30_000_000, 0, marks=pytest.mark.slow),
        pytest.param(400, 500_000, marks=pytest.mark.slow),
    ],
)
def test_who_writes_as_fast_as_it_can_waits_and_loses_no_line_but_to_the_limit_of_the_files(
    tmp_path: Path, count: int, length: int
) -> None:
    with Mesh(
        tmp_path, talker("flood", "flood", f"{count}", f"{length}", more=ONCE) + STAY
    ) as mesh:
        mesh.up(wait=False)
        with watched(mesh.supervisor_pid) as sizes:
            await_end(mesh, "flood.1")
        assert max(sizes) - sizes[0] < MOST_GROWTH_BYTES, max(sizes) - sizes[0]
        gone, *lines = kept(mesh, "flood.1")
        assert (gone.stream, gone.line) == ("marker", GONE.decode())
        end = lines.pop()
        assert (end.stream, end.line) == ("marker", "ended: exit code 0")
        there = numbers([line.line for line in lines])
        assert there == list(range(there[0], count))
        stored = sum(p.stat().st_size for p in (mesh.state_path / "logs").glob("flood.1.log*"))
        assert ROTATE_BYTES < stored < 2 * ROTATE_BYTES + 4 * LINE_LIMIT_BYTES


@pytest.mark.slow
def test_a_terminal_that_takes_nothing_lets_the_apps_wait_and_no_memory_grow(
    tmp_path: Path,
) -> None:
    count = 300_000
    config = talker("flood", "flood", f"{count}", "60", more=ONCE) + STAY
    with Mesh(tmp_path, config) as mesh:
        read_end, write_end = os.pipe()
        supervisor = subprocess.Popen(
            [*mesh.command, "up"],
            cwd=mesh.folder,
            env=mesh.environment,
            stdin=subprocess.DEVNULL,
            stdout=write_end,
            stderr=write_end,
        )
        os.close(write_end)
        mesh.await_answer()
        with os.fdopen(read_end, "rb") as output:
            while b"stay.1  | ready" not in output.readline():
                pass
            with watched(supervisor.pid) as sizes:
                # Nobody reads here until nothing moves any more.
                stored = [-1, 0]
                while stored[-1] != stored[-2]:
                    threading.Event().wait(0.3)
                    stored.append(len(kept(mesh, "flood.1")))
            assert mesh.instance("flood.1").state == "running"
            assert stored[-1] < count
            assert max(sizes) - sizes[0] < MOST_GROWTH_BYTES
            shown: list[bytes] = []
            reading = threading.Thread(target=lambda: shown.extend(output))
            reading.start()
            await_end(mesh, "flood.1")
            mesh.down()
            supervisor.wait(PATIENCE_S)
            reading.join(PATIENCE_S)
        lines = [line.decode().rstrip() for line in shown if line.startswith(b"flood.1")]
        said = numbers([line.partition(" | ")[2] for line in lines])
        assert said == list(range(said[0], count))


def test_lines_of_two_apps_and_of_two_outputs_never_mix(tmp_path: Path) -> None:
    marks = ("a", "b", "c")
    config = "".join(talker(mark, "pair", "500", mark, more=ONCE) for mark in marks) + STAY
    with Mesh(tmp_path, config) as mesh:
        foreground = mesh.foreground()
        for mark in marks:
            await_end(mesh, f"{mark}.1")
        mesh.down()
        foreground.wait()
        for mark in marks:
            expected = [f"{mark} {number} {mark * 200}" for number in range(500)]
            shown = [line for line in foreground.lines if line.startswith(f"{mark}.1")]
            assert sorted(shown) == sorted(f"{mark}.1     | {line}" for line in expected * 2)
            lines = kept(mesh, f"{mark}.1")
            for stream in ("stdout", "stderr"):
                assert [line.line for line in lines if line.stream == stream] == expected


# However it is written.


@pytest.mark.parametrize("how", ["exit", "kill"])
@pytest.mark.parametrize("where", [ONCE, ON_A_TERMINAL])
def test_what_is_written_right_before_the_end_is_all_there(
    tmp_path: Path, how: str, where: str
) -> None:
    with Mesh(tmp_path, talker("burst", "burst", "2000", how, more=where) + STAY) as mesh:
        mesh.up(wait=False)
        await_end(mesh, "burst.1")
        assert numbers(written(mesh, "burst.1")) == list(range(2000))
        how_ended = "signal KILL" if how == "kill" else "exit code 0"
        assert kept(mesh, "burst.1")[-1].line == f"ended: {how_ended}"


@pytest.mark.parametrize("length", [1_000_000, 3 * LINE_LIMIT_BYTES + 17])
def test_a_long_line_comes_whole_or_in_marked_pieces(tmp_path: Path, length: int) -> None:
    with Mesh(tmp_path, talker("long", "long", f"{length}", more=ONCE) + STAY) as mesh:
        mesh.up(wait=False)
        await_end(mesh, "long.1")
        *pieces, after = (line for line in kept(mesh, "long.1") if line.stream == "stdout")
        assert "".join(piece.line for piece in pieces) == "y" * length
        assert [piece.partial for piece in pieces] == [True] * (len(pieces) - 1) + [False]
        assert (after.line, after.partial) == ("after", False)
        assert len(pieces) == (1 if length <= LINE_LIMIT_BYTES else 4)
        assert list(mesh.client.logs(["long"], None, follow=False)) == kept(mesh, "long.1")


def test_bytes_that_are_no_text_are_kept_and_shown_as_such(tmp_path: Path) -> None:
    with Mesh(tmp_path, talker("odd", "odd", more=ONCE) + STAY) as mesh:
        foreground = mesh.foreground()
        await_end(mesh, "odd.1")
        mesh.down()
        foreground.wait()
        stored = (mesh.state_path / "logs" / "odd.1.log").read_bytes()
        assert b"O0 \xff\xfe caf\xc3\xa9 \x00 \x1b[31mred\n" in stored
        assert b"O0 \xc3(\n" in stored
        shown = "\ufffd\ufffd café \x00 \x1b[31mred", "\ufffd("
        assert written(mesh, "odd.1") == [*shown]
        assert f"odd.1   | {shown[0]}\n" in mesh.cli("logs", "odd", check=True).stdout


# Whoever else holds the output.


def test_who_holds_the_output_delays_no_exit(tmp_path: Path) -> None:
    with Mesh(tmp_path, talker("hold", "hold", "600", more=ONCE) + STAY) as mesh:
        mesh.up(wait=False)
        exited = mesh.await_event("exited", "hold.1")
        main_ended = next(
            line for line in kept(mesh, "hold.1") if line.line == "the main process ends"
        )
        assert exited.at - main_ended.time.timestamp() < 0.5
        await_end(mesh, "hold.1")
        assert mesh.instance("hold.1").exit_code == 3
        assert set(written(mesh, "hold.1")) == {"the holder is there", "the main process ends"}


def test_who_still_holds_the_output_after_all_has_ended_is_named(tmp_path: Path) -> None:
    with Mesh(tmp_path, talker("left", "stay", stop="100ms") + STAY) as mesh:
        mesh.up(wait=False)
        pid = mesh.wait_for(lambda _: "ready" in mesh.output("left.1"))["left.1"].pid
        # Somebody whom nothing leads to from the app.
        with open(f"/proc/{pid}/fd/1", "wb"):
            mesh.cli("stop", "left", check=True)
            held = mesh.await_event("output-held", "left.1").message
        assert held.startswith(f"left.1 has ended, but its output is held by pid {os.getpid()} (")
        assert held.endswith("), and not read any more")


@pytest.mark.parametrize("where", [ONCE, ON_A_TERMINAL])
def test_the_last_words_of_a_child_are_heard(tmp_path: Path, where: str) -> None:
    with Mesh(tmp_path, talker("words", "last-words", more=where) + STAY) as mesh:
        mesh.up(wait=False)
        await_end(mesh, "words.1")
        lines = [line.line for line in kept(mesh, "words.1")][1:]
        assert lines == ["the main process ends", "ended: exit code 0", "the last words"]


# The log of it.


def test_each_start_and_end_is_marked_and_each_line_says_of_which_life_it_is(
    tmp_path: Path,
) -> None:
    with Mesh(tmp_path, talker("crash", "crash") + STAY) as mesh:
        mesh.up(wait=False)
        pids = [mesh.await_event("started", "crash.1", number=n).message for n in (1, 2, 3)]
        await_end(mesh, "crash.1")
        shown = mesh.cli("logs", "--json", "crash", check=True).stdout.splitlines()
        first, second, third = (message.rpartition(" ")[2] for message in pids)
        found = [json.loads(line) for line in shown]
        assert {(line["app"], line["instance"]) for line in found} == {("crash", "crash.1")}
        assert [(line["stream"], line["restarts"], line["line"]) for line in found] == [
            ("marker", 0, f"started, pid {first}"),
            ("stdout", 0, "life 1"),
            ("marker", 0, "ended: exit code 7"),
            ("marker", 1, f"started, pid {second} (restart 1)"),
            ("stdout", 1, "life 2"),
            ("marker", 1, "ended: exit code 7"),
            ("marker", 2, f"started, pid {third} (restart 2)"),
            ("stdout", 2, "life 3"),
            ("marker", 2, "ended: exit code 0"),
        ]
        times = [line["time"] for line in found]
        assert times == sorted(times)
        since = mesh.cli("logs", "--json", "crash", "--since", times[3], check=True).stdout
        assert since.splitlines() == shown[3:]
        assert mesh.cli("logs", "--json", "crash", "--since", "1h").stdout.splitlines() == shown
        assert mesh.cli("logs", "-n", "1", "crash").stdout.splitlines() == [
            "crash.1 | life 3",
            "crash.1 | --- ended: exit code 0",
        ]
        mesh.down()
        # The same from the files alone.
        assert mesh.cli("logs", "--json", "crash", check=True).stdout.splitlines() == shown


def test_an_app_that_cannot_be_started_is_marked(tmp_path: Path) -> None:
    config = '[apps.no]\ncommand = "no-such-program"\nport = 0\nrestart = "never"\n'
    with Mesh(tmp_path, config + STAY) as mesh:
        mesh.up(wait=False)
        await_end(mesh, "no.1")
        (line,) = kept(mesh, "no.1")
        assert line.stream == "marker"
        assert line.line.startswith("could not be started: cannot run no-such-program: no such")


class Following:
    """`meshrun logs -f` in a process of its own, whose lines are read as one likes."""

    def __init__(self, mesh: Mesh, *words: str) -> None:
        self.process = subprocess.Popen(
            [*mesh.command, "logs", "-f", "--json", *words],
            cwd=mesh.folder,
            env=mesh.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
        )
        self.lines: list[dict[str, object]] = []

    def read_to(self, text: str) -> None:
        """Read until a line has come."""
        assert self.process.stdout is not None
        for raw in self.process.stdout:
            self.lines.append(json.loads(raw))
            if self.lines[-1]["line"] == text:
                return
        raise AssertionError(f"no {text!r} in {self.lines[-5:]}")

    def read_to_end(self) -> int:
        """Read the rest and return the exit code."""
        assert self.process.stdout is not None
        with self.process.stdout:
            self.lines += map(json.loads, self.process.stdout)
        return self.process.wait(PATIENCE_S)

    def of(self, instance: str, stream: str = "stdout") -> list[str]:
        """Return the lines of an instance."""
        mine = (n for n in self.lines if (n["instance"], n["stream"]) == (instance, stream))
        return [str(line["line"]) for line in mine]


@pytest.mark.slow
def test_a_follower_sees_all_through_restarts_new_instances_turned_over_files_and_the_end(
    tmp_path: Path,
) -> None:
    count = 50_000
    config = talker("flood", "flood", f"{count}", "100", more=ONCE) + STAY
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        await_end(mesh, "flood.1")
        following = Following(mesh, "-n", "1")
        following.read_to("ready")
        mesh.cli("start", "flood", check=True)
        await_end(mesh, "flood.1")
        assert (mesh.state_path / "logs" / "flood.1.log.1").exists()
        mesh.cli("scale", "stay=2", check=True)
        mesh.cli("restart", "stay.1", check=True)
        down = threading.Thread(target=mesh.down)
        down.start()
        assert following.read_to_end() == 0
        down.join()
        assert numbers(following.of("flood.1")) == [count - 1, *range(count)]
        assert following.of("stay.1") == ["ready", "ready"]
        assert following.of("stay.2") == ["ready"]
        for instance in ("stay.1", "stay.2"):
            assert following.of(instance, "marker")[-1] == "ended: signal TERM"


@pytest.mark.slow
def test_a_follower_who_does_not_read_makes_nobody_wait_and_hears_what_it_has_missed(
    tmp_path: Path,
) -> None:
    count = 400_000
    config = talker("flood", "flood", f"{count}", "100", more=ONCE) + STAY
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        await_end(mesh, "flood.1")
        following = Following(mesh, "-n", "1", "flood")
        following.read_to(f"{count - 1} {'x' * 100}")
        following.process.send_signal(signal.SIGSTOP)
        with watched(mesh.supervisor_pid) as sizes:
            mesh.cli("start", "flood", check=True)
            await_end(mesh, "flood.1")
        assert max(sizes) - sizes[0] < MOST_GROWTH_BYTES
        following.process.send_signal(signal.SIGCONT)
        following.read_to("ended: exit code 0")  # of the first time
        following.read_to("ended: exit code 0")
        missed = [i for i, line in enumerate(following.lines) if line["line"] == MISSED.decode()]
        mesh.down()
        assert following.read_to_end() == 0
        assert missed
        after = [str(n["line"]) for n in following.lines[missed[-1] :] if n["stream"] == "stdout"]
        assert numbers(after) == list(range(count - len(after), count))


# The terminal of an app.


TERMINAL = talker("terminal", "terminal", more="tty = true")


def test_an_app_on_a_terminal_has_one_of_80_by_24_where_nobody_looks(tmp_path: Path) -> None:
    with Mesh(tmp_path, TERMINAL + STAY, environment={"TERM": "fine-term"}) as mesh:
        mesh.up(wait=False)
        mesh.wait_for(lambda _: "size 80x24" in mesh.output("terminal.1"))
        assert mesh.output("terminal.1") == [
            "terminals True True True",
            "leader True",
            "controlling terminal",
            "TERM fine-term",
            "stderr too",
            "size 80x24",
        ]
        assert {line.stream for line in kept(mesh, "terminal.1")} == {"marker", "stdout"}


def test_the_terminal_of_an_app_follows_the_one_of_up(tmp_path: Path) -> None:
    with Mesh(tmp_path, TERMINAL + STAY) as mesh:
        window = Terminal(mesh, rows=50, columns=123)
        window.await_text("size 123x50")
        window.resize(30, 90)
        window.await_text("resized 90x30")
        mesh.cli("restart", "terminal", check=True)
        window.await_text("size 90x30")
        mesh.down()
        window.wait()
        window.close()


def test_a_terminal_is_in_nobody_elses_hands(tmp_path: Path) -> None:
    with Mesh(tmp_path, TERMINAL + STAY) as mesh:
        mesh.up(wait=False)
        rows = mesh.wait_for(lambda _: "size 80x24" in mesh.output("terminal.1"))
        mesh.wait_for(lambda _: "ready" in mesh.output("stay.1"))
        for pid in (rows["stay.1"].pid, *rows["stay.1"].sidecar_pids, mesh.launcher_pid):
            assert pid is not None
            assert not terminals(pid)
        assert not any(terminals(pid) for pid in rows["terminal.1"].sidecar_pids)
        assert len(terminals(mesh.supervisor_pid)) == 2  # its own end, and one that keeps it open
        for number in range(1, 4):
            mesh.cli("restart", "terminal", check=True)
            mesh.await_event("started", "terminal.1", number=number + 1)
        mesh.cli("stop", "terminal", check=True)
        assert not terminals(mesh.supervisor_pid)


def terminals(pid: int) -> list[str]:
    """Return the pseudo-terminals that a process has open."""
    links: list[str] = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            links.append(os.readlink(descriptor))
    return [link for link in links if link.startswith(("/dev/pts", "/dev/ptmx"))]


def test_an_app_may_close_its_terminal_and_open_it_again(tmp_path: Path) -> None:
    with Mesh(tmp_path, talker("closed", "closed", more="tty = true") + STAY) as mesh:
        mesh.up(wait=False)
        row = mesh.wait_for(lambda _: (tmp_path / "closed").exists())["closed.1"]
        mesh.kill(row.pid, signal.SIGUSR1)
        mesh.wait_for(lambda _: "opened again" in mesh.output("closed.1"))
        assert mesh.instance("closed.1").pid == row.pid


@pytest.mark.slow
def test_the_session_of_an_app_on_a_terminal_is_hung_up_on_at_its_end(tmp_path: Path) -> None:
    with Mesh(tmp_path, talker("gone", "hung-up", more=ON_A_TERMINAL) + STAY) as mesh:
        mesh.up(wait=False)
        await_end(mesh, "gone.1")
        assert (tmp_path / "got-SIGHUP").exists()


@pytest.mark.slow
def test_who_writes_to_a_terminal_as_fast_as_it_can_loses_no_line(tmp_path: Path) -> None:
    count = 100_000
    config = talker("flood", "flood", f"{count}", "30", more=ON_A_TERMINAL) + STAY
    with Mesh(tmp_path, config) as mesh:
        mesh.up(wait=False)
        await_end(mesh, "flood.1")
        assert numbers(written(mesh, "flood.1")) == list(range(count))


def test_the_terminal_of_a_killed_mesh_is_hung_up_on(tmp_path: Path) -> None:
    with Mesh(tmp_path, talker("gone", "survivor", more="tty = true") + STAY) as mesh:
        mesh.up(wait=False)
        mesh.wait_for(lambda _: "ready" in mesh.output("gone.1"))
        mesh.kill(mesh.supervisor_pid)
        mesh.await_gone(5.0)
        assert (tmp_path / "got-SIGHUP").exists()
