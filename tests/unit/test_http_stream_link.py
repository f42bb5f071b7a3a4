"""Links over carriers: how much of a stream goes before it is accepted, and who is told what."""

import asyncio
from dataclasses import dataclass, field

from meshrun.proxy.framing import MOST_EARLY_BYTES
from meshrun.proxy.http.link import EARLY_PIECE_BYTES, StreamLink
from meshrun.proxy.splice import NoCarrier

BULK = b"x" * 10 * MOST_EARLY_BYTES


class Carrier(NoCarrier):
    """Takes everything, or fails."""

    def __init__(self, link: StreamLink, *, broken: bool = False) -> None:
        self.sent: list[int] = []
        self._link = link
        self._broken = broken

    def send(self, count: int, *, last: bool) -> bool:
        if self._broken:
            raise ConnectionResetError("the other side is gone")
        self.sent.append(count)
        return True

    def fail(self, error: OSError) -> None:
        self._link.broken(str(error))


@dataclass
class Owner:
    """Notes what it is told."""

    told: list[str] = field(default_factory=list)

    def received(self, data: memoryview) -> None:
        self.told.append("received")

    def ended(self) -> None:
        self.told.append("ended")

    def drained(self) -> None:
        self.told.append("drained")

    def broken(self, reason: str) -> None:
        self.told.append("broken")


def carried(link: StreamLink) -> Carrier:
    carrier = Carrier(link)
    link.attach(carrier)
    return carrier


def test_pieces_are_small_until_a_stream_is_accepted() -> None:
    link = StreamLink(early=True)
    carrier = carried(link)
    link.write(BULK)
    assert max(carrier.sent) == EARLY_PIECE_BYTES
    assert sum(carrier.sent) == len(BULK)
    carrier.sent.clear()
    link.drained()  # it took all that there was, and nobody waits
    link.write(BULK[: 2 * EARLY_PIECE_BYTES])
    assert carrier.sent == [2 * EARLY_PIECE_BYTES]


def test_pieces_are_small_again_in_a_stream_that_was_not_accepted() -> None:
    link = StreamLink(early=True)
    carried(link)
    link.drained()
    link.detach()
    carrier = carried(link)
    link.send_again(b"again", last=False)
    link.write(BULK)
    assert carrier.sent[0] == len(b"again")
    assert max(carrier.sent) == EARLY_PIECE_BYTES


def told_after_a_write_that_broke(*, closed: bool) -> list[str]:
    async def run() -> list[str]:
        link, owner = StreamLink(early=False), Owner()
        link.start(owner)
        link.attach(Carrier(link, broken=True))
        link.write(b"words")
        assert not owner.told
        if closed:
            link.close()
        await asyncio.sleep(0)
        return owner.told

    return asyncio.run(run())


def test_a_write_that_breaks_is_told_of_in_another_turn() -> None:
    assert told_after_a_write_that_broke(closed=False) == ["broken"]


def test_whoever_closed_meanwhile_is_told_nothing() -> None:
    assert told_after_a_write_that_broke(closed=True) == []
