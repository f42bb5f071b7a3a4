"""Ports: fixed ones, then remembered ones, then the lowest free; never one for two."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.configuration.model import PortRange
from meshrun.supervisor.ports import PortsExhaustedError, PortTakenError, Wish, allocate

RANGE = PortRange(100, 109)
OTHER = PortRange(200, 209)


def free(_wish: Wish, _port: int) -> bool:
    return True


def test_holders_get_the_lowest_free_ports_in_their_order() -> None:
    wishes = [Wish("a", RANGE), Wish("b", OTHER), Wish("c", RANGE)]
    assert allocate(wishes, {}, lambda _, port: port != 100) == {"a": 101, "b": 200, "c": 102}


def test_a_holder_keeps_the_port_that_it_had() -> None:
    wishes = [Wish("new", RANGE), Wish("old", RANGE)]
    assert allocate(wishes, {"old": 100}, free) == {"new": 101, "old": 100}


@pytest.mark.parametrize("remembered", [99, 110, 0])
def test_a_remembered_port_outside_the_range_is_forgotten(remembered: int) -> None:
    assert allocate([Wish("a", RANGE)], {"a": remembered}, free) == {"a": 100}


def test_a_remembered_port_that_is_taken_is_replaced() -> None:
    assert allocate([Wish("a", RANGE)], {"a": 105}, lambda _, port: port != 105) == {"a": 100}


def test_a_fixed_port_comes_before_who_remembers_it() -> None:
    wishes = [Wish("a", RANGE), Wish("b", RANGE, fixed=103)]
    assert allocate(wishes, {"a": 103}, free) == {"a": 100, "b": 103}


def test_a_fixed_port_that_is_taken_is_an_error_that_says_whose() -> None:
    wish = Wish("b", RANGE, fixed=8080)
    with pytest.raises(PortTakenError) as caught:
        allocate([wish], {}, lambda _, port: port != 8080)
    assert (caught.value.wish, caught.value.port) == (wish, 8080)


def test_two_cannot_have_one_fixed_port() -> None:
    with pytest.raises(PortTakenError):
        allocate([Wish("a", RANGE, fixed=105), Wish("b", RANGE, fixed=105)], {}, free)


def test_a_range_that_is_used_up_is_an_error_that_names_it() -> None:
    with pytest.raises(PortsExhaustedError, match="no port of 100-109 is free for k"):
        allocate([Wish(name, RANGE) for name in "abcdefghijk"], {}, free)


@given(
    fixed=st.dictionaries(st.sampled_from("abcde"), st.integers(100, 109)),
    remembered=st.dictionaries(st.sampled_from("abcde"), st.integers(95, 115)),
    taken=st.sets(st.integers(100, 104)),
)
def test_nobody_shares_a_port_and_nobody_gets_a_taken_one(
    fixed: dict[str, int], remembered: dict[str, int], taken: set[int]
) -> None:
    wishes = [Wish(name, RANGE, fixed.get(name)) for name in "abcde"]
    claimed: list[int] = []

    def claim(_wish: Wish, port: int) -> bool:
        if port in taken:
            return False
        claimed.append(port)
        return True

    impossible = taken & set(fixed.values()) or len(set(fixed.values())) < len(fixed)
    if impossible:
        with pytest.raises(PortTakenError):
            allocate(wishes, remembered, claim)
        return
    given_ports = allocate(wishes, remembered, claim)
    assert len(set(given_ports.values())) == len(wishes)
    assert not taken & set(given_ports.values())
    assert sorted(claimed) == sorted(given_ports.values())
    assert all(given_ports[name] == port for name, port in fixed.items())
