"""The line that says what keeps a run from ending."""

import signal

from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.blocking import Blocker, Shown, describe

SHELL = Shown(4711, 17, "/bin/sh -c 'sleep 61'")
SLEEP = Shown(4712, 4711, "sleep 61")


def blocker(
    *processes: Shown, told: int | None = signal.SIGTERM, kill_at: float | None = 105.0
) -> Blocker:
    return Blocker(name="web.1", told=told, told_at=100.0, kill_at=kill_at, processes=processes)


def test_it_names_who_was_told_what_when_and_what_of_it_is_left() -> None:
    assert describe(blocker(SHELL, SLEEP), 102.1) == (
        "waiting for web.1: TERM sent 2.1 s ago, KILL in 2.9 s: 4711 sh -c 'sleep 61' "
        "└ 4712 sleep 61"
    )


def test_after_kill_there_is_nothing_more_to_come() -> None:
    told = describe(blocker(SLEEP, told=signal.SIGKILL), 103.0)
    assert told == "waiting for web.1: KILL sent 3.0 s ago: 4712 sleep 61"


def test_a_deadline_that_is_over_is_not_a_negative_one() -> None:
    assert "KILL in 0.0 s" in describe(blocker(SLEEP), 200.0)


def test_who_was_told_nothing_and_has_nothing_left_is_only_named() -> None:
    assert describe(blocker(told=None), 200.0) == "waiting for web.1"
    assert describe(blocker(told=64), 100.0).startswith("waiting for web.1: RTMAX sent 0.0 s ago")


def test_a_tree_shows_each_below_its_parent() -> None:
    processes = (
        Shown(1, 0, "a"),
        Shown(3, 2, "c"),
        Shown(2, 1, "b"),
        Shown(4, 1, "d"),
        Shown(9, 8, "e"),
    )
    assert describe(blocker(*processes, told=None), 0.0) == (
        "waiting for web.1: 1 a └ 2 b └└ 3 c └ 4 d 9 e"
    )


def test_a_long_list_and_a_long_command_are_cut() -> None:
    many = [Shown(pid, 1, "x" * 500) for pid in range(10, 30)]
    said = describe(blocker(*many), 100.0)
    assert said.endswith(" and 12 more")
    assert "x" * 79 + "…" in said
    assert "x" * 80 not in said


@given(
    st.lists(
        st.builds(Shown, st.integers(0, 6), st.integers(0, 6), st.text(max_size=100)), max_size=20
    )
)
def test_whatever_the_processes_are_it_is_one_printable_line_that_ends(
    processes: list[Shown],
) -> None:
    said = describe(blocker(*processes), 100.0)
    assert said.isprintable()
    assert len(said) < 1000
