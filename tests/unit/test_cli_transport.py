"""HTTP answers, read from bytes that come in pieces of any size."""

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.cli import transport
from meshrun.supervisor.cli.transport import Response, TransportError


class Dripping:
    """A reader that gives at most `step` bytes at a time."""

    def __init__(self, content: bytes, step: int) -> None:
        self._content = io.BytesIO(content)
        self._step = step

    def readline(self, limit: int, /) -> bytes:
        return self._content.readline(limit)

    def read1(self, size: int, /) -> bytes:
        return self._content.read(min(size, self._step))


def response(content: bytes, step: int = 3) -> Response:
    return Response(Dripping(content, step))


def chunked(chunks: list[bytes]) -> bytes:
    body = b"".join(b"%x;ext=1\r\n%s\r\n" % (len(c), c) for c in chunks if c)
    return b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\n\r\n" + body + b"0\r\n\r\n"


def test_a_body_of_known_length() -> None:
    found = response(b"HTTP/1.1 404 Not Found\r\nContent-Length: 5\r\n\r\nhello, and more")
    assert (found.status, found.body()) == (404, b"hello")


def test_a_body_until_the_end_of_the_connection() -> None:
    assert response(b"HTTP/1.0 200 OK\r\n\r\nhello").body() == b"hello"


@given(st.lists(st.binary(max_size=20)), st.integers(1, 30))
def test_a_chunked_body_is_the_sum_of_its_chunks(chunks: list[bytes], step: int) -> None:
    assert response(chunked(chunks), step).body() == b"".join(chunks)


@given(st.lists(st.text("ab\n", max_size=9)), st.integers(1, 9))
def test_lines_do_not_depend_on_chunks(chunks: list[str], step: int) -> None:
    content = "".join(chunks).encode()
    whole = content.removesuffix(b"\n").split(b"\n") if content else []
    found = list(response(chunked([chunk.encode() for chunk in chunks]), step).lines())
    assert found == whole


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhell",
        b"HTTP/1.1 200 OK\r\nContent-Length: five\r\n\r\nhello",
        b"HTTP/1.1 OK\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 200 + b"\r\n",
        b"HTTP/1.1 200 OK\r\nA: " + b"b" * 10_000 + b"\r\n\r\n",
    ],
)
def test_whatever_is_not_a_whole_answer_is_an_error(content: bytes) -> None:
    with pytest.raises(TransportError):
        response(content).body()


@given(st.binary(max_size=200))
def test_no_bytes_do_anything_but_answer_or_fail(content: bytes) -> None:
    try:
        list(response(b"HTTP/1.1 200 OK\r\n" + content).lines())
    except TransportError:
        pass


def test_a_line_and_a_body_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "LINE_LIMIT_BYTES", 10)
    monkeypatch.setattr(transport, "BODY_LIMIT_BYTES", 10)
    with pytest.raises(TransportError, match="a line is longer"):
        list(response(chunked([b"x" * 11])).lines())
    with pytest.raises(TransportError, match="larger than"):
        response(chunked([b"x\n" * 11])).body()
