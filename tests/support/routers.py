"""Servers that people use, each with a secret at /admin that only its own router can find."""

import asyncio
import http.server
import os
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from aiohttp import web
from benchmarks import programs

__all__ = ["ROUTERS", "SECRET", "installed", "run_go"]

SECRET = b"the secret of /admin"

NGINX = """
daemon off; worker_processes 1; pid nginx.pid;
events {{ worker_connections 64; }}
http {{
  access_log off;
  server {{
    listen 127.0.0.1:{port};
    location /admin {{ return 200 "{secret}"; }}
    location / {{ return 200 "nothing"; }}
  }}
}}
"""

GO = """
package main

import (
	"fmt"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/admin", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "%s")
	})
	http.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, "nothing")
	})
	panic(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
"""


@contextmanager
def nginx(folder: Path) -> Iterator[int]:
    """Run nginx, which finds a prefix of the path that it has normalised."""
    (port,) = programs.free_ports(1)
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(port=port, secret=SECRET.decode()))
    command: list[str | Path] = ["nginx", "-e", "stderr", "-p", folder, "-c", config]
    with programs.run(command, name="nginx", port=port, folder=folder):
        yield port


@contextmanager
def run_go(folder: Path, text: str) -> Iterator[int]:
    """Build and run a program of one file in Go that serves the port of its first argument."""
    (port,) = programs.free_ports(1)
    source, program = folder / "main.go", folder / "server"
    source.write_text(text)
    environment = {**os.environ, "GOPROXY": "off", "GOTOOLCHAIN": "local"}
    if "GOCACHE" not in os.environ and not os.access(os.environ.get("HOME", ""), os.W_OK):
        environment["GOCACHE"] = str(folder / "cache")
    subprocess.run(["go", "build", "-o", program, source], env=environment, check=True, cwd=folder)
    command: list[str | Path] = [program, str(port)]
    with programs.run(command, name="server", port=port, folder=folder):
        yield port


def go(folder: Path) -> AbstractContextManager[int]:
    """Build and run a server of Go's net/http, whose mux cleans paths."""
    return run_go(folder, GO % SECRET.decode())


class _Files(http.server.SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


class _FileServer(http.server.ThreadingHTTPServer):
    root: Path

    def finish_request(self, request: object, client_address: object) -> None:
        """Serve the folder."""
        _Files(request, client_address, self, directory=str(self.root))  # type: ignore[arg-type]

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing: some callers hang up."""


@contextmanager
def http_server(folder: Path) -> Iterator[int]:
    """Run Python's http.server, for which a path is that of a file."""
    (folder / "admin").write_bytes(SECRET)
    with _FileServer(("127.0.0.1", 0), _Files) as server:
        server.root = folder
        port: int = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield port
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def aiohttp(_folder: Path) -> Iterator[int]:
    """Run aiohttp, whose router decodes paths."""
    loop = asyncio.new_event_loop()
    started = threading.Event()
    stopped = asyncio.Event()
    ports: list[int] = []

    async def secret(_request: web.Request) -> web.Response:
        return web.Response(body=SECRET)

    async def serve() -> None:
        app = web.Application()
        app.router.add_route("*", "/admin", secret)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        ports.append(runner.addresses[0][1])
        started.set()
        await stopped.wait()
        await runner.cleanup()

    thread = threading.Thread(target=loop.run_until_complete, args=(serve(),))
    thread.start()
    try:
        assert started.wait(20)
        yield ports[0]
    finally:
        loop.call_soon_threadsafe(stopped.set)
        thread.join()
        loop.close()


# Each with the program that it needs.
ROUTERS: dict[str, tuple[Callable[[Path], AbstractContextManager[int]], str]] = {
    "nginx": (nginx, "nginx"),
    "http.server": (http_server, "python3"),
    "aiohttp": (aiohttp, "python3"),
    "Go": (go, "go"),
}


def installed(name: str) -> bool:
    """Tell whether a server can be run here."""
    return shutil.which(ROUTERS[name][1]) is not None
