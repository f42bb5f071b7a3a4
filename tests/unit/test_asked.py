"""A request that is asked about is read as a sidecar reads it."""

import pytest

from meshrun.supervisor.asked import UnaskableError, asked


def test_nothing_said_is_no_request() -> None:
    assert asked(None, None, []) is None


def test_what_is_not_said_is_ordinary() -> None:
    for request in (asked("GET", None, []), asked(None, "/", [])):
        assert request is not None
        assert (request.method, request.path, request.query) == ("GET", "/", "")
        assert (request.authority, request.fields) == ("127.0.0.1", [])


def test_a_request_is_brought_into_its_normal_form() -> None:
    request = asked("PUT", "/a/../b//%63?d=%2e", ["X-Role=a:b", "host: API:80", "x: =1", "n=é"])
    assert request is not None
    assert (request.method, request.path, request.query) == ("PUT", "/b/c", "?d=%2e")
    assert request.authority == "API:80"
    assert request.fields == [("X-Role", "a:b"), ("x", "=1"), ("n", "é".encode().decode("latin-1"))]


@pytest.mark.parametrize(
    ("method", "path", "headers", "said"),
    [
        ("get", None, [], "with 400"),
        ("", None, [], "with 400"),
        ("GET /x", None, [], "with 400"),
        ("CONNECT", None, [], "with 405"),
        (None, "", [], "with 400"),
        (None, "admin", [], "with 400"),
        (None, "/a b", [], "with 400"),
        (None, "/é", [], "with 400"),
        (None, "/%00", [], "with 400"),
        (None, None, ["x_role=1"], "with 400"),
        (None, None, ["Host=a", "Host=b"], "with 400"),
        (None, None, ["x"], "cannot use the header x: it must be NAME=VALUE or NAME:VALUE"),
        (None, None, ["=x"], "cannot use the header =x"),
        (None, None, ["x=1\r\ny: 2"], "control characters"),
        (None, "/ HTTP/1.1\r\nx: 1\r\n", [], "control characters"),
        (None, "/" + "a" * 70_000, [], "with 414"),
    ],
)
def test_what_no_sidecar_would_take_is_said_to_be(
    method: str | None, path: str | None, headers: list[str], said: str
) -> None:
    with pytest.raises(UnaskableError, match=said):
        asked(method, path, headers)
