"""The ports of a plan: taken together or not at all, and who has one keeps it."""

import socket
from contextlib import closing

import pytest

from meshrun.supervisor.claims import Claims, release
from meshrun.supervisor.configuration.model import PortRange
from meshrun.supervisor.listeners import Leases, Listeners
from meshrun.supervisor.ports import PortTakenError, Wish

RANGE = PortRange(1, 65535)


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    return number


def wish(holder: str, fixed: int | None = None) -> Wish:
    return Wish(holder, RANGE, fixed)


def app(holder: str, fixed: int | None = None) -> Wish:
    return Wish(holder, RANGE, fixed, "app")


def test_what_was_claimed_in_vain_is_given_back(port: int) -> None:
    with closing(Listeners()) as listeners, closing(Leases()) as leases:
        claims = Claims(listeners, leases, {})
        assert claims.claim(wish("web.1 inbound"), port)
        claims.undo()
        assert not listeners.sockets
        assert Claims(listeners, leases, {}).claim(app("web.1"), port)


def test_who_has_a_port_keeps_it_and_keeps_it_when_the_rest_is_undone(port: int) -> None:
    with closing(Listeners()) as listeners, closing(Leases()) as leases:
        Claims(listeners, leases, {}).claim(wish("web.1 inbound"), port)
        before = dict(listeners.sockets)
        claims = Claims(listeners, leases, {"web.1 inbound": port})
        assert claims.claim(wish("web.1 inbound"), port)
        claims.undo()
        assert listeners.sockets == before


def test_a_port_of_the_run_goes_only_to_whom_the_file_gives_it(port: int) -> None:
    with closing(Listeners()) as listeners, closing(Leases()) as leases:
        Claims(listeners, leases, {}).claim(app("web.1"), port)
        claims = Claims(listeners, leases, {"web.1": port})
        assert not claims.claim(app("api.1"), port)
        assert claims.claim(app("api.1", fixed=port), port)
        # What an app was promised no sidecar can listen on.
        assert not claims.claim(wish("api.1 inbound", fixed=port), port)
        claims.undo()
        assert list(leases.sockets) == [port]


def test_it_is_said_who_has_a_port(port: int) -> None:
    with closing(Listeners()) as listeners, closing(Leases()) as leases:
        Claims(listeners, leases, {}).claim(wish("web.1 inbound"), port)
        claims = Claims(listeners, leases, {"web.1 inbound": port})
        error = claims.explain(PortTakenError(app("api.1", port), port))
        assert f"cannot give port {port} to api.1: web.1 inbound has it" in str(error)


def test_ports_that_nobody_holds_are_given_back_once(port: int) -> None:
    with closing(Listeners()) as listeners, closing(Leases()) as leases:
        leases.claim(port)
        release(listeners, leases, [port, port])
        assert not leases.sockets
