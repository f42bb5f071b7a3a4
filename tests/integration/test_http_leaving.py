"""A caller that goes away with all that it has asked, and others on the same way to the app."""

from h2.events import StreamReset
from support.httpmesh import HttpMesh
from support.wire2 import Wire2

MANY = 900


def test_caller_that_leaves_many_requests_behind_takes_no_other_s_with_it() -> None:
    # All of one app's requests share a connection to the server's sidecar, to which so many resets
    # look like a flood.
    with HttpMesh(protocol="http2") as mesh:
        staying = Wire2(mesh.call(), client=True)
        number = staying.ask("/stays", method="POST")
        app = Wire2(mesh.app.accept(), client=False)
        asked, _ = app.hear_request()
        app.allow_streams(2 * MANY)

        leaving = Wire2(mesh.call(), client=True)
        for _ in range(MANY):
            leaving.ask("/leaves")
        for _ in range(MANY):
            app.hear_request()
        leaving.wire.close()
        for _ in range(MANY):
            app.hear(StreamReset)

        app.answer(asked)
        assert staying.hear_answer(number).status == 200
