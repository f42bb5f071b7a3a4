"""`${NAME}`, `${NAME:-default}` and `$$`."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.configuration.interpolation import (
    ExpansionTooLongError,
    UnsetVariableError,
    expand,
    has_unclosed,
    names,
    unset,
)

LOOKUP = {"A": "a", "EMPTY": "", "DOLLAR": "$$ ${A}"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("${A}", "a"),
        ("x${A}y${A}", "xaya"),
        ("$${A}", "${A}"),
        ("$$$${A}", "$${A}"),
        ("$$${A}", "$a"),
        ("$A $1 $( ) $", "$A $1 $( ) $"),
        ("${A", "${A"),
        ("${1} ${A-b} ${A:?} ${}", "${1} ${A-b} ${A:?} ${}"),
        ("${EMPTY}", ""),
        ("${A:-b}", "a"),
        ("${B:-b}", "b"),
        ("${B:-}", ""),
        ("${EMPTY:-b}", "b"),
        ("${B:-x${C:-c}y}z", "xcyz"),
        ("${B:-$$}", "$"),
        ("${B:-${A}", "${B:-a"),
        ("{}}", "{}}"),
        ("${DOLLAR}", "$$ ${A}"),
    ],
)
def test_expansion(text: str, expected: str) -> None:
    assert expand(text, LOOKUP) == expected


def test_a_variable_that_is_not_set_is_named() -> None:
    with pytest.raises(UnsetVariableError, match=r"\$\{B\} is not set") as error:
        expand("${A} ${B} ${C}", LOOKUP)
    assert error.value.name == "B"


def test_only_defaults_that_are_used_must_be_set() -> None:
    assert expand("${A:-${B}}", LOOKUP) == "a"
    assert unset("${A:-${B}} ${C:-${D}} ${E} ${E}", LOOKUP) == ("D", "E")


def test_every_reference_is_named() -> None:
    assert names("${A} $${B} ${C:-${D}} $E") == ("A", "C", "D")


def test_an_open_default_is_noticed() -> None:
    assert has_unclosed("${A:-b")
    assert not has_unclosed("${A:-b} ${C")


def test_a_result_beyond_what_a_process_takes_is_refused() -> None:
    with pytest.raises(ExpansionTooLongError, match="shorten the variables"):
        expand("${A}" * 200, {"A": "a" * 10_000})


def test_deep_nesting_is_read_in_one_pass() -> None:
    depth = 50_000
    assert expand("${B:-" * depth + "x" + "}" * depth, {}) == "x"
    assert expand("${B:-" * depth, {}) == "${B:-" * depth


@given(st.text())
def test_doubled_dollars_protect_any_text(text: str) -> None:
    assert expand(text.replace("$", "$$"), {}) == text


@given(st.text(alphabet="${}:-AB_ "))
def test_expansion_ends_or_names_a_reference_of_the_text(text: str) -> None:
    missing = unset(text, {"A": "a"})
    assert set(missing) <= set(names(text))
    if missing:
        with pytest.raises(UnsetVariableError):
            expand(text, {"A": "a"})
    else:
        expand(text, {"A": "a"})
