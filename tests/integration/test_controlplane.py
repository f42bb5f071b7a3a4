"""The control plane's side of a channel whose sidecar has just died."""

import asyncio
import socket
import time
from datetime import UTC, datetime
from pathlib import Path

from meshrun.proxy import messages
from meshrun.supervisor import ca, plan
from meshrun.supervisor.configuration.model import App, Configuration, Mesh
from meshrun.supervisor.controlplane import ControlPlane
from meshrun.supervisor.plan import Instance, Selection


class Silent:
    """Whoever is told what sidecars report, and keeps only whose broke."""

    def __init__(self) -> None:
        self.broke: list[str] = []
        self.closed: list[str] = []

    def denied(self, instance: Instance, report: messages.Denied) -> None: ...

    def connection_failed(self, instance: Instance, report: messages.ConnectionFailed) -> None: ...

    def rotated(self, instance: Instance, leaf: ca.IssuedLeaf, *, first: bool) -> None: ...

    def sidecar_ready(self, instance: Instance) -> None: ...

    def sidecar_said(self, instance: Instance, report: messages.Logged) -> None: ...

    def sidecar_broke(self, instance: Instance, reason: str) -> None:
        self.broke.append(instance.name)

    def sidecar_closed(self, instance: Instance, reason: str) -> None:
        self.closed.append(instance.name)


def test_a_sidecar_that_is_dead_when_it_is_told_breaks_nobody_else(tmp_path: Path) -> None:
    async def scenario() -> None:
        apps = {"web": App(name="web", command=("true",))}
        configuration = Configuration(
            file="mesh.toml",
            folder=tmp_path,
            mesh=Mesh(name="shop"),
            apps=apps,
            services={},
            intentions=(),
        )
        planned = plan.make(configuration, Selection(), {}, lambda _wish, _port: True, {}, None)
        root = ca.create_root("shop.mesh", datetime.now(tz=UTC))
        observer = Silent()
        control = ControlPlane(planned, root, list, observer, time.time)
        ours, theirs = socket.socketpair()
        theirs.close()
        control.attach("web.1", ours)
        assert observer.closed == ["web.1"]
        assert not control.is_ready("web.1")
        assert await control.enforced(0.1) == []
        control.set_ready({"web.1"})
        control.close()

    asyncio.run(scenario())
