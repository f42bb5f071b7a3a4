"""Programs that speak HTTP/2 with prior knowledge, through two sidecars, to nginx and to Go."""

import asyncio
import hashlib
import os
import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import httpx
import pytest
from benchmarks import programs
from support.routers import run_go
from support.sampling import WHOLE
from support.sidecars import ControlledSidecar, Mesh, allow

MIB = 1024 * 1024
PATIENCE_S = 60.0
LARGEST = 100 * MIB if WHOLE else 20 * MIB

NGINX = """
daemon off; worker_processes 1; pid nginx.pid; {user}
events {{ worker_connections 256; }}
http {{
  access_log off;
  client_body_temp_path body;
  client_max_body_size 0;
  server {{
    listen 127.0.0.1:{port} http2;
    root {folder}/files;
    location / {{ dav_methods PUT DELETE; }}
    location /told {{ default_type text/plain; return 200 "$http_x_mesh_client_id"; }}
  }}
}}
"""

# net/http of Go, which serves HTTP/2 without TLS when it is told to.
GO = """
package main

import (
	"crypto/sha256"
	"fmt"
	"io"
	"net/http"
	"os"
)

func main() {
	http.HandleFunc("/digest", func(w http.ResponseWriter, r *http.Request) {
		hashed := sha256.New()
		if _, err := io.Copy(hashed, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%x", hashed.Sum(nil))
	})
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	server := http.Server{Addr: "127.0.0.1:" + os.Args[1], Protocols: protocols}
	panic(server.ListenAndServe())
}
"""


def block(size: int) -> bytes:
    """Return bytes of which no piece stands in for another."""
    return hashlib.shake_128(b"http2").digest(size)


class Passage:
    """A server app behind two sidecars, and where its client finds it."""

    def __init__(self, mesh: Mesh, port: int) -> None:
        intentions = [allow("client", "server")]
        self.server: ControlledSidecar = mesh.sidecar(
            "server", app=port, intentions=intentions, protocol="http2"
        )
        self.client: ControlledSidecar = mesh.sidecar(
            "client", upstreams=[self.server], protocol="http2"
        )
        self.url = f"http://127.0.0.1:{self.client.upstream_port('server')}"

    def asking(self) -> httpx.AsyncClient:
        """Return a client that speaks nothing but HTTP/2."""
        return httpx.AsyncClient(
            base_url=self.url, http1=False, http2=True, timeout=PATIENCE_S, trust_env=False
        )


@pytest.fixture(scope="module")
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


@pytest.fixture(scope="module")
def nginx(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Passage, Path]]:
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed")
    folder = tmp_path_factory.mktemp("nginx")
    files = folder / "files"
    files.mkdir()
    (port,) = programs.free_ports(1)
    config = folder / "nginx.conf"
    # Else the worker of a root's nginx is somebody who may not enter folders of tests.
    user = "user root;" if os.geteuid() == 0 else ""
    config.write_text(NGINX.format(port=port, folder=folder, user=user))
    command: list[str | Path] = ["nginx", "-e", "stderr", "-p", folder, "-c", config]
    with programs.run(command, name="nginx", port=port, folder=folder):
        yield Passage(mesh, port), files


@pytest.fixture(scope="module")
def go(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Passage]:
    if shutil.which("go") is None:
        pytest.skip("go is not installed")
    with run_go(tmp_path_factory.mktemp("go"), GO) as port:
        yield Passage(mesh, port)


async def in_parts(data: bytes) -> AsyncIterator[bytes]:
    """Yield `data` in pieces: of what is not sent yet httpx makes a copy with each frame."""
    for at in range(0, len(data), MIB):
        yield data[at : at + MIB]


@pytest.mark.slow
def test_files_of_every_size_go_both_ways(nginx: tuple[Passage, Path]) -> None:
    passage, files = nginx

    async def main() -> None:
        async with passage.asking() as client:
            for size in (0, 1, 64 * 1024 + 1, 10 * MIB, LARGEST):
                data = block(size)
                assert (await client.put("/file", content=in_parts(data))).status_code in (201, 204)
                assert (files / "file").read_bytes() == data
                response = await client.get("/file")
                assert response.http_version == "HTTP/2"
                assert response.content == data
                head = await client.head("/file")
                assert (int(head.headers["content-length"]), head.content) == (size, b"")
            assert (await client.delete("/file")).status_code == 204
            assert (await client.get("/file")).status_code == 404
            assert (await client.get("/told")).text == str(passage.client.identity)

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_a_hundred_streams_share_a_connection(nginx: tuple[Passage, Path]) -> None:
    passage, files = nginx

    async def main() -> None:
        bodies = [block(1 + 733 * number) for number in range(100)]
        for number, body in enumerate(bodies):
            (files / f"{number}").write_bytes(body)
        async with passage.asking() as client:
            answers = await asyncio.gather(*(client.get(f"/{number}") for number in range(100)))
        assert [answer.content for answer in answers] == bodies

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


def test_a_reader_that_stops_slows_the_app_and_fills_no_memory(
    nginx: tuple[Passage, Path],
) -> None:
    passage, files = nginx
    data = block(MIB) * 40
    (files / "large").write_bytes(data)

    async def main() -> None:
        sidecars = (passage.server, passage.client)
        before = [sidecar.memory_bytes() for sidecar in sidecars]
        async with passage.asking() as client, client.stream("GET", "/large") as response:
            parts = response.aiter_raw()
            hashed = hashlib.sha256(await anext(parts))
            # Others on the same connection go on.
            assert (await client.get("/told")).status_code == 200
            for sidecar, at_first in zip(sidecars, before, strict=True):
                assert sidecar.memory_bytes() - at_first < 8 * MIB
            async for part in parts:
                hashed.update(part)
            assert hashed.digest() == hashlib.sha256(data).digest()

    asyncio.run(asyncio.wait_for(main(), PATIENCE_S))


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_speaks_http_2_and_nothing_else(go: Passage, tmp_path: Path) -> None:
    data = block(3 * MIB)
    (tmp_path / "up").write_bytes(data)
    curl = ["curl", "--silent", "--show-error", "--max-time", "30", "--data-binary"]
    command = [*curl, f"@{tmp_path}/up", f"{go.url}/digest"]
    ran = subprocess.run([*command, "--http2-prior-knowledge"], check=True, capture_output=True)
    assert ran.stdout.decode() == hashlib.sha256(data).hexdigest()
    # What is no HTTP/2 has an end at once.
    assert subprocess.run(command, capture_output=True, check=False).returncode not in (0, 28)


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
def test_h2load_has_200_streams_at_once(go: Passage) -> None:
    command = ["h2load", "-n", "2000", "-c", "4", "-m", "50", f"{go.url}/digest"]
    said = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
    assert re.search(r"2000 succeeded, 0 failed, 0 errored, 0 timeout", said), said
    assert "status codes: 2000 2xx" in said
