"""One intention decides: the one of highest precedence (Consul's match order)."""

import itertools
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.intentions import (
    WILDCARD,
    Action,
    Intention,
    decide,
    layered,
    ordered,
    precedence,
)

# The pairs that match web => db, in evaluation order, with their precedence.
MATCHING = {("web", "db"): 9, (WILDCARD, "db"): 8, ("web", WILDCARD): 6, (WILDCARD, WILDCARD): 5}
OTHERS = [("api", "db"), ("web", "cache"), ("db", "web"), ("api", WILDCARD), (WILDCARD, "web")]
ACTIONS: tuple[Action, ...] = ("allow", "deny")


def intention(pair: tuple[str, str], action: Action, where: str = "") -> Intention:
    return Intention(source=pair[0], destination=pair[1], action=action, where=where)


@pytest.mark.parametrize(("pair", "expected"), list(MATCHING.items()))
def test_precedence_is_consuls(pair: tuple[str, str], expected: int) -> None:
    assert precedence(intention(pair, "allow")) == expected


CHOICES: tuple[Action | None, ...] = (None, "allow", "deny")


@pytest.mark.parametrize("default", ACTIONS)
@pytest.mark.parametrize("actions", list(itertools.product(CHOICES, repeat=4)))
def test_the_most_exact_intention_decides_in_every_combination(
    actions: tuple[Action | None, ...], default: Action
) -> None:
    present = [
        intention(pair, action)
        for pair, action in zip(MATCHING, actions, strict=True)
        if action is not None
    ]
    foreign = [intention(pair, "deny" if default == "allow" else "allow") for pair in OTHERS]
    for order in itertools.permutations(present):
        decision = decide([*foreign, *order], "web", "db", default)
        assert decision.intention == (present[0] if present else None)
        assert decision.allowed == ((present[0].action if present else default) == "allow")


def test_an_exact_destination_outranks_an_exact_source() -> None:
    both = [intention(("web", "*"), "allow"), intention(("*", "db"), "deny")]
    assert not decide(both, "web", "db", "allow").allowed


def test_without_a_match_the_default_decides_and_says_so() -> None:
    decision = decide([], "web", "db", "deny")
    assert (decision.allowed, decision.intention) == (False, None)
    assert decision.reason == "no intention matches web => db; the default is deny"


def test_the_reason_names_the_intention_and_its_place() -> None:
    decision = decide([intention(("*", "db"), "deny", "mesh.toml:12")], "web", "db", "allow")
    assert decision.reason == "intention * => db (deny), mesh.toml:12"


def test_names_are_compared_literally() -> None:
    allowed = [intention(("web.v1", "db"), "allow")]
    assert not decide(allowed, "webxv1", "db", "deny").allowed
    assert not decide(allowed, "Web.v1", "db", "deny").allowed
    assert not decide([intention(("we*", "db"), "allow")], "web", "db", "deny").allowed


def test_evaluation_order_breaks_ties_by_name() -> None:
    pairs = [("b", "*"), ("*", "*"), ("a", "z"), ("a", "*"), ("*", "y"), ("a", "b")]
    in_order = [i.pair for i in ordered(intention(pair, "allow") for pair in pairs)]
    assert in_order == [("a", "b"), ("a", "z"), ("*", "y"), ("a", "*"), ("b", "*"), ("*", "*")]


def test_a_runtime_intention_hides_the_files_of_the_same_pair_only() -> None:
    base = [intention(("web", "db"), "deny", "mesh.toml:3"), intention(("*", "db"), "allow")]
    over = [intention(("web", "db"), "allow", "runtime")]
    assert layered(base, over) == [over[0], base[1]]
    assert layered(base, []) == base


NAMES = st.sampled_from(["web", "db", "api"])
PATTERNS = st.sampled_from(["web", "db", "api", WILDCARD])
TABLES = st.dictionaries(st.tuples(PATTERNS, PATTERNS), st.sampled_from(ACTIONS))


@given(TABLES, st.randoms(use_true_random=False), NAMES, NAMES, st.sampled_from(ACTIONS))
def test_decides_as_four_look_ups_in_order_would(
    table: dict[tuple[str, str], Action],
    shuffle: Random,
    source: str,
    destination: str,
    default: Action,
) -> None:
    intentions = [intention(pair, action) for pair, action in table.items()]
    shuffle.shuffle(intentions)
    expected = default
    for pair in (
        (WILDCARD, WILDCARD),
        (source, WILDCARD),
        (WILDCARD, destination),
        (source, destination),
    ):
        expected = table.get(pair, expected)
    assert decide(intentions, source, destination, default).allowed == (expected == "allow")


@given(TABLES, TABLES, NAMES, NAMES)
def test_layers_decide_as_one_table_with_the_upper_written_over_the_lower(
    base: dict[tuple[str, str], Action],
    over: dict[tuple[str, str], Action],
    source: str,
    destination: str,
) -> None:
    lower = [intention(pair, action) for pair, action in base.items()]
    upper = [intention(pair, action) for pair, action in over.items()]
    merged = [intention(pair, action) for pair, action in (base | over).items()]
    left = decide(layered(lower, upper), source, destination, "deny")
    assert left == decide(ordered(merged), source, destination, "deny")
