"""The two kinds of process that a runner keeps: an app, and a sidecar."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

from meshrun.supervisor.configuration.model import Limits, Probe
from meshrun.supervisor.confinement import Confinement
from meshrun.supervisor.launching import Launcher, Process
from meshrun.supervisor.lines import Stream
from meshrun.supervisor.listeners import HOST
from meshrun.supervisor.machine import credentials_of, credentials_of_sidecars
from meshrun.supervisor.output import Pipe
from meshrun.supervisor.plan import Instance, Worker
from meshrun.supervisor.probes import Prober
from meshrun.supervisor.runner import NotExecutableError, Probing
from meshrun.supervisor.spawning import AppSpec, SidecarSpec

__all__ = ["AppBody", "OnLines", "SidecarBody"]

# How long output is still taken from an app that has ended, when somebody holds its pipes.
DRAIN_S = 0.5

OnLines = Callable[[str, Stream, list[bytes]], None]


class _Output:
    """The pipes of one process; paused together when the log cannot keep up."""

    def __init__(self, on_lines: Callable[[Stream, list[bytes]], None]) -> None:
        self._on_lines = on_lines
        self._pipes: list[Pipe] = []
        self._paused = False

    def open(self, stream: Stream) -> int:
        """Return the write end of a new pipe."""
        read_end, write_end = os.pipe()
        pipe = Pipe(read_end, lambda lines: self._on_lines(stream, lines))
        if self._paused:
            pipe.pause()
        self._pipes.append(pipe)
        return write_end

    def pause(self) -> None:
        self._paused = True
        for pipe in self._pipes:
            pipe.pause()

    def resume(self) -> None:
        self._paused = False
        for pipe in self._pipes:
            pipe.resume()

    def exited(self) -> None:
        """Take what the process wrote before it ended, and leave the pipes to a deadline."""
        for pipe in self._pipes:
            pipe.exhaust()
            pipe.close_within(DRAIN_S)
        self._pipes = []

    def discard(self) -> None:
        for pipe in self._pipes:
            pipe.close()
        self._pipes = []


class AppBody:
    """An app: executed with its environment, its output taken line by line."""

    def __init__(
        self, launcher: Launcher, instance: Instance, cgroup: Path | None, on_lines: OnLines
    ) -> None:
        self._launcher = launcher
        self._instance = instance
        self._cgroup = cgroup
        limits = instance.app.limits if instance.app is not None else Limits()
        self._confinement = Confinement(limits, cgroup)
        self.output = _Output(lambda stream, lines: on_lines(instance.name, stream, lines))

    async def spawn(self) -> Process:
        """Start it; returns once the program itself runs."""
        process = await self._start(self.spec())
        process.explain = self._confinement.explain
        return process

    def spec(self) -> AppSpec:
        """Say what the launcher shall execute, as whom and within which limits.

        The limits of the cgroup, its own, are set.
        """
        instance = self._instance
        app = instance.app
        rlimits, confined = self._confinement.confine()
        return AppSpec(
            name=instance.name,
            argv=tuple(os.fsencode(word) for word in instance.argv),
            cwd=os.fsencode(instance.cwd),
            environment={
                os.fsencode(name): os.fsencode(value)
                for name, value in (instance.environment or {}).items()
            },
            limits=rlimits,
            nice=app.limits.cpu_nice if app is not None else None,
            credentials=credentials_of(app.account if app is not None else None),
            cgroup=None if self._cgroup is None else str(self._cgroup),
            confined=confined,
        )

    async def _start(self, spec: AppSpec) -> Process:
        with contextlib.ExitStack() as given, contextlib.ExitStack() as kept:
            kept.callback(self.output.discard)
            status_read, status_write = os.pipe()
            kept.callback(os.close, status_read)
            given.callback(os.close, status_write)
            ends = [os.open(os.devnull, os.O_RDONLY)]
            given.callback(os.close, ends[0])
            for stream in ("stdout", "stderr"):
                ends.append(self.output.open(stream))
                given.callback(os.close, ends[-1])
            process = await self._launcher.spawn(spec, [*ends, status_write])
            kept.pop_all()
        problem = await _read_all(status_read)
        if problem:
            await process.exited
            process.close()
            self.output.discard()
            raise NotExecutableError(problem)
        return process

    def exited(self) -> None:
        """Take its last output."""
        self.output.exited()

    def probe(
        self, on_success: Callable[[], None], on_failure: Callable[[str], None]
    ) -> Probing | None:
        """Begin to ask its own port."""
        probe: Probe | None = self._instance.probe
        port = self._instance.port
        if probe is None or port is None:
            return None
        return Prober(probe, HOST, port, on_success, on_failure)


class SidecarBody:
    """A worker of a sidecar: forked from the launcher with its channel and its listeners.

    The other workers of the sidecar have duplicates of the same listeners.
    """

    def __init__(
        self,
        launcher: Launcher,
        worker: Worker,
        cgroup: str | None,
        listeners: Mapping[str, socket.socket],
        attach: Callable[[Worker, socket.socket], None],
        on_lines: Callable[[list[bytes]], None],
    ) -> None:
        self._launcher = launcher
        self._worker = worker
        self._cgroup = cgroup
        self._listeners = listeners
        self._attach = attach
        self.output = _Output(lambda _stream, lines: on_lines(lines))

    async def spawn(self) -> Process:
        """Fork it and give it its first snapshot."""
        spec = SidecarSpec(
            name=self._worker.name,
            listeners=tuple(self._listeners),
            credentials=credentials_of_sidecars(),
            cgroup=self._cgroup,
        )
        listening = [listener.fileno() for listener in self._listeners.values()]
        with contextlib.ExitStack() as given, contextlib.ExitStack() as kept:
            kept.callback(self.output.discard)
            ours, theirs = socket.socketpair()
            kept.callback(ours.close)
            given.callback(theirs.close)
            stdin = os.open(os.devnull, os.O_RDONLY)
            given.callback(os.close, stdin)
            output = self.output.open("stderr")
            given.callback(os.close, output)
            process = await self._launcher.spawn(
                spec, [stdin, output, output, theirs.fileno(), *listening]
            )
            kept.pop_all()
        self._attach(self._worker, ours)
        return process

    def exited(self) -> None:
        """Take its last words."""
        self.output.exited()

    def probe(
        self, _on_success: Callable[[], None], _on_failure: Callable[[str], None]
    ) -> Probing | None:
        """Ask nothing: a sidecar says itself when it serves."""
        return None


async def _read_all(descriptor: int) -> str:
    """Read a pipe to its end without blocking the loop, and close it."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, readable.set)
    content = b""
    try:
        while True:
            await readable.wait()
            readable.clear()
            try:
                data = os.read(descriptor, 4096)
            except BlockingIOError:
                continue
            if not data:
                return content.decode(errors="replace")
            content += data
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
