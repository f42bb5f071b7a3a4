from meshrun.proxy.http.exchange import Failure

IDEMPOTENT = frozenset({"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"})


def may_retry(method: str, failure: Failure, *, body_sent: bool) -> bool:
    if failure is Failure.BROKEN or body_sent:
        return False
    return failure is Failure.UNSENT or method in IDEMPOTENT
