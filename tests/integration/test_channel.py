"""The channel's driver, over a real socket pair."""

import asyncio
import socket
from collections.abc import Awaitable, Callable

from meshrun.proxy import channel
from meshrun.proxy.channel import Channel
from meshrun.proxy.errors import ChannelError
from meshrun.proxy.messages import Enforced, FromSidecar, Logged, Renew, ToSidecar

PATIENCE_S = 20.0


class Ends:
    """Both ends, on one loop, with what each received and how each was closed."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair()
        self.raw = mine
        self.closed: asyncio.Queue[Exception | None] = asyncio.Queue()
        self.at_control: asyncio.Queue[FromSidecar] = asyncio.Queue()
        self.at_sidecar: asyncio.Queue[ToSidecar] = asyncio.Queue()
        self.control = Channel(
            mine, channel.from_sidecar(), self.at_control.put_nowait, self.closed.put_nowait
        )
        self.sidecar = Channel(
            theirs, channel.to_sidecar(), self.at_sidecar.put_nowait, self.closed.put_nowait
        )


def run(test: Callable[[Ends], Awaitable[None]]) -> None:
    async def body() -> None:
        ends = Ends()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await test(ends)
        finally:
            ends.control.close()
            ends.sidecar.close()

    asyncio.run(body())


def test_messages_go_both_ways_in_order() -> None:
    async def test(ends: Ends) -> None:
        for version in range(100):
            ends.sidecar.send(Enforced(version=version))
        ends.control.send(Renew())
        assert await ends.at_sidecar.get() == Renew()
        received = [await ends.at_control.get() for _ in range(100)]
        assert received == [Enforced(version=version) for version in range(100)]

    run(test)


def test_what_a_stuck_peer_does_not_take_is_counted_and_delivered_later() -> None:
    async def test(ends: Ends) -> None:
        message = Logged(level="info", message="x" * 1_000_000)
        for _ in range(5):
            ends.sidecar.send(message)
        # The other end is on the same loop and has not run yet: nothing was read.
        assert ends.sidecar.pending_bytes > 1_000_000
        for _ in range(5):
            assert await ends.at_control.get() == message
        assert ends.sidecar.pending_bytes == 0

    run(test)


def test_the_end_of_the_peer_is_told_once_without_an_error() -> None:
    async def test(ends: Ends) -> None:
        ends.control.close()
        assert await ends.closed.get() is None
        assert ends.sidecar.closed
        ends.sidecar.send(Enforced(version=1))
        ends.sidecar.close()
        assert ends.closed.empty()

    run(test)


def test_an_unreadable_message_closes_with_the_error() -> None:
    async def test(ends: Ends) -> None:
        ends.raw.send(b"\xff\xff\xff\xff")
        assert isinstance(await ends.closed.get(), ChannelError)
        assert ends.sidecar.closed

    run(test)


def test_no_message_comes_after_close() -> None:
    async def test(ends: Ends) -> None:
        received: list[ToSidecar] = []
        both_sent, both_taken = socket.socketpair()

        def close_at_once(message: ToSidecar) -> None:
            received.append(message)
            other.close()

        other = Channel(both_taken, channel.to_sidecar(), close_at_once, ends.closed.put_nowait)
        with both_sent:
            both_sent.send(channel.encode(Renew()) * 2)
            await asyncio.get_running_loop().sock_recv(non_blocking(both_sent), 1)
        assert received == [Renew()]
        assert ends.closed.empty()

    run(test)


def non_blocking(sock: socket.socket) -> socket.socket:
    sock.setblocking(False)
    return sock
