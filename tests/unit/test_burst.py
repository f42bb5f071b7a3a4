"""Changes that follow each other closely are one, and those that never end are not waited for."""

from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.watching.burst import LONGEST, MOST_NAMES, REST_S, Burst, Changes

PAUSE_S = 0.3


def test_changes_count_once_none_has_come_for_a_while() -> None:
    burst = Burst(PAUSE_S)
    assert burst.take(9.0) is None
    burst.add(["a.py"], 10.0)
    burst.add(["b.py", "a.py"], 10.2)
    assert burst.due_at == 10.5
    assert burst.take(10.4) is None
    assert burst.take(10.5) == Changes(("a.py", "b.py"))
    assert burst.take(11.0) is None


def test_who_never_stops_writing_is_not_waited_for() -> None:
    burst = Burst(PAUSE_S)
    for tenth in range(200):
        burst.add([f"{tenth}.py"], tenth / 10)
    assert burst.due_at == LONGEST * PAUSE_S
    assert str(burst.take(20.0)) == "0.py, 1.py and 198 more changed"


def test_one_that_changes_what_it_watches_rests_after_as_many_restarts_as_make_a_crash_loop() -> (
    None
):
    burst = Burst(PAUSE_S)
    for second in range(5):
        assert not burst.is_storm
        burst.add(["data.db"], float(second))
        assert burst.take(second + PAUSE_S)
    assert burst.is_storm
    burst.add(["data.db"], 4.5)
    assert burst.due_at == 4 + PAUSE_S + REST_S
    assert burst.take(burst.due_at)
    assert not burst.is_storm


def test_of_a_flood_only_so_many_names_are_kept() -> None:
    burst = Burst(PAUSE_S)
    for number in range(5 * MOST_NAMES):
        burst.add([f"{number}.o"], 0.0)
    assert burst.take(10.0) == Changes(("0.o", "1.o"), 5 * MOST_NAMES - 2)
    burst.add(["a.py"], 20.0)
    assert burst.take(30.0) == Changes(("a.py",))


def test_a_sentence_names_the_first_files() -> None:
    assert str(Changes(("a",))) == "a changed"
    assert str(Changes(("a", "b"))) == "a and b changed"
    assert str(Changes(("a", "b"), 7)) == "a, b and 7 more changed"
    assert Changes(("a",)).and_(Changes(("a", "b"), 3)) == Changes(("a", "b"), 3)
    assert Changes(("a", "b"), 1).and_(Changes(("c",))) == Changes(("a", "b"), 2)


@given(st.lists(st.tuples(st.floats(0, 3), st.sampled_from("abcd")), min_size=1, max_size=60))
def test_no_change_is_lost_and_none_waits_longer_than_the_longest(
    changes: list[tuple[float, str]],
) -> None:
    burst, now, waiting_since, told = Burst(PAUSE_S), 0.0, None, 0
    names: set[str] = set()
    for pause_s, name in changes:
        now += pause_s
        due_at = burst.due_at
        if due_at is not None and due_at <= now:
            taken = burst.take(due_at)
            assert taken is not None
            assert len(taken.names) + taken.more == len(names)
            assert waiting_since is not None
            assert due_at - waiting_since <= LONGEST * PAUSE_S + REST_S
            told, names, waiting_since = told + 1, set(), None
        burst.add([name], now)
        names.add(name)
        waiting_since = now if waiting_since is None else waiting_since
    assert burst.due_at is not None
    assert burst.take(burst.due_at) is not None
