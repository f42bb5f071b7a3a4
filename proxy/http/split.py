"""Which of several services a request goes to. Pure: randomness is an argument."""

from collections.abc import Sequence
from random import Random

__all__ = ["choose"]


def choose(shares: Sequence[tuple[str, int]], rng: Random) -> str:
    """Return one of the names, each as often as its weight says."""
    if len(shares) == 1:
        return shares[0][0]
    at = rng.randrange(sum(weight for _, weight in shares))
    for name, weight in shares:
        if at < weight:
            return name
        at -= weight
    raise AssertionError("the weights add up")
