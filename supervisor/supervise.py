"""The supervisor's main: from a prepared run to its exit code.

Signals, the two ways in which a run ends by itself, and the loss of the launcher meet here.
"""

import asyncio
import importlib
import itertools
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from meshrun.proxy import tasks
from meshrun.supervisor import cgroup, oom, prctl, processes, runfile
from meshrun.supervisor.console import Console
from meshrun.supervisor.ends import EndRule
from meshrun.supervisor.journal import Journal, open_journal
from meshrun.supervisor.launching import Launcher
from meshrun.supervisor.logs import MESH, Logs, Output
from meshrun.supervisor.painter import Painter
from meshrun.supervisor.preparation import Prepared
from meshrun.supervisor.run import KILL_S, Run
from meshrun.supervisor.sdnotify import Contact
from meshrun.supervisor.service_manager import ServiceManager
from meshrun.supervisor.statedir import CONTROL_SOCKET
from meshrun.supervisor.timeline import Timeline
from meshrun.supervisor.window import Window, size_of

__all__ = ["EXIT_BROKEN", "supervise"]

EXIT_OK = 0
EXIT_BROKEN = 1
# 128 + the signal, as a shell says it; TERM is how a run is asked to end and so a success.
EXIT_BY_SIGNAL = {
    signal.SIGINT: 130,
    signal.SIGTERM: EXIT_OK,
    signal.SIGHUP: 129,
    signal.SIGQUIT: 131,
}
# A person's second Ctrl-C kills. Not HUP: a terminal that closes sends it twice, by the shell and
# by the kernel; not TERM: a service manager repeats it.
INSISTING = (signal.SIGINT, signal.SIGQUIT)
GRACE_S = 1.0
LIMIT_S = 5.0
# After this a stop says what it waits for, and again after twice, four times and so on.
SLOW_STOP_S = 2.0


@dataclass(slots=True)
class _Ending:
    """How the run shall end, decided once; `again` is called when somebody insists."""

    decided: asyncio.Future[int]
    again: Callable[[], None]

    def decide(self, code: int) -> None:
        if not self.decided.done():
            self.decided.set_result(code)

    def by_signal(self, number: signal.Signals) -> None:
        if not self.decided.done():
            self.decide(EXIT_BY_SIGNAL[number])
        elif number in INSISTING:
            self.again()


async def supervise(
    prepared: Prepared,
    launcher: Launcher,
    *,
    ends: EndRule,
    foreground: bool,
    on_started: Callable[[], None],
    contact: Contact | None = None,
) -> int:
    """Run the mesh until it ends, and return the exit code; `ends` says what else ends it.

    `on_started` is called when the control socket answers and every process has been asked for.
    `contact` is the service manager that wants to know how the run is.
    """
    loop = asyncio.get_running_loop()
    prctl.set_subreaper()
    prctl.set_name(runfile.SUPERVISOR_NAME)
    oom.be_chosen_last()
    colour = foreground and sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    log = _Log(prepared, foreground=foreground, colour=colour)
    timeline = Timeline(prepared.database.add_events, time.time)
    log.on_lost = lambda text: timeline.add("logs-lost", "mesh", text)
    run = Run(prepared, launcher, log.journal, timeline, log.logs)
    # Whoever started this program by exec(2) may have had children, which are none of the run's.
    others = set(processes.children(os.getpid())) - {launcher.pid}
    log.on_full, log.on_free = run.pause_output, run.resume_output
    ending = _Ending(loop.create_future(), run.kill)
    lost = asyncio.Event()
    loop.set_exception_handler(lambda _loop, context: _unexpected(log.journal, context))

    def launcher_lost() -> None:
        lost.set()
        ending.decide(EXIT_BROKEN)

    if foreground:
        _follow_window(run.window, sys.stdout.fileno())
    launcher.attach(launcher_lost)
    for number in EXIT_BY_SIGNAL:
        if number == signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
            continue  # nohup(1)
        loop.add_signal_handler(number, ending.by_signal, number)
    # From now on nobody finds the socket closed: a caller waits until the API is there, an app that
    # calls it at once among them.
    control = prepared.state.listen()
    _greet(log.journal, run)
    timeline.add("up", "mesh", "the mesh was started")
    run.start()
    manager = ServiceManager(contact, log.journal)
    tasks.start(manager.follow(run), "tell the service manager")
    # Half of what a start imports, and no app needs it: it comes in a thread, while they start.
    await asyncio.to_thread(importlib.import_module, "meshrun.supervisor.api.server")
    from meshrun.supervisor.api import server

    api = await server.serve(run, control, lambda: ending.decide(EXIT_OK))
    on_started()
    tasks.start(_until_over(run, ends, ending, log.journal), "end when every app has ended")
    code = await ending.decided
    manager.stopping(run.longest_stop_s)
    await _stop(run, launcher, log.journal, manager, lost)
    if lost.is_set():
        log.journal.error("the launcher has ended: the run is over, everything is ended")
        code = EXIT_BROKEN
        _end_everything(others)
    run.finish_output()
    timeline.add("down", "mesh", "the mesh was stopped")
    timeline.flush()
    await api.close()
    _clean_up(prepared, launcher, others)
    manager.close()
    log.close()
    return code


