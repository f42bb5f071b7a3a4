"""Streams one after the other over two joined tunnels, under a schedule drawn from a seed.

Each side of each stream sends bytes that no other stream has, ends or resets when it likes, and
reads as slowly as it likes; the inbound side accepts, at once or later, or refuses. Whatever
happens, every stream has its own bytes and no others, in order, and all of them if it ended in
order; and the tunnel is idle again, or closed. To repeat a schedule, run its test by name.
"""

import asyncio
import hashlib
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import cast

import pytest
from support.callers import caller
from support.sampling import sample
from support.tlspair import TlsPairs, run, tcp_pair, unix_pair, until

from meshrun.proxy import sockets
from meshrun.proxy.framing import Refusal
from meshrun.proxy.identity import Credentials
from meshrun.proxy.messages import Endpoint
from meshrun.proxy.poller import Poller
from meshrun.proxy.pump import Pump
from meshrun.proxy.splice import Splice
from meshrun.proxy.tunnel import InboundTunnel, Leftover, OutboundTunnel

pytestmark = pytest.mark.long

STREAMS = 12
PACES = ([0], [0, 0, 1, 2], [0, 0, 5, 20])

pairs = TlsPairs()
ENDPOINT = Endpoint(instance="server.1", host="127.0.0.1", port=1)
# Which credentials a tunnel has is its owner's business.
NONE = cast(Credentials, None)


def noise(seed: int, number: int, side: str, size: int) -> bytes:
    return hashlib.shake_256(f"{seed} {number} {side}".encode()).digest(size)


@dataclass(slots=True)
class Party:
    """One app of a stream: what it will do, and what it has met."""

    sock: socket.socket
    rng: Random
    to_say: bytes
    resets_at: int | None  # after so many bytes
    pauses: Sequence[int]  # for so many turns of the loop, one of these after each step
    said: int = 0
    heard: bytearray = field(default_factory=bytearray)
    reset: bool = False  # the other side's

    async def play(self) -> None:
        """Say and hear everything, or up to a reset by either side."""
        speaking = asyncio.ensure_future(self._speak())
        hearing = asyncio.ensure_future(self._listen())
        try:
            await speaking
            if self.resets_at is None:
                await hearing
        except OSError:
            self.reset = True
        for task in (speaking, hearing):
            task.cancel()
        await asyncio.gather(speaking, hearing, return_exceptions=True)
        if self.resets_at is None:
            self.sock.close()
        else:
            sockets.reset(self.sock)

    async def _speak(self) -> None:
        limit = len(self.to_say) if self.resets_at is None else self.resets_at
        while self.said < limit:
            size = self.rng.choice([1, 10, 1000, 16384, 65536, 200_000])
            part = self.to_say[self.said : min(self.said + size, limit)]
            try:
                self.said += self.sock.send(part)
            except BlockingIOError:
                await asyncio.sleep(0)
            await self._dawdle()
        if self.resets_at is None:
            self.sock.shutdown(socket.SHUT_WR)

    async def _listen(self) -> None:
        while True:
            try:
                data = self.sock.recv(self.rng.choice([1, 100, 16384, 65536]))
            except BlockingIOError:
                await asyncio.sleep(0)
                continue
            if not data:
                return
            self.heard += data
            await self._dawdle()

    async def _dawdle(self) -> None:
        for _ in range(self.rng.choice(self.pauses)):
            await asyncio.sleep(0)


class Stream:
    """A stream with an app on each side, and how it ended for each."""

    def __init__(self, poller: Poller, rng: Random, seed: int, number: int) -> None:
        self._poller = poller
        self._rng = rng
        self._near_says = noise(seed, number, "near", self._size())
        self._far_says = noise(seed, number, "far", self._size())
        self.answer = rng.choice(["accept"] * 4 + ["refuse"])
        self.later = rng.choice([0, 0, 0, 3, 30])
        self.near, self.app = self._party(self._near_says)
        self.far: Party | None = None
        self.unaccepted: bytes | None = None
        self.ends: dict[str, str | None] = {}
        self._playing = [asyncio.ensure_future(self.near.play())]

    def open_on(self, tunnel: OutboundTunnel) -> None:
        """Begin."""
        self.splice = Splice(self._poller, self.app, lambda why: self._ended("near", why))
        tunnel.open(self.splice, Leftover(), self._unaccepted)

    def accept_on(self, tunnel: InboundTunnel) -> None:
        """Give the stream its app on the other side."""
        self.far, app = self._party(self._far_says)
        self._playing.append(asyncio.ensure_future(self.far.play()))
        tunnel.accept(Splice(self._poller, app, lambda why: self._ended("far", why)))

    async def over(self) -> None:
        """Return once both apps are done and nothing of the stream is under way."""
        parties = ["near"] + ["far"] * (self.far is not None)
        if self.unaccepted is None:
            await until(lambda: all(each in self.ends for each in parties), "both sides have ended")
        await asyncio.wait_for(asyncio.gather(*self._playing), 20)

    def check(self) -> None:
        """Fail if either side heard what was not said to it, or not all of what it should."""
        near, far = self.near, self.far
        if self.unaccepted is not None:
            # Whoever opened it has every byte: from the tunnel, or still in the kernel.
            assert self._near_says.startswith(self.unaccepted)
            assert near.resets_at is not None or self.unaccepted == self._near_says
            assert not near.heard
            return
        assert far is not None or near.resets_at is not None
        heard_by_far = b"" if far is None else bytes(far.heard)
        assert self._near_says[: near.said].startswith(heard_by_far)
        assert self._far_says[: 0 if far is None else far.said].startswith(near.heard)
        if far is not None and near.resets_at is None and far.resets_at is None:
            assert self.ends == {"near": None, "far": None}
            assert heard_by_far == self._near_says
            assert near.heard == self._far_says
            assert not near.reset
            assert not far.reset

    def _unaccepted(self, _: Refusal | None, _reason: str, leftover: Leftover) -> None:
        assert self.unaccepted is None
        self.unaccepted = leftover.data
        self.splice.detach()
        self._playing.append(asyncio.ensure_future(self._hear_out(ended=leftover.ended)))

    async def _hear_out(self, *, ended: bool) -> None:
        assert self.unaccepted is not None
        while not ended:
            try:
                data = self.app.recv(65536)
            except BlockingIOError:
                await asyncio.sleep(0)
            except ConnectionError:
                break
            else:
                self.unaccepted += data
                ended = not data
        sockets.reset(self.app)

    def _ended(self, side: str, why: str | None) -> None:
        assert side not in self.ends, "it ended twice"
        self.ends[side] = why

    def _party(self, says: bytes) -> tuple[Party, socket.socket]:
        rng = self._rng
        near, far = tcp_pair(rng.choice([None, 4096]))
        resets_at = rng.randrange(len(says) + 1) if rng.random() < 0.25 else None
        return Party(near, Random(rng.random()), says, resets_at, rng.choice(PACES)), far

    def _size(self) -> int:
        return self._rng.choice([0, 1, 100, 16384, 65524, 65536, 150_000, 400_000])


