"""What answers to a probe mean, one after the other."""

from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.configuration.model import Probe, TcpCheck
from meshrun.supervisor.lifecycle_events import Event, LivenessLost, ProbeFailed, ProbeSucceeded
from meshrun.supervisor.probes.tally import FIRST_INTERVAL_S, Liveness, Readiness, Tally

WELL = None


def events(tally: Tally, *answers: str | None) -> list[Event | None]:
    """Return what follows from answers that come once a second."""
    return [tally.answer(answer, 1.0 + at) for at, answer in enumerate(answers)]


def probe(failures: int = 3, successes: int = 1, deadline_s: float = 60.0) -> Probe:
    return Probe(
        check=TcpCheck(),
        interval_s=10.0,
        failures=failures,
        successes=successes,
        deadline_s=deadline_s,
    )


def test_until_it_is_ready_every_failure_is_told_and_then_only_enough_in_a_row() -> None:
    tally = Readiness(probe(failures=2), 0.0)
    assert events(tally, "a", WELL, "b", WELL, "c", "d", "e", WELL) == [
        ProbeFailed("a"),
        ProbeSucceeded(),
        None,
        ProbeSucceeded(),
        None,
        ProbeFailed("d"),
        ProbeFailed("e"),
        ProbeSucceeded(),
    ]
    assert tally.tries == 8


def test_it_is_ready_after_as_many_successes_in_a_row_as_are_asked_for() -> None:
    tally = Readiness(probe(failures=1, successes=2), 0.0)
    assert events(tally, WELL, "a", WELL, WELL, "b", WELL, WELL) == [
        None,
        ProbeFailed("a"),
        None,
        ProbeSucceeded(),
        ProbeFailed("b"),
        None,
        ProbeSucceeded(),
    ]


def test_liveness_is_lost_after_enough_failures_in_a_row_and_knows_since_when_it_was_ill() -> None:
    tally = Liveness(probe(failures=3), 0.0)
    assert events(tally, WELL, "a", "b", WELL, "c", "d", "e") == [
        *[None] * 6,
        LivenessLost("e (3 times in a row)", 2.0),
    ]


def test_what_was_never_alive_has_its_deadline_first() -> None:
    tally = Liveness(probe(failures=1, deadline_s=3.0), 0.0)
    assert events(tally, "a", "b", "c") == [
        None,
        None,
        LivenessLost("not once within 3 s: c", 3.0),
    ]


def test_one_is_asked_fast_until_it_is_well_or_its_deadline_is_over_then_slowly() -> None:
    tally = Readiness(probe(), 0.0)
    tally.answer("refused", 1.0)
    assert tally.pause_s(1.0) == FIRST_INTERVAL_S
    assert tally.pause_s(60.0) == 10.0
    tally.answer(None, 2.0)
    assert tally.pause_s(2.0) == 10.0
    tally.answer("refused", 12.0)
    assert tally.pause_s(12.0) == 10.0


@given(
    answers=st.lists(st.sampled_from([None, "ill"]), max_size=60),
    failures=st.integers(1, 4),
    successes=st.integers(1, 4),
)
def test_what_is_told_follows_from_the_last_answers_alone(
    answers: list[str | None], failures: int, successes: int
) -> None:
    tally = Readiness(probe(failures, successes), 0.0)
    ready = False
    for at, event in enumerate(events(tally, *answers)):
        if event == ProbeSucceeded():
            assert answers[: at + 1][-successes:] == [None] * successes
            ready = True
        elif event is not None and ready:
            assert answers[: at + 1][-failures:] == ["ill"] * failures
