"""run.json of a run, where it cannot be written."""

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from meshrun.supervisor import runfile
from meshrun.supervisor.journal import open_journal
from meshrun.supervisor.preparation import Prepared
from meshrun.supervisor.record import Record


def test_a_full_disk_is_told_once_until_there_is_room_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said: list[str] = []
    full = True

    def write(*_: object) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runfile, "write", write)
    prepared = cast(Prepared, SimpleNamespace(state=Path(), cgroup=None, run_id="r1"))
    record = Record(prepared, 1, 0.0, lambda: (), open_journal(said.append, colour=False))
    record.write()
    record.write()
    assert len(said) == 1
    assert "cannot write run.json: No space left on device" in said[0]
    full = False
    record.write()
    full = True
    record.write()
    assert len(said) == 2
