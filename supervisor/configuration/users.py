"""Whom an app runs as: `user` of `[apps.NAME]`, and what of this machine must be asked for that."""

import re
from typing import Protocol

from meshrun.supervisor.configuration.model import Account
from meshrun.supervisor.configuration.tables import Table
from meshrun.supervisor.configuration.values import UnfitError, quoted, text

__all__ = ["Machine", "read_user"]

# As useradd(8) allows names; nothing else is looked up.
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,31}\$?", re.ASCII)


class Machine(Protocol):
    """What a configuration may ask of a machine, and what that grants to whoever runs meshrun."""

    def account(self, user: str, group: str | None) -> Account:
        """Return a user of this machine; raises UnfitError if meshrun cannot become that one."""

    def highest(self, limit: str) -> int | None:
        """Return how high a limit such as `nofile` may be set, None for as high as one likes."""

    def lowest_nice(self) -> int:
        """Return the lowest, that is the most urgent, nice value that may be set."""


def read_user(table: Table, machine: Machine) -> Account | None:
    """Read `user`: the name of a user, or user and group with a colon between."""

    def fit(value: object) -> Account:
        user, colon, group = text(value).partition(":")
        if not _NAME.fullmatch(user) or (colon and not _NAME.fullmatch(group)):
            raise UnfitError(f'must be "USER" or "USER:GROUP", not {quoted(text(value))}')
        return machine.account(user, group or None)

    return table.read("user", fit, None)
