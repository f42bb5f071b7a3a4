"""The leaf of a sidecar: when it is asked for, replaced, and no longer shown."""

import asyncio
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from itertools import pairwise
from random import Random

import pytest

from meshrun.proxy.identity import Credentials, Identity
from meshrun.proxy.messages import (
    FromSidecar,
    LeafIssued,
    LeafRefused,
    LeafRequested,
    Logged,
    Serving,
)
from meshrun.proxy.spiffe import SpiffeId
from meshrun.supervisor.ca import create_root, sign

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC).timestamp()
TTL_S = 100.0
WEB = SpiffeId.for_service("test.mesh", "web")


class Bench:
    """An Identity with a clock in the hand and the control plane played by the test."""

    def __init__(self) -> None:
        self.now = START
        self.sent: list[FromSidecar] = []
        self.served = 0
        self.root = create_root("test.mesh", datetime.fromtimestamp(START, UTC))
        self.identity = Identity(self.sent.append, lambda: self.now, Random(1), self._serving)

    def _serving(self) -> None:
        self.served += 1

    def expect(self) -> None:
        self.identity.expect(WEB, [self.root.certificate_der])

    def requests(self) -> list[LeafRequested]:
        return [message for message in self.sent if isinstance(message, LeafRequested)]

    def serials(self) -> list[str]:
        return [message.serial for message in self.sent if isinstance(message, Serving)]

    def issue(self, request: LeafRequested | None = None) -> None:
        request = request or self.requests()[-1]
        made = sign(self.root, request.csr, WEB, datetime.fromtimestamp(self.now, UTC), TTL_S)
        self.identity.issued(
            LeafIssued(
                request=request.request,
                chain=made.chain_der,
                issued_at=made.issued_at,
                not_after=made.not_after,
            )
        )

    async def credentials(self) -> Credentials:
        return await self.identity.credentials()


def on_loop(test: Callable[[Bench], Coroutine[object, object, None]]) -> Callable[[], None]:
    """Run `test` with a bench of its own."""

    async def run() -> None:
        bench = Bench()
        try:
            await test(bench)
        finally:
            bench.identity.close()

    def wrapped() -> None:
        asyncio.run(run())

    return wrapped


async def settled(task: asyncio.Task[Credentials]) -> bool:
    """Let `task` run as far as it can without time passing."""
    for _ in range(5):
        await asyncio.sleep(0)
    return task.done()


def waiting(bench: Bench) -> asyncio.Task[Credentials]:
    return asyncio.get_running_loop().create_task(bench.credentials())


@on_loop
async def test_a_leaf_is_requested_and_said_to_be_served(bench: Bench) -> None:
    bench.expect()
    assert bench.served == 0
    bench.issue()
    assert bench.served == 1
    assert bench.identity.ready
    assert (await bench.credentials()).leaf.serial == bench.serials()[0]


@on_loop
async def test_the_same_snapshot_again_changes_nothing(bench: Bench) -> None:
    bench.expect()
    bench.issue()
    before = await bench.credentials()
    bench.expect()
    assert await bench.credentials() is before
    assert len(bench.requests()) == 1


@on_loop
async def test_new_roots_make_new_contexts_for_the_same_leaf(bench: Bench) -> None:
    bench.expect()
    bench.issue()
    before = await bench.credentials()
    other = create_root("test.mesh", datetime.fromtimestamp(START, UTC))
    bench.identity.expect(WEB, [bench.root.certificate_der, other.certificate_der])
    after = await bench.credentials()
    assert after.leaf is before.leaf
    assert after.server_context is not before.server_context


@on_loop
async def test_renewal_takes_a_new_key_and_a_new_serial(bench: Bench) -> None:
    bench.expect()
    bench.issue()
    old = await bench.credentials()
    bench.identity.renew()
    assert await bench.credentials() is old
    bench.issue()
    new = await bench.credentials()
    assert new.leaf.serial != old.leaf.serial
    assert new.leaf.key_pem != old.leaf.key_pem
    assert new.client_context is not old.client_context


@on_loop
async def test_a_handshake_after_a_long_sleep_renews_first(bench: Bench) -> None:
    bench.expect()
    bench.issue()
    bench.now += 10 * TTL_S
    task = waiting(bench)
    assert not await settled(task)
    assert len(bench.requests()) == 2
    bench.issue()
    assert (await task).leaf.serial == bench.serials()[1]


@on_loop
async def test_a_leaf_past_its_renewal_is_shown_while_the_new_one_is_made(bench: Bench) -> None:
    bench.expect()
    bench.issue()
    bench.now += 0.95 * TTL_S
    assert (await bench.credentials()).leaf.serial == bench.serials()[0]
    assert (await bench.credentials()).leaf.serial == bench.serials()[0]
    assert len(bench.requests()) == 2


@on_loop
async def test_the_old_leaf_serves_until_it_expires_and_then_nothing_does(bench: Bench) -> None:
    bench.expect()
    bench.issue()
    for after_s in (0.92, 0.95, 0.98):
        bench.now = START + after_s * TTL_S
        await bench.credentials()
        request = bench.requests()[-1]
        bench.identity.refused(LeafRefused(request=request.request, reason="no root"))
    assert [m for m in bench.sent if isinstance(m, Logged) and "no root" in m.message]
    bench.now = START + TTL_S
    task = waiting(bench)
    assert not await settled(task)
    task.cancel()


@pytest.mark.parametrize("answered", [True, False])
def test_retries_back_off(answered: bool) -> None:
    @on_loop
    async def test(bench: Bench) -> None:
        bench.expect()
        times = []
        for _ in range(4000):
            before = len(bench.requests())
            bench.now += 0.1
            task = waiting(bench)
            await settled(task)
            task.cancel()
            if len(bench.requests()) > before:
                times.append(bench.now - START)
                number = bench.requests()[-1].request
                if answered:
                    bench.identity.refused(LeafRefused(request=number, reason="no"))
        gaps = [late - early for early, late in pairwise(times)]
        assert all(late > early - 0.3 for early, late in pairwise(gaps))
        assert gaps[-1] == pytest.approx(30.0, abs=0.3)
        assert len(times) < 25

    test()


@on_loop
async def test_an_answer_to_an_older_request_is_not_used(bench: Bench) -> None:
    bench.expect()
    old = bench.requests()[0]
    bench.identity.renew()
    bench.issue(old)
    assert bench.served == 0
    bench.identity.refused(LeafRefused(request=old.request, reason="late"))
    bench.issue()
    assert bench.identity.ready


@on_loop
async def test_a_leaf_for_another_key_is_not_served(bench: Bench) -> None:
    bench.expect()
    first = bench.requests()[0]
    bench.identity.renew()
    made = sign(bench.root, first.csr, WEB, datetime.fromtimestamp(START, UTC), TTL_S)
    bench.identity.issued(
        LeafIssued(
            request=bench.requests()[-1].request,
            chain=made.chain_der,
            issued_at=made.issued_at,
            not_after=made.not_after,
        )
    )
    assert not bench.identity.ready
    assert [m for m in bench.sent if isinstance(m, Logged) and "another key" in m.message]
