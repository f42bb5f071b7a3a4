"""What a sidecar does with each request: retries, ejection, limits, headers, split."""

import http.client
import queue
import socket
import threading
from collections import Counter
from collections.abc import Iterator

import grpc
import msgspec
import pytest
from support.answerer import OK, Answerer, named
from support.apps import App
from support.sidecars import TRUST_DOMAIN, ControlledSidecar, Mesh

from meshrun.proxy.messages import ConnectionFailed, Ejection, Recorded, Requests, Share
from meshrun.proxy.spiffe import SpiffeId

PATIENCE_S = 20.0
BROKEN = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\n\r\n"
# Within a test nothing that was ejected comes back.
LONG = Ejection(failures=3, first_s=60.0, longest_s=60.0)


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


def server(mesh: Mesh, app: App, service: str = "server") -> ControlledSidecar:
    return mesh.sidecar(service, app=app.port, default="allow", protocol="http")


def client(mesh: Mesh, *servers: ControlledSidecar, requests: Requests) -> ControlledSidecar:
    made = mesh.sidecar("client", upstreams=servers, protocol="http")
    replace(made, requests=requests)
    return made


def replace(caller: ControlledSidecar, **changes: object) -> None:
    """Change the first upstream of a sidecar, and wait until that is obeyed."""
    first, *others = caller.snapshot.upstreams
    changed = msgspec.structs.replace(first, **changes)
    caller.apply(msgspec.structs.replace(caller.snapshot, upstreams=(changed, *others)))


