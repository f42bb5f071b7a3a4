"""Floods of refusals, summed up."""

from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.messages import ConnectionFailed, Denied
from meshrun.proxy.reports import MOST_KINDS, Summary


def denied(source: str, count: int = 1, request: str = "", *, dry_run: bool = False) -> Denied:
    return Denied(
        kind="intention",
        source=source,
        reason="none matches",
        count=count,
        request=request,
        dry_run=dry_run,
    )


def test_the_first_of_a_kind_goes_at_once_and_the_others_as_a_sum() -> None:
    summary = Summary()
    assert summary.add(denied("web")) == denied("web")
    assert summary.add(denied("web")) is None
    assert summary.add(denied("web")) is None
    assert summary.add(denied("api")) == denied("api")
    assert list(summary.turn()) == [denied("web", count=2)]


def test_a_flood_that_goes_on_stays_a_sum() -> None:
    summary = Summary()
    summary.add(denied("web"))
    for _ in range(5):
        assert summary.add(denied("web")) is None
        assert list(summary.turn()) == [denied("web")]


def test_after_a_quiet_period_the_next_is_news() -> None:
    summary = Summary()
    summary.add(denied("web"))
    assert not list(summary.turn())
    assert not summary
    assert summary.add(denied("web")) == denied("web")


def test_denials_of_several_requests_are_alike_and_the_first_is_the_example() -> None:
    summary = Summary()
    assert summary.add(denied("web", request="GET /admin")) == denied("web", request="GET /admin")
    assert summary.add(denied("web", request="GET /other")) is None
    assert summary.add(denied("web")) is None
    dry = denied("web", request="GET /other", dry_run=True)
    assert summary.add(dry) == dry
    for _ in range(2):
        assert list(summary.turn())[:1] == [denied("web", count=2, request="GET /admin")]
        assert summary.add(denied("web", request="GET /1")) is None
        assert summary.add(denied("web", request="GET /2")) is None


def test_a_flood_of_requests_is_one_kind() -> None:
    summary = Summary()
    sent = [summary.add(denied("web", request=f"GET /{n}")) for n in range(10 * MOST_KINDS)]
    assert len([each for each in sent if each is not None]) == 1


def test_dry_runs_too_many_to_tell_apart_are_still_dry_runs() -> None:
    summary = Summary()
    told = [summary.add(denied(f"s{n}", dry_run=True)) for n in range(2 * MOST_KINDS)]
    assert all(isinstance(each, Denied) and each.dry_run for each in told if each is not None)


def test_kinds_are_bounded() -> None:
    summary = Summary()
    sent = [summary.add(denied(f"s{n}")) for n in range(10 * MOST_KINDS)]
    assert len([each for each in sent if each is not None]) == MOST_KINDS + 1
    (others,) = summary.turn()
    assert others.count == 9 * MOST_KINDS - 1


@given(st.lists(st.one_of(st.none(), st.sampled_from("abc")), max_size=50))
def test_none_is_lost_and_none_counted_twice(events: list[str | None]) -> None:
    summary = Summary()
    told: list[Denied | ConnectionFailed] = []
    for event in events:
        if event is None:
            told += summary.turn()
        elif (news := summary.add(denied(event))) is not None:
            told.append(news)
    told += summary.turn()
    assert sum(report.count for report in told) == len([e for e in events if e is not None])
