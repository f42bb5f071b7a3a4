"""Taking the ports of a plan, all or none: those that the run has stay with whoever had them."""

from collections.abc import Iterable, Mapping

from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.listeners import Leases, Listeners, is_free, owner_of
from meshrun.supervisor.ports import PortTakenError, Wish

__all__ = ["Claims", "release"]


class Claims:
    """The claims of one plan (`claim`), until they are given back by `undo`.

    `held` are the ports that the run has, by holder. One that stands in the file goes from its
    holder to another; whoever applies the plan stops the one before it starts the other.
    """

    def __init__(self, listeners: Listeners, leases: Leases, held: Mapping[str, int]) -> None:
        self._listeners = listeners
        self._leases = leases
        self._held = held
        self._holders = {port: holder for holder, port in held.items()}
        self._new: list[tuple[Listeners | Leases, int]] = []

    def claim(self, wish: Wish, port: int) -> bool:
        """Take a port for a holder; False if it is not to be had. See `ports.Claim`."""
        if self._held.get(wish.holder) == port:
            return True
        kind = self._leases if wish.kind == "app" else self._listeners
        if port in self._holders:
            return wish.fixed == port and port in kind.sockets
        if not kind.claim(port):
            return False
        self._new.append((kind, port))
        return True

    def undo(self) -> None:
        """Give back what was claimed here."""
        for kind, port in self._new:
            kind.release(port)
        self._new.clear()

    def explain(self, error: PortTakenError) -> MeshrunError:
        """Say who has a port that somebody must have, and what can be done about it."""
        port, holder = error.port, error.wish.holder
        return MeshrunError(
            f"cannot give port {port} to {holder}: {self._owner(error)}; free it, name another "
            "one, or let `meshrun up --isolated` choose"
        )

    def _owner(self, error: PortTakenError) -> str:
        if error.port in self._holders:
            return f"{self._holders[error.port]} has it"
        if error.wish.kind == "app" and is_free(error.port):
            return "another mesh of this machine has promised it to one of its apps"
        return f"{owner_of(error.port)} listens on it"


def release(listeners: Listeners, leases: Leases, ports: Iterable[int]) -> None:
    """Give ports back that nobody holds any more."""
    for port in ports:
        for kind in (listeners, leases):
            if port in kind.sockets:
                kind.release(port)
