"""What becomes of calls of gRPC when they are denied, and when apps and leaves come and go."""

import operator
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import grpc
import pytest
from support.rpc import OPTIONS, TIMEOUT_S, App, identity, served
from support.sidecars import Mesh, allow, deny, listen, port_of
from support.traffic import wait_until

from meshrun.proxy.intentions import HeaderMatch, Intention, Permission
from meshrun.proxy.messages import ConnectionFailed, Denied

CONNECT_TIMEOUT_S = 1.0

# One after the other as fast as it goes: a channel that has lost its connection is to try again.
IMPATIENT = [*OPTIONS, ("grpc.min_reconnect_backoff_ms", 50), ("grpc.max_reconnect_backoff_ms", 50)]


class Calls:
    """An app of gRPC, two sidecars, and a channel through them, until the end of the block."""

    def __init__(
        self, *intentions: Intention, port: int | None = None, timeout_s: float = 5.0
    ) -> None:
        self.app = App()
        with ExitStack() as stack:
            self.mesh = stack.enter_context(Mesh())
            if port is None:
                _, port = stack.enter_context(served(self.app))
            self.server = self.mesh.sidecar(
                "server",
                app=port,
                intentions=intentions or [allow("client", "server")],
                protocol="grpc",
                timeout_s=timeout_s,
            )
            self.client = self.mesh.sidecar("client", upstreams=[self.server], protocol="grpc")
            address = f"127.0.0.1:{self.client.upstream_port('server')}"
            self.channel = stack.enter_context(grpc.insecure_channel(address, options=IMPATIENT))
            self._ending = stack.pop_all()

    def echo(self, message: bytes = b"hello", method: str = "echo") -> bytes:
        """Make a unary call."""
        call = self.channel.unary_unary(f"/app/{method}", identity, identity)
        return call(message, timeout=TIMEOUT_S)

    def refusal(self, method: str = "echo") -> grpc.RpcError:
        """Make a unary call that fails."""
        with pytest.raises(grpc.RpcError) as failed:
            self.echo(method=method)
        return failed.value

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ending.close()


def judge(permission: Permission, *others: Permission) -> Intention:
    """Return an intention about calls from the client to the server."""
    return Intention(
        source="client", destination="server", action="deny", permissions=(permission, *others)
    )


def test_only_the_methods_that_are_allowed_come_to_the_app() -> None:
    with Calls(judge(Permission(action="allow", path_exact="/app/echo"))) as calls:
        assert calls.echo(b"one") == b"one"
        error = calls.refusal("sum")
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        # Neither the rule nor who called: both are for the log of the one who was called.
        assert "server" not in (error.details() or "")
        assert calls.server.expect(Denied).request == "POST /app/sum"
        assert calls.echo(b"two") == b"two"
        assert calls.app.called == ["/app/echo", "/app/echo"]


def test_calls_are_judged_by_their_metadata() -> None:
    secret = Permission(action="allow", headers=(HeaderMatch(name="x-role", exact="admin"),))
    with Calls(judge(secret)) as calls:
        call = calls.channel.unary_unary("/app/echo", identity, identity)
        assert call(b"1", timeout=TIMEOUT_S, metadata=(("x-role", "admin"),)) == b"1"
        for role in ("Admin", "user"):
            with pytest.raises(grpc.RpcError) as failed:
                call(b"2", timeout=TIMEOUT_S, metadata=(("x-role", role),))
            assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED


@pytest.mark.parametrize("kind", ["server", "client", "both"])
def test_streaming_calls_are_denied_as_unary_ones_are(kind: str) -> None:
    with Calls(deny("client", "server")) as calls:
        sent = threading.Event()

        def messages() -> Iterator[bytes]:
            yield b"first"
            sent.wait(TIMEOUT_S)  # a denial does not wait for the end of the request

        def call() -> None:
            channel = calls.channel
            if kind == "server":
                next(channel.unary_stream("/app/hang", identity, identity)(b"", timeout=TIMEOUT_S))
            elif kind == "client":
                channel.stream_unary("/app/sum", identity, identity)(messages(), timeout=TIMEOUT_S)
            else:
                chat = channel.stream_stream("/app/chat", identity, identity)
                next(chat(messages(), timeout=TIMEOUT_S))

        with pytest.raises(grpc.RpcError) as failed:
            call()
        sent.set()
        assert failed.value.code() is grpc.StatusCode.PERMISSION_DENIED
        assert not calls.app.called


