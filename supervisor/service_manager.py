"""Tells a service manager (systemd) how the run is, if one has asked for it.

Messages never block the run: what the manager does not take yet waits, in order. Its watchdog is
fed by the event loop, so by nobody when that hangs.
"""

import asyncio
import socket
import time
from collections import deque
from typing import NamedTuple, Protocol

from meshrun.supervisor import sdnotify
from meshrun.supervisor.bell import Bell
from meshrun.supervisor.journal import Journal
from meshrun.supervisor.sdnotify import Contact

__all__ = ["Followed", "ServiceManager"]

# A manager that takes nothing any more gets the newest only, some day.
MOST_WAITING = 64
# What is left to do when the last process has ended: records, files.
STOP_MARGIN_S = 5.0


class Followed(Protocol):
    """What is told of a run (`meshrun.supervisor.run.Run`); the bell rings at each change."""

    bell: Bell

    @property
    def reloading(self) -> bool:
        """Whether a changed configuration is being applied."""

    @property
    def standing(self) -> "Settling":
        """How everything is."""


class Settling(Protocol):
    """What is told of how everything is (`meshrun.supervisor.standing.Standing`)."""

    def readiness(self) -> object | None:
        """Return whether everything is ready, None while that is not settled."""

    def summary(self) -> str:
        """Say in a line for people how everything is."""


class _Told(NamedTuple):
    """What the manager knows."""

    started: bool = False
    reloading: bool = False
    summary: str = ""


class ServiceManager:
    """The manager's notification socket; without a contact nothing is sent."""

    def __init__(self, contact: Contact | None, journal: Journal) -> None:
        self._journal = journal
        self._loop = asyncio.get_running_loop()
        self._waiting: deque[bytes] = deque(maxlen=MOST_WAITING)
        self._timer: asyncio.TimerHandle | None = None
        self._socket: socket.socket | None = None
        self._told = _Told()
        self._stopping = False
        if contact is None:
            return
        self._socket = self._connected(contact.address)
        if self._socket is not None and contact.watchdog_s is not None:
            # Half the time, as sd_watchdog_enabled(3) says.
            self._feed_watchdog(contact.watchdog_s / 2)

    def _connected(self, address: str) -> socket.socket | None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        try:
            sock.connect(f"\0{address[1:]}" if address.startswith("@") else address)
        except OSError as error:
            sock.close()
            self._journal.warning(
                f"cannot tell the service manager at {address} anything: {error.strerror}"
            )
            return None
        return sock

    def _feed_watchdog(self, interval_s: float) -> None:
        self._send(sdnotify.watchdog())
        self._timer = self._loop.call_later(interval_s, self._feed_watchdog, interval_s)

    def _send(self, message: bytes) -> None:
        if self._socket is not None:
            self._waiting.append(message)
            self._flush()

    def _flush(self) -> None:
        if self._socket is None:
            return
        while self._waiting:
            try:
                self._socket.send(self._waiting[0])
            except BlockingIOError:
                self._loop.add_writer(self._socket.fileno(), self._flush)
                return
            except OSError as error:
                self._journal.warning(f"cannot tell the service manager: {error.strerror}")
                self.close()
                return
            self._waiting.popleft()
        self._loop.remove_writer(self._socket.fileno())

    async def follow(self, run: Followed) -> None:
        """Tell how the run is, until it stops: ready once it has settled, and each change after.

        Settled is what `up --wait` waits for. Where that is a failure the run has started all the
        same: an app that fails is no reason to end the others.
        """
        while self._socket is not None:
            await run.bell.until(lambda: self._look(run) != self._told, None)
            self._tell(self._look(run))

    def _look(self, run: Followed) -> _Told:
        if self._stopping:
            return self._told
        started = self._told.started or run.standing.readiness() is not None
        return _Told(started, run.reloading, run.standing.summary())

    def _tell(self, now: _Told) -> None:
        before, self._told = self._told, now
        if now.reloading and not before.reloading:
            self._send(sdnotify.reloading("reloading", time.monotonic()))
        elif now.started and not now.reloading:
            # With each status again: it changes nothing, unless it ends a reload.
            self._send(sdnotify.ready(now.summary))
        else:
            self._send(sdnotify.status(now.summary))

    def stopping(self, longest_s: float) -> None:
        """Say that the run ends, within `longest_s`; nothing of its state is told any more."""
        self._stopping = True
        self._send(sdnotify.stopping("stopping", longest_s + STOP_MARGIN_S))

    def say(self, text: str) -> None:
        """Say something for people."""
        self._send(sdnotify.status(text))

    def close(self) -> None:
        """Send nothing any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._socket is not None:
            self._loop.remove_writer(self._socket.fileno())
            self._socket.close()
            self._socket = None
