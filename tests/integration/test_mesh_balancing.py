"""Calls to a service of two instances, each with its own sidecar."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack

import pytest
from support.mesh import Mesh
from support.traffic import ask, connect

CONFIG = """
[apps.server]
command = "${PYTHON} ${APPS}/serve.py --mode name"
instances = 2
ready = { tcp = true }

[apps.caller]
command = "${PYTHON} ${APPS}/idle.py"
port = 0
upstreams = ["server"]

[[intentions]]
from = "caller"
to = "server"
"""

INSTANCES = {"server.1", "server.2"}


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """Where the caller reaches the server."""
    with Mesh(tmp_path_factory.mktemp("mesh"), CONFIG) as mesh:
        mesh.up()
        yield mesh.upstream("caller.1", "server")[1]


def test_new_connections_go_to_both_instances(upstream: int) -> None:
    # That one of two equal ones is never chosen happens once in 2 ** 49 runs.
    assert {ask(upstream).decode().strip() for _ in range(50)} == INSTANCES


def test_connections_that_stay_are_spread_evenly(upstream: int) -> None:
    answered: Counter[str] = Counter()
    with ExitStack() as stack:
        for _ in range(10):
            connection = stack.enter_context(connect(upstream))
            connection.sendall(b"who?")
            answered[connection.recv(100).decode().strip()] += 1
    assert answered == dict.fromkeys(INSTANCES, 5)


def test_a_connection_stays_with_its_instance(upstream: int) -> None:
    with connect(upstream) as connection:
        answers = set()
        for _ in range(20):
            connection.sendall(b"who?")
            answers.add(connection.recv(100))
    assert len(answers) == 1
