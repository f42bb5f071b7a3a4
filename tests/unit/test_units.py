"""Durations and sizes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.units import UnitError, bytes_of, seconds


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("500ms", 0.5),
        ("10s", 10.0),
        ("1.5s", 1.5),
        ("5m", 300.0),
        ("24h", 86400.0),
        ("1h30m", 5400.0),
        ("0s", 0.0),
    ],
)
def test_a_duration_is_seconds(text: str, expected: float) -> None:
    assert seconds(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "5",
        "s",
        "5 s",
        "-5s",
        "5S",
        "5d",
        "1.s",
        ".5s",
        "1e3s",
        "infs",
        "\u0665s",
        "5s\n",
        "1s" * 99,
    ],
)
def test_what_is_not_a_duration_is_refused(text: str) -> None:
    with pytest.raises(UnitError, match="must be a duration such as"):
        seconds(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("512B", 512), ("64KiB", 65536), ("10MiB", 10 << 20), ("2GiB", 2 << 30), ("1TiB", 1 << 40)],
)
def test_a_size_is_bytes(text: str, expected: int) -> None:
    assert bytes_of(text) == expected


@pytest.mark.parametrize("text", ["", "64", "64kb", "64KB", "1.5KiB", "-1B", "64 KiB", "9" * 99])
def test_what_is_not_a_size_is_refused(text: str) -> None:
    with pytest.raises(UnitError, match="must be a size such as"):
        bytes_of(text)


@given(st.integers(0, 10**8), st.sampled_from([("ms", 0.001), ("s", 1), ("m", 60), ("h", 3600)]))
def test_whole_numbers_of_every_unit_are_read(number: int, unit: tuple[str, float]) -> None:
    assert seconds(f"{number}{unit[0]}") == pytest.approx(number * unit[1])
