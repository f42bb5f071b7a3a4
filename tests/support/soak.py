"""Mixed traffic through real sidecars while they are rotated, killed and told to deny.

Two sidecars of one service, each before an app, and a client's sidecar. Callers and apps share one
loop in the test's process; what is done to the sidecars is done in a thread beside it.
"""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count
from random import Random
from socket import socket

from support.sidecars import Mesh, listen, port_of
from support.streams import KINDS, Callee, Caller, Kind, Noise, Plan, StreamError
from support.weather import Cut, Disturbance, Weather

__all__ = ["Soak"]

# How many streams there are at the same time, and how long a caller thinks before its next one.
CALLERS = 24
MOST_THINKING_S = 0.02

PATIENCE_S = 30.0


class How(Enum):
    """How one end of a stream came to its end."""

    DONE = auto()  # it did all that it was to do, and heard all that it was to hear
    RESET = auto()
    WRONG = auto()


@dataclass(frozen=True, slots=True)
class Ending:
    """The end of a stream as one of its ends saw it, `at` a time of the monotonic clock."""

    how: How
    at: float
    why: str = ""


@dataclass(slots=True)
class Stream:
    """What is known of a stream that began at `began`.

    `seen` counts the connections of apps it came to, the last of them `seen_at`, at `served_by`.
    """

    plan: Plan
    began: float
    caller: Ending | None = None
    app: Ending | None = None
    seen: int = 0
    seen_at: float = 0.0
    served_by: str = ""


class Soak(Weather):
    """The sidecars, the apps behind them, their callers, and an account of every stream."""

    def __init__(self, mesh: Mesh, seed: int) -> None:
        self._listeners = [listen(), listen()]
        super().__init__(mesh, seed, [port_of(each) for each in self._listeners])
        self._seed = seed
        self._noise = Noise(seed)
        self._address = ("127.0.0.1", self.port)
        self._numbers = count()
        self._streams: dict[int, Stream] = {}
        self._nameless = 0
        self._complaints: list[str] = []

    def close(self) -> None:
        """Close the apps."""
        for each in self._listeners:
            each.close()

    # The traffic.

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[None]:
        """Let the apps serve within the block; at its end they wait for their last streams."""
        async with asyncio.TaskGroup() as group:
            acceptors = [
                group.create_task(self._accept(group, listener, server.instance))
                for listener, server in zip(self._listeners, self.servers, strict=True)
            ]
            yield
            for each in acceptors:
                each.cancel()

    async def call(
        self, name: str, least_s: float, disturbances: Iterable[tuple[float, Disturbance]] = ()
    ) -> None:
        """Make calls for `least_s` at least, and each of the `disturbances` at its second.

        Returns when all callers are done. The same `name` means the same streams.
        """
        over = asyncio.Event()
        indices = count()
        began = time.monotonic()
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._call_until(over, name, indices))
            for at_s, disturb in sorted(disturbances, key=lambda each: each[0]):
                await asyncio.sleep(began + at_s - time.monotonic())
                await asyncio.to_thread(disturb)
            await asyncio.sleep(began + least_s - time.monotonic())
            over.set()

    # The account.

    def complaints(self) -> list[str]:
        """Return what is wrong; to be called when all streams have come to their ends."""
        found = list(self._complaints)
        for sidecar in self.sidecars:
            found += (f"{sidecar.instance} logged: {each.message}" for each in sidecar.logged)
        for stream in self._streams.values():
            found += (f"{said}: {stream}" for said in _judge(stream, self.cuts))
        most = sum(self._may_be_nameless(stream) for stream in self._streams.values())
        if self._nameless > most:
            found.append(f"{self._nameless} connections said nothing to an app, not up to {most}")
        return found

    def succeeded(self) -> Counter[Kind]:
        """Return how many streams of each kind went as planned at both ends."""
        return Counter(
            stream.plan.kind for stream in self._streams.values() if not [*_judge(stream, ())]
        )

    def _may_be_nameless(self, stream: Stream) -> bool:
        # It said nothing, or was over before it did; or the app's sidecar was killed between the
        # app's connection and its first bytes, and another took the stream.
        return not stream.seen or any(
            stream.began <= cut.ended and cut.began <= stream.seen_at for cut in self.cuts
        )

    # Callers and apps.

    async def _call_until(self, over: asyncio.Event, name: str, indices: "count[int]") -> None:
        while not over.is_set():
            index = next(indices)
            rng = Random(f"{self._seed}/{name}/{index}")
            kind = [*Kind][index] if index < len(Kind) else None  # one of each to begin with
            await self._call(Plan.drawn(next(self._numbers), rng, kind))
            await asyncio.sleep(rng.uniform(0, MOST_THINKING_S))

    async def _call(self, plan: Plan) -> None:
        stream = self._streams[plan.number] = Stream(plan, time.monotonic())
        with socket() as sock:
            sock.setblocking(False)
            caller = Caller(sock, self._noise, plan)

            async def call() -> None:
                await asyncio.get_running_loop().sock_connect(sock, self._address)
                await KINDS[plan.kind].caller(caller, plan)

            stream.caller = await _ending_of(call())

    async def _accept(self, group: asyncio.TaskGroup, listener: socket, name: str) -> None:
        loop = asyncio.get_running_loop()
        listener.setblocking(False)
        while True:
            sock, _ = await loop.sock_accept(listener)
            group.create_task(self._answer(sock, name))

    async def _answer(self, sock: socket, name: str) -> None:
        met: list[Stream] = []
        with sock:
            callee = Callee(sock, self._noise)

            async def answer() -> None:
                number = await callee.meet()
                if number is None:
                    return
                stream = self._streams.get(number)
                if stream is None:
                    raise StreamError(f"nobody has begun stream {number}")
                met.append(stream)
                stream.seen += 1
                stream.seen_at = time.monotonic()
                stream.served_by = name
                callee.follow(stream.plan)
                await KINDS[stream.plan.kind].app(callee, stream.plan)

            ending = await _ending_of(answer())
        if met:
            met[0].app = ending
        elif ending.how is How.WRONG:
            self._complaints.append(f"at the app of {name}: {ending.why}")
        else:
            self._nameless += 1


