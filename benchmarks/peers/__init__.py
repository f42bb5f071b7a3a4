"""Proxies that people use as mTLS sidecars, each configured as either side of a pair.

`peer` says what every one of them offers: `server_side` and `client_side` return a configuration
(pure), `start_server` and `start_client` run one process with it until the end of the block.
"""

from benchmarks.peers.envoy import Envoy
from benchmarks.peers.haproxy import HAProxy
from benchmarks.peers.nginx import Nginx
from benchmarks.peers.peer import Peer, Side
from benchmarks.peers.stunnel import Stunnel

__all__ = ["PEERS", "Envoy", "HAProxy", "Nginx", "Peer", "Side", "Stunnel"]

PEERS: tuple[Peer, ...] = (HAProxy(), Nginx(), Envoy(), Stunnel())
