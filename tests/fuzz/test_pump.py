"""TLS over a socket, whatever the wire does: fragments, cuts, damage, a peer that reads slowly.

What is delivered is always a prefix of what was sent, and all of it if the end came in order.
"""

import asyncio
import itertools
import ssl
from collections.abc import Sequence
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sampling import WHOLE
from support.tlspair import PATIENCE_S, TlsPairs, run, tcp_pair, unix_pair, until

from meshrun.proxy.handshake import Secured
from meshrun.proxy.poller import Poller
from meshrun.proxy.pump import MOST_WAITING_BYTES, Pump

pytestmark = pytest.mark.long

fuzz = settings(max_examples=1000 if WHOLE else 50, deadline=None)

pairs = TlsPairs()

sizes = st.lists(
    st.one_of(st.integers(1, 100), st.integers(16380, 16390), st.integers(1, 70_000)), max_size=8
)
cuts = st.lists(st.integers(0, 300_000), max_size=20)


class Listener:
    """The owner of a pump, which records what it is told; `lazy` leaves some to the kernel."""

    def __init__(self, pump: Pump, lazy: Random | None) -> None:
        self._pump = pump
        self._lazy = lazy
        self.heard = bytearray()
        self.ended = False
        self.errors: list[OSError] = []
        self.drains = 0

    @property
    def over(self) -> bool:
        return self.ended or bool(self.errors)

    def received(self, data: memoryview, *, ended: bool) -> None:
        assert not self.over
        self.heard += data
        self.ended = ended
        if self._lazy is not None and not ended and self._lazy.random() < 0.5:
            self._pump.listen(False)
            asyncio.get_running_loop().call_soon(self._pump.listen, True)

    def drained(self) -> None:
        self.drains += 1

    def broken(self, error: OSError) -> None:
        self.errors.append(error)
        self._pump.reset()


def sealed(far: Secured, messages: Sequence[bytes], *, end: bool = True) -> bytes:
    """Return what `far` sends for `messages`: each in its own records, then close_notify."""
    for message in messages:
        far.tls.write(message)
    if end:
        with pytest.raises(ssl.SSLWantReadError):
            far.tls.unwrap()
    return far.outgoing.read()


def fragments(wire: bytes, at: Sequence[int]) -> list[bytes]:
    ends = sorted({min(cut, len(wire)) for cut in at} | {0, len(wire)})
    return [wire[start:end] for start, end in itertools.pairwise(ends)]


def spoken(lengths: Sequence[int], seed: int = 1) -> list[bytes]:
    rng = Random(seed)
    return [rng.randbytes(length) for length in lengths]


async def hear(
    poller: Poller, near: Secured, far: Secured, parts: Sequence[bytes], lazy: Random | None
) -> Listener:
    """Return what a pump over `near` makes of these parts, behind which the connection ends."""
    loop = asyncio.get_running_loop()
    pump = Pump(poller, near)
    listener = Listener(pump, lazy)
    pump.start(listener)
    try:
        for part in parts:
            await asyncio.wait_for(loop.sock_sendall(far.sock, part), 20)
            await asyncio.sleep(0)
    except ConnectionError:
        assert listener.errors, "it was reset, and its owner knows nothing of it"
    far.sock.close()
    await until(lambda: listener.over, "the pump has heard how it ended")
    if not listener.errors:
        pump.close()
    return listener


def heard(parts: Sequence[bytes], ends: tuple[Secured, Secured], lazy: bool = False) -> Listener:
    return run(lambda poller: hear(poller, *ends, parts, Random(1) if lazy else None))


@fuzz
@given(sizes, cuts, st.booleans(), st.booleans())
def test_any_fragmentation_delivers_all_in_order(
    lengths: list[int], at: list[int], lazy: bool, unix: bool
) -> None:
    ends = pairs.join(*(unix_pair() if unix else tcp_pair()))
    messages = spoken(lengths)
    listener = heard(fragments(sealed(ends[1], messages), at), ends, lazy)
    assert listener.heard == b"".join(messages)
    assert listener.ended
    assert not listener.errors


def test_single_bytes_deliver_all_in_order() -> None:
    ends = pairs.join(*tcp_pair())
    messages = spoken([1, 100, 300])
    wire = sealed(ends[1], messages)
    listener = heard(fragments(wire, range(len(wire))), ends)
    assert listener.heard == b"".join(messages)
    assert listener.ended


