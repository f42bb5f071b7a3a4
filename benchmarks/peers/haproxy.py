"""HAProxy in mode tcp, one thread."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import programs
from benchmarks.peers.peer import MAX_CONNECTIONS, Peer, Side

__all__ = ["HAProxy"]

# A URI in a SubjectAlternativeName: context tag 6 (RFC 5280 4.2.1.6).
URI_TAG = 0x86


class HAProxy(Peer):
    """HAProxy; its server side checks the client's SPIFFE ID, its client side the chain alone."""

    name = "haproxy"

    def version(self) -> str | None:
        """Return its version, None where it is not installed."""
        said = programs.ask_version("haproxy", "-v")
        return said and said.split()[2]

    def server_side(self, side: Side) -> str:
        """Return the configuration of the server side."""
        files = side.credentials
        bind = (
            f"ssl crt {files.pair} ca-file {files.root} verify required"
            f" ssl-min-ver TLSv1.3 no-tls-tickets{_alpn(side)}"
        )
        # There is no fetch for a SAN: the name is looked for as it is encoded.
        rule = f"tcp-request session reject unless {{ ssl_c_der,hex -m sub {_uri(side)} }}"
        return _configuration(side, bind, "", rule)

    def client_side(self, side: Side) -> str:
        """Return the configuration of the client side."""
        files = side.credentials
        server = (
            f"ssl crt {files.pair} ca-file {files.root} verify required"
            f" ssl-min-ver TLSv1.3 no-ssl-reuse no-tls-tickets{_alpn(side)}"
        )
        return _configuration(side, "", server, "")

    def command(self, configuration: Path) -> Sequence[str | Path]:
        """Return the command that runs it in the foreground."""
        return ["haproxy", "-db", "-q", "-f", configuration]


def _alpn(side: Side) -> str:
    return f" alpn {side.alpn}" if side.alpn else ""


def _uri(side: Side) -> str:
    uri = side.peer_identity.encode("ascii")
    if len(uri) > 127:
        raise ValueError(f"cannot look for {side.peer_identity}: it has more than 127 bytes")
    return (bytes([URI_TAG, len(uri)]) + uri).hex().upper()


def _configuration(side: Side, bind: str, server: str, rule: str) -> str:
    return f"""\
global
  nbthread 1
  maxconn {MAX_CONNECTIONS}
  tune.ssl.cachesize 0
defaults
  mode tcp
  timeout connect 5s
  timeout client 10m
  timeout server 10m
listen sidecar
  bind 127.0.0.1:{side.listen_port} backlog 4096 {bind}
  {rule}
  server target 127.0.0.1:{side.target_port} {server}
"""
