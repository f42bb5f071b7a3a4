"""The sidecar process: joins the channel, the identity, the inbound side and the outbound sides.

`run` is called in a process that was just forked from the launcher, which imported this module: it
imports all that a sidecar needs, and starts nothing.
"""

import asyncio
import gc
import resource
import signal
import socket
import ssl
import time
import traceback
from collections.abc import Callable, Mapping
from random import Random

# These are imported by others only when a first leaf is requested, or a first rule has a regular
# expression; by then a sidecar may have given up the rights to read them, and would no longer share
# them with the others either.
import cryptography.hazmat.backends.openssl.backend  # noqa: F401

import meshrun.proxy.regex  # noqa: F401
from meshrun.proxy import channel, leaf, memory, sockets
from meshrun.proxy.channel import Channel
from meshrun.proxy.fanout import to_each
from meshrun.proxy.http.link import end_lingering
from meshrun.proxy.http.outbound import HttpOutbound
from meshrun.proxy.identity import Identity
from meshrun.proxy.inbound import Inbound
from meshrun.proxy.ledger import Ledger
from meshrun.proxy.listener import Listener
from meshrun.proxy.memory import Trimmer
from meshrun.proxy.messages import (
    Drained,
    Enforced,
    FromSidecar,
    LeafIssued,
    LeafRefused,
    Logged,
    Renew,
    Snapshot,
    StatsRequested,
    ToSidecar,
    Upstream,
)
from meshrun.proxy.outbound import Outbound
from meshrun.proxy.poller import Poller
from meshrun.proxy.reports import Reporter
from meshrun.proxy.spiffe import SpiffeId

__all__ = ["Sidecar", "run", "warm_up"]

MOST_DESCRIPTORS = 65536

# Connections make many objects and few cycles: the default of 700 would look at them too often. Not
# much more, though: a handshake that failed may leave a cycle with its TLS state, some 40 KiB.
COLLECT_AFTER = 5_000

# A slow handshake outlives the youngest generation. All is looked at after 125,000 objects, some
# 150 MB of such cycles; what was there before the fork is frozen, and costs nothing.
OLDER_AFTER = (5, 5)


