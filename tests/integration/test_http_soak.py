"""Requests of every kind in all that happens to sidecars; as `test_soak`, of HTTP."""

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from functools import partial
from itertools import cycle, islice

import pytest
from support.http_soak import Apps, Caller, HttpSoak, Kind
from support.rpc_soak import RpcApps, RpcCaller
from support.sampling import SEED, WHOLE
from support.sidecars import Mesh
from support.weather import Disturbance, Weather
from support.web_soak import WebApps, WebCaller

from meshrun.proxy.intentions import Protocol
from meshrun.proxy.messages import Ejection, Requests

MIB = 1024 * 1024

STORM_S, CALM_S = (26.0, 10.0) if WHOLE else (2.0, 0.6)
DISTURBANCES = 12 if WHOLE else 4
CALLERS = 4

# What is ejected is to come back while somebody is looking.
REQUESTS = Requests(ejection=Ejection(failures=5, first_s=0.1, longest_s=0.1))

# As in `test_soak`; of requests that were under way at the same time each has its buffers.
MOST_GROWTH_BYTES = 6 * MIB


def storm(weather: Weather) -> Iterable[tuple[float, Disturbance]]:
    """Yield all that can happen to sidecars, each with its second."""
    repertoire: tuple[Disturbance, ...] = (
        weather.kill_server,
        partial(weather.use_tunnels, True, False),
        weather.flip,
        weather.kill_client,
        weather.withdraw,
        weather.kill_server,
        partial(weather.use_tunnels, False, True),
    )
    for number, disturb in enumerate(islice(cycle(repertoire), DISTURBANCES)):
        yield STORM_S * (number + 1) / (DISTURBANCES + 1), disturb
    for second in range(int(STORM_S)):
        yield second + 0.5, weather.rotate


async def whatever_happens(
    mesh: Mesh,
    soak: HttpSoak,
    apps: Apps,
    protocol: Protocol,
    caller: Callable[[HttpSoak, int], Caller],
) -> None:
    """Let a storm pass, and then the same calm twice."""
    ports = await apps.start()
    weather = await asyncio.to_thread(Weather, mesh, SEED, ports, protocol, REQUESTS)

    def callers() -> list[Caller]:
        return [caller(soak, weather.port) for _ in range(CALLERS)]

    await soak.call(callers(), "storm", STORM_S, storm(weather))
    await asyncio.to_thread(weather.use_tunnels, True, True)
    kept = []
    for _ in range(2):
        await soak.call(callers(), "calm", CALM_S)
        kept.append(await asyncio.to_thread(weather.settle))
    await apps.stop()
    complaints = soak.complaints(weather)
    assert not complaints, "\n".join([f"{len(complaints)} complaints:", *complaints[:20]])
    first, second = kept
    growth = {instance: second[instance] - first[instance] for instance in first}
    assert max(growth.values()) < MOST_GROWTH_BYTES, growth
    assert set(soak.succeeded()) == set(Kind)


@pytest.mark.slow
@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_in_any_weather_an_answer_is_right_or_visibly_none(protocol: Protocol) -> None:
    seed = int(os.environ.get("MESHRUN_SOAK_SEED") or (time.time() if WHOLE else SEED))
    print(f"for the same requests again: MESHRUN_SOAK_SEED={seed}")
    soak = HttpSoak(seed, repeatable=protocol == "http")
    with Mesh() as mesh:
        if protocol == "http":
            asyncio.run(whatever_happens(mesh, soak, WebApps(soak), protocol, WebCaller))
        else:
            asyncio.run(whatever_happens(mesh, soak, RpcApps(soak), protocol, RpcCaller))
