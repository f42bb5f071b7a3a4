"""The sidecar's own responses: short, and the same to every caller. Pure."""

from urllib.parse import quote

from meshrun.proxy.http.heads import COUNTED, Response

__all__ = ["answer", "grpc_status"]

# gRPC's "HTTP to gRPC status code mapping" says what a client makes of an HTTP status, and is
# followed but for what a sidecar knows better: a timeout is DEADLINE_EXCEEDED, and of what is too
# much RESOURCE_EXHAUSTED can be said.
_GRPC_STATUS = {
    400: 13,  # INTERNAL: the client's library is at fault, not the caller's argument
    401: 16,  # UNAUTHENTICATED
    403: 7,  # PERMISSION_DENIED
    404: 12,  # UNIMPLEMENTED
    405: 12,
    408: 4,  # DEADLINE_EXCEEDED
    429: 8,  # RESOURCE_EXHAUSTED
    431: 8,
    501: 12,
    502: 14,  # UNAVAILABLE
    503: 14,
    504: 4,
}
_UNKNOWN = 2

# gRPC over HTTP/2, `Percent-Byte-Unencoded`: what is visible in ASCII and blank, but for `%`.
_UNENCODED = "".join(chr(octet) for octet in range(0x20, 0x7F) if octet != 0x25)


def answer(status: int, text: str, *, grpc: bool = False) -> tuple[Response, bytes]:
    """Return the head and the body of an answer; `text` names no rule and no identity.

    With `grpc` it is trailers-only: HTTP 200 and all that there is to say in a head without a body
    (gRPC over HTTP/2, "Responses").
    """
    if grpc:
        fields = [
            ("content-type", "application/grpc"),
            ("grpc-status", str(grpc_status(status))),
            ("grpc-message", quote(text, safe=_UNENCODED)),
        ]
        return Response(status=200, fields=fields), b""
    body = text.encode() + b"\n"
    head = Response(
        status=status,
        fields=[("content-type", "text/plain; charset=utf-8")],
        framing=COUNTED,
        length=len(body),
    )
    return head, body


def grpc_status(status: int) -> int:
    """Return the gRPC status for an HTTP status of the sidecar's own."""
    return _GRPC_STATUS.get(status, _UNKNOWN)
