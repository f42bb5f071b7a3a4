"""Streams whose every byte both ends can recompute: what each kind says, and how it ends.

A caller names its stream first. An app answers with that name; one that hears nothing for a while
greets whoever is there. What follows are the bytes of `Noise`, in which a lost, invented, repeated
or swapped piece is seen at once.
"""

import asyncio
import errno
import socket
import struct
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from enum import Enum, auto
from random import Random

from support.apps import reset

__all__ = ["KINDS", "Callee", "Caller", "Kind", "Noise", "Plan", "Script", "StreamError"]

KIB = 1024
READ_BYTES = 128 * KIB

# What a slow reader has in the kernel; with the usual megabytes nobody would wait for it.
SLOW_BUFFER_BYTES = 256 * KIB

# An app greets a caller that has said nothing for so long: it may wait to be spoken to.
GREETING_AFTER_S = 0.01

CALL = b"call"
GREETING = b"hail"
ANSWER = b"answ"
_name = struct.Struct(">4sQ")


class StreamError(Exception):
    """What may not happen to a stream whatever happens to the sidecars."""


class Kind(Enum):
    """What a stream is like."""

    CHURN = auto()  # a short exchange, after which the caller closes at once
    KEEP_ALIVE = auto()  # some exchanges, then the caller ends it
    APP_CLOSES = auto()  # a short exchange, after which the app closes at once
    CALLER_ENDS_FIRST = auto()  # the app answers when it has seen the end
    APP_ENDS_FIRST = auto()  # the caller says the most of it after the app's end
    APP_SPEAKS_FIRST = auto()
    BULK = auto()  # both ways at once
    CALLER_RESETS = auto()
    APP_RESETS = auto()
    EMPTY = auto()  # the caller leaves without a word


# How many of each there are; bulk costs as much as a hundred others.
WEIGHTS: Mapping[Kind, int] = {
    Kind.CHURN: 30,
    Kind.KEEP_ALIVE: 16,
    Kind.APP_CLOSES: 8,
    Kind.CALLER_ENDS_FIRST: 14,
    Kind.APP_ENDS_FIRST: 8,
    Kind.APP_SPEAKS_FIRST: 6,
    Kind.BULK: 2,
    Kind.CALLER_RESETS: 8,
    Kind.APP_RESETS: 8,
    Kind.EMPTY: 6,
}

# From one byte over a tunnel's early bytes (64 KiB) and one read of a sidecar (256 KiB).
MOST_MESSAGE_BYTES = 600 * KIB
LEAST_BULK_BYTES = 1024 * KIB
MOST_BULK_BYTES = 6 * 1024 * KIB


@dataclass(frozen=True, slots=True)
class Plan:
    """All that one stream is to be; `there` and `back` are the sizes of its messages in bytes.

    `there_at` and `back_at` say where in the noise its bytes begin. `breaks_after` is how much of
    the other's message is awaited before a planned reset. Of a slow reader, `*_pause_s` is between
    its reads; `gap_s` is between a caller's message and its end.
    """

    number: int
    kind: Kind
    there: tuple[int, ...]
    back: tuple[int, ...]
    there_at: int
    back_at: int
    breaks_after: int = 0
    gap_s: float = 0.0
    caller_pause_s: float = 0.0
    app_pause_s: float = 0.0

    @classmethod
    def drawn(cls, number: int, rng: Random, kind: Kind | None = None) -> "Plan":
        """Return a plan for stream `number`, made by `rng` alone; `kind` if that is given."""
        kind = kind or rng.choices([*WEIGHTS], [*WEIGHTS.values()])[0]
        there, back = _sizes(rng, kind), _sizes(rng, kind)
        slow = rng.choice(["caller", "app", "none"]) if kind is Kind.BULK else "none"
        return cls(
            number=number,
            kind=kind,
            there=there,
            back=back[: len(there)],
            there_at=rng.randrange(Noise.STARTS),
            back_at=rng.randrange(Noise.STARTS),
            breaks_after=rng.randrange(min(there[0], back[0])) if rng.random() < 0.7 else 0,
            gap_s=rng.choice([0.0, 0.0, rng.uniform(0, 0.02)]),
            caller_pause_s=0.002 if slow == "caller" else 0.0,
            app_pause_s=0.002 if slow == "app" else 0.0,
        )


def _sizes(rng: Random, kind: Kind) -> tuple[int, ...]:
    match kind:
        case Kind.BULK:
            return (rng.randint(LEAST_BULK_BYTES, MOST_BULK_BYTES),)
        case Kind.KEEP_ALIVE:
            return tuple(rng.randint(1, 16 * KIB) for _ in range(6))
        case Kind.CHURN | Kind.APP_CLOSES:
            return (rng.randint(1, 4 * KIB),)
        case _:
            return (int(MOST_MESSAGE_BYTES ** rng.random()),)


