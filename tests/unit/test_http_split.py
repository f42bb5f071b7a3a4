"""Which service of a split a request goes to."""

from collections import Counter
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from meshrun.proxy.http.split import choose

SHARES = st.dictionaries(st.text(max_size=3), st.integers(1, 10_000), min_size=1, max_size=8)


@given(SHARES, st.integers(0, 2**32))
def test_one_of_the_services_is_chosen(shares: dict[str, int], seed: int) -> None:
    assert choose(list(shares.items()), Random(seed)) in shares


def test_each_weight_is_met_exactly_over_all_that_can_be_drawn() -> None:
    class Drawn(Random):
        """Draws every number once, in order."""

        def __init__(self) -> None:
            super().__init__(0)
            self.next = -1

        def randrange(self, *_: object) -> int:
            self.next += 1
            return self.next

    drawn = Drawn()
    shares = [("reviews", 90), ("reviews-v2", 9), ("reviews-v3", 1)]
    assert Counter(choose(shares, drawn) for _ in range(100)) == dict(shares)
