"""What meshrun itself says: structlog in front, the log of the run behind.

A line is a sentence for people, then what a program may want as `key=value`.
"""

from collections.abc import Callable
from typing import Any

import structlog

__all__ = ["Journal", "open_journal"]

Journal = structlog.typing.FilteringBoundLogger

_MARKS = {"warning": "warning: ", "error": "error: ", "critical": "error: "}
_RED, _YELLOW, _RESET = "\x1b[31m", "\x1b[33m", "\x1b[0m"


class _Sink:
    """What structlog calls a logger: takes rendered lines, whatever their level."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write

    def msg(self, message: str) -> None:
        self._write(message)

    debug = info = warning = error = critical = msg


def _renderer(colour: bool) -> structlog.typing.Processor:
    def render(
        _logger: structlog.typing.WrappedLogger,
        method: str,
        event: structlog.typing.EventDict,
    ) -> str:
        sentence = _MARKS.get(method, "") + str(event.pop("event"))
        pairs = "".join(f"  {key}={value}" for key, value in event.items() if value is not None)
        if colour and method in _MARKS:
            sentence = f"{_YELLOW if method == 'warning' else _RED}{sentence}{_RESET}"
        return sentence + pairs

    return render


def open_journal(write: Callable[[str], None], *, colour: bool) -> Journal:
    """Return the logger of a run; `write` gets each line (or several, as one text)."""
    logger: Any = structlog.wrap_logger(  # structlog types what it wraps as Any
        _Sink(write),
        processors=[_renderer(colour)],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
    )
    journal: Journal = logger.bind()
    return journal
