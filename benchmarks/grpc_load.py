"""Unary gRPC calls, so many at a time over one connection: `grpc_load.py PORT CALLS SECONDS`.

A program of its own, so that it costs its own CPU time, which is more than the sidecars'.
"""

import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable

import grpc

METHOD = "/bench.Echo/Call"
MESSAGE = b"x" * 100
WARM_UP_S = 0.3
TIMEOUT_S = 10.0
# grpcio would obey http_proxy, for the loopback too.
OPTIONS = [("grpc.enable_http_proxy", 0)]

Call = Callable[[], Awaitable[bytes]]


async def repeat(call: Call, until_s: float, latencies_s: list[float]) -> None:
    """Call again and again, each time when the last call was answered."""
    begun_s = time.monotonic()
    while begun_s < until_s:
        if await call() != MESSAGE:
            raise ConnectionError("the answer is not what was sent")
        now_s = time.monotonic()
        latencies_s.append(now_s - begun_s)
        begun_s = now_s


async def generate(call: Call, at_a_time: int, seconds: float) -> tuple[list[float], float]:
    """Load for this long; return each latency, and how long it really took, in seconds."""
    latencies_s: list[float] = []
    begun_s = time.monotonic()
    until_s = begun_s + seconds
    await asyncio.gather(*(repeat(call, until_s, latencies_s) for _ in range(at_a_time)))
    return latencies_s, time.monotonic() - begun_s


async def main(port: int, at_a_time: int, seconds: float) -> None:
    """Print the calls in all, those that count, their seconds and latencies, as JSON."""
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}", OPTIONS) as channel:
        stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)

        async def call() -> bytes:
            return await stub(MESSAGE, timeout=TIMEOUT_S)

        warm_up, _ = await generate(call, at_a_time, WARM_UP_S)
        latencies_s, took_s = await generate(call, at_a_time, seconds)
    calls = len(warm_up) + len(latencies_s)
    print(json.dumps({"calls": calls, "seconds": took_s, "latencies_s": latencies_s}))


if __name__ == "__main__":
    try:
        asyncio.run(main(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])))
    except grpc.aio.AioRpcError as error:
        sys.exit(f"cannot call: {error.code().name}: {error.details()}")
