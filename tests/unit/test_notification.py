"""Datagrams of sd_notify: what is understood of them, and that nothing else does harm."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meshrun.supervisor.probes.notification import (
    LONGEST_EXTENSION_S,
    LONGEST_STATUS,
    Notification,
    parse,
)


@pytest.mark.parametrize(
    ("datagram", "said"),
    [
        (b"READY=1", Notification(ready=True)),
        (b"READY=1\nSTATUS=Serving\nMAINPID=7\n", Notification(ready=True, status="Serving")),
        (b"READY=0\nSTOPPING=yes", Notification()),
        (b"RELOADING=1\nMONOTONIC_USEC=12", Notification(reloading=True)),
        (b"STOPPING=1", Notification(stopping=True)),
        (b"WATCHDOG=1", Notification(keep_alive=True)),
        (b"WATCHDOG=trigger", Notification(ill=True)),
        (b"EXTEND_TIMEOUT_USEC=1500000", Notification(extend_s=1.5)),
        (b"EXTEND_TIMEOUT_USEC=-1", Notification()),
        (b"EXTEND_TIMEOUT_USEC=" + b"9" * 20, Notification(extend_s=LONGEST_EXTENSION_S)),
        (b"EXTEND_TIMEOUT_USEC=" + b"9" * 21, Notification()),
        (b"STATUS=", Notification(status="")),
        (b"STATUS=a=b", Notification(status="a=b")),
        (b"STATUS=\x1b[2J\xff", Notification(status="?[2J�")),
        (b"", Notification()),
    ],
)
def test_a_datagram_is_read_line_by_line(datagram: bytes, said: Notification) -> None:
    assert parse(datagram) == said


@given(st.binary(max_size=5000) | st.binary(max_size=4000).map(lambda rest: b"STATUS=" + rest))
def test_whatever_is_sent_is_read_and_what_is_shown_is_short_and_printable(datagram: bytes) -> None:
    said = parse(datagram)
    assert said.status is None or said.status.isprintable()
    assert len(said.status or "") <= LONGEST_STATUS
    assert said.extend_s is None or 0.0 <= said.extend_s <= LONGEST_EXTENSION_S
