"""A connection as the codecs of HTTP see it: bytes in both directions, each with its own end."""

from typing import Protocol

__all__ = ["Link", "LinkOwner"]


class LinkOwner(Protocol):
    """Whom a link tells what happens. Its methods may close or reset the link."""

    def received(self, data: memoryview) -> None:
        """Take `data`, which is valid during the call."""

    def ended(self) -> None:
        """The other side will send nothing more; it may still read."""

    def drained(self) -> None:
        """Everything written has been taken, after `clogged` was true."""

    def broken(self, reason: str) -> None:
        """The connection is of no use any more, and the link closed: the last event."""


class Link(Protocol):
    """One connection; nothing here raises, trouble comes as `broken`, never within a call of it."""

    def start(self, owner: LinkOwner) -> None:
        """Tell `owner` from now on."""

    def write(self, data: bytes | memoryview) -> None:
        """Send, or keep what is not taken at once. After `end`, `close` or `reset`: nothing."""

    @property
    def clogged(self) -> bool:
        """Whether something waits to be taken: who can should stop writing until `drained`."""

    def end(self) -> None:
        """Send nothing more: the other side sees an end behind what was written."""

    def listen(self, wanted: bool) -> None:
        """Receive, or leave to the kernel what comes."""

    def close(self) -> None:
        """Close in order once all written has been taken; the owner hears nothing more.

        What the peer may still be sending is read and thrown away for a moment, so that it gets the
        last answer and not a reset (RFC 9112 9.6).
        """

    def reset(self) -> None:
        """Close so that the other side sees a reset; the owner hears nothing more."""

    def idle_s(self) -> float:
        """Return how long nothing moved."""
