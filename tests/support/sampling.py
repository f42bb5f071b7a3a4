"""Long tests: whole in `make test-long`, a seeded sample of them in `make test`."""

import os
import random
from collections.abc import Sequence
from typing import TypeVar

__all__ = ["EXAMPLES", "HISTORIES", "WHOLE", "sample"]

WHOLE = os.environ.get("MESHRUN_TEST_LONG") == "1"
SEED = 2
# How many examples a property that takes its time is tried with.
EXAMPLES = 100 if WHOLE else 30
# How many random histories of the state machine are lived through; `make histories` has more.
HISTORIES = int(os.environ.get("MESHRUN_TEST_HISTORIES", "1000"))

T = TypeVar("T")


def sample(cases: Sequence[T], size: int, seed: int = SEED) -> Sequence[T]:
    """Return all cases where tests run whole, else the same `size` of them every time."""
    if WHOLE or size >= len(cases):
        return cases
    return random.Random(seed).sample(cases, size)
