"""Requests that no app has heard are sent again; of the others it is said why they are not."""

import ssl
from collections.abc import Iterator

import grpc
import msgspec
import pytest
from support.answerer import named
from support.apps import App
from support.framepeer import FramePeer, FrameServer, frame
from support.rpc import App as RpcApp
from support.rpc import served
from support.sidecars import PATIENCE_S, ControlledSidecar, Mesh, listen, port_of
from support.wire import Wire, call

from meshrun.proxy.framing import Frame
from meshrun.proxy.http.relay import MOST_KEPT_BYTES
from meshrun.proxy.messages import ConnectionFailed, Ejection, Endpoint, Record, Recorded, Requests

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
POST = b"POST /once HTTP/1.1\r\nHost: server\r\nX-Request-Id: 1\r\n"
WITH_BODY = POST + b"Content-Length: 4\r\n\r\nonce"
IN_CHUNKS = POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\non\r\n"
NEVER = Requests(ejection=Ejection(failures=0))


@pytest.fixture
def mesh() -> Iterator[Mesh]:
    with Mesh() as made:
        yield made


@pytest.fixture
def server(mesh: Mesh) -> Iterator[FrameServer]:
    """An instance whose sidecar is the test."""
    with FrameServer(mesh) as made:
        yield made


def client(
    mesh: Mesh, *endpoints: Endpoint, requests: Requests = NEVER, records: bool = False
) -> ControlledSidecar:
    made = mesh.sidecar("client", upstreams=["server"], protocol="http", requests=requests)
    made.balance("server", *endpoints)
    made.apply(msgspec.structs.replace(made.snapshot, records=records))
    return made


def take(peer: FramePeer, size: int) -> bytes:
    """Accept the next stream, and return what of it was sent."""
    assert peer.hear() == (Frame.OPEN, b"")
    peer.say(frame(Frame.ACCEPTED))
    return hear(peer, size)


def hear(peer: FramePeer, size: int) -> bytes:
    """Return so many bytes of the stream under way."""
    heard = b""
    while len(heard) < size:
        kind, payload = peer.hear()
        assert kind == Frame.DATA
        heard += payload
    return heard


def asked_before(server: FrameServer, caller: ControlledSidecar) -> tuple[Wire, FramePeer]:
    """Return the ends of a caller and of an instance that has answered it."""
    wire = call(caller)
    wire.say(b"GET /first HTTP/1.1\r\nHost: server\r\nX-Request-Id: 1\r\n\r\n")
    peer = server.accept()
    assert take(peer, 1).startswith(b"GET /first ")
    peer.say(frame(Frame.DATA, OK))
    assert wire.hear_answer().raw == OK
    return wire, peer


def turn_away(peer: FramePeer) -> None:
    """End the stream under way in order, which the other side gives up then."""
    peer.say(frame(Frame.FINISH))
    assert peer.hear() == (Frame.RESET, b"")


def record(sidecar: ControlledSidecar) -> Record:
    """Return what a sidecar tells next of a request."""
    (told,) = sidecar.expect(Recorded).records
    return told


def reason(sidecar: ControlledSidecar) -> str:
    """Return the next reason that a sidecar gives for a failure."""
    return sidecar.expect(ConnectionFailed).reason


# An instance that ends the connection just as a request comes over it.


@pytest.mark.parametrize("request_", [WITH_BODY, IN_CHUNKS], ids=["counted", "chunked"])
@pytest.mark.parametrize("retries", [0, 1])
def test_what_meets_the_end_of_a_kept_connection_is_sent_over_another(
    mesh: Mesh, server: FrameServer, request_: bytes, retries: int
) -> None:
    settings = msgspec.structs.replace(NEVER, retries=retries)
    wire, peer = asked_before(server, client(mesh, server.endpoint, requests=settings))
    with wire, peer:
        wire.say(request_)
        assert hear(peer, len(request_)) == request_
        turn_away(peer)
        assert take(peer, len(request_)) == request_
        if request_ is IN_CHUNKS:
            wire.say(b"2\r\nce\r\n0\r\n\r\n")
            assert hear(peer, 12) == b"2\r\nce\r\n0\r\n\r\n"
        peer.say(frame(Frame.DATA, OK))
        assert wire.hear_answer().raw == OK