async def _ending_of(playing: Awaitable[None]) -> Ending:
    try:
        async with asyncio.timeout(PATIENCE_S):
            await playing
    except TimeoutError:
        return Ending(How.WRONG, time.monotonic(), f"no end in {PATIENCE_S:g} s")
    except StreamError as error:
        return Ending(How.WRONG, time.monotonic(), str(error))
    except ConnectionError as error:
        return Ending(How.RESET, time.monotonic(), str(error))
    return Ending(How.DONE, time.monotonic())


def _judge(stream: Stream, cuts: Sequence[Cut]) -> Iterator[str]:
    """Yield what is wrong with how a stream ended, where `cuts` happened to the sidecars."""
    kind = stream.plan.kind
    at_caller = How.RESET if kind is Kind.APP_RESETS else How.DONE
    at_app = How.RESET if kind is Kind.CALLER_RESETS else How.DONE
    yield from _judge_end("caller", stream, stream.caller, at_caller, cuts)
    if stream.seen:
        yield from _judge_end("app", stream, stream.app, at_app, cuts)
    elif kind not in (Kind.EMPTY, Kind.CALLER_RESETS) and not _explained(stream, cuts):
        yield "no app has seen it"
    if stream.seen > 1:
        yield f"apps have seen it {stream.seen} times"
    if any(cut.forbade(stream) for cut in cuts):
        yield "an app has seen it while that was forbidden"


def _judge_end(
    whose: str, stream: Stream, ending: Ending | None, wanted: How, cuts: Sequence[Cut]
) -> Iterator[str]:
    if ending is None:
        yield f"its {whose} has not come to an end"
    elif ending.how is not wanted and not (
        ending.how is How.RESET and any(cut.explains(stream, ending.at) for cut in cuts)
    ):
        yield f"its {whose} saw {ending.how.name} {ending.why}"


def _explained(stream: Stream, cuts: Sequence[Cut]) -> bool:
    ending = stream.caller
    return (
        ending is not None
        and ending.how is How.RESET
        and any(cut.explains(stream, ending.at) for cut in cuts)
    )
