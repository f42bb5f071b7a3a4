"""Carries one connection over one TLS connection: to peers that know no tunnels.

Plain and TLS end alike in both directions (a FIN on one side is a close_notify on the other), and
so does a reset.
"""

from meshrun.proxy.pump import Pump
from meshrun.proxy.splice import DATA_AT, Rider, outward

__all__ = ["Direct"]


class Direct:
    """Joins `rider` to the peer of `pump`, and is the owner of both from `start` on."""

    __slots__ = ("_ended", "_pump", "_rider")

    def __init__(self, pump: Pump, rider: Rider) -> None:
        self._pump = pump
        self._rider: Rider | None = rider
        self._ended = False  # by the peer

    def start(self) -> None:
        """Begin to move bytes, first those that the handshake read too far."""
        rider = self._rider
        assert rider is not None
        rider.start(self)
        self._pump.start(self)

    @property
    def hung_up(self) -> bool:
        """Whether the peer has closed the connection, also where that was not read yet."""
        return self._pump.hung_up

    # The rider's carrier.

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
        self._rider = None
        self._pump.close()

    def abort(self) -> None:
        """Reset the peer's connection."""
        self._rider = None
        self._pump.reset()

    def fail(self, error: OSError) -> None:
        """Reset it after an error."""
        self.broken(error)

    # The pump's owner.

    def received(self, data: memoryview, *, ended: bool) -> None:
        """Deliver what the peer sent."""
        rider = self._rider
        if rider is None:
            return
        if data:
            rider.deliver(data)
        # The delivery may have ended the rider.
        if ended and self._rider is not None:
            self._ended = True
            self._pump.listen(False)
            rider.end()

    def drained(self) -> None:
        """Let the app send again."""
        if self._rider is not None:
            self._rider.drained()

    def broken(self, error: OSError) -> None:
        """Reset both."""
        rider, self._rider = self._rider, None
        self._pump.reset()
        if rider is not None:
            rider.broken(str(error))
