"""An app that speaks HTTP, written by hand, and every way by which a caller comes to it."""

import hashlib
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Literal

import msgspec
from support.closing import Closing
from support.sidecars import PATIENCE_S, ControlledSidecar, Mesh
from support.wire import Wire, WireApp, call, call_as_peer, call_over_tunnel

from meshrun.proxy.intentions import HeaderMatch, Intention, Permission, Protocol

__all__ = ["ENTRIES", "ID", "RULES", "Entry", "HttpMesh", "permit"]

# Through the sidecar of the caller; or straight to the inbound side, as a peer that is hostile.
Entry = Literal["app", "peer", "tunnel"]
ENTRIES: Sequence[Entry] = ("app", "peer", "tunnel")

# Requests that name their id are the same bytes each time.
ID = "X-Request-Id: 1"


def permit(*permissions: Permission, dry_run: bool = False) -> Intention:
    """Return an intention about calls from the client to the server."""
    return Intention(
        source="client",
        destination="server",
        action="deny",
        permissions=permissions,
        dry_run=dry_run,
    )


# All but what begins with /denied, and what says so itself.
RULES = permit(
    Permission(action="deny", path_prefix="/denied"),
    Permission(action="deny", headers=(HeaderMatch(name="x-denied", present=True),)),
    Permission(action="allow", path_prefix="/"),
    Permission(action="allow", path_exact="*"),
)


# How long a sidecar reads on behind its last answer, and trusts a connection to the app: whatever
# else a machine does meanwhile.
_PATIENT = {
    "meshrun.proxy.http.link:LINGER_S": PATIENCE_S,
    "meshrun.proxy.http.inbound:TRUSTED_S": PATIENCE_S,
}


class HttpMesh(Closing):
    """The sidecars of a server and of its client, until the end of the block."""

    def __init__(
        self,
        *intentions: Intention,
        protocol: Protocol = "http",
        constants: Mapping[str, float] = {},
        tunnels: bool = True,
    ) -> None:
        constants = {**_PATIENT, **constants}
        self.protocol = protocol
        self.rules = intentions or (RULES,)
        with ExitStack() as stack:
            self.app = stack.enter_context(WireApp())
            self.mesh = stack.enter_context(Mesh())
            self.server: ControlledSidecar = self.mesh.sidecar(
                "server",
                app=self.app.port,
                intentions=self.rules,
                protocol=protocol,
                constants=constants,
            )
            self.client: ControlledSidecar = self.mesh.sidecar(
                "client",
                upstreams=[self.server],
                protocol=protocol,
                constants=constants,
                tunnels=tunnels,
            )
            self._ending = stack.pop_all()
        self.leaf = self.mesh.leaf("client", ttl_s=3600)
        self._wires: list[Wire] = []

    def call(self, entry: Entry = "app") -> Wire:
        """Connect as a caller."""
        if entry == "app":
            wire = call(self.client)
        elif entry == "peer":
            wire = call_as_peer(self.mesh, self.server, self.leaf)
        else:
            wire = call_over_tunnel(self.mesh, self.server, self.leaf)
        self._wires.append(wire)
        return wire

    def identity(self, entry: Entry = "app") -> tuple[str, str]:
        """Return what an app must be told of a caller, and nothing else."""
        leaf = self.client.chain[0] if entry == "app" else self.leaf.chain_der[0]
        by, uri = self.server.identity, self.client.identity
        return (
            f"X-Forwarded-Client-Cert: By={by};Hash={hashlib.sha256(leaf).hexdigest()};URI={uri}",
            f"X-Mesh-Client-Id: {uri}",
        )

    def seen(
        self,
        line: str,
        *fields: str,
        entry: Entry = "app",
        host: str = "server",
        behind: Sequence[str] = (),
        body: bytes = b"",
    ) -> bytes:
        """Return the bytes that the app must see of a request: all that it does.

        `fields` come before those of the caller's identity, `behind` after them.
        """
        lines = [line, f"Host: {host}", *fields, *self.identity(entry), *behind, "", ""]
        return "\r\n".join(lines).encode("latin-1") + body

    def serve_on(self, port: int, timeout_s: float = 5.0) -> None:
        """Put the sidecar of the server in front of another app, which it awaits so long."""
        inbound = self.server.snapshot.inbound
        assert inbound is not None
        self.server.apply(
            msgspec.structs.replace(
                self.server.snapshot,
                inbound=msgspec.structs.replace(inbound, port=port, connect_timeout_s=timeout_s),
            )
        )

    def tidy(self) -> None:
        """End every connection of callers and of the app."""
        wires, self._wires = self._wires, []
        for wire in wires:
            wire.close()
        self.app.drop()

    def close(self) -> None:
        """End everything."""
        self.tidy()
        self._ending.close()
