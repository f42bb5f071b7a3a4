"""What is known of a connection without reading from it."""

import socket
from collections.abc import Iterator

import pytest

from meshrun.proxy import sockets


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with one, other:
        yield one, other


def test_a_connection_whose_other_side_is_there_has_not_hung_up(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    one, other = pair
    assert not sockets.hung_up(one)
    other.sendall(b"unread")
    assert not sockets.hung_up(one)


@pytest.mark.parametrize("unread", [b"", b"unread"], ids=["silent", "behind bytes"])
def test_an_end_is_known_before_it_is_read(
    pair: tuple[socket.socket, socket.socket], unread: bytes
) -> None:
    one, other = pair
    other.sendall(unread)
    other.shutdown(socket.SHUT_WR)
    assert sockets.hung_up(one)
    # And can be read as ever.
    assert one.recv(100) == unread


def test_a_reset_is_known_before_it_is_read(pair: tuple[socket.socket, socket.socket]) -> None:
    one, other = pair
    sockets.reset(other)
    assert sockets.hung_up(one)
    with pytest.raises(ConnectionResetError):
        one.recv(100)


def test_what_is_closed_here_has_hung_up(pair: tuple[socket.socket, socket.socket]) -> None:
    one, _ = pair
    one.close()
    assert sockets.hung_up(one)