class Sidecar:
    """All parts of one sidecar on the running loop; `closed` is set when its channel is gone."""

    def __init__(
        self,
        poller: Poller,
        instance: str,
        channel_socket: socket.socket,
        inbound_listener: socket.socket | None,
        upstream_listeners: Mapping[str, socket.socket],
    ) -> None:
        self._instance = instance
        self._rng = Random()  # noqa: S311  # spreads load and renewals, guards nothing
        self._poller = poller
        self._channel = Channel(
            channel_socket, channel.to_sidecar(), self._received, self._channel_closed
        )
        self._reporter = Reporter(self._send)
        self._ledger = Ledger(self._send, lambda: self._channel.pending_bytes)
        self._identity = Identity(self._send, time.time, self._rng, self._rotated)
        self._trimmer = Trimmer(lambda: poller.watched + memory.held.units)
        memory.held.on_much = self._trimmer.grown
        self._snapshot: Snapshot | None = None
        self._inbound = Inbound(
            self._poller,
            self._identity,
            self._reporter.report,
            self._ledger,
            self._rng,
            self._drained,
        )
        self._inbound_listener: Listener | None = None
        if inbound_listener is not None:
            self._inbound_listener = self._listener(inbound_listener, self._inbound.serve)
        self._upstream_sockets = dict(upstream_listeners)
        self._outbounds: dict[str, tuple[Outbound | HttpOutbound, Listener]] = {}
        self.closed = asyncio.Event()

    def close(self) -> None:
        """Close everything at once."""
        self._identity.close()
        self._trimmer.close()
        self._reporter.close()
        for listener in self._listeners():
            listener.close()
        self._inbound.close()
        for outbound, _ in self._outbounds.values():
            outbound.close()
        end_lingering()
        self._ledger.close()  # after what has just been cut
        self._channel.close()
        self.closed.set()

    def confess(self, context: Mapping[str, object]) -> None:
        """Tell of an error that nobody expected: a bug, or a machine out of something."""
        error = context.get("exception")
        trace = "".join(traceback.format_exception(error)) if isinstance(error, Exception) else ""
        message = f"unexpected error: {context.get('message')}\n{trace}".rstrip()
        self._send(Logged(level="error", message=message))

    def _received(self, message: ToSidecar) -> None:
        match message:
            case Snapshot():
                self._apply(message)
            case LeafIssued():
                self._identity.issued(message)
            case LeafRefused():
                self._identity.refused(message)
            case Renew():
                self._identity.renew()
            case StatsRequested(number=number):
                self._send(self._ledger.stats(number, self._inbound.traffic()))

    def _channel_closed(self, _error: Exception | None) -> None:
        # Nobody tells this sidecar any more whom to refuse: it ends, and the supervisor, if there
        # still is one, starts another.
        self.close()

    def _apply(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        app = "tcp" if snapshot.inbound is None else snapshot.inbound.protocol
        self._identity.expect(SpiffeId.parse(snapshot.identity), snapshot.roots, app)
        self._ledger.recording = snapshot.records
        self._inbound.apply(snapshot)
        for upstream in snapshot.upstreams:
            if upstream.name in self._outbounds:
                self._outbounds[upstream.name][0].apply(upstream)
            elif (sock := self._upstream_sockets.get(upstream.name)) is not None:
                outbound = self._outbound(snapshot, upstream)
                listener = self._listener(sock, outbound.serve)
                self._outbounds[upstream.name] = (outbound, listener)
        self._open_listeners()
        self._send(Enforced(version=snapshot.version))

    def _drained(self) -> None:
        assert self._snapshot is not None, "no snapshot has asked for it"
        self._send(Drained(version=self._snapshot.version))

    def _outbound(self, snapshot: Snapshot, upstream: Upstream) -> Outbound | HttpOutbound:
        kind = Outbound if upstream.protocol == "tcp" else HttpOutbound
        return kind(
            self._poller,
            self._identity,
            self._ledger,
            self._reporter.report,
            self._rng,
            SpiffeId.parse(snapshot.identity),
            upstream,
        )

    def _rotated(self) -> None:
        outbounds = [outbound for outbound, _ in self._outbounds.values()]
        to_each([self._inbound, *outbounds], lambda side: side.rotate())
        self._open_listeners()

    def _open_listeners(self) -> None:
        # What is not served waits in the kernel's queue: nothing is refused by a closed port.
        snapshot = self._snapshot
        if snapshot is None or not self._identity.ready:
            return
        if self._inbound_listener is not None:
            if snapshot.inbound is not None:
                self._inbound_listener.resume()
            else:
                self._inbound_listener.pause()
        named = {upstream.name for upstream in snapshot.upstreams}
        for name, (_, listener) in self._outbounds.items():
            if name in named:
                listener.resume()
            else:
                listener.pause()

    def _listener(self, sock: socket.socket, serve: Callable[[socket.socket], None]) -> Listener:
        def accepted(connection: socket.socket) -> None:
            serve(connection)
            self._trimmer.grown()

        return Listener(sock, accepted, self._warn)

    def _listeners(self) -> list[Listener]:
        inbound = [self._inbound_listener] if self._inbound_listener is not None else []
        return inbound + [listener for _, listener in self._outbounds.values()]

    def _send(self, message: FromSidecar) -> None:
        self._channel.send(message)

    def _warn(self, message: str) -> None:
        self._send(Logged(level="warning", message=message))


def warm_up() -> None:
    """Do once in the launcher what every sidecar would do for itself: 1.2 MB of each.

    OpenSSL loads its providers and configuration at first use. Nothing secret stays behind, and a
    fork takes new random numbers (OpenSSL RAND(7): reseeded after a fork).
    """
    leaf.request(leaf.new_key(), SpiffeId.for_service("warm.up", "sidecar"))
    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).wrap_bio(
        ssl.MemoryBIO(), ssl.MemoryBIO(), server_side=True
    )


def run(
    *,
    instance: str,
    channel_fd: int,
    inbound_fd: int | None,
    upstream_fds: Mapping[str, int],
) -> None:
    """Be the sidecar of `instance` until the channel closes or SIGTERM comes.

    `channel_fd` is one end of a stream socket pair; the others are listening TCP sockets, which the
    supervisor keeps open too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _raise_descriptor_limit()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER, *OLDER_AFTER)
    poller = Poller()
    with asyncio.Runner(loop_factory=poller.new_loop) as runner:
        runner.run(_serve(poller, instance, channel_fd, inbound_fd, upstream_fds))


async def _serve(
    poller: Poller,
    instance: str,
    channel_fd: int,
    inbound_fd: int | None,
    upstream_fds: Mapping[str, int],
) -> None:
    loop = asyncio.get_running_loop()
    upstreams = {name: sockets.adopt_listener(fd) for name, fd in upstream_fds.items()}
    for listener in upstreams.values():
        sockets.guard(listener)
    sidecar = Sidecar(
        poller,
        instance,
        socket.socket(fileno=channel_fd),
        None if inbound_fd is None else sockets.adopt_listener(inbound_fd),
        upstreams,
    )
    loop.set_exception_handler(lambda _, context: sidecar.confess(context))
    loop.add_signal_handler(signal.SIGTERM, sidecar.close)
    await sidecar.closed.wait()


def _raise_descriptor_limit() -> None:
    # Each connection takes two; the usual soft limit of 1024 is there for programs that select().
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MOST_DESCRIPTORS)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
