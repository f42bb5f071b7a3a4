"""How long to wait before the next try."""

__all__ = ["delay_s"]


def delay_s(failures: int, first_s: float, most_s: float) -> float:
    """Return `first_s` after the first failure, doubled by each further one, at most `most_s`."""
    # Where it has long reached the most, 2 ** failures need not fit a float.
    return min(most_s, first_s * 2.0 ** min(failures - 1, 64)) if failures > 0 else 0.0
