"""HAProxy with one thread, in mode tcp or http."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import programs
from benchmarks.peers.peer import MAX_CONNECTIONS, Peer, Side
from benchmarks.rule import Rule

__all__ = ["HAProxy"]

# A URI in a SubjectAlternativeName: context tag 6 (RFC 5280 4.2.1.6).
URI_TAG = 0x86


class HAProxy(Peer):
    """HAProxy; its server side checks the client's SPIFFE ID, its client side the chain alone.

    With a `rule` both understand HTTP; the server side decides about each request's method, and
    still once for each connection about who calls.
    """

    name = "haproxy"

    def __init__(self, rule: Rule | None = None) -> None:
        self._rule = rule

    def version(self) -> str | None:
        """Return its version, None where it is not installed."""
        said = programs.ask_version("haproxy", "-v")
        return said and said.split()[2]

    def server_side(self, side: Side) -> str:
        """Return the configuration of the server side."""
        files = side.credentials
        bind = (
            f"ssl crt {files.pair} ca-file {files.root} verify required"
            f" ssl-min-ver TLSv1.3 no-tls-tickets{self._alpn(side)}"
        )
        # There is no fetch for a SAN: the name is looked for as it is encoded.
        rules = [f"tcp-request session reject unless {{ ssl_c_der,hex -m sub {_uri(side)} }}"]
        if self._rule is not None:
            caller = f"By={files.identity};URI={side.peer_identity}"
            rules += [
                f"http-request deny deny_status 403 unless {{ method {self._rule.method} }}",
                f"http-request set-header X-Forwarded-Client-Cert {caller}",
            ]
        return self._configuration(side, bind, self._plain(), rules)

    def client_side(self, side: Side) -> str:
        """Return the configuration of the client side."""
        files = side.credentials
        server = (
            f"ssl crt {files.pair} ca-file {files.root} verify required"
            f" ssl-min-ver TLSv1.3 no-ssl-reuse no-tls-tickets{self._alpn(side)}"
        )
        rules = []
        if self._rule is not None:
            rules.append(
                "http-request set-header X-Request-ID %[uuid()] unless { req.hdr(X-Request-ID) -m"
                " found }"
            )
        return self._configuration(side, self._plain(), server, rules)

    def _alpn(self, side: Side) -> str:
        alpn = side.alpn or (self._rule.alpn if self._rule else None)
        return f" alpn {alpn}" if alpn else ""

    def _plain(self) -> str:
        """Return what a port says that speaks HTTP/2 without TLS, from the first byte."""
        return "proto h2" if self._rule is not None and self._rule.alpn == "h2" else ""

    def _configuration(self, side: Side, bind: str, server: str, rules: Sequence[str]) -> str:
        indented = "".join(f"\n  {rule}" for rule in rules)
        return f"""\
global
  nbthread 1
  maxconn {MAX_CONNECTIONS}
  tune.ssl.cachesize 0
defaults
  mode {"tcp" if self._rule is None else "http"}
  timeout connect 5s
  timeout client 10m
  timeout server 10m
listen sidecar
  bind 127.0.0.1:{side.listen_port} backlog 4096 {bind}{indented}
  server target 127.0.0.1:{side.target_port} {server}
"""

    def command(self, configuration: Path) -> Sequence[str | Path]:
        """Return the command that runs it in the foreground."""
        return ["haproxy", "-db", "-q", "-f", configuration]


def _uri(side: Side) -> str:
    uri = side.peer_identity.encode("ascii")
    if len(uri) > 127:
        raise ValueError(f"cannot look for {side.peer_identity}: it has more than 127 bytes")
    return (bytes([URI_TAG, len(uri)]) + uri).hex().upper()
