"""What can go wrong in meshrun, as types that a caller can act on."""

__all__ = [
    "ChannelError",
    "FramingError",
    "Http2Error",
    "HttpError",
    "IdentityError",
    "MeshrunError",
    "NoProtocolError",
    "PeerError",
]


class MeshrunError(Exception):
    """Something that meshrun could not do; the message says what, with what, and why."""


class IdentityError(MeshrunError):
    """A certificate or a SPIFFE ID is not acceptable as an identity."""


class PeerError(MeshrunError):
    """The other side of a connection broke the protocol or is not who it must be."""


class NoProtocolError(PeerError):
    """The other side insists on a protocol above TLS that was not offered (RFC 7301 3.2)."""


class FramingError(PeerError):
    """The other side of a tunnel sent what its protocol does not allow."""


class HttpError(PeerError):
    """A peer sent what is no HTTP, or no HTTP that this sidecar takes; `status` is the answer."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Http2Error(PeerError):
    """The other side of an HTTP/2 connection is to be sent away; `code` says why (RFC 9113 7)."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


class ChannelError(MeshrunError):
    """The channel between the control plane and a sidecar carried something unreadable."""
