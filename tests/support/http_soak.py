"""Requests of every kind through sidecars that are rotated, killed and told to deny.

Each names itself, and both its ends can recompute every byte of it: an answer is whole and right,
or it is seen that it is not. What asks and what answers are libraries that people use, of HTTP/1
and WebSockets in one case, of HTTP/2 in the other; all are on one loop.
"""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count
from random import Random

from support.streams import Noise
from support.weather import Cut, Disturbance, Weather

__all__ = [
    "Apps",
    "BrokenOffError",
    "Caller",
    "HttpSoak",
    "Kind",
    "RefusedError",
    "Request",
    "WrongError",
]

KIB = 1024

# How many requests there are at the same time, and how long a caller thinks before its next one.
CALLERS = 16
MOST_THINKING_S = 0.02
PATIENCE_S = 30.0

MOST_BODY_BYTES = 400 * KIB
MOST_PIECES = 8


class Kind(Enum):
    """What a request is like."""

    ASK = auto()  # a request without a body, an answer with a length
    STREAM = auto()  # the answer comes in pieces
    TELL = auto()  # a body with a length
    UPLOAD = auto()  # the body comes in pieces
    TALK = auto()  # each piece of the answer waits for one of the request
    SOCKET = auto()  # the same over a WebSocket, or another stream
    CALLER_LEAVES = auto()  # within the answer
    APP_BREAKS = auto()  # within the answer


# What says nothing to its app; over HTTP/1 with a method that may be said twice (RFC 9110 9.2.2).
SILENT = frozenset({Kind.ASK, Kind.STREAM, Kind.CALLER_LEAVES, Kind.APP_BREAKS})

# What sidecars say that cannot reach the app, and that it gave no answer.
UNANSWERED = (502, 503)


class WrongError(Exception):
    """What may not happen to a request whatever happens to the sidecars."""


class BrokenOffError(Exception):
    """The request came to no end that looks like one."""


class RefusedError(Exception):
    """The request was answered by a sidecar, with this status of HTTP."""

    def __init__(self, status: int, why: str = "") -> None:
        super().__init__(f"status {status} {why}".rstrip())
        self.status = status


@dataclass(slots=True)
class Request:
    """All that one request is to be, and what is known of it.

    `there` and `back` are the sizes of the pieces of its body and of its answer in bytes. `closes`
    says that its connection is for nothing else. `outcome` is what its caller met, None where all
    was as planned; `seen` counts how often it came to an app, the last time at `seen_at`.
    """

    number: int
    kind: Kind
    there: tuple[int, ...]
    back: tuple[int, ...]
    there_at: int
    back_at: int
    closes: bool
    began: float
    ended: float = 0.0
    outcome: Exception | None = None
    seen: int = 0
    seen_at: float = 0.0
    served_by: str = ""

    @classmethod
    def drawn(cls, number: int, rng: Random, kind: Kind) -> "Request":
        """Return request `number`, made by `rng` alone."""
        pieces = 1 if kind in (Kind.ASK, Kind.TELL) else rng.randint(1, MOST_PIECES)
        sizes = [[_size(rng, pieces) for _ in range(pieces)] for _ in range(2)]
        return cls(
            number=number,
            kind=kind,
            there=() if kind in SILENT else tuple(sizes[0]),
            back=tuple(sizes[1]),
            there_at=rng.randrange(Noise.STARTS),
            back_at=rng.randrange(Noise.STARTS),
            closes=rng.random() < 0.2,
            began=time.monotonic(),
        )

    def pieces_there(self, noise: Noise) -> Iterator[bytes]:
        """Yield the pieces of its body."""
        yield from _pieces(noise, self.there_at, self.there)

    def pieces_back(self, noise: Noise) -> Iterator[bytes]:
        """Yield the pieces of its answer."""
        yield from _pieces(noise, self.back_at, self.back)


class Apps(ABC):
    """Two apps that answer requests as they are planned."""

    def __init__(self, soak: "HttpSoak") -> None:
        self.soak = soak

    @abstractmethod
    async def start(self) -> list[int]:
        """Begin to serve as `INSTANCES`; return the ports."""

    @abstractmethod
    async def stop(self) -> None:
        """Serve no more, after the requests that are under way."""


class Caller(ABC):
    """Makes requests through the port of a sidecar, with a library that does."""

    def __init__(self, soak: "HttpSoak", port: int) -> None:
        self.soak = soak
        self.port = port

    @abstractmethod
    async def make(self, request: Request) -> None:
        """Make `request`; raises RefusedError, BrokenOffError, or WrongError."""

    @abstractmethod
    async def close(self) -> None:
        """Close its connections."""


