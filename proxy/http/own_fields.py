"""The header fields that are the sidecars' own words: made, found and stripped in one place. Pure.

A caller may write any of them. Of itself it says nothing by them: the app must be able to believe
what is there. So what reads a head drops, in every spelling, what `tells_who_calls`.
"""

from random import Random

from meshrun.proxy.http.exchange import Failure
from meshrun.proxy.http.heads import Fields, Response, folded

__all__ = [
    "IDENTITY_FIELDS",
    "OWN_FIELDS",
    "REQUEST_ID_BYTES",
    "REQUEST_ID_FIELD",
    "RequestIds",
    "add_failure",
    "add_request_id",
    "identity_of",
    "request_id",
    "take_failure",
    "tells_who_calls",
]

# What tells the app who calls. Envoy's name, and ours.
_CERTIFICATE = "X-Forwarded-Client-Cert"
_IDENTITY = "X-Mesh-Client-Id"
_REQUEST_ID = "X-Request-Id"
# Said by the sidecar in front of an app to that of the caller: the request may be sent elsewhere.
_FAILURE = "X-Meshrun-Failure"

# As they are compared, in small letters.
IDENTITY_FIELDS = frozenset({_CERTIFICATE.lower(), _IDENTITY.lower()})
REQUEST_ID_FIELD = _REQUEST_ID.lower()
_FAILURE_FIELD = _FAILURE.lower()
OWN_FIELDS = IDENTITY_FIELDS | {REQUEST_ID_FIELD, _FAILURE_FIELD}

# To look at the length of a name is cheaper than at the name, and nearly all have another.
_REQUEST_ID_LENGTH = len(REQUEST_ID_FIELD)
# With its value, a UUID.
REQUEST_ID_BYTES = _REQUEST_ID_LENGTH + 36

_SAID = {Failure.UNSENT: "unsent", Failure.SILENT: "silent"}


# Who calls.


def identity_of(identity: str, fingerprint: str, *, told_by: str) -> Fields:
    """Return the fields that tell the app of a caller.

    `identity` and `told_by` are the SPIFFE IDs of the caller and of the app, `fingerprint` is the
    SHA-256 of the caller's certificate in hexadecimal (Envoy, x-forwarded-client-cert).
    """
    certificate = f"By={told_by};Hash={fingerprint};URI={identity}"
    return [(_CERTIFICATE, certificate), (_IDENTITY, identity)]


_FOLDED_IDENTITY_FIELDS = frozenset(map(folded, IDENTITY_FIELDS))


def tells_who_calls(name: str) -> bool:
    """Whether some app might take the field for one of those of `identity_of`."""
    return folded(name) in _FOLDED_IDENTITY_FIELDS


# Which request it is.


class RequestIds:
    """Makes identifiers in the form of random UUIDs (RFC 9562 5.4); they guard nothing.

    Random is where the count begins, and what stands before it: to make each anew would cost more
    than to parse a small request.
    """

    def __init__(self, rng: Random) -> None:
        digits = f"{rng.getrandbits(72):018x}"
        self._prefix = f"{digits[:8]}-{digits[8:12]}-4{digits[12:15]}-8{digits[15:18]}-"
        # With a bit above the 48 that are shown: `hex` is faster than a format, but does not pad.
        self._next = 1 << 52 | rng.getrandbits(48)

    def new(self) -> str:
        """Return another one."""
        self._next += 1
        return self._prefix + hex(self._next)[-12:]


def request_id(fields: Fields) -> str | None:
    """Return the identifier that a request has, the first if there are several."""
    for name, value in fields:
        if len(name) == _REQUEST_ID_LENGTH and name.lower() == REQUEST_ID_FIELD:
            return value
    return None


def add_request_id(fields: Fields, ids: RequestIds) -> None:
    """Give a request an identifier if it has none."""
    if fields and fields[-1][0] == _REQUEST_ID:  # where the other sidecar has put it
        return
    if request_id(fields) is None:
        fields.append((_REQUEST_ID, ids.new()))


# Why there is no answer of the app.


def add_failure(head: Response, failure: Failure | None) -> None:
    """Say in `head`, which is not the app's, what may be done about `failure`."""
    if failure in _SAID:
        head.fields.append((_FAILURE, _SAID[failure]))


def take_failure(head: Response) -> Failure | None:
    """Return how the request failed at the app, if `head` says that; take it out."""
    found = [value for name, value in head.fields if name.lower() == _FAILURE_FIELD]
    if not found:
        return None
    head.fields = [field for field in head.fields if field[0].lower() != _FAILURE_FIELD]
    return next((failure for failure, said in _SAID.items() if found == [said]), None)
