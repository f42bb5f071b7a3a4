"""Sidecars that are rotated, killed and told to deny while traffic goes through them.

Two sidecars of one service, each before an app, and a client's sidecar.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import Protocol as Kind

import msgspec
from support.sidecars import DEFAULTS, ControlledSidecar, Mesh, allow, deny

from meshrun.proxy.messages import Denied, Protocol, Requests, Serving

__all__ = ["INSTANCES", "Cut", "Disturbance", "Weather"]

# A sidecar tells so late of a failure that is like an earlier one.
REPORTED_S = 1.5

# A call waits for a killed sidecar to start again, and the machine may be busy.
CONNECT_TIMEOUT_S = 20.0

CLIENT, SERVICE = "client", "server"
INSTANCES = ("server.1", "server.2")

Disturbance = Callable[[], object]


class Passenger(Kind):
    """What goes through the sidecars, as far as is known of it; times are a monotonic clock's."""

    @property
    def began(self) -> float:
        """When it was made."""

    @property
    def seen_at(self) -> float:
        """When it came to an app, the last time that it did."""

    @property
    def served_by(self) -> str:
        """The instance that it came to, empty where it came to none."""


@dataclass(frozen=True, slots=True)
class Cut:
    """A time in which the sidecar `instance` could reset streams: it was killed, or was to deny.

    `shared` says that every stream passes through it. Between `forbids` and `allows` it may take
    none.
    """

    instance: str
    began: float
    ended: float
    shared: bool = False
    forbids: float = 0.0
    allows: float = 0.0

    def explains(self, passenger: Passenger, at: float) -> bool:
        """Whether this may be why `passenger` was reset `at` that time."""
        concerned = self.shared or passenger.served_by in ("", self.instance)
        return concerned and passenger.began <= self.ended and self.began <= at

    def forbade(self, passenger: Passenger) -> bool:
        """Whether `passenger` came to its app all the same."""
        forbidden = self.forbids < passenger.began and passenger.seen_at < self.allows
        return forbidden and passenger.served_by == self.instance


class Weather:
    """The sidecars before two apps, that of their callers, and what is done to them.

    All that disturbs is for one thread beside the traffic, and kept in `cuts`.
    """

    def __init__(
        self,
        mesh: Mesh,
        seed: int,
        app_ports: Sequence[int],
        protocol: Protocol = "tcp",
        requests: Requests = DEFAULTS,
    ) -> None:
        self._rng = Random(seed)
        self._allowed = allow(CLIENT, SERVICE)
        self.servers = [
            mesh.sidecar(SERVICE, app=port, intentions=[self._allowed], protocol=protocol)
            for port in app_ports
        ]
        self.client = mesh.sidecar(
            CLIENT,
            upstreams=self.servers,
            timeout_s=CONNECT_TIMEOUT_S,
            protocol=protocol,
            requests=requests,
        )
        assert tuple(each.instance for each in self.servers) == INSTANCES
        self.port = self.client.upstream_port(SERVICE)
        self.sidecars = [self.client, *self.servers]
        self.cuts: list[Cut] = []
        self._descriptors = [each.descriptors() for each in self.sidecars]

    def rotate(self) -> None:
        """Give one of the sidecars a new leaf."""
        self._rng.choice(self.sidecars).rotate()

    def kill_client(self) -> None:
        """Kill the callers' sidecar."""
        self._kill(self.client)

    def kill_server(self) -> None:
        """Kill the sidecar of one of the apps."""
        self._kill(self._rng.choice(self.servers))

    def flip(self) -> None:
        """Let the sidecar of one app deny until it has denied somebody, and allow again."""
        server = self._rng.choice(self.servers)
        began = time.monotonic()
        server.intend(deny(CLIENT, SERVICE))
        forbids = time.monotonic()
        server.expect(Denied, lambda message: message.kind == "intention" and not message.live)
        allows = time.monotonic()
        server.intend(self._allowed)
        ended = time.monotonic()
        self.cuts.append(Cut(server.instance, began, ended, forbids=forbids, allows=allows))

    def use_tunnels(self, *tunnels: bool) -> None:
        """Take each of the apps' sidecars for one that knows tunnels, or for one that does not."""
        endpoints = [
            msgspec.structs.replace(server.endpoint, tunnels=each)
            for server, each in zip(self.servers, tunnels, strict=True)
        ]
        self.client.balance(SERVICE, *endpoints)

    def withdraw(self) -> None:
        """Take the instances away one after the other, and bring them back."""
        one, other = (each.endpoint for each in self.servers)
        for endpoints in ((one,), (one, other), (other,), (one, other)):
            self.client.balance(SERVICE, *endpoints)

    def told(self, began: float, ended: float) -> str:
        """Return what sidecars told of what failed within that time, or a moment later."""
        return "; ".join(
            f"{sidecar.instance} told {at - began:.4f} s after its beginning: {failure.reason}"
            for sidecar in self.sidecars
            for at, failure in list(sidecar.failures)
            if began <= at <= ended + REPORTED_S
        )

    def settle(self) -> dict[str, int]:
        """Wait until no sidecar has more open than before any stream; return their memory."""
        for each in self.sidecars:
            each.rotate()  # closes idle tunnels
        for each, most in zip(self.sidecars, self._descriptors, strict=True):
            each.wait_for_descriptors(most)
        return {each.instance: each.memory_bytes() for each in self.sidecars}

    def _kill(self, sidecar: ControlledSidecar) -> None:
        shared = sidecar is self.client
        began = time.monotonic()
        sidecar.kill()
        if not shared:
            self.client.apply(self.client.snapshot)  # it has heard of that end before of this
            self.cuts.append(Cut(sidecar.instance, began, time.monotonic()))
        # The others live on without it.
        self._rng.choice([each for each in self.sidecars if each is not sidecar]).rotate()
        sidecar.start()
        sidecar.expect(Serving)
        if shared:
            self.cuts.append(Cut(sidecar.instance, began, time.monotonic(), shared=True))
