"""How many requests of one upstream are under way, against its limits (Envoy's circuit breakers).

Pure. Each `take` that returned True is given back once.
"""

from meshrun.proxy.http.retries import Budget
from meshrun.proxy.messages import Requests

__all__ = ["Circuit"]


class Circuit:
    """Counts requests, those that wait for a connection, and those that were sent again."""

    def __init__(self) -> None:
        self.limits = Requests()
        self.in_flight = 0
        self.pending = 0
        self._budget = Budget()

    def take(self) -> bool:
        """Count a request, unless `most_in_flight` are under way."""
        if self.in_flight >= self.limits.most_in_flight:
            return False
        self.in_flight += 1
        return True

    def give_back(self) -> None:
        """A request is over."""
        self.in_flight -= 1

    def take_pending(self) -> bool:
        """Count a request that waits for a connection, unless `most_pending` do."""
        if self.pending >= self.limits.most_pending:
            return False
        self.pending += 1
        return True

    def give_back_pending(self) -> None:
        """A request waits no more."""
        self.pending -= 1

    def take_retry(self) -> bool:
        """Count a request that is sent again, unless that goes beyond the budget."""
        return self._budget.take(self.in_flight)

    def give_back_retry(self) -> None:
        """A request that was sent again is over."""
        self._budget.give_back()
