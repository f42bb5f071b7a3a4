"""`--since`: a moment that was, as so long ago or as a time."""

import time
from datetime import datetime
from typing import TYPE_CHECKING

import click

from meshrun.supervisor import units

if TYPE_CHECKING:
    _ParamType = click.ParamType[float]
else:
    _ParamType = click.ParamType

__all__ = ["Since"]


class Since(_ParamType):
    """`5m`, or a time of ISO 8601: local where it names no zone. Becomes wall-clock seconds."""

    name = "since"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Read it."""
        text = str(value)
        try:
            return max(0.0, time.time() - units.seconds(text))
        except units.UnitError:
            pass
        try:
            return max(0.0, datetime.fromisoformat(text).timestamp())
        except (ValueError, OverflowError):
            self.fail(
                f"{text!r} is neither a duration such as 5m or 24h "
                'nor a time such as 2026-11-24T13:05 or "2026-11-24 13:05:10+01:00"',
                param,
                ctx,
            )
