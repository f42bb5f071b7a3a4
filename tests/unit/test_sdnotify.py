"""The messages to a service manager, and what it says in the environment."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor import sdnotify
from meshrun.supervisor.sdnotify import Contact, contact


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"NOTIFY_SOCKET": ""}, None),
        ({"NOTIFY_SOCKET": "@"}, None),
        ({"NOTIFY_SOCKET": "vsock:2:1234"}, None),
        ({"NOTIFY_SOCKET": "relative"}, None),
        ({"NOTIFY_SOCKET": "/" + "x" * 107}, None),
        ({"NOTIFY_SOCKET": "/run/notify"}, Contact("/run/notify")),
        ({"NOTIFY_SOCKET": "@a", "WATCHDOG_USEC": "30000000"}, Contact("@a", 30.0)),
        ({"NOTIFY_SOCKET": "@a", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "7"}, Contact("@a", 5e-6)),
        ({"NOTIFY_SOCKET": "@a", "WATCHDOG_USEC": "5", "WATCHDOG_PID": "8"}, Contact("@a")),
        ({"NOTIFY_SOCKET": "@a", "WATCHDOG_USEC": "0"}, Contact("@a")),
        ({"NOTIFY_SOCKET": "@a", "WATCHDOG_USEC": "-1"}, Contact("@a")),
        ({"NOTIFY_SOCKET": "@a", "WATCHDOG_USEC": "²"}, Contact("@a")),
        ({"NOTIFY_SOCKET": "@a", "WATCHDOG_USEC": "9" * 5000}, Contact("@a", 366 * 86400.0)),
    ],
)
def test_the_environment_says_where_the_manager_listens(
    environ: dict[str, str], expected: Contact | None
) -> None:
    assert contact(environ, 7) == expected


def test_messages_are_assignments_a_line_each() -> None:
    assert sdnotify.ready("3 of 3") == b"READY=1\nSTATUS=3 of 3"
    assert sdnotify.status("2 of 3") == b"STATUS=2 of 3"
    assert sdnotify.reloading("reloading", 12.5) == (
        b"RELOADING=1\nMONOTONIC_USEC=12500000\nSTATUS=reloading"
    )
    assert sdnotify.stopping("stopping", 20.0) == (
        b"STOPPING=1\nEXTEND_TIMEOUT_USEC=20000000\nSTATUS=stopping"
    )
    assert sdnotify.watchdog() == b"WATCHDOG=1"


@given(st.text())
def test_no_status_can_add_an_assignment_or_be_too_long(text: str) -> None:
    message = sdnotify.ready(text)
    assert message.count(b"\n") == 1
    assert len(message) < 4096
    assert message.startswith(b"READY=1\nSTATUS=")
