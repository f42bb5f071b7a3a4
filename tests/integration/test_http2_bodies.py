"""Bodies of HTTP/2 in both directions of a stream at the same time, and those that nobody takes."""

import hashlib
import threading
import time
from collections.abc import Iterator

import pytest
from h2.events import DataReceived, ResponseReceived
from h2.settings import SettingCodes
from support.httpmesh import ENTRIES, Entry, HttpMesh
from support.sidecars import PATIENCE_S, ControlledSidecar
from support.wire2 import Wire2

MIB = 1024 * 1024
LARGE = 3 * MIB + 1
HEAD = [(":status", "200")]

each_entry = pytest.mark.parametrize("entry", ENTRIES)


@pytest.fixture(scope="module")
def shared() -> Iterator[HttpMesh]:
    with HttpMesh(protocol="http2") as made:
        yield made


@pytest.fixture
def mesh(shared: HttpMesh) -> Iterator[HttpMesh]:
    yield shared
    shared.tidy()


def begin(mesh: HttpMesh, entry: Entry) -> tuple[Wire2, int, Wire2, int]:
    """Begin a request and its response; return both ends, each with its stream."""
    caller = Wire2(mesh.call(entry), client=True)
    asked = caller.ask("/", method="POST", end=False)
    app = Wire2(mesh.app.accept(), client=False)
    number, _ = app.hear_request()
    app.head(number, HEAD)
    caller.hear(ResponseReceived, asked)
    return caller, asked, app, number


@each_entry
def test_either_side_answers_what_the_other_just_said(mesh: HttpMesh, entry: Entry) -> None:
    caller, asked, app, number = begin(mesh, entry)
    for round_ in range(50):
        caller.say(asked, b"request %d" % round_)
        assert app.hear(DataReceived, number).data == b"request %d" % round_
        app.say(number, b"response %d" % round_)
        assert caller.hear(DataReceived, asked).data == b"response %d" % round_
    caller.say(asked, b"last", end=True)
    assert app.hear_body(number) == b"last"
    # The response goes on when the request has ended.
    app.say(number, b"more")
    assert caller.hear(DataReceived, asked).data == b"more"
    app.say(number, b"end", end=True)
    assert caller.hear_body(asked) == b"end"


@each_entry
def test_large_bodies_pass_each_other(mesh: HttpMesh, entry: Entry) -> None:
    caller, asked, app, number = begin(mesh, entry)
    up, down = (hashlib.shake_128(name).digest(LARGE) for name in (b"up", b"down"))
    heard: list[bytes] = []
    poured = threading.Event()

    def serve() -> None:
        # The end of a response is that of its request as well: it comes last.
        app.pour(number, down[:-1])
        heard.append(app.hear_body(number))
        app.pour(number, down[-1:], end=True)
        poured.set()

    thread = threading.Thread(target=serve)
    thread.start()
    caller.pour(asked, up, end=True)
    assert caller.hear_body(asked) == down
    assert poured.wait(PATIENCE_S)
    thread.join()
    assert heard == [up]


@each_entry
def test_a_response_that_ends_first_ends_the_request(mesh: HttpMesh, entry: Entry) -> None:
    caller, asked, app, number = begin(mesh, entry)
    caller.say(asked, b"so far")
    assert app.hear(DataReceived, number).data == b"so far"
    app.say(number, b"enough", end=True)
    assert caller.hear_body(asked) == b"enough"
    assert caller.hear_reset(asked) == 0
    # Others on the connection go on.
    again = caller.ask("/again")
    _, fields = app.hear_request()
    assert (":path", "/again") in fields
    app.answer(app.h2.highest_inbound_stream_id)
    assert caller.hear_answer(again).body == b"ok"


# What nobody takes.

STREAMS = 40
CALLERS = 6
HELD = 8 * MIB
FEW = {
    "meshrun.proxy.memory:MOST_HELD_BYTES": HELD,
    "meshrun.proxy.memory:MANY": 16,
    "meshrun.proxy.memory:PERIOD_S": 0.1,
}


def wait_for_memory(sidecar: ControlledSidecar, most: int) -> None:
    """Return once the process has no more memory than that; nothing announces it."""
    deadline = time.monotonic() + PATIENCE_S
    while sidecar.memory_bytes() > most:
        assert time.monotonic() < deadline, f"{sidecar.memory_bytes()} bytes, not {most}"
        time.sleep(0.05)


def ask_and_take_nothing(mesh: HttpMesh) -> tuple[Wire2, Wire2]:
    """Ask for as many responses as there are streams, each larger than all windows."""
    caller = Wire2(mesh.call("peer"), client=True)
    caller.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
    asked = [caller.ask("/") for _ in range(STREAMS)]
    app = Wire2(mesh.app.accept(), client=False)
    numbers = [app.hear_request()[0] for _ in asked]
    for number in numbers:
        app.head(number, HEAD)
    for number in numbers:
        # As much as may be sent at all, over however many connections.
        while (room := min(app.h2.local_flow_control_window(number), 16_384)) > 0:
            app.say(number, bytes(room))
    for number in asked:
        caller.hear(ResponseReceived, number)
    return caller, app


def test_streams_that_nobody_takes_cost_little_memory_and_not_for_ever() -> None:
    with HttpMesh(protocol="http2", constants=FEW) as mesh:
        caller, _ = ask_and_take_nothing(mesh)
        caller.wire.close()
        before = mesh.server.memory_bytes()
        callers = [ask_and_take_nothing(mesh) for _ in range(CALLERS)]
        # Each may have half a MiB waiting and half a MiB on the way, beside what all share.
        assert mesh.server.memory_bytes() - before < HELD + CALLERS * 2 * MIB
        # The windows of all streams would be 60 MiB.
        for caller, app in callers:
            caller.wire.close()
            app.wire.close()
        wait_for_memory(mesh.server, before + 4 * MIB)


def test_a_stream_that_nobody_takes_is_reset() -> None:
    stalled = {"meshrun.proxy.http.connection2:STALLED_S": 0.3}
    with HttpMesh(protocol="http2", constants=stalled) as mesh:
        caller = Wire2(mesh.call("peer"), client=True)
        caller.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 0})
        slow, quick = caller.ask("/slow"), caller.ask("/quick")
        caller.h2.increment_flow_control_window(100, quick)
        caller.ask("/sends-the-window")
        app = Wire2(mesh.app.accept(), client=False)
        for number in [app.hear_request()[0] for _ in range(3)][:2]:
            app.answer(number, body=bytes(100))
        for asked in (slow, quick):
            caller.hear(ResponseReceived, asked)
        assert len(caller.hear_body(quick)) == 100
        assert caller.hear_reset(slow) == 8  # CANCEL
