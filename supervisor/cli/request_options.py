"""The options that describe an HTTP request: `--method GET --path /x?y -H name=value`."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import click

if TYPE_CHECKING:
    from meshrun.proxy.http.heads import Request

__all__ = ["Asking", "request_options"]

F = TypeVar("F", bound=Callable[..., object])


@dataclass(frozen=True, slots=True)
class Asking:
    """What was said of a request; without anything no request is meant, but all that there are."""

    method: str | None = None
    path: str | None = None
    headers: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.query())

    def query(self) -> list[tuple[str, str]]:
        """Return it as parameters of the API."""
        given = [("method", self.method), ("path", self.path)]
        said = [(name, value) for name, value in given if value is not None]
        return [*said, *(("header", header) for header in self.headers)]

    def request(self) -> "Request | None":
        """Return the request as a sidecar reads it. Raises UnaskableError."""
        from meshrun.supervisor.asked import asked

        return asked(self.method, self.path, self.headers)


def request_options(command: F) -> F:
    """Add the options `method`, `path` and `headers`."""
    for option in (
        click.option(
            "-H",
            "--header",
            "headers",
            metavar="NAME=VALUE",
            multiple=True,
            help="A header of the request; may be repeated.",
        ),
        click.option(
            "--path", metavar="PATH", help="The path and query of the request (default: /)."
        ),
        click.option(
            "--method", metavar="METHOD", help="The method of the request (default: GET)."
        ),
    ):
        command = option(command)
    return command
