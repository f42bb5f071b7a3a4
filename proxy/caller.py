"""Who is at the other end of an inbound connection."""

from dataclasses import dataclass

__all__ = ["Caller"]


@dataclass(frozen=True, slots=True)
class Caller:
    """A peer that proved to be `service`: its whole SPIFFE ID, and its leaf.

    `fingerprint` is the SHA-256 of the leaf's DER in hexadecimal, `not_after` when it expires (wall
    clock).
    """

    service: str
    identity: str
    fingerprint: str
    not_after: float
