"""APP=N on a command line: how many instances of an app."""

from typing import TYPE_CHECKING

import click

__all__ = ["Scale"]

# As in the file (`configuration.model`), and none at all.
MOST_INSTANCES = 100

if TYPE_CHECKING:
    _ParamType = click.ParamType[tuple[str, int]]
else:  # older versions of click have it, but not as a generic type
    _ParamType = click.ParamType


class Scale(_ParamType):
    """APP=N; zero runs none of it, as docker compose has it."""

    name = "app=n"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int]:
        """Read it."""
        name, equals, number = str(value).partition("=")
        if not (name and equals and number.isdecimal() and int(number) <= MOST_INSTANCES):
            self.fail(f"{value!r} is not APP=N with N from 0 to {MOST_INSTANCES}", param, ctx)
        return name, int(number)
