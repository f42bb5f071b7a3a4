"""Which requests may be sent again, when, and how many at the same time. Pure."""

from meshrun.proxy.backoff import delay_s
from meshrun.proxy.http.exchange import Failure

__all__ = ["IDEMPOTENT", "Budget", "back_off_s", "may_retry"]

IDEMPOTENT = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"})

# Envoy's retry_budget, and its back-off.
BUDGET_SHARE = 0.2
LEAST_BUDGET = 3
FIRST_BACK_OFF_S = 0.025
LONGEST_BACK_OFF_S = 0.25


def may_retry(method: str, failure: Failure, *, body_sent: bool, body_kept: bool = False) -> bool:
    """Return whether a request that failed may be sent again (RFC 9110 9.2.2).

    What has begun to go through could be done twice, unless its method says that this is the same;
    what nobody has heard could not, and needs only all of its body that was sent.
    """
    if failure is Failure.UNSENT:
        return body_kept or not body_sent
    return failure is Failure.SILENT and not body_sent and method in IDEMPOTENT


def back_off_s(attempt: int, random: float) -> float:
    """Return how long to wait before retry number `attempt` (from 1); `random` is in [0, 1)."""
    return random * delay_s(attempt, FIRST_BACK_OFF_S, LONGEST_BACK_OFF_S)


class Budget:
    """How many retries may be under way: a storm of them would not let what is ill recover."""

    def __init__(self) -> None:
        self._taken = 0

    def take(self, in_flight: int) -> bool:
        """Take one, unless there are too many for `in_flight` requests."""
        if self._taken >= max(LEAST_BUDGET, int(in_flight * BUDGET_SHARE)):
            return False
        self._taken += 1
        return True

    def give_back(self) -> None:
        """It is under way no more."""
        self._taken -= 1