class Noise:
    """Random bytes without any repetition, of which each stream has its own piece each way."""

    STARTS = 8 * 1024 * KIB

    def __init__(self, seed: int) -> None:
        self.block = memoryview(Random(seed).randbytes(self.STARTS + MOST_BULK_BYTES))


class _End:
    """One end of a stream: says its part of the noise, and compares what it hears.

    Raises StreamError where bytes are wrong or an orderly end comes too early, and ConnectionError
    where the connection broke.
    """

    def __init__(self, sock: socket.socket, noise: Noise) -> None:
        self._sock = sock
        self._loop = asyncio.get_running_loop()
        self._noise = noise.block
        self._prefix = b""
        self._saying_at = 0
        self._hearing_at = 0
        self._pause_s = 0.0
        # The kernel tells once of a reset; if it told a write, a read sees what looks like an end.
        self._broken = False

    async def say(self, count: int) -> None:
        """Send the next `count` bytes."""
        data = self._noise[self._saying_at : self._saying_at + count]
        self._saying_at += count
        prefix, self._prefix = self._prefix, b""
        try:
            await self._loop.sock_sendall(self._sock, prefix + data if prefix else data)
        except ConnectionError:
            self._broken = True
            raise

    async def hear(self, count: int) -> None:
        """Receive the next `count` bytes."""
        while count:
            data = await self._receive(min(count, READ_BYTES))
            if self._noise[self._hearing_at : self._hearing_at + len(data)] != data:
                raise StreamError(f"wrong bytes, at most {count} before the end of a message")
            self._hearing_at += len(data)
            count -= len(data)
            if self._pause_s:
                await asyncio.sleep(self._pause_s)

    async def hear_end(self) -> None:
        """Receive nothing but the end."""
        data = await self._hear_any(READ_BYTES)
        if data:
            raise StreamError(f"{len(data)} bytes or more came instead of the end")

    def end(self) -> None:
        """Say that nothing more will come."""
        try:
            self._sock.shutdown(socket.SHUT_WR)
        except OSError as error:
            if error.errno == errno.ENOTCONN:  # what shutdown says of a reset
                raise ConnectionResetError(*error.args) from error
            raise

    def reset(self) -> None:
        """Break the connection."""
        reset(self._sock)

    def _be_slow(self, pause_s: float) -> None:
        self._pause_s = pause_s
        if pause_s:
            self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_BUFFER_BYTES)

    async def _hear_any(self, most: int) -> bytes:
        data = await self._loop.sock_recv(self._sock, most)
        if not data and self._broken:
            raise ConnectionResetError("a write had met the reset")
        return data

    async def _receive(self, most: int) -> bytes:
        data = await self._hear_any(most)
        if not data:
            raise StreamError("an orderly end came before all bytes")
        return data

    async def _receive_name(self, first: bytes = b"") -> tuple[bytes, int]:
        record = bytearray(first)
        while len(record) < _name.size:
            record += await self._receive(_name.size - len(record))
        tag, number = _name.unpack(record)
        return tag, number


class Caller(_End):
    """The end that connects."""

    def __init__(self, sock: socket.socket, noise: Noise, plan: Plan) -> None:
        super().__init__(sock, noise)
        self._plan = plan
        self._prefix = _name.pack(CALL, plan.number)
        self._saying_at, self._hearing_at = plan.there_at, plan.back_at
        self._answered = False
        self._be_slow(plan.caller_pause_s)

    async def hear_greeting(self) -> None:
        """Receive what an app says to a caller that is silent."""
        tag, number = await self._receive_name()
        if (tag, number) != (GREETING, 0):
            raise StreamError(f"{tag!r} {number} came instead of a greeting")

    async def hear(self, count: int) -> None:
        """Receive the next `count` bytes, the first of them from the app that was called."""
        if count and not self._answered:
            tag, number = await self._receive_name()
            if tag == GREETING:
                tag, number = await self._receive_name()
            if (tag, number) != (ANSWER, self._plan.number):
                raise StreamError(f"the app answers {tag!r} {number}")
            self._answered = True
        await super().hear(count)


class Callee(_End):
    """The end that is an app's, for a stream that is known once `meet` has returned."""

    def __init__(self, sock: socket.socket, noise: Noise) -> None:
        super().__init__(sock, noise)
        self._timer = self._loop.call_later(GREETING_AFTER_S, self._greet)

    async def meet(self) -> int | None:
        """Return the number of the caller's stream, or None if it left without a word."""
        try:
            first = await self._hear_any(_name.size)
        finally:
            self._timer.cancel()
        if not first:
            return None
        tag, number = await self._receive_name(first)
        if tag != CALL:
            raise StreamError(f"a stream begins with {tag!r} {number}")
        return number

    def follow(self, plan: Plan) -> None:
        """Be the app's end of the stream of `plan`."""
        self._prefix = _name.pack(ANSWER, plan.number)
        self._saying_at, self._hearing_at = plan.back_at, plan.there_at
        self._be_slow(plan.app_pause_s)

    def _greet(self) -> None:
        try:
            self._sock.send(_name.pack(GREETING, 0))
        except ConnectionError:
            self._broken = True


