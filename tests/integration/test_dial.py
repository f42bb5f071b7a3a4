"""Outgoing connections: literal addresses, names, and what refuses."""

import asyncio
import socket

import pytest

from meshrun.proxy import dial
from meshrun.proxy.poller import Poller


def dial_on_loop(host: str, port: int) -> tuple[str, int]:
    async def bounded(poller: Poller) -> tuple[str, int]:
        async with asyncio.timeout(10):
            return await dialled(poller, host, port)

    poller = Poller()
    with asyncio.Runner(loop_factory=poller.new_loop) as runner:
        return runner.run(bounded(poller))


async def dialled(poller: Poller, host: str, port: int) -> tuple[str, int]:
    with await dial.connect(poller, host, port) as connection:
        peer = connection.getpeername()
        return str(peer[0]), int(peer[1])


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_an_address_and_a_name_lead_to_the_same_listener(host: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert dial_on_loop(host, port) == ("127.0.0.1", port)


def test_an_ipv6_address_is_dialled() -> None:
    if not socket.has_ipv6:
        pytest.skip("this machine has no IPv6")
    try:
        server = socket.create_server(("::1", 0), family=socket.AF_INET6)
    except OSError:
        pytest.skip("this machine has no IPv6 loopback")
    with server:
        port = server.getsockname()[1]
        assert dial_on_loop("::1", port) == ("::1", port)


def test_a_port_that_nobody_listens_on_is_an_error_that_names_it() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
        with pytest.raises(ConnectionRefusedError, match=f"127.0.0.1:{port}"):
            dial_on_loop("127.0.0.1", port)


def test_a_name_that_does_not_exist_is_an_error() -> None:
    with pytest.raises(socket.gaierror):
        dial_on_loop("no-such-host.invalid", 80)