class HttpSoak:
    """Apps, callers, and an account of every request between them.

    Where requests are `repeatable` those that say nothing may come to an app more than once.
    """

    def __init__(self, seed: int, *, repeatable: bool) -> None:
        self._seed = seed
        self._repeatable = SILENT | {Kind.SOCKET} if repeatable else frozenset[Kind]()
        self.noise = Noise(seed)
        self._numbers = count()
        self._requests: dict[int, Request] = {}
        self._complaints: list[str] = []

    async def call(
        self,
        callers: Sequence[Caller],
        name: str,
        least_s: float,
        disturbances: Iterable[tuple[float, Disturbance]] = (),
    ) -> None:
        """Make requests for `least_s` at least, and each of the `disturbances` at its second.

        Returns when all are done, and the callers closed. The same `name` means the same requests.
        """
        over = asyncio.Event()
        indices = count()
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for number in range(CALLERS):
                caller = callers[number % len(callers)]
                group.create_task(self._call_until(over, caller, name, indices))
            for at_s, disturb in sorted(disturbances, key=lambda each: each[0]):
                await asyncio.sleep(began + at_s - time.monotonic())
                await asyncio.to_thread(disturb)
            await asyncio.sleep(began + least_s - time.monotonic())
            over.set()
        for each in callers:
            await each.close()

    # What apps say.

    def saw(self, number: int, instance: str) -> Request:
        """Return the request that came to the app of `instance`."""
        request = self._requests[number]
        request.seen += 1
        request.seen_at = time.monotonic()
        request.served_by = instance
        return request

    def complain(self, what: str) -> None:
        """Keep what may not have happened at an app."""
        self._complaints.append(what)

    # The account.

    def complaints(self, weather: Weather) -> list[str]:
        """Return what is wrong; to be called when all requests have come to their ends."""
        found = list(self._complaints)
        for sidecar in weather.sidecars:
            found += (f"{sidecar.instance} logged: {each.message}" for each in sidecar.logged)
        for request in self._requests.values():
            for said in _judge(request, weather.cuts):
                told = weather.told(request.began, request.ended) or "no sidecar told of a failure"
                found.append(f"{said}: {request}; {told}")
            if request.seen > 1 and request.kind not in self._repeatable:
                found.append(f"apps have seen it {request.seen} times: {request}")
        return found

    def succeeded(self) -> Counter[Kind]:
        """Return how many requests of each kind went as planned."""
        return Counter(each.kind for each in self._requests.values() if not [*_judge(each, ())])

    async def _call_until(
        self, over: asyncio.Event, caller: Caller, name: str, indices: "count[int]"
    ) -> None:
        kinds = [*Kind]
        while not over.is_set():
            index = next(indices)
            rng = Random(f"{self._seed}/{name}/{index}")
            # One of each to begin with.
            kind = kinds[index] if index < len(kinds) else rng.choice(kinds)
            request = Request.drawn(next(self._numbers), rng, kind)
            self._requests[request.number] = request
            try:
                async with asyncio.timeout(PATIENCE_S):
                    await caller.make(request)
            except TimeoutError:
                request.outcome = WrongError(f"no end in {PATIENCE_S:g} s")
            except (RefusedError, BrokenOffError, WrongError) as error:
                # The frames that it came through hold connections, as do those of its cause.
                error.__traceback__ = error.__cause__ = error.__context__ = None
                request.outcome = error
            request.ended = time.monotonic()
            await asyncio.sleep(rng.uniform(0, MOST_THINKING_S))


def _size(rng: Random, pieces: int) -> int:
    return int((MOST_BODY_BYTES / pieces) ** rng.random())


def _pieces(noise: Noise, at: int, sizes: tuple[int, ...]) -> Iterator[bytes]:
    for size in sizes:
        yield bytes(noise.block[at : at + size])
        at += size


def _judge(request: Request, cuts: Iterable[Cut]) -> Iterator[str]:
    """Yield what is wrong with how a request ended, where `cuts` happened to the sidecars."""
    outcome, broken = request.outcome, request.kind is Kind.APP_BREAKS
    explained = [cut for cut in cuts if cut.explains(request, request.ended)]
    denied = any(cut.forbids for cut in explained)
    match outcome:
        case None if broken:
            yield "what the app broke off looked whole"
        case None if not request.seen:
            yield "no app has seen it"
        case None:
            pass
        case RefusedError(status=403) if denied:
            pass
        case RefusedError(status=status) if status in UNANSWERED and (broken or explained):
            pass
        case BrokenOffError() if broken or explained:
            pass
        case _:
            yield f"its caller met {outcome!r}"
    if any(cut.forbade(request) for cut in cuts):
        yield "an app has seen it while that was forbidden"
