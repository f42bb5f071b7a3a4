"""`.env` files are read as foreman reads them, and no line is skipped in silence."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.configuration.dotenv import Variable, parse, values
from meshrun.supervisor.errors import Finding


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("A=b", "b"),
        ("A=", ""),
        ("A=b c # d", "b c # d"),
        ("A= b ", " b "),
        ("A=b=c", "b=c"),
        ("A='b $C \\n'", "b $C \\n"),
        ('A="b\\nc"', "b\nc"),
        ('A="b \\"c\\" \\\\ \\d"', 'b "c" \\ d'),
        ("A='b", "'b"),
        ('A="', '"'),
        ("A=$HOME ${B}", "$HOME ${B}"),
    ],
)
def test_values_are_foremans(line: str, expected: str) -> None:
    assert parse(line, ".env") == ((Variable("A", expected, 1),), ())


def test_blank_lines_and_comments_are_passed_over() -> None:
    variables, findings = parse("# one\r\n\r\n  # two\r\nA=1\r\n\t\nB=2", ".env")
    assert variables == (Variable("A", "1", 4), Variable("B", "2", 6))
    assert findings == ()


def test_of_a_name_that_stands_twice_the_last_value_holds() -> None:
    assert values(parse("A=1\nA=2", ".env")[0]) == {"A": "2"}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("export A=secret", 'not NAME=value: leave "export" out'),
        ("secret", 'not NAME=value: there is no "="'),
        ("A =secret", "not NAME=value: a name has letters, digits and _, and no blanks around it"),
        (" A=secret", "not NAME=value: a name has letters, digits and _, and no blanks around it"),
    ],
)
def test_any_other_line_is_reported_without_what_it_holds(line: str, message: str) -> None:
    assert parse(f"B=1\n{line}", "x/.env")[1] == (Finding("x/.env", 2, 1, message),)


def test_a_nul_character_is_reported() -> None:
    assert parse("A=b\0c", ".env")[1] == (
        Finding(".env", 1, 4, "a value must not hold a NUL character"),
    )


@given(st.text())
def test_every_line_is_a_variable_or_a_finding_or_passed_over(text: str) -> None:
    variables, findings = parse(text, ".env")
    meant = [
        line
        for line in text.replace("\r\n", "\n").split("\n")
        if line.strip() and not line.lstrip().startswith("#")
    ]
    assert len(variables) + len(findings) == len(meant)
