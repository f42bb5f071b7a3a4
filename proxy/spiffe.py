"""SPIFFE IDs: who a workload is, as a value that is compared literally."""

import re
from dataclasses import dataclass
from typing import Self

from meshrun.proxy.errors import IdentityError

__all__ = ["SpiffeId", "check_trust_domain"]

SCHEME = "spiffe://"

# SPIFFE-ID 2.3: every implementation takes 2048 bytes and none should make more.
MAX_URI_BYTES = 2048
# SPIFFE-ID 2.1.
MAX_TRUST_DOMAIN_BYTES = 255

# No percent sign, `@`, `:`, `?`, `#`, space, NUL or `*` in either: escapes, user info, ports,
# queries and the wildcard of intentions cannot be written in an identity at all.
TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
SEGMENT = re.compile(r"[A-Za-z0-9._-]+")

# Consul's form of a service's identity; a mesh of one machine has one namespace.
SERVICE_PATH = re.compile(r"/ns/default/dc/[A-Za-z0-9._-]+/svc/([A-Za-z0-9._-]+)")

# What a mesh of one machine calls its only datacenter.
LOCAL_DATACENTER = "local"


@dataclass(frozen=True, slots=True)
class SpiffeId:
    """A SPIFFE ID; `path` is empty (a trust domain itself) or starts with a slash.

    Two identities are the same if and only if every byte is: neither case is folded nor anything
    decoded, and the trust domain counts.
    """

    trust_domain: str
    path: str

    def __post_init__(self) -> None:
        check_trust_domain(self.trust_domain)
        _check_path(self.path)
        if len(str(self)) > MAX_URI_BYTES:
            raise IdentityError(f"cannot take a SPIFFE ID of more than {MAX_URI_BYTES} bytes")

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the URI form (SPIFFE-ID 2); raise IdentityError for whatever is not canonical."""
        if not text.startswith(SCHEME):
            raise IdentityError(
                f"cannot take {_shown(text)} as a SPIFFE ID: it does not start with {SCHEME}"
            )
        trust_domain, slash, rest = text[len(SCHEME) :].partition("/")
        try:
            return cls(trust_domain, slash + rest)
        except IdentityError as error:
            raise IdentityError(f"cannot take {_shown(text)} as a SPIFFE ID: {error}") from None

    @classmethod
    def for_service(cls, trust_domain: str, service: str) -> Self:
        """Return the identity of `service` in this mesh; raise IdentityError for a bad name."""
        made = cls(trust_domain, f"/ns/default/dc/{LOCAL_DATACENTER}/svc/{service}")
        if made.service != service:
            raise IdentityError(f"cannot make an identity of the service name {_shown(service)}")
        return made

    @property
    def service(self) -> str | None:
        """The service's name, None for an identity that is not a service's."""
        match = SERVICE_PATH.fullmatch(self.path)
        return match[1] if match else None

    def __str__(self) -> str:
        return f"{SCHEME}{self.trust_domain}{self.path}"


def check_trust_domain(name: str) -> None:
    """Raise IdentityError unless `name` may be a trust domain (SPIFFE-ID 2.1)."""
    if not name:
        raise IdentityError("the trust domain is empty")
    if len(name) > MAX_TRUST_DOMAIN_BYTES:
        raise IdentityError(f"the trust domain is longer than {MAX_TRUST_DOMAIN_BYTES} bytes")
    if not TRUST_DOMAIN.fullmatch(name):
        raise IdentityError(
            f"the trust domain {_shown(name)} has a character other than a-z, 0-9, '.', '-', '_'"
        )


def _check_path(path: str) -> None:
    if not path:
        return
    empty, *segments = path.split("/")
    if empty:
        raise IdentityError(f"the path {_shown(path)} does not start with '/'")
    for segment in segments:
        if not segment:
            raise IdentityError("the path has an empty segment or ends in '/'")
        if segment in (".", ".."):
            raise IdentityError(f"the path has the segment {segment!r}")
        if not SEGMENT.fullmatch(segment):
            raise IdentityError(
                f"the path segment {_shown(segment)} has a character other than "
                "A-Z, a-z, 0-9, '.', '-', '_'"
            )


def _shown(text: str) -> str:
    # Peers choose these texts and logs print them: escaped, and no longer than a line.
    return ascii(text if len(text) <= 200 else text[:200] + "…")