# What both ends do, one line of a conversation after the other.


async def _exchange_as_caller(end: Caller, plan: Plan) -> None:
    for there, back in zip(plan.there, plan.back, strict=True):
        await end.say(there)
        await end.hear(back)


async def _exchange_as_app(end: Callee, plan: Plan) -> None:
    for there, back in zip(plan.there, plan.back, strict=True):
        await end.hear(there)
        await end.say(back)


async def _answer_to_the_end(end: Callee, plan: Plan) -> None:
    await _exchange_as_app(end, plan)
    await end.hear_end()


async def _call_and_end(end: Caller, plan: Plan) -> None:
    await _exchange_as_caller(end, plan)
    end.end()
    await end.hear_end()


async def _call_to_the_end(end: Caller, plan: Plan) -> None:
    await _exchange_as_caller(end, plan)
    await end.hear_end()


async def _say_all_and_end(end: Caller, plan: Plan) -> None:
    await end.say(plan.there[0])
    await asyncio.sleep(plan.gap_s)
    end.end()
    await end.hear(plan.back[0])
    await end.hear_end()


async def _answer_after_the_end(end: Callee, plan: Plan) -> None:
    await end.hear(plan.there[0])
    await end.hear_end()
    await end.say(plan.back[0])


async def _hear_all_then_speak(end: Caller, plan: Plan) -> None:
    await end.say(1)
    await end.hear(plan.back[0])
    await end.hear_end()
    await asyncio.sleep(plan.gap_s)
    await end.say(plan.there[0])


async def _say_all_then_hear(end: Callee, plan: Plan) -> None:
    await end.hear(1)
    await end.say(plan.back[0])
    end.end()
    await end.hear(plan.there[0])
    await end.hear_end()


async def _wait_to_be_greeted(end: Caller, plan: Plan) -> None:
    await end.hear_greeting()
    await _call_and_end(end, plan)


async def _both_at_once(end: _End, says: int, hears: int) -> None:
    results = await asyncio.gather(end.say(says), end.hear(hears), return_exceptions=True)
    for error in sorted(filter(None, results), key=lambda each: isinstance(each, StreamError)):
        raise error
    end.end()
    await end.hear_end()


async def _bulk_as_caller(end: Caller, plan: Plan) -> None:
    await _both_at_once(end, plan.there[0], plan.back[0])


async def _bulk_as_app(end: Callee, plan: Plan) -> None:
    await _both_at_once(end, plan.back[0], plan.there[0])


async def _reset_as_caller(end: Caller, plan: Plan) -> None:
    await end.say(plan.there[0])
    await end.hear(plan.breaks_after)
    end.reset()


async def _reset_as_app(end: Callee, plan: Plan) -> None:
    await end.hear(plan.breaks_after)
    await end.say(plan.back[0])
    end.reset()


async def _leave(end: Caller, plan: Plan) -> None:
    await asyncio.sleep(plan.gap_s)
    if plan.breaks_after:
        end.reset()


async def _expect_nothing(_end: Callee, plan: Plan) -> None:
    raise StreamError(f"the app hears of stream {plan.number}, which says nothing")


@dataclass(frozen=True, slots=True)
class Script:
    """What the two ends of a stream do."""

    caller: Callable[[Caller, Plan], Awaitable[None]]
    app: Callable[[Callee, Plan], Awaitable[None]]


KINDS: Mapping[Kind, Script] = {
    Kind.CHURN: Script(_exchange_as_caller, _answer_to_the_end),
    Kind.KEEP_ALIVE: Script(_call_and_end, _answer_to_the_end),
    Kind.APP_CLOSES: Script(_call_to_the_end, _exchange_as_app),
    Kind.CALLER_ENDS_FIRST: Script(_say_all_and_end, _answer_after_the_end),
    Kind.APP_ENDS_FIRST: Script(_hear_all_then_speak, _say_all_then_hear),
    Kind.APP_SPEAKS_FIRST: Script(_wait_to_be_greeted, _answer_to_the_end),
    Kind.BULK: Script(_bulk_as_caller, _bulk_as_app),
    Kind.CALLER_RESETS: Script(_reset_as_caller, _answer_to_the_end),
    Kind.APP_RESETS: Script(_call_to_the_end, _reset_as_app),
    Kind.EMPTY: Script(_leave, _expect_nothing),
}
