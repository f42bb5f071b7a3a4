"""Lines that come again are known, and whoever sends many takes no more than time."""

from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.http.known_lines import KNOWN_LIMIT, LINE_LIMIT, KnownLines


def known(*lines: str) -> KnownLines[str]:
    """Return what knows the lines in the order in which they came."""
    found: KnownLines[str] = KnownLines()
    for line in lines:
        if found.get(line) is None:
            found.came(line, line.upper())
    return found


def test_a_line_is_known_when_it_came_twice() -> None:
    assert known("a").get("a") is None
    assert known("a", "a").get("a") == "A"
    assert known("a", "b", "a").get("b") is None


def test_a_long_line_is_never_known() -> None:
    for length in (LINE_LIMIT, LINE_LIMIT + 1):
        line = "a" * length
        found = known(line, line, line)
        assert (line in found) is (length == LINE_LIMIT)


def test_lines_that_come_once_push_none_out() -> None:
    found = known("a", "a", *(f"x: {i}" for i in range(20 * KNOWN_LIMIT)))
    assert found.get("a") == "A"
    assert len(found) == 1


def test_no_more_are_known_than_the_limit_and_what_comes_on_is_known_again() -> None:
    found = known()
    most = 0
    for i in range(3 * KNOWN_LIMIT):
        for _ in range(2):
            found.came(f"x: {i}", "")
        most = max(most, len(found))
    assert most == KNOWN_LIMIT
    for _ in range(2):
        found.came("a", "A")
    assert found.get("a") == "A"


def test_what_is_forgotten_is_new() -> None:
    found = known("a", "a")
    found.forget()
    assert found.get("a") is None
    found.came("a", "A")
    assert found.get("a") is None


@given(st.lists(st.text("ab", max_size=2)))
def test_a_known_line_has_its_own_meaning(lines: list[str]) -> None:
    found = known(*lines)
    for line in lines:
        assert found.get(line) in (None, line.upper())