def test_a_deny_cuts_the_streams_that_it_forbids_and_no_others() -> None:
    with Calls() as calls:
        hangs = calls.channel.unary_stream("/app/hang", identity, identity)
        hanging = hangs(b"", timeout=TIMEOUT_S)
        assert next(hanging) == b"begun"
        turns: queue.Queue[bytes] = queue.Queue()
        chats = calls.channel.stream_stream("/app/chat", identity, identity)
        chatting = chats(iter(turns.get, b""), timeout=TIMEOUT_S)
        turns.put(b"one")
        assert next(chatting) == b"eno"
        calls.server.intend(judge(Permission(action="allow", path_prefix="/app/chat")))
        with pytest.raises(grpc.RpcError) as failed:
            next(hanging)
        assert failed.value.code() is not grpc.StatusCode.DEADLINE_EXCEEDED
        assert calls.app.cancelled.wait(TIMEOUT_S)
        turns.put(b"two")
        assert next(chatting) == b"owt"
        turns.put(b"")
        assert list(chatting) == []


def test_calls_find_an_app_that_was_started_again() -> None:
    with listen() as reserved:
        port = port_of(reserved)
    with Calls(port=port, timeout_s=CONNECT_TIMEOUT_S) as calls:
        with served(calls.app, port):
            assert calls.echo() == b"hello"
        began = time.monotonic()
        assert calls.refusal().code() is grpc.StatusCode.UNAVAILABLE
        # For so long the app may take to listen.
        assert CONNECT_TIMEOUT_S / 2 < time.monotonic() - began < TIMEOUT_S / 2
        assert calls.server.expect(ConnectionFailed).upstream is None
        with served(calls.app, port):
            assert calls.echo(b"again") == b"again"


def test_a_call_waits_for_an_app_that_is_not_there_yet() -> None:
    with listen() as reserved:
        port = port_of(reserved)
    with Calls(port=port, timeout_s=TIMEOUT_S) as calls:
        waiting = [
            calls.channel.unary_unary("/app/echo", identity, identity).future(
                b"%d" % number, timeout=TIMEOUT_S
            )
            for number in range(20)
        ]
        grpc.channel_ready_future(calls.channel).result(TIMEOUT_S)
        assert not any(each.done() for each in waiting)
        with served(calls.app, port):
            assert [each.result() for each in waiting] == [b"%d" % n for n in range(20)]


def test_no_call_fails_while_leaves_are_rotated() -> None:
    over = threading.Event()
    failures: list[Exception] = []
    made = [0, 0, 0]

    def repeat(index: int, once: Callable[[int], None]) -> None:
        while not over.is_set():
            try:
                once(made[index])
            except (grpc.RpcError, AssertionError) as error:
                failures.append(error)
                return
            made[index] += 1

    with Calls() as calls:
        channel = calls.channel
        unary = channel.unary_unary("/app/echo", identity, identity)
        sums = channel.stream_unary("/app/sum", identity, identity)
        counts = channel.unary_stream("/app/count", identity, identity)

        def echo(number: int) -> None:
            message = b"%d" % number * 1000
            assert unary(message, timeout=TIMEOUT_S) == message

        def add(number: int) -> None:
            sizes = [number % 7 * 10_000, 1, 70_000]
            total = sums((bytes(size) for size in sizes), timeout=TIMEOUT_S)
            assert total == b"%d" % sum(sizes)

        def count(number: int) -> None:
            found = list(counts(b"%d" % (number % 50), timeout=TIMEOUT_S))
            assert found == [b"%d" % each for each in range(number % 50)]

        turns: queue.Queue[bytes] = queue.Queue()
        chats = channel.stream_stream("/app/chat", identity, identity)
        chatting = chats(iter(turns.get, b""), timeout=TIMEOUT_S)
        threads = [
            threading.Thread(target=repeat, args=(index, once))
            for index, once in enumerate((echo, add, count))
        ]
        for thread in threads:
            thread.start()
        for turn in range(8):
            calls.server.rotate()
            calls.client.rotate()
            # A stream that began under the first leaf lives on.
            turns.put(b"turn %d" % turn)
            assert next(chatting) == (b"turn %d" % turn)[::-1]
            goal = [each + 2 for each in made]
            wait_until(
                lambda: bool(failures) or all(map(operator.ge, made, goal)),  # noqa: B023
                "two more calls of each kind",
            )
        over.set()
        for thread in threads:
            thread.join(TIMEOUT_S)
        turns.put(b"")
        assert list(chatting) == []
        assert not failures
        assert not [*calls.server.logged, *calls.client.logged]
