"""The launcher: the one process that forks, reaps and guards.

It is forked from the supervisor before there is any loop, thread or secret, becomes the leader of
a session of its own and a subreaper, and imports all that a sidecar needs once, so that a sidecar
is a fork of a few milliseconds. (The supervisor itself never imports this module: it forks first,
in `meshrun.supervisor.launching`.) It holds the read end of a pipe whose only write end is the
supervisor's: when that closes, however the supervisor ended, it ends every process of the run.
"""

import array
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from typing import NoReturn

import msgspec

from meshrun.proxy import sidecar
from meshrun.supervisor import cgroup, child, oom, prctl, processes, spawning

__all__ = ["GRACE_S", "LIMIT_S", "serve"]

# Design: TERM, at most 1 s, KILL; all gone within 2 s.
GRACE_S = 1.0
LIMIT_S = 1.9


class _Launcher:
    def __init__(self, control: socket.socket, guard: int) -> None:
        self._control = control
        self._guard = guard
        self._parent = child.Parent(os.getpid(), oom.own())
        oom.be_chosen_last()
        self._grace_s = GRACE_S
        self._cgroup: Path | None = None
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(spawning.ToLauncher)
        self._wakeup, write_end = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        prctl.set_subreaper()
        prctl.set_name("meshrun-launch")

    def serve(self) -> None:
        """Do what the supervisor says until it is gone."""
        poll = select.poll()
        for descriptor in (self._control.fileno(), self._guard, self._wakeup):
            poll.register(descriptor, select.POLLIN)
        while True:
            ready = {descriptor for descriptor, _ in poll.poll()}
            if self._guard in ready:
                return
            if self._wakeup in ready:
                self._drain_wakeups()
                self._reap()
            if self._control.fileno() in ready and not self._answer():
                return

    def _drain_wakeups(self) -> None:
        try:
            while os.read(self._wakeup, 512):
                pass
        except BlockingIOError:
            pass

    def _reap(self) -> None:
        for pid, status in processes.reap()[0]:
            self._say(spawning.Exited(pid=pid, status=status))

    def _say(self, message: msgspec.Struct, descriptors: tuple[int, ...] = ()) -> None:
        payload = self._encoder.encode(message)
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))]
        try:
            self._control.sendmsg([payload], rights if descriptors else [])
        except (BrokenPipeError, ConnectionResetError):
            pass  # the supervisor is gone: the guard pipe says so next

    def _answer(self) -> bool:
        payload, descriptors, _flags, _address = socket.recv_fds(
            self._control, spawning.MESSAGE_LIMIT, spawning.DESCRIPTOR_LIMIT
        )
        if not payload:
            return False
        message = self._decoder.decode(payload)
        if isinstance(message, spawning.EndRequested):
            self._grace_s = min(message.grace_s, GRACE_S)
            return False
        if message.cgroup is not None:
            self._cgroup = Path(message.cgroup)
        try:
            self._spawn(message.request, descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)
        return True

    def _spawn(self, request: int, descriptors: list[int]) -> None:
        try:
            pid = os.fork()
        except OSError as error:
            reason = f"cannot fork: {error.strerror}"
            self._say(spawning.SpawnFailed(request=request, reason=reason))
            return
        if pid == 0:
            self._become(descriptors)
        pidfd = os.pidfd_open(pid)
        try:
            self._say(spawning.Spawned(request=request, pid=pid), (pidfd,))
        finally:
            os.close(pidfd)

    def _become(self, descriptors: list[int]) -> NoReturn:
        try:
            spec = spawning.read_spec(descriptors[0])
            if isinstance(spec, spawning.AppSpec):
                child.become_app(spec, descriptors[1:], self._parent)
            child.become_sidecar(spec, descriptors[1:], self._parent)
        finally:
            os._exit(child.NOT_STARTED)

    def end_run(self) -> None:
        """End everything that descends from here; a subreaper's descendants cannot get away."""
        processes.end_descendants(self._grace_s, LIMIT_S, time.monotonic)
        if self._cgroup is not None:
            cgroup.kill(self._cgroup)
            cgroup.remove(self._cgroup)


def serve(control: socket.socket, guard: int, *, silent: bool) -> NoReturn:
    """Be the launcher: never returns; ends when the supervisor does."""
    code = 1
    try:
        os.setsid()
        _detach((0, 1, 2) if silent else (0,))
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, signal.SIG_IGN)
        launcher = _Launcher(control, guard)
        sidecar.warm_up()
        # What is imported by now is shared with every sidecar: a collection there would touch,
        # and so copy, all of it.
        gc.collect()
        gc.freeze()
        launcher.serve()
        launcher.end_run()
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        sys.stderr.flush()
        os._exit(code)


def _detach(descriptors: tuple[int, ...]) -> None:
    null = os.open(os.devnull, os.O_RDWR)
    for descriptor in descriptors:
        os.dup2(null, descriptor)
    os.close(null)
