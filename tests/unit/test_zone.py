"""Which time zone is local: as TZ says it, in all of its forms, else as the machine has it."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from meshrun.supervisor import zone

WINTER, SUMMER = (datetime(2026, month, 1, 12, tzinfo=UTC) for month in (1, 7))
ZONEINFO = Path("/usr/share/zoneinfo")


def hours(tz: str) -> tuple[float, float]:
    """How far a zone is ahead of UTC in winter and in summer."""
    found = zone.local({"TZ": tz})
    offsets = [moment.replace(tzinfo=found).utcoffset() for moment in (WINTER, SUMMER)]
    winter, summer = (offset / timedelta(hours=1) for offset in offsets if offset is not None)
    return winter, summer


@pytest.mark.parametrize(
    ("tz", "offsets"),
    [
        ("Europe/Berlin", (1, 2)),
        (":Europe/Berlin", (1, 2)),
        (str(ZONEINFO / "Europe/Berlin"), (1, 2)),
        ("CET-1CEST,M3.5.0,M10.5.0/3", (1, 2)),
        ("EST5", (-5, -5)),
        ("<+0545>-5:45", (5.75, 5.75)),
        ("UTC", (0, 0)),
        ("", (0, 0)),
        ("Nowhere/Land", (0, 0)),
        ("/nowhere", (0, 0)),
        ("../../etc/passwd", (0, 0)),
    ],
)
def test_tz_is_understood_as_the_c_library_understands_it(
    tz: str, offsets: tuple[float, float]
) -> None:
    assert hours(tz) == offsets


def test_without_tz_it_is_the_machines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    localtime = tmp_path / "localtime"
    monkeypatch.setattr(zone, "LOCALTIME", str(localtime))
    assert zone.local({}) is UTC
    localtime.symlink_to(ZONEINFO / "Europe/Berlin")
    assert SUMMER.replace(tzinfo=zone.local({})).utcoffset() == timedelta(hours=2)
