"""The session of a process that meshrun started: what the process leaves behind is in it."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from meshrun.proxy import tasks
from meshrun.supervisor import processes

__all__ = ["Session"]

LOOK_AGAIN_S = 0.01


class Session:
    """All processes of the session that `leader` leads, or has led."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._signal: int | None = None
        self._nudge = asyncio.Event()

    def send_signal(self, number: int) -> None:
        """Send a signal to everybody but the leader, to whom a pidfd leads."""
        for member in processes.session_members(self._leader):
            if member.pid != self._leader:
                processes.send_signal(member, number)

    def end(self, number: int, on_ended: Callable[[], None]) -> None:
        """Send a signal to what is left, and call `on_ended` once nothing is.

        That is at once where nothing is left, which is the usual case. The second time, while it
        is being ended, only another signal is sent.
        """
        running = self._signal is not None
        self._signal = number
        if running:
            self._nudge.set()
            return
        left = processes.session_members(self._leader)
        if left:
            tasks.start(self._outlive(left, on_ended), f"end session {self._leader}")
        else:
            self._signal = None
            on_ended()

    async def _outlive(self, left: list[processes.ProcessId], on_ended: Callable[[], None]) -> None:
        told: set[tuple[processes.ProcessId, int]] = set()
        while left:
            number = self._signal or signal.SIGKILL
            for process in left:
                # KILL again whatever was born meanwhile; other signals once.
                if (process, number) not in told:
                    told.add((process, number))
                    processes.send_signal(process, number)
            await self._any_exit(left)
            left = processes.session_members(self._leader)
        self._signal = None
        on_ended()

    async def _any_exit(self, members: list[processes.ProcessId]) -> None:
        """Wait until one of them ends, or until another signal is wanted."""
        loop = asyncio.get_running_loop()
        self._nudge.clear()
        with contextlib.ExitStack() as stack:
            for member in members:
                pidfd = processes.open_pidfd(member)
                if pidfd is None:
                    # It is gone, or there are no descriptors left: never look again at once.
                    await asyncio.sleep(LOOK_AGAIN_S)
                    return
                stack.callback(os.close, pidfd)
                loop.add_reader(pidfd, self._nudge.set)
                stack.callback(loop.remove_reader, pidfd)
            await self._nudge.wait()
