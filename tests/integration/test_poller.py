"""Events of real sockets: each reaches the connection that it is of, and no other."""

import os
import socket
from functools import partial

import pytest

from meshrun.proxy.poller import READABLE, Poller


def readable() -> tuple[socket.socket, socket.socket]:
    """Return a socket that has something to read, and the one that sent it."""
    near, far = socket.socketpair()
    far.send(b"x")
    return near, far


@pytest.mark.parametrize("leave", ["forget", "remove"])
def test_an_event_never_reaches_another_socket_of_the_same_number(leave: str) -> None:
    poller = Poller()
    heard: list[str] = []
    replaced: list[int] = []
    pairs = [readable(), readable()]
    successor = readable()
    numbers = [near.fileno() for near, _ in pairs]

    def came(index: int, _events: int) -> None:
        # Whichever comes first replaces the other, whose event is in the same batch.
        if replaced:
            return
        other = numbers[1 - index]
        replaced.append(other)
        getattr(poller, leave)(other)
        os.dup2(successor[0].fileno(), other)
        poller.add(other, READABLE, lambda _: heard.append("successor"))

    for index, number in enumerate(numbers):
        poller.add(number, READABLE, partial(came, index))
    poller.select(0)
    assert heard == []
    poller.select(0)
    assert heard == ["successor"], "its own event comes with the next wait"
    for number in numbers:
        poller.remove(number)
    poller.close()
    for near, far in [*pairs, successor]:
        near.close()
        far.close()
