"""What every contender stands in front of, the same for all: an nginx, or for gRPC a grpcio."""

import os
import pwd
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks import programs
from benchmarks.programs import Program
from benchmarks.rule import Protocol

__all__ = ["BULK_BYTES", "BULK_PATH", "configuration", "start", "version"]

GRPC = Path(__file__).with_name("grpc_backend.py")

BODY = "x" * 100
BULK_PATH = "/bulk"
# Small enough to be in the page cache before a measurement counts.
BULK_BYTES = 64 << 20


def configuration(port: int, folder: Path, user: str, *, http2: bool = False) -> str:
    """Return the nginx.conf: 100 bytes at any path, a file of 64 MiB of zeros at /bulk.

    With `http2` it speaks that, from the first byte and nothing else.
    """
    return f"""\
user {user};
worker_processes 1;
daemon off;
pid {folder}/backend.pid;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
  access_log off;
  sendfile on;
  keepalive_requests 100000000;
  keepalive_timeout 600s;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} backlog=4096{" http2" if http2 else ""};
    default_type text/plain;
    location / {{ return 200 "{BODY}"; }}
    location = {BULK_PATH} {{ root {folder}; }}
  }}
}}
"""


@contextmanager
def start(protocol: Protocol, port: int, folder: Path) -> Iterator[Program]:
    """Run the backend that speaks `protocol` on `port`, with its files in `folder`."""
    command: Sequence[str | Path] = (
        [sys.executable, "-I", GRPC, str(port)]
        if protocol == "grpc"
        else _nginx(port, folder, http2=protocol == "http2")
    )
    with programs.run(command, name="backend", port=port, folder=folder) as program:
        yield program


def _nginx(port: int, folder: Path, *, http2: bool) -> Sequence[str | Path]:
    bulk = folder / BULK_PATH.lstrip("/")
    with bulk.open("wb") as file:
        file.truncate(BULK_BYTES)  # holes: nothing is written, and what is read is zeros
    config = folder / "backend.conf"
    # Unless told otherwise a worker of root's nginx is nobody, who cannot read the folder.
    user = pwd.getpwuid(os.geteuid()).pw_name
    config.write_text(configuration(port, folder, user, http2=http2))
    return ["nginx", "-e", "stderr", "-p", folder, "-c", config]


def version() -> str | None:
    """Return the version of nginx, None where it is not installed."""
    said = programs.ask_version("nginx", "-v")
    return said and said.strip().rpartition("/")[2]
