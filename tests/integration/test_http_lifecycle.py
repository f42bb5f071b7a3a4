"""Requests while apps, instances and sidecars come, go and fall ill."""

import http.client
import math
import os
import queue
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from types import TracebackType
from typing import Self

import msgspec
import pytest
from support.answerer import OK, Answerer, named
from support.apps import App
from support.sidecars import TRUST_DOMAIN, ControlledSidecar, Mesh, deny, listen, port_of
from support.threads import Threads
from support.traffic import wait_until

from meshrun.proxy.messages import (
    ConnectionFailed,
    Ejection,
    Requests,
    Serving,
    Share,
    Stats,
    StatsRequested,
)
from meshrun.proxy.spiffe import SpiffeId

PATIENCE_S = 20.0
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"

# Its own process, which can be killed.
PROGRAM = """
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 65536  # an answer is one write: there is no moment at which half of it was said

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"ok")

    do_POST = do_GET

    def log_message(self, *words):
        pass

server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""


class Program:
    """An app that is a process, until the end of the block."""

    def __init__(self, port: int = 0) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(port)], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """End it as if it had crashed."""
        self._process.kill()
        self._process.wait(PATIENCE_S)

    def stop(self) -> None:
        """Let it do nothing, with its connections open; returns once that is so."""
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED)

    def go_on(self) -> None:
        """Let it go on."""
        self._process.send_signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()


class Load(Threads):
    """Asks without pause, until the block ends: two callers with GET, one with POST.

    They are no more than may be asked again at the same time, whatever the budget of retries.
    """

    def __init__(self, port: int) -> None:
        super().__init__([partial(self._ask, method) for method in ("GET", "GET", "POST")])
        self._port = port
        self.came: Counter[tuple[str, int]] = Counter()
        self.failures: list[Exception] = []

    def statuses(self, method: str) -> set[int]:
        """Return all that came of requests with this method."""
        return {status for known, status in self.came if known == method}

    def wait_for(self, more: int) -> None:
        """Return when so many more requests of each kind have succeeded."""
        goal = {method: self.came[method, 200] + more for method in ("GET", "POST")}
        wait_until(
            lambda: bool(self.failures) or all(self.came[each, 200] >= goal[each] for each in goal),
            f"{more} more requests of each kind",
        )

    def _ask(self, method: str) -> None:
        body = b"x" * 100 if method == "POST" else None
        while not self.over.is_set():
            try:
                with closing(
                    http.client.HTTPConnection("127.0.0.1", self._port, timeout=PATIENCE_S)
                ) as connection:
                    for _ in range(20):
                        connection.request(method, "/", body)
                        response = connection.getresponse()
                        response.read()
                        self.came[method, response.status] += 1
                        if response.will_close or self.over.is_set():
                            break
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(error)
                return

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        super().__exit__(kind, error, trace)
        assert not self.failures


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


def server(
    mesh: Mesh, port: int, service: str = "server", timeout_s: float = 5.0
) -> ControlledSidecar:
    return mesh.sidecar(service, app=port, default="allow", protocol="http", timeout_s=timeout_s)


def client(
    mesh: Mesh, *servers: ControlledSidecar, requests: Requests | None = None
) -> ControlledSidecar:
    return mesh.sidecar(
        "client", upstreams=servers, protocol="http", requests=requests or Requests()
    )


@contextmanager
def connected(caller: ControlledSidecar) -> Iterator[http.client.HTTPConnection]:
    connection = http.client.HTTPConnection(
        "127.0.0.1", caller.upstream_port("server"), timeout=PATIENCE_S
    )
    with closing(connection):
        yield connection


def ask(connection: http.client.HTTPConnection, method: str = "GET") -> tuple[int, bytes]:
    connection.request(method, "/")
    response = connection.getresponse()
    return response.status, response.read()


def split(caller: ControlledSidecar, *servers: ControlledSidecar) -> None:
    """Let these share the requests to the first upstream; without any it takes them itself."""
    shares = tuple(
        Share(
            service=each.service,
            identity=str(each.identity),
            weight=1,
            endpoints=(each.endpoint,),
        )
        for each in servers
    )
    upstream = msgspec.structs.replace(caller.snapshot.upstreams[0], split=shares)
    caller.apply(msgspec.structs.replace(caller.snapshot, upstreams=(upstream,)))


def allowed(sidecar: ControlledSidecar) -> int:
    """Return how many requests a sidecar has let in."""
    sidecar.send(StatsRequested(number=1))
    return sum(each.allowed for each in sidecar.expect(Stats).verdicts)


@pytest.mark.parametrize("method", ["GET", "HEAD", "DELETE", "POST"])
def test_a_request_without_a_body_waits_for_an_app_that_is_not_there_yet(
    mesh: Mesh, method: str
) -> None:
    with listen() as reserved:
        port = port_of(reserved)
    late = server(mesh, port, timeout_s=PATIENCE_S)
    with connected(client(mesh, late)) as connection:
        connection.request(method, "/")
        wait_until(lambda: allowed(late) == 1, "the request waits for the app")
        with App(named("late"), port=port):
            response = connection.getresponse()
            assert response.status == 200
            assert response.read() == (b"" if method == "HEAD" else b"late")
            connection.close()


def test_the_connection_of_a_request_that_waited_in_vain_carries_the_next_one(mesh: Mesh) -> None:
    with listen() as reserved:
        port = port_of(reserved)
    with connected(client(mesh, server(mesh, port, timeout_s=0.2))) as connection:
        # Its body waits with it.
        connection.request("POST", "/", b"in vain")
        response = connection.getresponse()
        assert (response.status, response.read()) == (503, b"the app does not answer\n")
        with App(named("late"), port=port):
            assert ask(connection) == (200, b"late")
            connection.close()


def test_only_what_may_be_asked_again_notices_that_an_app_was_killed(mesh: Mesh) -> None:
    with Program() as doomed, Program() as other:
        dying = server(mesh, doomed.port, timeout_s=0.5)
        caller = client(mesh, dying, server(mesh, other.port))
        with Load(caller.upstream_port("server")) as load:
            load.wait_for(20)
            doomed.kill()
            load.wait_for(20)
            with Program(doomed.port):
                load.wait_for(20)
                caller.balance("server", caller.snapshot.upstreams[0].endpoints[1])
                load.wait_for(20)
        assert load.statuses("GET") == {200}
        assert load.statuses("POST") <= {200, 502, 503}


@pytest.mark.slow
def test_only_what_may_be_asked_again_notices_that_a_sidecar_was_killed(mesh: Mesh) -> None:
    with Program() as one, Program() as other:
        dying = server(mesh, one.port)
        caller = client(mesh, dying, server(mesh, other.port))
        with Load(caller.upstream_port("server")) as load:
            for _ in range(3):
                load.wait_for(10)
                dying.kill()
                load.wait_for(10)
                dying.start()
                dying.expect(Serving)
        assert load.statuses("GET") == {200}
        assert load.statuses("POST") <= {200, 502, 503}


def test_a_stopped_app_is_late_and_goes_on(mesh: Mesh) -> None:
    with Program() as app:
        caller = client(mesh, server(mesh, app.port), requests=Requests(timeout_s=0.3))
        with connected(caller) as connection:
            assert ask(connection) == (200, b"ok")
            app.stop()
            assert ask(connection)[0] == 504
            app.go_on()
            assert ask(connection) == (200, b"ok")


def test_an_instance_that_was_ejected_is_asked_again(mesh: Mesh) -> None:
    ill = threading.Event()
    ill.set()
    recovering = Answerer(lambda _: BROKEN if ill.is_set() else OK % (4, b"sick"))
    with App(recovering) as one, App(named("well")) as other:
        ejection = Ejection(failures=3, first_s=0.5, longest_s=0.5)
        caller = client(
            mesh,
            server(mesh, one.port),
            server(mesh, other.port),
            requests=Requests(ejection=ejection),
        )
        with connected(caller) as connection:
            wait_until(lambda: ask(connection)[0] == 500 and len(recovering.heads) == 3, "ejected")
            ill.clear()
            wait_until(lambda: ask(connection) == (200, b"sick"), "it is asked again")


def test_shares_are_as_their_weights_say(mesh: Mesh) -> None:
    with App(named("old")) as one, App(named("new")) as other:
        old, new = server(mesh, one.port), server(mesh, other.port, "server-v2")
        shares = tuple(
            Share(
                service=each.service,
                identity=str(SpiffeId.for_service(TRUST_DOMAIN, each.service)),
                weight=weight,
                endpoints=(each.endpoint,),
            )
            for each, weight in ((old, 90), (new, 10))
        )
        caller = client(mesh, old)
        upstream = msgspec.structs.replace(caller.snapshot.upstreams[0], split=shares)
        caller.apply(msgspec.structs.replace(caller.snapshot, upstreams=(upstream,)))
        count = 1000
        with connected(caller) as connection:
            found = Counter(ask(connection)[1] for _ in range(count))
        assert set(found) == {b"old", b"new"}
        # Five standard deviations: beyond them is one run in two million.
        assert abs(found[b"new"] - count * 0.1) < 5 * math.sqrt(count * 0.1 * 0.9)


def test_an_instance_that_is_busy_gets_no_more_requests(mesh: Mesh) -> None:
    reached, release = threading.Event(), threading.Event()

    def answer(_: bytes) -> bytes:
        reached.set()
        release.wait(PATIENCE_S)
        return OK % (4, b"slow")

    slow = Answerer(answer)
    with App(slow) as one, App(named("fast")) as other:
        caller = client(mesh, server(mesh, one.port), server(mesh, other.port))
        answers: queue.Queue[bytes] = queue.Queue()

        def ask_until_slow() -> None:
            with connected(caller) as connection:
                while (said := ask(connection)[1]) == b"fast":
                    pass
                answers.put(said)

        asking = threading.Thread(target=ask_until_slow)
        asking.start()
        assert reached.wait(PATIENCE_S)
        with connected(caller) as connection:
            assert [ask(connection)[1] for _ in range(50)] == [b"fast"] * 50
        release.set()
        assert answers.get(timeout=PATIENCE_S) == b"slow"
        asking.join(PATIENCE_S)
        assert len(slow.heads) == 1


def test_more_connections_of_the_app_than_allowed_are_refused(mesh: Mesh) -> None:
    with App(named("ok")) as app:
        caller = client(mesh, server(mesh, app.port))
        upstream = msgspec.structs.replace(caller.snapshot.upstreams[0], max_connections=2)
        caller.apply(msgspec.structs.replace(caller.snapshot, upstreams=(upstream,)))
        with connected(caller) as one, connected(caller) as two:
            assert ask(one) == ask(two) == (200, b"ok")
            with connected(caller) as third, pytest.raises(ConnectionError):
                ask(third)
            assert "(max_connections)" in caller.expect(ConnectionFailed).reason
            assert ask(one) == (200, b"ok")
        with connected(caller) as again:
            wait_until(lambda: answers(again), "a place is free again")


def answers(connection: http.client.HTTPConnection) -> bool:
    try:
        return ask(connection) == (200, b"ok")
    except ConnectionError:
        connection.close()
        return False


def test_more_connections_than_an_app_may_have_are_refused(mesh: Mesh) -> None:
    reached, release = threading.Event(), threading.Event()

    def answer(_: bytes) -> bytes:
        reached.set()
        release.wait(PATIENCE_S)
        return OK % (2, b"ok")

    with App(Answerer(answer)) as app:
        full = server(mesh, app.port)
        assert full.snapshot.inbound is not None
        inbound = msgspec.structs.replace(full.snapshot.inbound, max_connections=1)
        full.apply(msgspec.structs.replace(full.snapshot, inbound=inbound))
        caller = mesh.sidecar("client", upstreams=[full], protocol="http", timeout_s=0.5)
        with connected(caller) as one, connected(caller) as two:
            one.request("GET", "/")
            assert reached.wait(PATIENCE_S)
            assert ask(two)[0] == 503
            assert "(max_connections)" in full.expect(ConnectionFailed).reason
            release.set()
            assert one.getresponse().read() == b"ok"
            assert ask(two) == (200, b"ok")


def test_what_may_not_be_sent_twice_avoids_an_instance_that_has_just_died(mesh: Mesh) -> None:
    with App(named("one")) as one, App(named("other")) as other, ExitStack() as stack:
        dying = server(mesh, one.port)
        caller = client(mesh, dying)
        connections = [stack.enter_context(connected(caller)) for _ in range(20)]
        for connection in connections:
            assert ask(connection) == (200, b"one")
        caller.balance("server", dying.endpoint, server(mesh, other.port).endpoint)
        # The requests are there before the end of the instance is, and both before they are seen.
        os.kill(caller.pid, signal.SIGSTOP)
        os.waitid(os.P_PID, caller.pid, os.WSTOPPED)
        for connection in connections:
            connection.request("POST", "/", b"once")
        dying.kill()
        os.kill(caller.pid, signal.SIGCONT)
        responses = [connection.getresponse() for connection in connections]
        assert {(each.status, each.read()) for each in responses} == {(200, b"other")}


def test_requests_under_way_to_a_share_that_is_left_are_answered(mesh: Mesh) -> None:
    reached, release = threading.Semaphore(0), threading.Event()

    def answer(_: bytes) -> bytes:
        reached.release()
        release.wait(PATIENCE_S)
        return OK % (3, b"old")

    with App(Answerer(answer)) as one, App(named("new")) as other, ExitStack() as stack:
        old, new = server(mesh, one.port, "server-v1"), server(mesh, other.port)
        caller = client(mesh, new)
        split(caller, old)
        connections = [stack.enter_context(connected(caller)) for _ in range(3)]
        for connection in connections:
            connection.request("POST", "/", b"once")
            assert reached.acquire(timeout=PATIENCE_S)
        split(caller)
        with connected(caller) as later:
            assert ask(later, "POST") == (200, b"new")
        release.set()
        for connection in connections:
            response = connection.getresponse()
            assert (response.status, response.read()) == (200, b"old")
        # The next one over the same connection goes to who is there.
        assert ask(connections[0], "POST") == (200, b"new")


def test_a_request_under_way_to_a_share_that_is_left_is_cut_by_a_deny(mesh: Mesh) -> None:
    reached, release = threading.Event(), threading.Event()

    def answer(_: bytes) -> bytes:
        reached.set()
        release.wait(PATIENCE_S)
        return OK % (3, b"old")

    with App(Answerer(answer)) as one, App(named("new")) as other:
        old, new = server(mesh, one.port, "server-v1"), server(mesh, other.port)
        caller = client(mesh, new)
        split(caller, old)
        with connected(caller) as connection:
            connection.request("POST", "/", b"once")
            assert reached.wait(PATIENCE_S)
            split(caller)
            old.intend(deny("client", "server-v1"))
            response = connection.getresponse()
            assert (response.status, response.read()) == (503, b"the app gave no answer\n")
        release.set()
