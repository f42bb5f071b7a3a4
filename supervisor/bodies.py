"""The two kinds of process that a runner keeps: an app, and a sidecar."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from meshrun.supervisor.commands import Command
from meshrun.supervisor.configuration.model import (
    App,
    ExecCheck,
    HttpCheck,
    Limits,
    LogCheck,
    NotifyCheck,
    Probe,
    TcpCheck,
)
from meshrun.supervisor.confinement import Confinement
from meshrun.supervisor.execution import execute
from meshrun.supervisor.hooks import Hooks, OnHook, variables
from meshrun.supervisor.launching import Launcher, Process
from meshrun.supervisor.lifecycle import Policy
from meshrun.supervisor.lifecycle_events import EndHook, HookEnded, RunHook
from meshrun.supervisor.lines import Stream
from meshrun.supervisor.listeners import HOST
from meshrun.supervisor.machine import credentials_of, credentials_of_sidecars
from meshrun.supervisor.output import Pipe
from meshrun.supervisor.plan import Instance, Worker
from meshrun.supervisor.probes.asking import Asking, ask_command
from meshrun.supervisor.probes.connections import asker
from meshrun.supervisor.probes.listening import Listening
from meshrun.supervisor.probes.pulse import Awaiting, Heartbeat
from meshrun.supervisor.probes.tally import Liveness, Readiness
from meshrun.supervisor.processes import ProcessId
from meshrun.supervisor.runner import Feed, Probing, Which
from meshrun.supervisor.spawning import AppSpec, SidecarSpec
from meshrun.supervisor.statedir import StateDir

__all__ = ["AppBody", "OnLines", "SidecarBody", "app_policy"]

# How long output is still taken from an app that has ended, when somebody holds its pipes.
DRAIN_S = 0.5

OnLines = Callable[[str, Stream, list[bytes]], None]


def app_policy(app: App) -> Policy:
    """Return what the configuration of an app says about the life of each instance of it."""
    probes = [probe for probe in (app.ready, app.alive) if probe is not None]
    return Policy(
        restart=app.restart,
        scheduled=app.every is not None,
        stop_signal=app.stop.signal,
        stop_timeout_s=app.stop.timeout_s,
        has_ready=app.ready is not None,
        has_alive=app.alive is not None,
        has_on_ready=bool(app.hooks.on_ready),
        has_on_exit=bool(app.hooks.on_exit),
        hook_timeout_s=app.hooks.timeout_s,
        notifies=any(isinstance(probe.check, NotifyCheck) for probe in probes),
        ready_deadline_s=app.ready.deadline_s if app.ready else 60.0,
    )


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
    """An app: executed with its environment, its output taken line by line, its probes asked.

    `instance` may be replaced: what is started and asked next is that.
    """

    def __init__(
        self,
        launcher: Launcher,
        instance: Instance,
        cgroup: Path | None,
        state: StateDir,
        on_lines: OnLines,
        on_hook: OnHook,
    ) -> None:
        self._launcher = launcher
        self.instance = instance
        self._cgroup = cgroup
        self._confinement = Confinement(Limits(), cgroup)
        self._state = state
        self._on_lines = on_lines
        self._listening: Listening | None = None
        self.output = _Output(self._take)
        self.hooks = Hooks(lambda hook, problem: on_hook(self.instance.name, hook, problem))

    async def spawn(self) -> Process:
        """Start it; returns once the program itself runs."""
        app = self.instance.app
        self._confinement = Confinement(app.limits if app is not None else Limits(), self._cgroup)
        listening = Listening(self.instance, self._state)
        with contextlib.ExitStack() as given, contextlib.ExitStack() as kept:
            kept.callback(listening.close)
            kept.callback(self.output.discard)
            ends = [os.open(os.devnull, os.O_RDONLY)]
            given.callback(os.close, ends[0])
            self._listening = listening
            for stream in ("stdout", "stderr"):
                ends.append(self.output.open(stream))
                given.callback(os.close, ends[-1])
            spec = self.spec(listening.environment)
            process = await execute(self._launcher, spec, ends)
            kept.pop_all()
        process.explain = self._confinement.explain
        return process

    def spec(self, environment: Mapping[str, str] | None = None) -> AppSpec:
        """Say what the launcher shall execute, as whom and within which limits.

        `environment` lies over the instance's. The limits of the cgroup, its own, are set.
        """
        instance = self.instance
        app = instance.app
        variables = {**(instance.environment or {}), **(environment or {})}
        rlimits, confined = self._confinement.confine()
        return AppSpec(
            name=instance.name,
            argv=_words(instance.argv),
            cwd=os.fsencode(instance.cwd),
            environment={os.fsencode(n): os.fsencode(value) for n, value in variables.items()},
            limits=rlimits,
            nice=app.limits.cpu_nice if app is not None else None,
            credentials=credentials_of(app.account if app is not None else None),
            cgroup=None if self._cgroup is None else str(self._cgroup),
            confined=confined,
        )

    def _take(self, stream: Stream, lines: list[bytes]) -> None:
        self._on_lines(self.instance.name, stream, lines)
        if self._listening is not None:
            self._listening.hear(lines)

    def started(self, pid: int, feed: Feed) -> None:
        """Listen to its notifications."""
        if self._listening is not None:
            self._listening.start(pid, feed)

    def exited(self) -> None:
        """Take its last output."""
        self.output.exited()
        if self._listening is not None:
            self._listening.close()

    def probe(self, which: Which, feed: Feed) -> Probing | None:
        """Begin to ask it itself: its own port, a command beside it, or what it says."""
        instance = self.instance
        probe = instance.ready if which == "ready" else instance.alive
        if probe is None or self._listening is None:
            return None
        pulse = self._listening.pulse(which)
        if pulse is not None:
            return Awaiting(pulse, feed) if which == "ready" else Heartbeat(pulse, probe, feed)
        now = asyncio.get_running_loop().time()
        tally = Readiness(probe, now) if which == "ready" else Liveness(probe, now)
        return Asking(
            tally, self._asker(probe, which), feed, f"ask whether {instance.name} is {which}"
        )

    def _asker(self, probe: Probe, which: Which) -> Callable[[], Awaitable[str | None]]:
        match probe.check:
            case ExecCheck(command=command):
                # As the app itself: its user and its limits above all.
                spec = msgspec.structs.replace(
                    self.spec(), name=f"{self.instance.name} {which}", argv=_words(command)
                )
                return partial(ask_command, Command(self._launcher, spec), probe.timeout_s)
            case HttpCheck() | TcpCheck() as check:
                assert self.instance.port is not None, "the configuration refuses that"
                return asker(check, probe, HOST, self.instance.port)
            case LogCheck() | NotifyCheck():
                raise AssertionError("what an app says is not asked for")

    def run_hook(self, order: RunHook, feed: Feed) -> None:
        """Run a command as the app itself, with its output in the app's."""
        name, hook = self.instance.name, order.hook
        mark = f"[{hook}] ".encode()
        spec = msgspec.structs.replace(
            self.spec(variables(order)),
            name=f"{name} {hook}",
            argv=_words(self.instance.hooks.of(hook)),
        )

        def write(lines: list[bytes]) -> None:
            self._on_lines(name, "stdout", [mark + line for line in lines])

        command = Command(self._launcher, spec, write)
        self.hooks.run(hook, command, partial(feed, HookEnded(hook)))

    def end_hook(self, order: EndHook) -> None:
        """Send a signal to a hook."""
        self.hooks.end(order)

    def hook_members(self) -> list[ProcessId]:
        """Return the processes of the hooks that run."""
        return self.hooks.members()

    def pause_output(self) -> None:
        """Let all of it wait with what it writes."""
        self.output.pause()
        self.hooks.pause()

    def resume_output(self) -> None:
        """Take the output again."""
        self.output.resume()
        self.hooks.resume()


def _words(argv: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(os.fsencode(word) for word in argv)


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

    def started(self, _pid: int, _feed: Feed) -> None:
        """Hear nothing here: a sidecar speaks over its channel."""

    def exited(self) -> None:
        """Take its last words."""
        self.output.exited()

    def probe(self, _which: Which, _feed: Feed) -> Probing | None:
        """Ask nothing: a sidecar says itself when it serves."""
        return None

    def run_hook(self, _order: RunHook, _feed: Feed) -> None:
        """Run nothing: a sidecar has no hooks."""

    def end_hook(self, _order: EndHook) -> None:
        """End nothing."""

    def hook_members(self) -> list[ProcessId]:
        """Return nothing."""
        return []
