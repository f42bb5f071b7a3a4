"""The idle tunnels of one upstream, by endpoint: taken by the next connection of the app."""

import asyncio

from meshrun.proxy.messages import Endpoint
from meshrun.proxy.tunnel import OutboundTunnel

__all__ = ["Pool"]

# How long a tunnel waits for its next stream: some 60 KiB on each side. ztunnel waits 5 minutes.
IDLE_S = 60.0

# After a burst of connections; the busiest endpoint has as many as the app had at the same time.
MOST_IDLE = 64


class Pool:
    """Keeps tunnels whose last stream is over, the newest in front."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle: dict[Endpoint, dict[OutboundTunnel, float]] = {}
        self._timer: asyncio.TimerHandle | None = None

    def count(self, endpoint: Endpoint) -> int:
        """Return how many tunnels to `endpoint` are idle."""
        return len(self._idle.get(endpoint, ()))

    def take(self, endpoint: Endpoint) -> OutboundTunnel | None:
        """Return the tunnel to `endpoint` that was used last, and forget it."""
        tunnels = self._idle.get(endpoint)
        return tunnels.popitem()[0] if tunnels else None

    def put(self, tunnel: OutboundTunnel) -> None:
        """Keep `tunnel`, which is idle, for a while."""
        tunnels = self._idle.setdefault(tunnel.endpoint, {})
        tunnels[tunnel] = self._loop.time()
        if len(tunnels) > MOST_IDLE:
            next(iter(tunnels)).close()
        if self._timer is None:
            self._timer = self._loop.call_later(IDLE_S, self._sweep)

    def forget(self, tunnel: OutboundTunnel) -> None:
        """Keep `tunnel` no longer; it is closed."""
        self._idle.get(tunnel.endpoint, {}).pop(tunnel, None)

    def close(self) -> None:
        """Close all."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for tunnel in self._all():
            tunnel.close()

    def keep_to(self, endpoints: set[Endpoint]) -> None:
        """Close the tunnels to all others."""
        for tunnel in self._all():
            if tunnel.endpoint not in endpoints:
                tunnel.close()
        self._idle = {e: tunnels for e, tunnels in self._idle.items() if tunnels}

    def _all(self) -> list[OutboundTunnel]:
        return [tunnel for tunnels in self._idle.values() for tunnel in tunnels]

    def _sweep(self) -> None:
        self._timer = None
        now = self._loop.time()
        oldest = now
        for tunnels in list(self._idle.values()):
            for tunnel, since in list(tunnels.items()):
                if now - since >= IDLE_S:
                    tunnel.close()
                else:
                    oldest = min(oldest, since)
        if self._all():
            self._timer = self._loop.call_later(oldest + IDLE_S - now, self._sweep)
