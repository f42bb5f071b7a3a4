"""Tables, durations and sizes as they are shown."""

import click
import pytest

from meshrun.supervisor.cli.columns import age, size, table


def test_columns_are_aligned_and_numbers_to_the_right() -> None:
    shown = table(["NAME", "PID", "STATE"], [["web.1", "7", "up"], ["a", "1234", ""]])
    assert shown.splitlines() == [
        "NAME    PID  STATE",
        "web.1     7  up",
        "a      1234  -",
    ]


def test_colour_does_not_count_as_width() -> None:
    rows = [[click.style("a", fg="red"), "x"], ["bb", "y"]]
    assert click.unstyle(table(["N", "V"], rows)) == table(["N", "V"], [["a", "x"], ["bb", "y"]])


def test_a_table_without_rows_is_its_heading() -> None:
    assert table(["A", "B"], []) == "A  B"


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (-1, "0ms"),
        (0.85, "850ms"),
        (1, "1s"),
        (59.9, "59s"),
        (184, "3m04s"),
        (7800, "2h10m"),
        (442800, "5d03h"),
    ],
)
def test_an_age_has_two_units(seconds: float, shown: str) -> None:
    assert age(seconds) == shown


@pytest.mark.parametrize(
    ("count", "shown"),
    [(0, "0B"), (1023, "1023B"), (1536, "1.5KiB"), (6 << 20, "6.0MiB"), (5 << 40, "5120.0GiB")],
)
def test_a_size_is_binary(count: int, shown: str) -> None:
    assert size(count) == shown