class Link:
    """Two tunnels joined, and the stream under way."""

    def __init__(self, poller: Poller, rng: Random) -> None:
        near, far = unix_pair() if rng.random() < 0.5 else tcp_pair()
        client, server = pairs.join(near, far)
        self._loop = asyncio.get_running_loop()
        self.idle = {"near": True, "far": True}
        self.stream: Stream | None = None
        self._opened = 0
        self._waiting: asyncio.TimerHandle | None = None
        self.near = OutboundTunnel(Pump(poller, client), Near(self), ENDPOINT, NONE, 0.0)
        self.far = InboundTunnel(Pump(poller, server), Far(self), caller("client"), NONE, 0.0)
        self.near.start()
        self.far.start()

    @property
    def closed(self) -> bool:
        return self.near.closed or self.far.closed

    def open(self, stream: Stream) -> None:
        self.stream = stream
        self.idle["near"] = False
        stream.open_on(self.near)

    def close(self) -> None:
        self.near.close()
        self.far.close()

    # What the far tunnel asks its owner.

    def opened(self, tunnel: InboundTunnel) -> None:
        assert not tunnel.closed
        stream = self.stream
        assert stream is not None
        self.idle["far"] = False

        def answer() -> None:
            self._waiting = None
            if stream.answer == "accept":
                stream.accept_on(tunnel)
            else:
                tunnel.refuse(Refusal.BUSY, "no")

        self._answer_after(stream.later, answer)

    def _answer_after(self, turns: int, answer: Callable[[], None]) -> None:
        if turns:
            self._waiting = self._loop.call_later(0.0002, self._answer_after, turns - 1, answer)
        else:
            answer()

    def abandoned(self) -> None:
        assert self._waiting is not None, "a stream was abandoned that has its answer"
        self._waiting.cancel()
        self._waiting = None


class Near:
    """The owner of the outbound tunnel."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def stream_accepted(self, tunnel: OutboundTunnel) -> None:
        """Nobody waits for it."""

    def tunnel_idle(self, tunnel: OutboundTunnel) -> None:
        assert not tunnel.closed
        self._link.idle["near"] = True

    def tunnel_closed(self, _: OutboundTunnel) -> None:
        """Nothing is kept of it."""


class Far:
    """The owner of the inbound tunnel."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def stream_opened(self, tunnel: InboundTunnel) -> None:
        self._link.opened(tunnel)

    def stream_abandoned(self, _: InboundTunnel) -> None:
        self._link.abandoned()

    def tunnel_idle(self, tunnel: InboundTunnel) -> None:
        assert not tunnel.closed
        self._link.idle["far"] = True

    def tunnel_closed(self, _: InboundTunnel) -> None:
        """Nothing is kept of it."""


async def play(poller: Poller, seed: int) -> int:
    """Carry `STREAMS` streams; return how many of them were accepted."""
    rng = Random(seed)
    link = Link(poller, rng)
    streams = []
    for number in range(STREAMS):
        if link.closed:
            await until(partial(is_settled, link), "both sides know that the tunnel is closed")
            link = Link(poller, rng)
        stream = Stream(poller, rng, seed, number)
        streams.append(stream)
        link.open(stream)
        # The next one comes as soon as the outbound side may open it, whatever the inbound side
        # still has to bring to its app.
        await until(partial(is_free, link), f"stream {number} is over")
    for stream in streams:
        await stream.over()
        stream.check()
    await until(partial(is_settled, link), "the tunnel is idle on both sides, or closed")
    link.close()
    return sum(stream.far is not None for stream in streams)


def is_free(link: Link) -> bool:
    return link.idle["near"] or link.closed


def is_settled(link: Link) -> bool:
    if link.closed:
        return link.near.closed and link.far.closed
    return all(link.idle.values())


@pytest.mark.parametrize("seed", sample(range(1000), 60))
def test_every_stream_has_its_own_bytes_and_the_tunnel_goes_on(seed: int) -> None:
    assert run(lambda poller: play(poller, seed))
