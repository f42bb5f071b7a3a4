"""Which port goes to whom: remembered ones first, then the lowest free of the range."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from meshrun.supervisor.configuration.model import PortRange
from meshrun.supervisor.errors import MeshrunError

__all__ = ["Claim", "PortTakenError", "PortsExhaustedError", "Wish", "allocate"]


class PortsExhaustedError(MeshrunError):
    """No port of a range is free any more."""


@dataclass(frozen=True, slots=True)
class Wish:
    """A holder that needs a port of a range, or with `fixed` exactly that one.

    An `app` will bind it itself; a `listener` is bound by the supervisor at once.
    """

    holder: str
    range: PortRange
    fixed: int | None = None
    kind: Literal["app", "listener"] = "listener"


Claim = Callable[[Wish, int], bool]


class PortTakenError(MeshrunError):
    """The one port that a holder must have is taken."""

    def __init__(self, wish: Wish, port: int) -> None:
        super().__init__(f"port {port} for {wish.holder} is in use")
        self.wish = wish
        self.port = port


def allocate(wishes: Iterable[Wish], remembered: Mapping[str, int], claim: Claim) -> dict[str, int]:
    """Give every holder a port; `claim` takes one and answers whether it was free.

    Fixed ports are claimed first, then the remembered, so that nobody new gets what somebody else
    had. Raises PortTakenError, PortsExhaustedError.
    """
    given: dict[str, int] = {}
    taken: set[int] = set()

    def take(wish: Wish, port: int) -> bool:
        if port in taken or not claim(wish, port):
            return False
        taken.add(port)
        given[wish.holder] = port
        return True

    wishes = list(wishes)
    for wish in wishes:
        if wish.fixed is not None and not take(wish, wish.fixed):
            raise PortTakenError(wish, wish.fixed)
    for wish in wishes:
        port = remembered.get(wish.holder)
        if wish.holder not in given and port is not None and _within(port, wish.range):
            take(wish, port)
    next_port: dict[PortRange, int] = {}
    for wish in wishes:
        if wish.holder in given:
            continue
        for port in range(next_port.get(wish.range, wish.range.first), wish.range.last + 1):
            next_port[wish.range] = port + 1
            if take(wish, port):
                break
        else:
            raise PortsExhaustedError(f"no port of {wish.range} is free for {wish.holder}")
    return given


def _within(port: int, ports: PortRange) -> bool:
    return ports.first <= port <= ports.last
