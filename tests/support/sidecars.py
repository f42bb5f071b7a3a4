"""Real sidecar processes under a control plane in miniature, for tests over real sockets."""

import json
import math
import os
import queue
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TypeVar

import msgspec
from support.closing import Closing

from meshrun.proxy import channel, tls
from meshrun.proxy.intentions import Action, Intention
from meshrun.proxy.leaf import Leaf, assemble, new_key, request
from meshrun.proxy.messages import (
    ConnectionFailed,
    Endpoint,
    Enforced,
    FromSidecar,
    Inbound,
    LeafIssued,
    LeafRefused,
    LeafRequested,
    Logged,
    Protocol,
    Renew,
    Requests,
    Serving,
    Snapshot,
    ToSidecar,
    Upstream,
)
from meshrun.proxy.spiffe import SpiffeId
from meshrun.supervisor.ca import Root, create_root, sign

__all__ = [
    "DEFAULTS",
    "PATIENCE_S",
    "TRUST_DOMAIN",
    "ControlledSidecar",
    "Mesh",
    "allow",
    "deny",
    "listen",
    "port_of",
]

TRUST_DOMAIN = "test.mesh"
PATIENCE_S = 20.0

M = TypeVar("M")

DEFAULTS = Requests()

PROGRAM = """
import importlib, json, sys
from meshrun.proxy import sidecar
arguments = json.loads(sys.argv[1])
for place, value in arguments.pop("constants").items():
    module, _, name = place.partition(":")
    known = vars(importlib.import_module(module))
    known[name] = type(known[name])(value)
loaded = set(sys.modules)
sidecar.run(**arguments)
late = sorted(set(sys.modules) - loaded)
sys.exit(f"imported after the start: {late}" if late else 0)
"""


def listen(backlog: int = 128) -> socket.socket:
    """Return a socket that listens on a free port of the loopback."""
    return socket.create_server(("127.0.0.1", 0), backlog=backlog)


def port_of(sock: socket.socket) -> int:
    """Return the local port of `sock`."""
    port: int = sock.getsockname()[1]
    return port


def allow(source: str, destination: str) -> Intention:
    """Return an intention that allows."""
    return Intention(source=source, destination=destination, action="allow")


def deny(source: str, destination: str) -> Intention:
    """Return an intention that denies."""
    return Intention(source=source, destination=destination, action="deny")


class Mesh(Closing):
    """A root, and the sidecars that trust it; ends them all at the end of the block."""

    def __init__(self) -> None:
        self.root: Root = create_root(TRUST_DOMAIN, datetime.now(UTC))
        self.sidecars: list[ControlledSidecar] = []

    def leaf(
        self,
        service: str,
        *,
        ago: timedelta = timedelta(0),
        ttl_s: float = 60,
        of: str = TRUST_DOMAIN,
    ) -> Leaf:
        """Return a leaf for `service` of the trust domain `of`, issued some time `ago`."""
        key = new_key()
        name = SpiffeId.for_service(of, service)
        issued = sign(self.root, request(key, name), name, datetime.now(UTC) - ago, ttl_s)
        return assemble(key, issued.chain_der, issued.issued_at)

    def client_context(self, leaf: Leaf) -> ssl.SSLContext:
        """Return the context of a peer that shows `leaf` and trusts this mesh."""
        return tls.client_context(leaf, [self.root.certificate_der])

    def server_context(self, leaf: Leaf) -> ssl.SSLContext:
        """Return the context of an endpoint that shows `leaf` and trusts this mesh."""
        return tls.server_context(leaf, [self.root.certificate_der])

    def sidecar(
        self,
        service: str,
        *,
        app: int | None = None,
        upstreams: "Sequence[ControlledSidecar | str]" = (),
        intentions: Sequence[Intention] = (),
        default: Action = "deny",
        timeout_s: float = 5.0,
        leaf_ttl_s: float = 3600.0,
        descriptors: int | None = None,
        signs: bool = True,
        serving: bool = True,
        tunnels: bool = True,
        protocol: Protocol = "tcp",
        requests: Requests = DEFAULTS,
        constants: Mapping[str, float] = {},
    ) -> "ControlledSidecar":
        """Start a sidecar of `service` in front of port `app`, and wait until it serves.

        An upstream is a sidecar, or the name of a service that has no instance yet. Without
        `tunnels` it takes its upstreams for peers that know none. `protocol` is that of the app and
        of every upstream, `requests` the settings of upstreams that speak more than tcp.

        `constants` are deadlines and limits that no test has the time for, as `module:NAME`.
        """
        started = ControlledSidecar(
            self.root,
            service,
            f"{service}.{len(self.sidecars) + 1}",
            app,
            upstreams,
            intentions,
            default,
            timeout_s,
            leaf_ttl_s,
            descriptors,
            tunnels,
            protocol,
            requests,
            constants,
        )
        started.signs = signs
        self.sidecars.append(started)
        started.start()
        if serving:
            started.expect(Serving)
        return started

    def close(self) -> None:
        """Close, with all that belongs to it."""
        for each in self.sidecars:
            each.close()