@fuzz
@given(sizes.filter(bool), cuts, st.floats(0, 1, exclude_max=True))
def test_a_wire_cut_at_any_byte_is_broken_and_never_an_end(
    lengths: list[int], at: list[int], where: float
) -> None:
    ends = pairs.join(*tcp_pair())
    messages = spoken(lengths)
    wire = sealed(ends[1], messages)
    listener = heard(fragments(wire[: int(len(wire) * where)], at), ends)
    assert b"".join(messages).startswith(listener.heard)
    assert not listener.ended
    assert len(listener.errors) == 1


@fuzz
@given(
    sizes.filter(bool), cuts, st.floats(0, 1, exclude_max=True), st.integers(0, 7), st.booleans()
)
def test_a_bit_that_was_changed_delivers_nothing_behind_it(
    lengths: list[int], at: list[int], where: float, bit: int, lazy: bool
) -> None:
    ends = pairs.join(*tcp_pair())
    messages = spoken(lengths)
    wire = bytearray(sealed(ends[1], messages))
    wire[int(len(wire) * where)] ^= 1 << bit
    listener = heard(fragments(bytes(wire), at), ends, lazy)
    assert b"".join(messages).startswith(listener.heard)
    assert not listener.ended
    assert len(listener.errors) == 1


@fuzz
@given(sizes, cuts, st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=300))
def test_garbage_in_between_delivers_nothing_behind_it(
    lengths: list[int], at: list[int], where: float, garbage: bytes
) -> None:
    ends = pairs.join(*tcp_pair())
    messages = spoken(lengths)
    wire = sealed(ends[1], messages)
    middle = int(len(wire) * where)
    damaged = wire[:middle] + garbage + wire[middle:]
    listener = heard(fragments(damaged, at), ends)
    assert b"".join(messages).startswith(listener.heard)
    if listener.ended:
        # What was put in may be what stands there anyway: the damage is behind the end then.
        assert damaged.startswith(wire)
        assert listener.heard == b"".join(messages)


@fuzz
@given(sizes, st.integers(0, 2**32), st.booleans())
def test_a_peer_that_reads_slowly_gets_all_in_order(
    lengths: list[int], seed: int, unix: bool
) -> None:
    said = b"".join(spoken(lengths, seed))
    ends = pairs.join(*(unix_pair() if unix else tcp_pair(4096)))
    opened = run(
        lambda poller: asyncio.wait_for(
            say(poller, *ends, spoken(lengths, seed), Random(seed)), PATIENCE_S
        )
    )
    assert opened == said


async def say(
    poller: Poller, near: Secured, far: Secured, messages: Sequence[bytes], rng: Random
) -> bytes:
    """Write `messages` and the end; return what the other side, which reads in bits, opened."""
    pump = Pump(poller, near)
    listener = Listener(pump, None)
    pump.start(listener)
    opened = bytearray()
    waits = 0
    for last, message in [*((False, each) for each in messages), (True, b"")]:
        waits += pump.empty
        taken = pump.write_end(message) if last else pump.write(message)
        assert taken is pump.empty
        waits -= taken
        # What is written to a full pump stands behind the rest.
        while not pump.empty and rng.random() < 0.9:
            await read_some(far, opened, rng)
    while not far_ended(far, opened):
        await read_some(far, opened, rng)
    assert pump.empty
    assert listener.drains == waits
    assert not listener.errors
    pump.close()
    far.sock.close()
    return bytes(opened)


async def read_some(far: Secured, opened: bytearray, rng: Random) -> None:
    try:
        far.incoming.write(far.sock.recv(rng.choice([1, 100, 5000, 65536])))
    except BlockingIOError:
        await asyncio.sleep(0)
    far_ended(far, opened)


def far_ended(far: Secured, opened: bytearray) -> bool:
    try:
        while data := far.tls.read(65536):
            opened += data
    except ssl.SSLWantReadError:
        return False
    except ssl.SSLZeroReturnError:
        pass
    return True


def test_what_waits_for_a_peer_that_does_not_read_is_bounded_by_what_was_written() -> None:
    async def main(poller: Poller) -> None:
        near, far = pairs.join(*unix_pair())
        pump = Pump(poller, near)
        listener = Listener(pump, None)
        pump.start(listener)
        written = 0
        while pump.write(b"x" * 16384):
            written += 16384
            assert written < 64 * MOST_WAITING_BYTES, "it takes without end"
        assert len(pump._unsent) <= 16384 + 22
        far.sock.close()
        await until(lambda: listener.over, "the pump knows that the peer has gone")
        assert len(pump._unsent) == 0

    run(main)
