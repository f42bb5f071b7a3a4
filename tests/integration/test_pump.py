"""TLS over one socket: what its owner is told, and when."""

from support.apps import reset
from support.tlspair import TlsPairs, run, tcp_pair, until

from meshrun.proxy.handshake import Secured
from meshrun.proxy.poller import Poller
from meshrun.proxy.pump import Pump


class Owner:
    """Notes what it is told, and in whose call."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.calling = False

    def received(self, data: memoryview, *, ended: bool) -> None:
        self._note(bytes(data).decode())

    def drained(self) -> None:
        self._note("drained")

    def broken(self, error: OSError) -> None:
        self._note(f"broken: {type(error).__name__}")

    def _note(self, what: str) -> None:
        self.told.append(f"within its own call: {what}" if self.calling else what)


def met_by_a_write(size: int, *, listening: bool = True, before: str = "") -> list[str]:
    """Return what is told of a connection that its peer reset, where a write is what finds out."""

    async def main(poller: Poller) -> list[str]:
        near, peer = TlsPairs().join(*tcp_pair())
        owner, pump = Owner(), Pump(poller, near)
        pump.start(owner)
        pump.listen(listening)
        say_and_reset(peer, before)
        owner.calling = True
        assert not pump.write(b"x" * size)
        assert not pump.write(b"x")
        assert not pump.empty
        owner.calling = False
        await until(lambda: any("broken" in told for told in owner.told), "it is broken")
        pump.reset()
        return owner.told

    return run(main)


def say_and_reset(peer: Secured, words: str) -> None:
    if words:
        peer.tls.write(words.encode())
        peer.sock.send(peer.outgoing.read())
    reset(peer.sock)


def test_last_words_are_heard_after_the_write_that_met_the_reset() -> None:
    for size in (1, 100_000):
        assert met_by_a_write(size, before="last words") == [
            "last words",
            "broken: ConnectionResetError",
        ]


def test_a_reset_without_a_word_is_told_after_the_write_that_met_it() -> None:
    assert met_by_a_write(1) == ["broken: ConnectionResetError"]


def test_whoever_does_not_listen_is_told_of_the_reset_alone() -> None:
    told = met_by_a_write(1, listening=False, before="last words")
    assert told == ["broken: ConnectionResetError"]
