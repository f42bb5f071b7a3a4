"""Headers as mesh.toml may name them: for rules to be about, and for an upstream to change."""

import re

from meshrun.proxy.http.heads import CONNECTION_FIELDS
from meshrun.proxy.http.own_fields import tells_who_calls
from meshrun.supervisor.configuration.values import UnfitError, bounded_text, quoted

__all__ = ["header_name", "header_value", "settable_header"]

# What a message is understood by; the sidecar keeps it as it is.
_OF_THE_MESSAGE = ("expect", "host", "trailer")

# RFC 9110 5.6.2 without the underscore, with which no request is taken.
_FIELD_NAME = re.compile(r"[!#$%&'*+\-.^`|~0-9A-Za-z]+")
_FIELD_VALUE = re.compile(r"[!-~](?:[\t -~]*[!-~])?")


def header_name(value: object) -> str:
    """Fit the name of a header that goes from app to app as it is."""
    written = bounded_text(value)
    name = written.lower()
    if "_" in name:
        right = quoted(name.replace("_", "-"))
        raise UnfitError(
            f"must have no underscore, with which a request is refused (did you mean {right}?)"
        )
    if not _FIELD_NAME.fullmatch(name):
        raise UnfitError(f'must be the name of a header such as "x-role", not {quoted(written)}')
    if name in CONNECTION_FIELDS:
        raise UnfitError(f"must not be {quoted(written)}, which is about the connection only")
    if tells_who_calls(name):
        raise UnfitError(f"must not be {quoted(written)}, which is set by the sidecar")
    return written


def settable_header(value: object) -> str:
    """Fit the name of a header that a sidecar may set or remove."""
    written = header_name(value)
    if written.lower() in _OF_THE_MESSAGE:
        raise UnfitError(f"must not be {quoted(written)}, by which a request is understood")
    return written


def header_value(value: object) -> str:
    """Fit what a header is set to."""
    written = bounded_text(value)
    if not _FIELD_VALUE.fullmatch(written):
        raise UnfitError("must be printable ASCII on one line, without blanks at its ends")
    return written
