"""What limits and users are read as, and what a machine that grants little has to say."""

from pathlib import Path

import pytest

from meshrun.supervisor.configuration.meshfile import load
from meshrun.supervisor.configuration.model import Account, Limits
from meshrun.supervisor.configuration.values import UnfitError
from meshrun.supervisor.errors import ConfigError

APP = Account(name="app", uid=7, gid=8, groups=(8, 9), home="/home/app")


class Machine:
    """One with the user `app`, on which no more than 1024 of anything is granted."""

    def account(self, user: str, group: str | None) -> Account:
        if (user, group) not in (("app", None), ("app", "staff")):
            raise UnfitError("is nobody here")
        return APP

    def highest(self, limit: str) -> int | None:
        return None if limit == "memory" else 1024

    def lowest_nice(self) -> int:
        return 0


def loaded(folder: Path, text: str) -> tuple[Limits, Account | None]:
    file = folder / "mesh.toml"
    file.write_text(f'[apps.web]\ncommand = "web"\n{text}\n')
    app = load(file, {}, machine=Machine()).apps["web"]
    return app.limits, app.account


def test_limits_are_read_in_their_units(tmp_path: Path) -> None:
    limits, _ = loaded(
        tmp_path,
        'limits = { memory = "512MiB", nofile = 1024, processes = 50, core = "0B", cpu_nice = 5 }',
    )
    assert limits == Limits(
        memory_bytes=512 << 20, nofile=1024, processes=50, core_bytes=0, cpu_nice=5
    )
    assert loaded(tmp_path, "") == (Limits(), None)


@pytest.mark.parametrize("written", ["app", "app:staff"])
def test_a_user_may_be_given_a_group(tmp_path: Path, written: str) -> None:
    assert loaded(tmp_path, f'user = "{written}"') == (Limits(), APP)


def test_variables_of_the_user_can_be_used(tmp_path: Path) -> None:
    loaded(tmp_path, 'user = "app"\nenv = { CACHE = "${HOME}/.cache", WHO = "${LOGNAME}" }')
    with pytest.raises(ConfigError, match="HOME} is not set"):
        loaded(tmp_path, 'env = { CACHE = "${HOME}/.cache" }')


@pytest.mark.parametrize(
    ("limit", "complaint"),
    [
        ("nofile = 1025", "limits.nofile must be at most 1024, the hard limit that meshrun itself"),
        ('core = "2KiB"', "limits.core must be at most 1024"),
        ("cpu_nice = -1", "limits.cpu_nice must be at least 0: to raise the priority of a process"),
    ],
)
def test_what_the_machine_does_not_grant_is_an_error_of_the_file(
    tmp_path: Path, limit: str, complaint: str
) -> None:
    with pytest.raises(ConfigError, match=rf"mesh.toml:3:\d+: apps.web.{complaint}"):
        loaded(tmp_path, f"limits = {{ {limit} }}")