def _follow_window(window: Window, terminal: int) -> None:
    """Give the apps' terminals the size of this one, now and when it changes."""
    if os.isatty(terminal):
        window.resize(size_of(terminal))
        asyncio.get_running_loop().add_signal_handler(
            signal.SIGWINCH, lambda: window.resize(size_of(terminal))
        )


async def _until_over(run: Run, rule: EndRule, ending: _Ending, journal: Journal) -> None:
    ended = await run.ended_by_itself(rule)
    if ended.instance is not None and not ending.decided.done():
        journal.info(f"{ended.instance} has ended, and so does the mesh")
    ending.decide(ended.code)


async def _stop(
    run: Run, launcher: Launcher, journal: Journal, manager: ServiceManager, lost: asyncio.Event
) -> None:
    """Stop in order, unless the launcher is lost: then nobody would hear of any end."""
    stop = tasks.start(run.stop(), "stop the run")
    gone = tasks.start(lost.wait(), "notice the launcher's end")
    deadline = time.monotonic() + run.longest_stop_s
    for looks in itertools.count(1):
        done, _ = await asyncio.wait(
            {stop, gone}, timeout=SLOW_STOP_S, return_when=asyncio.FIRST_COMPLETED
        )
        if done:
            break
        now = time.monotonic()
        insisted = run.killed_at is not None and now > run.killed_at + KILL_S
        if insisted or now > deadline:
            # Everything has had its KILL; who does not report the ends is the launcher (SIGSTOP).
            journal.error("the launcher does not answer and is killed")
            launcher.kill()
        else:
            lines = run.describe_blocking()
            manager.say(lines[0])
            if looks & (looks - 1) == 0:  # the first, second, fourth, eighth …
                for line in lines:
                    journal.info(line)
    stop.cancel()
    gone.cancel()


def _end_everything(others: set[int]) -> None:
    """The launcher is gone, and its children have become this process's: end them all here."""
    processes.end_descendants(GRACE_S, LIMIT_S, time.monotonic, others)


def _clean_up(prepared: Prepared, launcher: Launcher, others: set[int]) -> None:
    """End what got away from its session, and leave nothing but what shall last."""
    prepared.listeners.close()
    launcher.end()
    _end_everything(others)
    if prepared.cgroup is not None:
        cgroup.kill(prepared.cgroup)
        cgroup.remove(prepared.cgroup)
    prepared.state.remove(CONTROL_SOCKET)
    prepared.state.remove(runfile.NAME)


def _greet(journal: Journal, run: Run) -> None:
    mesh = run.plan.configuration.mesh
    for notice in run.prepared.notices:
        journal.warning(notice)
    count = len(run.plan.services)
    journal.info(
        f'mesh "{mesh.name}": {count} {"service" if count == 1 else "services"}, '
        f"calls without an intention: {mesh.default_intention}",
        state=run.prepared.state.path,
    )
    if mesh.default_intention == "allow":
        journal.warning("every app may call every other (mesh.default_intention)")


def _unexpected(journal: Journal, context: dict[str, object]) -> None:
    error = context.get("exception")
    journal.error(f"internal error: {context.get('message')}: {error!r}")
    if isinstance(error, BaseException):
        import traceback

        journal.error("".join(traceback.format_exception(error)).rstrip())


class _Log:
    """Where everything goes that is said: the files, and in the foreground the terminal."""

    def __init__(self, prepared: Prepared, *, foreground: bool, colour: bool) -> None:
        self.on_full: Callable[[], None] = lambda: None
        self.on_free: Callable[[], None] = lambda: None
        self.on_lost: Callable[[str], object] = lambda _: None
        self.logs = Logs(prepared.state, time.time, self._complain)
        self._console: Console | None = None
        if foreground:
            painter = Painter([i.name for i in prepared.plan.instances], colour=colour)
            self._console = Console(
                sys.stdout.fileno(), painter, self._console_full, self._console_free
            )
            self.logs.follow(self._show)
        self.journal = open_journal(self._say, colour=colour)

    def _console_full(self) -> None:
        self.on_full()

    def _console_free(self) -> None:
        self.on_free()

    def _show(self, output: Output) -> None:
        # Starts and ends are said there already, by meshrun itself.
        if self._console is not None and output.instance != MESH and output.source != "marker":
            self._console.show(output.instance, output.contents)

    def _say(self, text: str) -> None:
        self.logs.write(MESH, "stdout", text.encode(errors="replace").splitlines())
        if self._console is not None:
            self._console.say(text)

    def _complain(self, text: str) -> None:
        self.on_lost(text)
        if self._console is not None:
            self._console.say(f"error: {text}")

    def close(self) -> None:
        if self._console is not None:
            self._console.close()
        self.logs.close()
