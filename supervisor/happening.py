"""One event of a run's timeline."""

from datetime import UTC, datetime

import msgspec

__all__ = ["Happening"]


class Happening(msgspec.Struct, frozen=True, kw_only=True):
    """One event; `at` in wall-clock seconds, `subject` an instance, a service or `mesh`.

    `count` sums denials of one pair at one instance within a second.
    """

    at: float
    kind: str
    subject: str
    message: str
    source: str | None = None
    destination: str | None = None
    count: int = 1

    @property
    def time(self) -> str:
        """The time for people, local, with milliseconds."""
        moment = datetime.fromtimestamp(self.at, tz=UTC).astimezone()
        return moment.strftime("%H:%M:%S.") + f"{moment.microsecond // 1000:03d}"
