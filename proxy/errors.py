"""What can go wrong in meshrun, as types that a caller can act on."""

__all__ = ["ChannelError", "IdentityError", "MeshrunError", "PeerError"]


class MeshrunError(Exception):
    """Something that meshrun could not do; the message says what, with what, and why."""


class IdentityError(MeshrunError):
    """A certificate or a SPIFFE ID is not acceptable as an identity."""


class PeerError(MeshrunError):
    """The other side of a connection broke the protocol or is not who it must be."""


class ChannelError(MeshrunError):
    """The channel between the control plane and a sidecar carried something unreadable."""
