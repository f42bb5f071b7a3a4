"""What a pair of sidecars must decide where it understands HTTP."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["Protocol", "Rule"]

# As in mesh.toml.
Protocol = Literal["http", "http2", "grpc"]


@dataclass(frozen=True, slots=True)
class Rule:
    """The right caller's requests over `protocol` with `method` pass; others get 403."""

    protocol: Protocol
    method: str

    @property
    def alpn(self) -> str:
        """The name of what goes over TLS (RFC 7301): gRPC is HTTP/2."""
        return "http/1.1" if self.protocol == "http" else "h2"
