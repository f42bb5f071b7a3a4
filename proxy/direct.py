"""Carries one connection over one TLS connection: to peers that know no tunnels.

Plain and TLS end alike in both directions (a FIN on one side is a close_notify on the other), and
so does a reset.
"""

from meshrun.proxy.pump import Pump
from meshrun.proxy.splice import DATA_AT, Splice, outward

__all__ = ["Direct"]


class Direct:
    """Joins `splice` to the peer of `pump`, and is the owner of both from `start` on."""

    __slots__ = ("_ended", "_pump", "_splice")

    def __init__(self, pump: Pump, splice: Splice) -> None:
        self._pump = pump
        self._splice: Splice | None = splice
        self._ended = False  # by the peer

    def start(self) -> None:
        """Begin to move bytes, first those that the handshake read too far."""
        splice = self._splice
        assert splice is not None
        splice.start(self)
        self._pump.start(self)

    # The splice's carrier.

    def send(self, count: int, *, last: bool) -> bool:
        """Seal what the app sent."""
        data = outward[DATA_AT : DATA_AT + count]
        return self._pump.write_end(data) if last else self._pump.write(data)

    def hold(self) -> None:
        """Leave to the kernel what the peer sends."""
        self._pump.listen(False)

    def resume(self) -> None:
        """Receive again."""
        if not self._ended:
            self._pump.listen(True)

    def finish(self) -> None:
        """Both sides have said close_notify."""
        self._splice = None
        self._pump.close()

    def abort(self) -> None:
        """Reset the peer's connection."""
        self._splice = None
        self._pump.reset()

    def fail(self, error: OSError) -> None:
        """Reset it after an error."""
        self.broken(error)

    # The pump's owner.

    def received(self, data: memoryview, *, ended: bool) -> None:
        """Deliver what the peer sent."""
        splice = self._splice
        if splice is None:
            return
        if data:
            splice.deliver(data)
        # The delivery may have ended the splice.
        if ended and self._splice is not None:
            self._ended = True
            self._pump.listen(False)
            splice.end()

    def drained(self) -> None:
        """Let the app send again."""
        if self._splice is not None:
            self._splice.drained()

    def broken(self, error: OSError) -> None:
        """Reset both."""
        splice, self._splice = self._splice, None
        self._pump.reset()
        if splice is not None:
            splice.broken(str(error))