class ControlledSidecar:
    """One sidecar process, its channel, and the listeners that it shares with the test."""

    def __init__(
        self,
        root: Root,
        service: str,
        instance: str,
        app: int | None,
        upstreams: "Sequence[ControlledSidecar | str]",
        intentions: Sequence[Intention],
        default: Action,
        timeout_s: float,
        leaf_ttl_s: float,
        descriptors: int | None,
        tunnels: bool,
        protocol: Protocol = "tcp",
        requests: Requests = DEFAULTS,
        constants: Mapping[str, float] = {},
    ) -> None:
        self.root = root
        self.service = service
        self.instance = instance
        self.identity = SpiffeId.for_service(TRUST_DOMAIN, service)
        self.leaf_ttl_s = leaf_ttl_s
        self.signs = True
        self.received: queue.Queue[FromSidecar] = queue.Queue()
        # Which nobody needs to expect; the second with when it came, of a monotonic clock.
        self.logged: list[Logged] = []
        self.failures: list[tuple[float, ConnectionFailed]] = []
        self.chain: tuple[bytes, ...] = ()  # that was issued last: the leaf, in DER, is in front
        self.inbound_listener = listen()
        self.upstream_listeners: dict[str, socket.socket] = {}
        self._descriptors = descriptors
        self._constants = constants
        self._upstreams: list[Upstream] = []
        for upstream in upstreams:
            name = upstream if isinstance(upstream, str) else upstream.service
            endpoints: tuple[Endpoint, ...] = ()
            if not isinstance(upstream, str):
                endpoints = (msgspec.structs.replace(upstream.endpoint, tunnels=tunnels),)
            if name in self.upstream_listeners:
                index = [u.name for u in self._upstreams].index(name)
                endpoints = (*self._upstreams[index].endpoints, *endpoints)
                del self._upstreams[index]
            else:
                self.upstream_listeners[name] = listen()
            self._upstreams.append(
                Upstream(
                    name=name,
                    service=name,
                    identity=str(SpiffeId.for_service(TRUST_DOMAIN, name)),
                    connect_timeout_s=timeout_s,
                    endpoints=endpoints,
                    protocol=protocol,
                    requests=requests,
                )
            )
        self.snapshot = Snapshot(
            version=1,
            service=service,
            instance=instance,
            identity=str(self.identity),
            roots=(root.certificate_der,),
            default_action=default,
            intentions=tuple(intentions),
            inbound=(
                None
                if app is None
                else Inbound(
                    host="127.0.0.1", port=app, connect_timeout_s=timeout_s, protocol=protocol
                )
            ),
            upstreams=tuple(self._upstreams),
        )

    @property
    def endpoint(self) -> Endpoint:
        """Where other sidecars reach this one."""
        return Endpoint(
            instance=self.instance, host="127.0.0.1", port=port_of(self.inbound_listener)
        )

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def upstream_port(self, name: str) -> int:
        """Where the app reaches its upstream `name`."""
        return port_of(self.upstream_listeners[name])

    def start(self) -> None:
        """Start the process, or start it again, on the same listeners."""
        self.control, theirs = socket.socketpair()
        arguments = {
            "instance": self.instance,
            "channel_fd": theirs.fileno(),
            "inbound_fd": self.inbound_listener.fileno(),
            "upstream_fds": {n: s.fileno() for n, s in self.upstream_listeners.items()},
            "constants": dict(self._constants),
        }
        self._process = subprocess.Popen(
            [*self._limited(), sys.executable, "-c", PROGRAM, json.dumps(arguments)],
            pass_fds=[
                theirs.fileno(),
                self.inbound_listener.fileno(),
                *(s.fileno() for s in self.upstream_listeners.values()),
            ],
        )
        theirs.close()
        self._thread = threading.Thread(target=self._listen_to, args=(self.control,))
        self._thread.start()
        self.send(self.snapshot)

    def send(self, message: ToSidecar) -> None:
        """Send `message` over the channel."""
        self.control.sendall(channel.encode(message))

    def apply(self, snapshot: Snapshot) -> None:
        """Send `snapshot` with the next version, and wait until it is enforced."""
        version = self.snapshot.version + 1
        self.snapshot = msgspec.structs.replace(snapshot, version=version)
        self.send(self.snapshot)
        self.expect(Enforced, lambda message: message.version == version)

    def intend(self, *intentions: Intention) -> None:
        """Let these be all intentions from now on, and wait until they are enforced."""
        self.apply(msgspec.structs.replace(self.snapshot, intentions=intentions))

    def balance(self, upstream: str, *endpoints: Endpoint) -> None:
        """Let these be the ready instances of `upstream`, and wait until they are known."""
        upstreams = tuple(
            msgspec.structs.replace(each, endpoints=endpoints) if each.name == upstream else each
            for each in self.snapshot.upstreams
        )
        self.apply(msgspec.structs.replace(self.snapshot, upstreams=upstreams))

    def call(self, upstream: str) -> socket.socket:
        """Connect as the app does."""
        return socket.create_connection(("127.0.0.1", self.upstream_port(upstream)), timeout=20)

    def expect(
        self,
        kind: type[M],
        matches: Callable[[M], bool] = lambda _: True,
        patience_s: float = PATIENCE_S,
    ) -> M:
        """Return the next message of `kind` for which `matches`; others before it are dropped."""
        while True:
            message = self.received.get(timeout=patience_s)
            if isinstance(message, kind) and matches(message):
                return message

    def rotate(self) -> None:
        """Have it get a new leaf and serve with it: it closes its idle tunnels."""
        self.send(Renew())
        self.expect(Serving)

    def descriptors(self) -> int:
        """How many descriptors the process has open."""
        return len(os.listdir(f"/proc/{self.pid}/fd"))

    def wait_for_descriptors(self, most: float = math.inf, *, least: int = 0) -> None:
        """Return once the process has so many open; nothing announces it."""
        deadline = time.monotonic() + PATIENCE_S
        while not least <= self.descriptors() <= most:
            wanted = f"{least} to {most}"
            assert time.monotonic() < deadline, f"{self.descriptors()} descriptors, not {wanted}"
            time.sleep(0.01)

    def cpu_s(self) -> float:
        """How much CPU time the process has used; exact, not counted in ticks."""
        return int(_text(f"/proc/{self.pid}/schedstat").split()[0]) / 1e9

    def switches(self) -> int:
        """How often the process has gone to sleep: each wake-up ends in one."""
        lines = _text(f"/proc/{self.pid}/status").splitlines()
        return int(next(line.split()[1] for line in lines if line.startswith("voluntary_")))

    def memory_bytes(self) -> int:
        """What the process itself keeps in memory: not shared with others."""
        lines = _text(f"/proc/{self.pid}/smaps_rollup").splitlines()
        private = [line.split() for line in lines if line.startswith("Private_")]
        return sum(int(fields[1]) for fields in private) * 1024

    def kill(self) -> None:
        """End the process as if it had crashed; the listeners stay open."""
        self._process.kill()
        self._process.wait()
        self._thread.join()
        self.control.close()

    def terminate(self) -> int:
        """Send SIGTERM and return the exit status."""
        self._process.send_signal(signal.SIGTERM)
        return self._process.wait(timeout=PATIENCE_S)

    def hang_up(self) -> int:
        """Close the channel and return the exit status."""
        self.control.shutdown(socket.SHUT_RDWR)
        return self._process.wait(timeout=PATIENCE_S)

    def wait(self) -> int:
        """Return the exit status, once the process has ended by itself."""
        return self._process.wait(timeout=PATIENCE_S)

    def close(self) -> None:
        """End the process and close everything."""
        if self._process.poll() is None:
            assert self.hang_up() == 0
        self._thread.join()
        self.control.close()
        self.inbound_listener.close()
        for sock in self.upstream_listeners.values():
            sock.close()

    def _limited(self) -> list[str]:
        return [] if self._descriptors is None else ["prlimit", f"--nofile={self._descriptors}"]

    def _listen_to(self, control: socket.socket) -> None:
        decoder = channel.from_sidecar()
        try:
            while data := control.recv(65536):
                for message in decoder.feed(data):
                    if isinstance(message, LeafRequested):
                        self._answer(message)
                        continue
                    if isinstance(message, Logged):
                        self.logged.append(message)
                    elif isinstance(message, ConnectionFailed):
                        self.failures.append((time.monotonic(), message))
                    self.received.put(message)
        except OSError:
            return

    def _answer(self, message: LeafRequested) -> None:
        if not self.signs:
            self.send(LeafRefused(request=message.request, reason="the test does not sign"))
            return
        issued = sign(self.root, message.csr, self.identity, datetime.now(UTC), self.leaf_ttl_s)
        self.chain = issued.chain_der
        self.send(
            LeafIssued(
                request=message.request,
                chain=issued.chain_der,
                issued_at=issued.issued_at,
                not_after=issued.not_after,
            )
        )


def _text(path: str) -> str:
    with open(path, encoding="ascii") as file:
        return file.read()