def test_what_meets_an_end_again_and_again_is_sent_so_often(
    mesh: Mesh, server: FrameServer
) -> None:
    caller = client(mesh, server.endpoint, requests=msgspec.structs.replace(NEVER, retries=2))
    wire, peer = asked_before(server, caller)
    with wire, peer:
        wire.say(WITH_BODY)
        assert hear(peer, len(WITH_BODY)) == WITH_BODY
        for _ in range(3):
            turn_away(peer)
            assert take(peer, len(WITH_BODY)) == WITH_BODY
        turn_away(peer)
        assert wire.hear_answer().status == 503
        said = reason(caller)
        assert said.startswith("server.9: ")
        assert "before a response began" in said
        assert "it was sent 3 times (retries)" in said


def test_what_has_lost_its_body_is_not_sent_again(mesh: Mesh, server: FrameServer) -> None:
    caller = client(mesh, server.endpoint)
    wire, peer = asked_before(server, caller)
    size = MOST_KEPT_BYTES + 1
    request = POST + b"Content-Length: %d\r\n\r\n" % (size + 1) + bytes(size)
    with wire, peer:
        wire.say(request)
        assert hear(peer, len(request)) == request
        turn_away(peer)
        assert wire.hear_answer().status == 503
        assert "its body is not kept any more" in reason(caller)


def test_what_may_have_been_heard_is_not_sent_again(mesh: Mesh, server: FrameServer) -> None:
    caller = client(mesh, server.endpoint, records=True)
    wire, peer = asked_before(server, caller)
    with wire, peer:
        wire.say(WITH_BODY)
        assert hear(peer, len(WITH_BODY)) == WITH_BODY
        peer.say(frame(Frame.RESET))
        assert wire.hear_answer().status == 503
        assert "it may not be done twice" in reason(caller)
        assert "it may not be done twice" in record(caller).failure


def test_of_a_peer_that_is_no_sidecar_nobody_knows_what_its_end_means(mesh: Mesh) -> None:
    context = mesh.server_context(mesh.leaf("server"))
    context.set_alpn_protocols([])
    with listen() as listener:
        listener.settimeout(PATIENCE_S)
        endpoint = Endpoint(
            instance="server.9", host="127.0.0.1", port=port_of(listener), tunnels=False
        )
        caller = client(mesh, endpoint)
        with call(caller) as wire:
            wire.say(WITH_BODY)
            plain, _ = listener.accept()
            plain.settimeout(PATIENCE_S)
            with context.wrap_socket(plain, server_side=True) as peer, Wire(peer) as other:
                assert other.hear_request() == WITH_BODY
                end(peer)
                assert wire.hear_answer().status == 503
        assert "it may not be done twice" in reason(caller)


def end(peer: ssl.SSLSocket) -> None:
    """Say close_notify, and nothing more."""
    peer.settimeout(0)
    try:
        peer.unwrap()
    except (ssl.SSLWantReadError, OSError):
        pass


# An instance whose app is not there.


def test_a_request_with_a_body_finds_the_instance_whose_app_listens(mesh: Mesh) -> None:
    with listen() as reserved:
        absent = port_of(reserved)
    answerer = named("well")
    with App(answerer) as app:
        instances = [
            mesh.sidecar("server", app=port, default="allow", protocol="http", timeout_s=0.05)
            for port in (absent, app.port)
        ]
        caller = client(mesh, *(each.endpoint for each in instances))
        # Each has an even chance to be asked first.
        for _ in range(10):
            with call(caller) as wire:
                wire.say(WITH_BODY)
                assert wire.hear_answer().status == 200


def test_a_call_of_grpc_is_made_where_the_app_listens(mesh: Mesh) -> None:
    with listen() as reserved:
        absent = port_of(reserved)
    with served(RpcApp()) as (_, present):
        instances = [
            mesh.sidecar("server", app=port, default="allow", protocol="grpc", timeout_s=0.05)
            for port in (absent, present)
        ]
        caller = mesh.sidecar("client", upstreams=instances, protocol="grpc", requests=NEVER)
        address = f"127.0.0.1:{caller.upstream_port('server')}"
        with grpc.insecure_channel(address) as channel:
            echo = channel.unary_unary("/app/echo", bytes, bytes)
            for _ in range(10):
                assert echo(b"hello", timeout=PATIENCE_S) == b"hello"
