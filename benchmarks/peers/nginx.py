"""nginx's stream module, one worker."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import programs
from benchmarks.peers.peer import MAX_CONNECTIONS, Peer, Side

__all__ = ["Nginx"]

# Where Debian's libnginx-mod-stream puts it.
MODULE = Path("/usr/lib/nginx/modules/ngx_stream_module.so")


class Nginx(Peer):
    """nginx; it knows no URI names.

    Its server side checks the chain, its client side the server's DNS name too.
    """

    name = "nginx"

    def version(self) -> str | None:
        """Return its version, None where nginx or its stream module is not installed."""
        said = programs.ask_version("nginx", "-v")
        return said.strip().rpartition("/")[2] if said and MODULE.exists() else None

    def server_side(self, side: Side) -> str:
        """Return the configuration of the server side."""
        files = side.credentials
        tls = f"""\
    ssl_certificate {files.certificate};
    ssl_certificate_key {files.key};
    ssl_client_certificate {files.root};
    ssl_verify_client on;
    ssl_protocols TLSv1.3;
    ssl_session_cache off;
    ssl_session_tickets off;
    ssl_conf_command NumTickets 0;"""
        if side.alpn:
            tls += f"\n    ssl_alpn {side.alpn};"
        return _configuration(side, " ssl", tls, "server")

    def client_side(self, side: Side) -> str:
        """Return the configuration of the client side; it verifies nobody without a `peer_name`."""
        files = side.credentials
        verify = (
            f"""\
    proxy_ssl_verify on;
    proxy_ssl_name {side.peer_name};
    proxy_ssl_trusted_certificate {files.root};"""
            if side.peer_name is not None
            else "    proxy_ssl_verify off;"
        )
        tls = f"""\
    proxy_ssl on;
    proxy_ssl_certificate {files.certificate};
    proxy_ssl_certificate_key {files.key};
    proxy_ssl_protocols TLSv1.3;
    proxy_ssl_session_reuse off;
{verify}"""
        return _configuration(side, "", tls, "client")

    def command(self, configuration: Path) -> Sequence[str | Path]:
        """Return the command that runs it in the foreground."""
        return ["nginx", "-e", "stderr", "-p", configuration.parent, "-c", configuration]


def _configuration(side: Side, listen: str, tls: str, role: str) -> str:
    return f"""\
load_module {MODULE};
worker_processes 1;
worker_rlimit_nofile {4 * MAX_CONNECTIONS};
daemon off;
pid {side.credentials.root.parent}/nginx-{role}.pid;
error_log stderr error;
events {{ worker_connections {2 * MAX_CONNECTIONS}; }}
stream {{
  server {{
    listen 127.0.0.1:{side.listen_port}{listen} backlog=4096;
    proxy_pass 127.0.0.1:{side.target_port};
{tls}
  }}
}}
"""
