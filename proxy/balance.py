"""Which endpoint of a service gets the next connection. Pure: clock and randomness are arguments.

Of two endpoints taken at random the one with fewer connections in flight ("power of two choices",
Mitzenmacher 2001): close to the best choice, without the herd that a look at all would cause.
"""

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from random import Random

from meshrun.proxy.backoff import delay_s
from meshrun.proxy.messages import Ejection, Endpoint

__all__ = ["TCP_EJECTION", "Balancer"]

# Envoy's outlier detection: five failures in a row. Its 30 s would be long on one machine, where
# what failed is back in a second.
TCP_EJECTION = Ejection(failures=5, first_s=1.0, longest_s=30.0)


@dataclass(slots=True)
class _Record:
    """What is known of an endpoint: `failures` in a row, `ejections` since the last success."""

    in_flight: int = 0
    failures: int = 0
    ejections: int = 0
    ejected_until: float = 0.0


class Balancer:
    """The endpoints of one service, with what was seen of each. Times are a monotonic clock's."""

    def __init__(self, ejection: Ejection = TCP_EJECTION) -> None:
        self.ejection = ejection
        self._records: dict[Endpoint, _Record] = {}

    def update(self, endpoints: Iterable[Endpoint]) -> None:
        """Take these from now on; what is known of those that stay is kept."""
        self._records = {e: self._records.get(e) or _Record() for e in endpoints}

    def __len__(self) -> int:
        return len(self._records)

    def pick(self, now: float, rng: Random, tried: Collection[Endpoint] = ()) -> Endpoint | None:
        """Return an endpoint outside `tried`, or None.

        One that is ejected is returned only where every other is tried or ejected too: a bad
        endpoint is better than none.
        """
        open_to_choice = [e for e in self._records if e not in tried]
        healthy = [e for e in open_to_choice if self._records[e].ejected_until <= now]
        candidates = healthy or open_to_choice
        if len(candidates) < 2:
            return candidates[0] if candidates else None
        one, other = rng.sample(candidates, 2)
        return one if self._records[one].in_flight <= self._records[other].in_flight else other

    def opened(self, endpoint: Endpoint) -> None:
        """Count a connection, or the attempt at one."""
        if (record := self._records.get(endpoint)) is not None:
            record.in_flight += 1

    def closed(self, endpoint: Endpoint) -> None:
        """Count it no longer."""
        record = self._records.get(endpoint)
        # An endpoint that left and came back in between has not counted it.
        if record is not None and record.in_flight:
            record.in_flight -= 1

    def succeeded(self, endpoint: Endpoint) -> None:
        """Forget the failures of `endpoint`: it has proved who it is."""
        if (record := self._records.get(endpoint)) is not None:
            record.failures = record.ejections = 0
            record.ejected_until = 0.0

    def failed(self, endpoint: Endpoint, now: float) -> bool:
        """Note a failure; return whether it ejects `endpoint` for a while."""
        record = self._records.get(endpoint)
        if record is None:
            return False
        record.failures += 1
        ejection = self.ejection
        if not ejection.failures or record.failures % ejection.failures:
            return False
        record.ejections += 1
        record.ejected_until = now + delay_s(record.ejections, ejection.first_s, ejection.longest_s)
        return True
