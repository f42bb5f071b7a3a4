"""TLS contexts of a sidecar, and who stands at the other end of a connection.

Contexts are made here and not by `ssl.create_default_context`, which would trust the system's CAs
and write session keys where SSLKEYLOGFILE says.
"""

import _ssl
import os
import ssl
import sys
import typing
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import cast

from meshrun.proxy.errors import IdentityError
from meshrun.proxy.framing import ALPN
from meshrun.proxy.intentions import Protocol
from meshrun.proxy.leaf import Leaf
from meshrun.proxy.spiffe import SpiffeId
from meshrun.proxy.svid import leaf_not_after, validate_chain

__all__ = [
    "authenticate",
    "client_context",
    "peer_chain",
    "peer_not_after",
    "server_context",
    "speaks_tunnel",
]

# RFC 7301 6, and IANA's register.
_NAMES: Mapping[Protocol, Sequence[str]] = {
    "tcp": (),
    "http": ("http/1.1",),
    "http2": ("h2",),
    "grpc": ("h2",),
}


def server_context(
    leaf: Leaf, roots: Sequence[bytes], *, tunnels: bool = False, app: Protocol = "tcp"
) -> ssl.SSLContext:
    """Return the context of inbound connections; `roots` are DER and the only ones trusted.

    With `tunnels` it takes the protocol of tunnels from a peer that offers it, and what `app`
    speaks from one that does not: some clients insist on an answer. Raises IdentityError if OpenSSL
    refuses the leaf or a root.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    # A resumed session skips every check of the certificate, also of its expiry (CVE-2022-21654).
    # In TLS 1.3 only tickets resume; OP_NO_TICKET would not stop them.
    context.num_tickets = 0
    if tunnels:
        # A peer that names no protocol, or only others, is served without.
        context.set_alpn_protocols([ALPN, *_NAMES[app]])
    return _equip(context, leaf, roots)


def client_context(leaf: Leaf, roots: Sequence[bytes], *, tunnels: bool = False) -> ssl.SSLContext:
    """Return the context of outbound connections; `roots` are DER and the only ones trusted.

    With `tunnels` it offers the protocol of tunnels, which a peer need not take. Raises
    IdentityError if OpenSSL refuses the leaf or a root.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    if tunnels:
        context.set_alpn_protocols([ALPN])
    # The identity is a URI, which OpenSSL does not compare: `authenticate` does.
    context.check_hostname = False
    return _equip(context, leaf, roots)


def authenticate(connection: ssl.SSLObject, trust_domain: str, now: datetime) -> SpiffeId:
    """Return who the peer is, after the handshake; raise IdentityError if it proved nothing."""
    if connection.session_reused:
        raise IdentityError("cannot authenticate the peer: it resumed an earlier session")
    return validate_chain(peer_chain(connection), trust_domain, now)


def speaks_tunnel(connection: ssl.SSLObject) -> bool:
    """Return whether both sides named the protocol of tunnels in the handshake."""
    return connection.selected_alpn_protocol() == ALPN


def peer_not_after(connection: ssl.SSLObject) -> float:
    """Return when the peer's leaf expires, in seconds since the epoch; it must be authenticated."""
    return leaf_not_after(peer_chain(connection)[0])


def peer_chain(connection: ssl.SSLObject) -> list[bytes]:
    """Return the peer's chain as OpenSSL verified it: DER, leaf first, including the root.

    Raises IdentityError if the peer showed no certificate.
    """
    chain = _verified_chain(connection)
    if not chain:
        raise IdentityError("cannot authenticate the peer: it showed no certificate")
    return chain


def _equip(context: ssl.SSLContext, leaf: Leaf, roots: Sequence[bytes]) -> ssl.SSLContext:
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_3
    context.verify_mode = ssl.CERT_REQUIRED
    # An outside CA may be an intermediate whose own root we neither have nor trust.
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    if not roots:
        raise IdentityError(f"cannot serve with leaf {leaf.serial}: there is no root to trust")
    try:
        # One by one: of joined ones OpenSSL takes a damaged last one for the end.
        for root in roots:
            context.load_verify_locations(cadata=root)
        _load_leaf(context, leaf)
    except (ssl.SSLError, ValueError) as error:
        raise IdentityError(f"cannot serve with leaf {leaf.serial}: {error}") from error
    return context


def _load_leaf(context: ssl.SSLContext, leaf: Leaf) -> None:
    # OpenSSL wants a path, and the key must never be in a file: a memfd has a path of its own for
    # as long as it is open, also for a process that gave up its uid.
    chain = "".join(ssl.DER_cert_to_PEM_cert(der) for der in leaf.chain_der)
    descriptor = os.memfd_create("leaf")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(leaf.key_pem + chain.encode("ascii"))
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)


if sys.version_info >= (3, 13):

    def _verified_chain(connection: ssl.SSLObject) -> list[bytes]:
        return connection.get_verified_chain()

else:
    # Python before 3.13 has this only on the object inside.

    class _Certificate(typing.Protocol):
        def public_bytes(self, encoding: int, /) -> bytes: ...

    class _Inner(typing.Protocol):
        def get_verified_chain(self) -> list[_Certificate] | None: ...

    class _Outer(typing.Protocol):
        _sslobj: _Inner

    def _verified_chain(connection: ssl.SSLObject) -> list[bytes]:
        certificates = cast(_Outer, connection)._sslobj.get_verified_chain() or []
        return [certificate.public_bytes(_ssl.ENCODING_DER) for certificate in certificates]
