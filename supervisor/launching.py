"""The supervisor's side of the launcher: starts it, asks it for processes, hears of their ends."""

import array
import asyncio
import contextlib
import os
import select
import signal
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import msgspec

from meshrun.supervisor import spawning
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.lifecycle_events import Exit

__all__ = ["Launcher", "LauncherLostError", "Process"]


# It needs 2 s at most; one that is stopped (SIGSTOP) would never be done.
END_TIMEOUT_S = 3.0


class LauncherLostError(MeshrunError):
    """The launcher is gone, and with it the run."""


@dataclass(slots=True)
class Process:
    """A child of the launcher. Signals go to the pidfd, so never to somebody else.

    `exited` gets its exit exactly once, after the launcher has reaped it.
    """

    pid: int
    pidfd: int
    exited: asyncio.Future[Exit] = field(repr=False)

    def send_signal(self, number: int) -> None:
        """Send a signal; nothing happens if the process has ended."""
        if self.pidfd >= 0:
            # PermissionError: it became another user (sudo); who stops it must not break off.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.pidfd, number)

    def abandon(self) -> None:
        """KILL it for somebody who waits for it no more, and give the pidfd back after its end."""
        self.send_signal(signal.SIGKILL)
        self.exited.add_done_callback(lambda _: self.close())

    def close(self) -> None:
        """Give the pidfd back."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Launcher:
    """A handle of the launcher process.

    `start` forks it and must come before any loop, thread or secret; `attach` goes on under the
    loop. Closing the guard (or this process ending in any way) makes the launcher end the run.
    """

    def __init__(self, pid: int, control: socket.socket, guard: int) -> None:
        self.pid = pid
        self._control = control
        self._guard = guard
        self._pidfd = os.pidfd_open(pid)
        self._requests = 0
        self._asked: dict[int, asyncio.Future[Process]] = {}
        self._children: dict[int, Process] = {}
        self._outbox: list[tuple[bytes, list[int]]] = []
        self._decoder = msgspec.msgpack.Decoder(spawning.FromLauncher)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ending = False

    @classmethod
    def start(cls, *, silent: bool) -> "Launcher":
        """Fork the launcher; `silent` takes stdout and stderr away from it."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        guard_read, guard_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            ours.close()
            os.close(guard_write)
            # Imported after the fork, while the supervisor reads its configuration: it holds all
            # that a sidecar needs, which this process has no use for.
            from meshrun.supervisor import launcher

            launcher.serve(theirs, guard_read, silent=silent)
        theirs.close()
        os.close(guard_read)
        ours.setblocking(False)
        return cls(pid, ours, guard_write)

    def attach(self, on_lost: Callable[[], None]) -> None:
        """Listen to the launcher under the running loop; `on_lost` is called if it dies."""
        self._loop = asyncio.get_running_loop()
        self._on_lost = on_lost
        self._loop.add_reader(self._control.fileno(), self._readable)
        self._loop.add_reader(self._pidfd, self._gone)

    async def spawn(
        self, spec: spawning.AppSpec | spawning.SidecarSpec, descriptors: Sequence[int]
    ) -> Process:
        """Start a process; `descriptors` as its spec counts them. They stay the caller's.

        Raises MeshrunError if the launcher could not fork, LauncherLostError if it is gone.
        """
        assert self._loop is not None
        if self._pidfd < 0 or self._ending:
            raise LauncherLostError("cannot start a process: the launcher is gone")
        self._requests += 1
        request = self._requests
        payload = msgspec.msgpack.encode(spawning.SpawnRequested(request=request))
        duplicates = [spawning.seal(spec)]
        try:
            # Duplicates, because a request may wait in the outbox while the caller goes on.
            for descriptor in descriptors:
                duplicates.append(os.dup(descriptor))  # noqa: PERF401 - all are closed on error
        except OSError:
            for descriptor in duplicates:
                os.close(descriptor)
            raise
        answer: asyncio.Future[Process] = self._loop.create_future()
        self._asked[request] = answer
        self._outbox.append((payload, duplicates))
        self._flush()
        return await answer

    def _flush(self) -> None:
        assert self._loop is not None
        while self._outbox:
            payload, descriptors = self._outbox[0]
            rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))
            try:
                self._control.sendmsg([payload], [rights])
            except BlockingIOError:
                self._loop.add_writer(self._control.fileno(), self._flush)
                return
            except ConnectionError:
                self._gone()
                return
            except OSError as error:  # this one request, not the launcher, is at fault
                reason = f"cannot ask the launcher: {error.strerror}"
                self._refuse(msgspec.msgpack.decode(payload, type=spawning.SpawnRequested), reason)
            self._outbox.pop(0)
            for descriptor in descriptors:
                os.close(descriptor)
        self._loop.remove_writer(self._control.fileno())

    def _readable(self) -> None:
        while True:
            try:
                payload, descriptors, _flags, _address = socket.recv_fds(
                    self._control, spawning.MESSAGE_LIMIT, 4
                )
            except BlockingIOError:
                return
            except OSError:
                self._gone()
                return
            if not payload:
                self._gone()
                return
            self._take(self._decoder.decode(payload), descriptors)

    def _refuse(self, request: spawning.SpawnRequested, reason: str) -> None:
        asked = self._asked.pop(request.request)
        if not asked.done():
            asked.set_exception(MeshrunError(reason))

    def _take(self, message: spawning.FromLauncher, descriptors: list[int]) -> None:
        assert self._loop is not None
        if isinstance(message, spawning.Exited):
            process = self._children.pop(message.pid, None)
            if process is not None and not process.exited.done():
                process.exited.set_result(_exit(message.status))
            return
        asked = self._asked.pop(message.request)
        if isinstance(message, spawning.SpawnFailed):
            if not asked.done():
                asked.set_exception(MeshrunError(message.reason))
            return
        if not descriptors:  # this process has no descriptor left: the kernel dropped the pidfd
            with contextlib.suppress(ProcessLookupError):
                os.kill(message.pid, signal.SIGKILL)
            if not asked.done():
                asked.set_exception(MeshrunError("cannot keep a process: too many open files"))
            return
        os.set_inheritable(descriptors[0], False)
        process = Process(message.pid, descriptors[0], self._loop.create_future())
        self._children[message.pid] = process
        if asked.done():  # whoever asked was cancelled: nobody would ever end this one
            process.abandon()
        else:
            asked.set_result(process)

    def _gone(self) -> None:
        if self._pidfd < 0:
            return
        self._detach()
        for asked in self._asked.values():
            if not asked.done():
                asked.set_exception(LauncherLostError("the launcher has ended"))
                asked.exception()  # retrieved here: whoever asked may be gone
        if not self._ending:
            self._on_lost()

    def _detach(self) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.remove_reader(self._pidfd)
            self._loop.remove_reader(self._control.fileno())
            self._loop.remove_writer(self._control.fileno())
        os.close(self._pidfd)
        self._pidfd = -1

    def kill(self) -> None:
        """KILL the launcher, which ends the run: for one that does not answer any more."""
        if self._pidfd >= 0:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def end(self) -> None:
        """Close the guard and wait until the launcher has ended what is left: 3 s at most.

        Blocks: it is the last thing that a run does. The second time it does nothing.
        """
        self._ending = True
        if self._guard < 0:
            return
        os.close(self._guard)
        self._guard = -1
        if self._pidfd >= 0:
            if not select.select([self._pidfd], [], [], END_TIMEOUT_S)[0]:
                self.kill()
            self._detach()
        self._control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self.pid, 0)


def _exit(status: int) -> Exit:
    if os.WIFSIGNALED(status):
        return Exit(None, os.WTERMSIG(status))
    return Exit(os.WEXITSTATUS(status))
