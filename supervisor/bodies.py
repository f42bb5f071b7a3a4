"""The two kinds of process that a runner keeps: an app, and a sidecar."""

import asyncio
import contextlib
import os
import socket
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path

import msgspec

from meshrun.supervisor import processes
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
from meshrun.supervisor.lines import STREAMS, Stream
from meshrun.supervisor.listeners import HOST
from meshrun.supervisor.machine import credentials_of, credentials_of_sidecars
from meshrun.supervisor.output import Output
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
from meshrun.supervisor.window import Window

__all__ = ["AppBody", "OnOutput", "SidecarBody", "app_policy"]

# Of which instance, by which of its outputs, and how often it had been started again.
OnOutput = Callable[[str, Stream, list[bytes], int], None]


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


class AppBody:
    """An app: executed with its environment, its output taken line by line, its probes asked.

    `instance` may be replaced: what is started and asked next is that. `on_held` is told of whom it
    has left its output to, `on_hook` of how a hook went. `restarts` says how often it has been
    started again, `window` gives its terminal a size.
    """

    def __init__(
        self,
        launcher: Launcher,
        instance: Instance,
        cgroup: Path | None,
        state: StateDir,
        on_output: OnOutput,
        on_held: Callable[[str, str], None],
        on_hook: OnHook,
        restarts: Callable[[], int],
        window: Window,
    ) -> None:
        self._launcher = launcher
        self.instance = instance
        self._cgroup = cgroup
        self._confinement = Confinement(Limits(), cgroup)
        self._state = state
        self._on_output = on_output
        self._on_held = on_held
        self._restarts = restarts
        self._window = window
        self._listening: Listening | None = None
        self.output = Output()
        self.hooks = Hooks(lambda hook, problem: on_hook(self.instance.name, hook, problem))

    async def spawn(self) -> Process:
        """Start it; returns once the program itself runs."""
        app = self.instance.app
        self._confinement = Confinement(app.limits if app is not None else Limits(), self._cgroup)
        listening = Listening(self.instance, self._state)
        with contextlib.ExitStack() as given, contextlib.ExitStack() as kept:
            kept.callback(listening.close)
            kept.callback(self.output.discard)
            self._listening = listening
            ends = self._open_ends(given)
            spec = self.spec(listening.environment)
            process = await execute(self._launcher, spec, ends)
            kept.pop_all()
        process.explain = self._confinement.explain
        return process

    def _open_ends(self, given: contextlib.ExitStack) -> list[int]:
        """Return stdin, stdout and stderr, which `given` closes."""
        restarts = self._restarts()
        if self.has_terminal:
            terminal = self.output.open_terminal(
                partial(self._take, "stdout", restarts), self._window
            )
            given.callback(os.close, terminal)
            return [terminal] * 3
        ends = [os.open(os.devnull, os.O_RDONLY)]
        given.callback(os.close, ends[0])
        for stream in STREAMS:
            ends.append(self.output.open(partial(self._take, stream, restarts)))
            given.callback(os.close, ends[-1])
        return ends

    @property
    def has_terminal(self) -> bool:
        """Whether it is to have a terminal for its output, and as its controlling one."""
        app = self.instance.app
        return app is not None and app.tty

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
            terminal=self.has_terminal,
        )

    def _take(self, stream: Stream, restarts: int, lines: list[bytes]) -> None:
        self._on_output(self.instance.name, stream, lines, restarts)
        if self._listening is not None:
            self._listening.hear(lines)

    def started(self, pid: int, feed: Feed) -> None:
        """Take its output, which comes after the news that it lives, and its notifications."""
        self.output.begin()
        if self._listening is not None:
            self._listening.start(pid, feed)

    def exited(self) -> None:
        """Take its last output, and the last words of the others in its session."""
        app = self.instance.app
        timeout_s = app.stop.timeout_s if app is not None else 0.0
        self.output.exited(timeout_s, self._given_up)
        if self._listening is not None:
            self._listening.close()

    def _given_up(self, holders: list[int]) -> None:
        shown = ", ".join(f"{pid} ({processes.command_line(pid)})" for pid in holders)
        who = f"by pid {shown}" if shown else "by somebody"
        self._on_held(self.instance.name, f"its output is held {who}, and not read any more")

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
                    self.spec(),
                    name=f"{self.instance.name} {which}",
                    argv=_words(command),
                    terminal=False,
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
            terminal=False,
        )
        restarts = self._restarts()

        def write(lines: list[bytes]) -> None:
            self._on_output(name, "stdout", [mark + line for line in lines], restarts)

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
        self._on_lines = on_lines
        self.output = Output()

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
            output = self.output.open(self._on_lines)
            given.callback(os.close, output)
            process = await self._launcher.spawn(
                spec, [stdin, output, output, theirs.fileno(), *listening]
            )
            kept.pop_all()
        self._attach(self._worker, ours)
        return process

    def started(self, _pid: int, _feed: Feed) -> None:
        """Take its output; what else it says comes over its channel."""
        self.output.begin()

    def exited(self) -> None:
        """Take its last words."""
        self.output.exited(0.0, lambda _: None)

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
