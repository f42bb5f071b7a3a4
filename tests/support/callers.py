"""Callers that proved nothing, for tests of what comes after that."""

from meshrun.proxy.caller import Caller

__all__ = ["caller"]


def caller(service: str) -> Caller:
    """Return a caller that is `service`."""
    identity = f"spiffe://shop.mesh/ns/default/dc/local/svc/{service}"
    return Caller(service=service, identity=identity, fingerprint="", not_after=0.0)
