"""stunnel, with the threads that it makes: one per connection."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import programs
from benchmarks.peers.peer import Peer, Side

__all__ = ["Stunnel"]


class Stunnel(Peer):
    """stunnel; it has no check of a URI, so both sides check the chain alone."""

    name = "stunnel"

    def version(self) -> str | None:
        """Return its version, None where it is not installed."""
        said = programs.ask_version("stunnel4", "-version")
        found = [line.split()[1] for line in (said or "").splitlines() if line[:8] == "stunnel "]
        return found[0] if found else None

    def server_side(self, side: Side) -> str:
        """Return the configuration of the server side."""
        return _configuration(side, "requireCert = yes")

    def client_side(self, side: Side) -> str:
        """Return the configuration of the client side."""
        return _configuration(side, "client = yes")

    def command(self, configuration: Path) -> Sequence[str | Path]:
        """Return the command that runs it in the foreground."""
        return ["stunnel4", configuration]


def _configuration(side: Side, role: str) -> str:
    files = side.credentials
    return f"""\
foreground = yes
pid =
debug = err
syslog = no
[sidecar]
{role}
accept = 127.0.0.1:{side.listen_port}
connect = 127.0.0.1:{side.target_port}
cert = {files.certificate}
key = {files.key}
CAfile = {files.root}
verifyChain = yes
sslVersion = TLSv1.3
sessionResume = no
options = NO_TICKET
TIMEOUTidle = 600
"""
