"""Which endpoint of a service gets the next connection. Pure: clock and randomness are arguments.

Of two endpoints taken at random the one with fewer connections in flight ("power of two choices",
Mitzenmacher 2001): close to the best choice, without the herd that a look at all would cause.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from random import Random

from meshrun.proxy.backoff import delay_s
from meshrun.proxy.messages import Ejection, Endpoint

__all__ = ["TCP_EJECTION", "Balancer", "InFlight", "Standing"]

# Envoy's outlier detection: five failures in a row. Its 30 s would be long on one machine, where
# what failed is back in a second.
TCP_EJECTION = Ejection(failures=5, first_s=1.0, longest_s=30.0)


@dataclass(slots=True, eq=False)
class Standing:
    """What is known of an endpoint: `failures` in a row, `ejections` since the last success."""

    in_flight: int = 0
    failures: int = 0
    ejections: int = 0
    ejected_until: float = 0.0

    def succeeded(self) -> None:
        """Forget the failures: it has proved that it can do better."""
        if self.failures:
            self.failures = self.ejections = 0
            self.ejected_until = 0.0


class InFlight:
    """Requests that go the same way, counted where that leads to, each exactly once.

    The way may lead elsewhere while they are under way, or for a time nowhere.
    """

    __slots__ = ("count", "standing")

    def __init__(self) -> None:
        self.count = 0
        self.standing: Standing | None = None

    def move(self, standing: Standing | None) -> None:
        """Count all of them with `standing` from now on, and no longer where they were."""
        if self.standing is not None:
            self.standing.in_flight -= self.count
        self.standing = standing
        if standing is not None:
            standing.in_flight += self.count

    def began(self) -> None:
        """Count one more."""
        self.count += 1
        if self.standing is not None:
            self.standing.in_flight += 1

    def ended(self) -> None:
        """Count one less."""
        assert self.count
        self.count -= 1
        if self.standing is not None:
            self.standing.in_flight -= 1


class Balancer:
    """The endpoints of one service, with what was seen of each. Times are a monotonic clock's."""

    def __init__(self, ejection: Ejection = TCP_EJECTION) -> None:
        self.ejection = ejection
        self._standings: dict[Endpoint, Standing] = {}
        self._choices: list[tuple[Endpoint, Standing]] = []
        # What left with something under way: a probe that fails once brings it back in a moment.
        self._left: dict[Endpoint, Standing] = {}

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Take these from now on; what is known of those that stay is kept.

        One that comes back has a good name again, but what has been under way still counts.
        """
        before, left = self._standings, self._left
        self._standings = {}
        for endpoint in endpoints:
            standing = before.get(endpoint)
            if standing is None:
                standing = left.get(endpoint) or Standing()
                standing.succeeded()
            self._standings[endpoint] = standing
        self._choices = list(self._standings.items())
        self._left = {
            endpoint: standing
            for endpoint, standing in (*left.items(), *before.items())
            if standing.in_flight and endpoint not in self._standings
        }

    def __len__(self) -> int:
        return len(self._choices)

    def pick(self, now: float, rng: Random, tried: Collection[Endpoint] = ()) -> Endpoint | None:
        """Return an endpoint outside `tried`, or None.

        One that is ejected is returned only where every other is tried or ejected too: a bad
        endpoint is better than none.
        """
        choices = self._choices
        if tried:
            choices = [choice for choice in choices if choice[0] not in tried]
        count = len(choices)
        if count < 2:
            return choices[0][0] if choices else None
        # By far the most often nothing is ejected, and two of all are two of the healthy.
        one, other = _two(choices, rng)
        if one[1].ejected_until > now or other[1].ejected_until > now:
            healthy = [choice for choice in choices if choice[1].ejected_until <= now]
            if len(healthy) == 1:
                return healthy[0][0]
            one, other = _two(healthy or choices, rng)
        return one[0] if one[1].in_flight <= other[1].in_flight else other[0]

    def standing(self, endpoint: Endpoint) -> Standing:
        """Return what is known of `endpoint`: of one that is not known, nothing that counts."""
        return self._standings.get(endpoint) or self._left.get(endpoint) or Standing()

    def opened(self, endpoint: Endpoint) -> None:
        """Count a connection, or the attempt at one."""
        self.standing(endpoint).in_flight += 1

    def closed(self, endpoint: Endpoint) -> None:
        """Count it no longer."""
        standing = self.standing(endpoint)
        # One that was not known when it was opened has not counted it.
        if standing.in_flight:
            standing.in_flight -= 1

    def succeeded(self, endpoint: Endpoint) -> None:
        """Forget the failures of `endpoint`: it has proved who it is."""
        self.standing(endpoint).succeeded()

    def failed(self, endpoint: Endpoint, now: float) -> bool:
        """Note a failure; return whether it ejects `endpoint` for a while."""
        standing = self._standings.get(endpoint)
        if standing is None:
            return False
        standing.failures += 1
        ejection = self.ejection
        if not ejection.failures or standing.failures % ejection.failures:
            return False
        standing.ejections += 1
        standing.ejected_until = now + delay_s(
            standing.ejections, ejection.first_s, ejection.longest_s
        )
        return True


def _two(
    choices: list[tuple[Endpoint, Standing]], rng: Random
) -> tuple[tuple[Endpoint, Standing], tuple[Endpoint, Standing]]:
    # As `rng.sample(choices, 2)`, which takes three times as long.
    count = len(choices)
    first = int(rng.random() * count)
    second = int(rng.random() * (count - 1))
    return choices[first], choices[second + (second >= first)]