def ask(
    caller: ControlledSidecar,
    method: str = "GET",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[int, bytes]:
    """Send a request as the app does, over a connection of its own."""
    connection = http.client.HTTPConnection(
        "127.0.0.1", caller.upstream_port("server"), timeout=PATIENCE_S
    )
    try:
        connection.request(method, "/", body, headers or {})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
def test_what_got_no_answer_is_asked_of_another_instance(mesh: Mesh, method: str) -> None:
    with App(Answerer(lambda _: None)) as mute, App(named("well")) as well:
        caller = client(
            mesh,
            server(mesh, mute),
            server(mesh, well),
            requests=Requests(ejection=Ejection(failures=0)),
        )
        # Each has an even chance to be asked first.
        for _ in range(100):
            assert ask(caller, method) == (200, b"well")
            if mute.accepted:
                break
        assert mute.accepted


@pytest.mark.parametrize(("method", "body"), [("POST", None), ("PUT", b"once")])
def test_what_could_be_done_twice_is_not_asked_again(
    mesh: Mesh, method: str, body: bytes | None
) -> None:
    answerer = Answerer(lambda _: None)
    with App(answerer) as mute:
        caller = client(mesh, server(mesh, mute), requests=Requests(retries=5))
        status, _ = ask(caller, method, body)
        assert status in (502, 503)
        assert len(answerer.heads) == 1


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_a_request_is_sent_again_as_often_as_the_upstream_says(mesh: Mesh, retries: int) -> None:
    answerer = Answerer(lambda _: None)
    with App(answerer) as mute:
        caller = client(mesh, server(mesh, mute), requests=Requests(retries=retries))
        assert ask(caller)[0] >= 500
        assert len(answerer.heads) == 1 + retries


def test_an_app_cannot_ask_for_a_retry(mesh: Mesh) -> None:
    said = b"HTTP/1.1 503 No\r\nX-Meshrun-Failure: unsent\r\nContent-Length: 0\r\n\r\n"
    answerer = Answerer(lambda _: said)
    with App(answerer) as app:
        caller = client(mesh, server(mesh, app), requests=Requests(retries=5))
        assert ask(caller)[0] == 503
        assert len(answerer.heads) == 1


def test_how_a_request_failed_is_for_sidecars_only(mesh: Mesh) -> None:
    with App(Answerer(lambda _: None)) as mute:
        caller = client(mesh, server(mesh, mute), requests=Requests())
        connection = http.client.HTTPConnection(
            "127.0.0.1", caller.upstream_port("server"), timeout=PATIENCE_S
        )
        connection.request("GET", "/")
        response = connection.getresponse()
        assert response.status == 503
        assert not [name for name, _ in response.getheaders() if "meshrun" in name.lower()]
        connection.close()


def test_how_a_call_of_grpc_failed_is_for_sidecars_only(mesh: Mesh) -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    unreached = mesh.sidecar("server", app=port, default="allow", protocol="grpc", timeout_s=0.1)
    caller = mesh.sidecar("client", upstreams=[unreached], protocol="grpc")
    address = f"127.0.0.1:{caller.upstream_port('server')}"
    with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refusal:
        channel.unary_unary("/app/echo", bytes, bytes)(b"", timeout=PATIENCE_S)
    assert refusal.value.code() is grpc.StatusCode.UNAVAILABLE
    # All of an answer that is trailers-only.
    assert "meshrun" not in repr(refusal.value.trailing_metadata())


def test_retries_are_no_more_than_the_budget_at_the_same_time(mesh: Mesh) -> None:
    once = threading.Barrier(10)
    lock = threading.Lock()
    seen: Counter[bytes] = Counter()
    waiting = threading.Semaphore(0)
    release = threading.Event()

    def answer(head: bytes) -> bytes | None:
        # The first time each request is held until all are there, and gets no answer. Whoever
        # comes again is a retry, and is held until the test has counted them.
        with lock:
            seen[head] += 1
            first = seen[head] == 1
        if first:
            once.wait(PATIENCE_S)
            return None
        waiting.release()
        release.wait(PATIENCE_S)
        return OK % (0, b"")

    statuses: queue.Queue[int] = queue.Queue()
    with App(Answerer(answer)) as app:
        caller = client(mesh, server(mesh, app), requests=Requests(ejection=Ejection(failures=0)))
        threads = [
            threading.Thread(
                target=lambda n=n: statuses.put(ask(caller, headers={"x-number": str(n)})[0])
            )
            for n in range(10)
        ]
        for thread in threads:
            thread.start()
        # Seven have no share in the budget, and are answered while three wait for the app.
        assert all(statuses.get(timeout=PATIENCE_S) >= 500 for _ in range(7))
        for _ in range(3):
            assert waiting.acquire(timeout=PATIENCE_S)
        assert not waiting.acquire(blocking=False)
        release.set()
        assert [statuses.get(timeout=PATIENCE_S) for _ in range(3)] == [200, 200, 200]
        for thread in threads:
            thread.join(PATIENCE_S)


@pytest.mark.parametrize("last", [False, True], ids=["kept", "closed"])
def test_an_instance_that_fails_in_a_row_gets_no_requests(mesh: Mesh, last: bool) -> None:
    ill = Answerer(lambda _: BROKEN, last=last)
    with App(ill) as bad, App(named("well")) as good:
        caller = client(
            mesh, server(mesh, bad), server(mesh, good), requests=Requests(ejection=LONG)
        )
        statuses = Counter(ask(caller)[0] for _ in range(60))
        assert statuses[500] == len(ill.heads) == LONG.failures
        assert statuses[200] == 60 - LONG.failures


def test_with_every_instance_ejected_all_get_requests(mesh: Mesh) -> None:
    ill = Answerer(lambda _: BROKEN)
    with App(ill) as bad:
        caller = client(mesh, server(mesh, bad), requests=Requests(ejection=LONG))
        assert {ask(caller)[0] for _ in range(3 * LONG.failures)} == {500}
        assert len(ill.heads) == 3 * LONG.failures


def test_headers_are_removed_and_set(mesh: Mesh) -> None:
    answerer = named("ok")
    with App(answerer) as app:
        caller = client(
            mesh,
            server(mesh, app),
            requests=Requests(
                set_headers=(("X-Env", "test"), ("x-new", "a, b")), remove_headers=("x-debug",)
            ),
        )
        assert ask(caller, headers={"x-ENV": "app", "X-Debug": "1", "x-kept": "2"})[0] == 200
    [head] = answerer.heads
    lines = head.decode().split("\r\n")[1:]
    found = [line for line in lines if line.lower().startswith(("x-env", "x-new", "x-debug"))]
    assert found == ["X-Env: test", "x-new: a, b"]
    assert "x-kept: 2" in lines


def test_requests_are_split_between_services_by_weight(mesh: Mesh) -> None:
    with App(named("one")) as one, App(named("other")) as other:
        first, second = server(mesh, one), server(mesh, other, "server-v2")
        caller = client(mesh, first, requests=Requests())

        def weigh(*weights: int) -> Counter[bytes]:
            shares = tuple(
                Share(
                    service=each.service,
                    identity=str(SpiffeId.for_service(TRUST_DOMAIN, each.service)),
                    weight=weight,
                    endpoints=(each.endpoint,),
                )
                for each, weight in zip((first, second), weights, strict=True)
            )
            replace(caller, split=shares)
            return Counter(ask(caller)[1] for _ in range(60))

        both = weigh(1, 1)
        assert set(both) == {b"one", b"other"}
        # One in ten thousand: that it takes any of 60 has a chance of 1 in 170.
        assert weigh(1, 9999)[b"other"] >= 55


def test_a_share_of_another_identity_gets_no_request(mesh: Mesh) -> None:
    answerer = named("stranger")
    with App(answerer) as app:
        stranger = server(mesh, app, "stranger")
        caller = mesh.sidecar("client", upstreams=["server"], protocol="http", timeout_s=0.3)
        share = Share(
            service="server-v2",
            identity=str(SpiffeId.for_service(TRUST_DOMAIN, "server-v2")),
            weight=1,
            endpoints=(stranger.endpoint,),
        )
        replace(caller, split=(share,))
        assert ask(caller)[0] == 503
        assert "svc/stranger, not" in caller.expect(ConnectionFailed).reason
    assert not answerer.heads


def test_more_requests_than_allowed_are_refused_at_once(mesh: Mesh) -> None:
    reached, release = threading.Event(), threading.Event()

    def answer(_: bytes) -> bytes:
        reached.set()
        release.wait(PATIENCE_S)
        return OK % (0, b"")

    with App(Answerer(answer)) as app:
        caller = client(mesh, server(mesh, app), requests=Requests(most_in_flight=1))
        caller.apply(msgspec.structs.replace(caller.snapshot, records=True))
        statuses: queue.Queue[int] = queue.Queue()
        thread = threading.Thread(target=lambda: statuses.put(ask(caller)[0]))
        thread.start()
        assert reached.wait(PATIENCE_S)
        assert ask(caller)[0] == 503
        assert "(max_requests)" in caller.expect(ConnectionFailed).reason
        [told] = caller.expect(Recorded).records
        assert (told.status, told.reporter) == (503, "source")
        assert "(max_requests)" in told.failure
        release.set()
        assert statuses.get(timeout=PATIENCE_S) == 200
        thread.join(PATIENCE_S)
        assert ask(caller)[0] == 200


def test_more_requests_than_may_wait_for_a_connection_are_refused(mesh: Mesh) -> None:
    with App(named("late")) as app:
        caller = mesh.sidecar("client", upstreams=["server"], protocol="http", timeout_s=60.0)
        replace(caller, requests=Requests(most_pending=1))
        statuses: queue.Queue[int] = queue.Queue()
        threads = [threading.Thread(target=lambda: statuses.put(ask(caller)[0])) for _ in range(2)]
        for thread in threads:
            thread.start()
        assert statuses.get(timeout=PATIENCE_S) == 503
        assert "(max_pending)" in caller.expect(ConnectionFailed).reason
        caller.balance("server", server(mesh, app).endpoint)
        assert statuses.get(timeout=PATIENCE_S) == 200
        for thread in threads:
            thread.join(PATIENCE_S)


def test_a_late_answer_is_not_waited_for(mesh: Mesh) -> None:
    release = threading.Event()

    def answer(_: bytes) -> bytes | None:
        release.wait(PATIENCE_S)
        return None

    with App(Answerer(answer)) as app:
        caller = client(mesh, server(mesh, app), requests=Requests(timeout_s=0.2))
        assert ask(caller)[0] == 504
        assert "(request_timeout)" in caller.expect(ConnectionFailed).reason
        release.set()
