"""What every contender stands in front of: one nginx of its own, the same for all."""

import os
import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks import programs
from benchmarks.programs import Program

__all__ = ["BULK_BYTES", "BULK_PATH", "configuration", "start", "version"]

BODY = "x" * 100
BULK_PATH = "/bulk"
# Small enough to be in the page cache before a measurement counts.
BULK_BYTES = 64 << 20


def configuration(port: int, folder: Path, user: str) -> str:
    """Return the nginx.conf: 100 bytes at any path, a file of 64 MiB of zeros at /bulk."""
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
    listen 127.0.0.1:{port} backlog=4096;
    default_type text/plain;
    location / {{ return 200 "{BODY}"; }}
    location = {BULK_PATH} {{ root {folder}; }}
  }}
}}
"""


@contextmanager
def start(port: int, folder: Path) -> Iterator[Program]:
    """Run the backend on `port` with its files in `folder`."""
    bulk = folder / BULK_PATH.lstrip("/")
    with bulk.open("wb") as file:
        file.truncate(BULK_BYTES)  # holes: nothing is written, and what is read is zeros
    config = folder / "backend.conf"
    # Unless told otherwise a worker of root's nginx is nobody, who cannot read the folder.
    config.write_text(configuration(port, folder, pwd.getpwuid(os.geteuid()).pw_name))
    command: list[str | Path] = ["nginx", "-e", "stderr", "-p", folder, "-c", config]
    with programs.run(command, name="backend", port=port, folder=folder) as program:
        yield program


def version() -> str | None:
    """Return the version of nginx, None where it is not installed."""
    said = programs.ask_version("nginx", "-v")
    return said and said.strip().rpartition("/")[2]
