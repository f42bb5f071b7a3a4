"""How much a peer may ask for what moves nothing, before it is sent away. Pure."""

__all__ = ["Patience"]


class Patience:
    """A bucket of at most `most` that fills by `per_s` a second, and by whatever is earned."""

    __slots__ = ("_at", "_left", "_most", "_per_s")

    def __init__(self, most: float, per_s: float) -> None:
        self._most = most
        self._per_s = per_s
        self._left = most
        self._at = 0.0

    def spend(self, now: float, amount: float = 1.0) -> bool:
        """Take `amount` at `now`, in seconds of a clock that never goes back; return if it had."""
        self._left = min(self._most, self._left + (now - self._at) * self._per_s) - amount
        self._at = now
        return self._left >= 0

    def earn(self, amount: float) -> None:
        """Put `amount` back: the peer has moved something."""
        self._left = min(self._most, self._left + amount)
