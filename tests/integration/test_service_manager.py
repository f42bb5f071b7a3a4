"""What `meshrun up` tells a service manager, and what it takes from one."""

import asyncio
import json
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from support.mesh import APPS, PATIENCE_S, Mesh

from meshrun.proxy import tasks
from meshrun.supervisor.bell import Bell
from meshrun.supervisor.journal import open_journal
from meshrun.supervisor.sdnotify import Contact
from meshrun.supervisor.service_manager import ServiceManager

pytestmark = pytest.mark.slow

CONFIG = """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --listen-after 0.3"
ready = { tcp = true }
[apps.web]
command = "${PYTHON} -S ${APPS}/environment.py ${OUT}"
port = 0
depends_on = ["server"]
"""


class Manager:
    """Somebody who listens at NOTIFY_SOCKET."""

    def __init__(self, address: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.address = address
        self._socket.bind(address)
        self._socket.settimeout(PATIENCE_S)
        self.told: list[str] = []

    def await_told(self, *assignments: str) -> list[str]:
        """Wait for a message with these assignments, and return all of it."""
        while True:
            lines = self._socket.recv(4096).decode().split("\n")
            self.told += lines
            if all(any(line.startswith(a) for line in lines) for a in assignments):
                return lines

    def close(self) -> None:
        """Listen no more."""
        self._socket.close()


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    """One that listens in the folder of the test."""
    listening = Manager(str(tmp_path / "notify"))
    yield listening
    listening.close()


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {"NOTIFY_SOCKET": str(folder / "notify"), "OUT": str(folder / "out.json"), **more}


def test_it_is_ready_when_every_app_is_and_says_how_it_is(tmp_path: Path, manager: Manager) -> None:
    with Mesh(tmp_path / "mesh", CONFIG, environment=environment(tmp_path)) as mesh:
        foreground = mesh.foreground()
        manager.await_told("READY=1", "STATUS=2 of 2 instances ready")
        assert any(
            line.startswith("STATUS=0 of 2 instances ready; not ready: ") for line in manager.told
        )
        assert all(row.ready for row in mesh.ps())
        mesh.cli("stop", "server", check=True)
        manager.await_told("STATUS=1 of 2 instances ready; not ready: server.1 (stopped)")
        mesh.cli("start", "server", check=True)
        manager.await_told("STATUS=2 of 2 instances ready")
        foreground.signal(signal.SIGTERM)
        manager.await_told("STOPPING=1", "EXTEND_TIMEOUT_USEC=")
        assert foreground.wait() == 0
        # What is the supervisor's is no app's.
        given = json.loads((tmp_path / "out.json").read_text())
        assert not {"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} & set(given)


def test_an_app_that_fails_does_not_keep_the_service_from_having_started(
    tmp_path: Path, manager: Manager
) -> None:
    config = CONFIG + '[apps.bad]\ncommand = "false"\nport = 0\nrestart = "never"\n'
    with Mesh(tmp_path / "mesh", config, environment=environment(tmp_path)) as mesh:
        mesh.foreground()
        manager.await_told("STATUS=2 of 3 instances ready; not ready: bad.1 (failed)")
        assert "READY=1" in manager.told


@pytest.mark.slow
def test_a_slow_stop_says_whom_it_waits_for(tmp_path: Path, manager: Manager) -> None:
    config = """
[apps.deaf]
command = "${PYTHON} -S ${APPS}/idle.py --ignore-term --say deaf"
port = 0
stop = { timeout = "3s" }
"""
    with Mesh(tmp_path / "mesh", config, environment=environment(tmp_path)) as mesh:
        foreground = mesh.foreground()
        foreground.await_line("| ready")
        foreground.signal(signal.SIGTERM)
        manager.await_told("STOPPING=1")
        manager.await_told("STATUS=waiting for deaf.1: TERM sent")
        assert foreground.wait() == 0


def test_the_watchdog_is_fed_as_long_as_the_loop_goes_round(
    tmp_path: Path, manager: Manager
) -> None:
    given = environment(tmp_path, WATCHDOG_USEC="200000")
    with Mesh(tmp_path / "mesh", CONFIG, environment=given) as mesh:
        foreground = mesh.foreground()
        manager.await_told("READY=1")
        for _ in range(3):
            manager.await_told("WATCHDOG=1")
        foreground.signal(signal.SIGTERM)
        assert foreground.wait() == 0


@pytest.mark.slow
@pytest.mark.parametrize("address", ["/nowhere/at/all", "vsock:2:1", "@nobody-listens-here-at-all"])
def test_a_manager_that_is_not_there_is_no_reason_to_fail(tmp_path: Path, address: str) -> None:
    given = environment(tmp_path, NOTIFY_SOCKET=address)
    with Mesh(tmp_path / "mesh", CONFIG, environment=given) as mesh:
        foreground = mesh.foreground()
        foreground.await_line("server.1 is ready")
        said = "cannot tell the service manager at" in foreground.text
        assert said == (not address.startswith("vsock"))


class Run:
    """A run that is what a test says."""

    def __init__(self) -> None:
        self.bell = Bell()
        self.reloading = False
        self.settled = False
        self.how = "0 of 1"

    @property
    def standing(self) -> "Run":
        """Both are said here."""
        return self

    def readiness(self) -> bool | None:
        """Settled or not."""
        return self.settled or None

    def summary(self) -> str:
        """How it is."""
        return self.how


async def tell(manager: Manager, follow: Callable[[ServiceManager, Run], Awaitable[None]]) -> None:
    """Let a service manager follow a run while something happens to that."""
    complaints: list[str] = []
    journal = open_journal(complaints.append, colour=False)
    told = ServiceManager(Contact(manager.address), journal)
    run = Run()
    following = tasks.start(told.follow(run), "follow")
    await follow(told, run)
    following.cancel()
    told.close()
    assert complaints == []


def test_a_reload_is_told_from_its_beginning_to_its_end(manager: Manager) -> None:
    async def reload(_told: ServiceManager, run: Run) -> None:
        async def changed(**values: object) -> list[str]:
            vars(run).update(values)
            run.bell.ring()
            return await asyncio.to_thread(manager.await_told)

        assert await changed(how="0 of 2") == ["STATUS=0 of 2"]
        assert await changed(how="2 of 2", settled=True) == ["READY=1", "STATUS=2 of 2"]
        begun = await changed(reloading=True)
        assert begun[0] == "RELOADING=1"
        assert begun[1].startswith("MONOTONIC_USEC=")
        assert await changed(how="1 of 3") == ["STATUS=1 of 3"]
        assert await changed(reloading=False) == ["READY=1", "STATUS=1 of 3"]
        # What is not settled any more does not take back that it has started.
        assert await changed(how="2 of 3", settled=False) == ["READY=1", "STATUS=2 of 3"]

    asyncio.run(tell(manager, reload))


def test_a_manager_that_does_not_read_stops_nothing_and_gets_it_later(manager: Manager) -> None:
    async def flood(told: ServiceManager, _run: Run) -> None:
        for number in range(1000):
            told.say(str(number))

        def read() -> None:
            while "STATUS=999" not in manager.await_told():
                pass

        await asyncio.to_thread(read)

    asyncio.run(tell(manager, flood))


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


UPSTREAM = """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py"
ready = { tcp = true }
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
upstreams = [{ service = "server", port = %d }]
[[intentions]]
from = "client"
to = "server"
"""


def activated_by(address: str) -> list[str]:
    return [sys.executable, "-S", str(APPS / "activate.py"), address]


def test_a_socket_that_the_manager_has_opened_serves_the_upstream_of_its_port(
    tmp_path: Path,
) -> None:
    port = free_port()
    with Mesh(tmp_path, UPSTREAM % port) as mesh:
        foreground = mesh.starting(by=activated_by(f"127.0.0.1:{port}"))
        foreground.await_line("server.1 is ready")
        with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as connection:
            connection.sendall(b"hello")
            assert connection.recv(100) == b"hello"
        assert "the service manager has opened" not in foreground.text


@pytest.mark.parametrize(
    ("address", "said"),
    [("0.0.0.0:0", "it listens on 0.0.0.0, not on 127.0.0.1"), ("127.0.0.1:0", None)],
)
def test_what_it_has_opened_for_nobody_is_refused_or_closed(
    tmp_path: Path, address: str, said: str | None
) -> None:
    with Mesh(tmp_path, UPSTREAM % free_port()) as mesh:
        foreground = mesh.starting(by=activated_by(address))
        if said is None:
            foreground.await_line("the service manager has opened port")
            foreground.await_line("server.1 is ready")
        else:
            assert foreground.wait() == 1
            assert said in foreground.text
