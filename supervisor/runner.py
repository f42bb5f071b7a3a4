"""Keeps one process: feeds its state machine with what happens, and does what that says."""

import asyncio
import signal
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Literal, Protocol

from meshrun.proxy import tasks
from meshrun.supervisor import lifecycle, processes
from meshrun.supervisor import lifecycle_events as events
from meshrun.supervisor.blocking import Blocker, Shown
from meshrun.supervisor.errors import MeshrunError
from meshrun.supervisor.launching import LauncherLostError, Process
from meshrun.supervisor.lifecycle import Policy, Status
from meshrun.supervisor.lifecycle_events import Event
from meshrun.supervisor.processes import ProcessId
from meshrun.supervisor.sessions import Session

__all__ = [
    "Body",
    "Feed",
    "NewSession",
    "NotExecutableError",
    "OnChange",
    "Probing",
    "Rest",
    "Runner",
    "Which",
]

Which = Literal["ready", "alive"]
Feed = Callable[[Event], None]


class NotExecutableError(MeshrunError):
    """A program that cannot be run, however often it is tried."""


class Probing(Protocol):
    """A probe that is being asked."""

    @property
    def tries(self) -> int:
        """How often it has been asked; 0 where one only waits for what the app says."""

    def stop(self) -> None:
        """Ask no more, and feed nothing more."""


class Rest(Protocol):
    """What shares the session of a process, and may outlive it (`meshrun.supervisor.sessions`)."""

    def members(self) -> list[ProcessId]:
        """Return those that live."""

    def send_signal(self, number: int) -> None:
        """Send a signal to all of it."""

    def end(self, number: int, on_ended: Callable[[], None]) -> None:
        """Send a signal to what is left, and call `on_ended` once nothing is."""


NewSession = Callable[[int], Rest]


class Body(Protocol):
    """What is particular to the process that a runner keeps."""

    async def spawn(self) -> Process:
        """Start it. Raises NotExecutableError, or MeshrunError if another try may help."""

    def started(self, pid: int, feed: Feed) -> None:
        """Listen to what it says itself; called once whoever must know has heard that it lives."""

    def exited(self) -> None:
        """Take what it left behind (its last output); called before anybody hears of the exit."""

    def probe(self, which: Which, feed: Feed) -> Probing | None:
        """Begin to ask whether it is ready, or alive."""

    def run_hook(self, order: events.RunHook, feed: Feed) -> None:
        """Run a command beside it; feed `HookEnded` when that has ended."""

    def end_hook(self, order: events.EndHook) -> None:
        """Send a signal to such a command, if it runs."""

    def hook_members(self) -> list[ProcessId]:
        """Return the processes of such commands that live."""


# Called after each change with the status before and after it, and the event.
OnChange = Callable[["Runner", Status, Status, Event], None]


class Runner:
    """The driver of one state machine; the machine itself is `meshrun.supervisor.lifecycle`."""

    def __init__(
        self,
        name: str,
        policy: Policy,
        body: Body,
        on_change: OnChange,
        random: Callable[[], float],
        clock: Callable[[], float] = time.monotonic,
        session: NewSession = Session,
    ) -> None:
        self.name = name
        self.policy = policy
        self.status = Status()
        self._body = body
        self._on_change = on_change
        self._random = random
        self._clock = clock
        self._new_session = session
        self._loop = asyncio.get_running_loop()
        self._events: deque[Event] = deque()
        self._feeding = False
        self._process: Process | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._asked: dict[Which, Probing] = {}
        self._session: Rest | None = None
        self._told: tuple[int, float] | None = None
        self._timer_at: float | None = None

    def feed(self, event: Event) -> None:
        """Let something happen. What happens in consequence comes after it, never within it."""
        self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events:
                self._step(self._events.popleft())
        finally:
            self._feeding = False

    def revise(self, policy: Policy, *, asks_anew: bool) -> None:
        """Take another policy, also in the middle of a life; its probes may be other ones too."""
        self.policy = policy
        if asks_anew:
            self.feed(events.Revised())

    def _step(self, event: Event) -> None:
        before = self.status
        after, actions = lifecycle.step(before, event, self.policy, self._clock(), self._random())
        if after.number != before.number and self._timer is not None:
            self._timer.cancel()
            self._timer = None
            self._timer_at = None
        self.status = after
        for action in actions:
            self._guarded(partial(self._act, action), f"{action} of {self.name}")
        if after != before:
            told = f"telling of a change of {self.name}"
            self._guarded(partial(self._on_change, self, before, after, event), told)

    def _guarded(self, do: Callable[[], None], what: str) -> None:
        """Do something that may be broken: the life of the process must go on all the same.

        An event that was lost here would leave an instance that nothing can stop any more.
        """
        try:
            do()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is said and goes on
            self._loop.call_exception_handler({"message": f"{what} failed", "exception": error})

    def _act(self, action: events.Action) -> None:
        match action:
            case events.Spawn():
                tasks.start(self._spawn(), f"spawn {self.name}")
            case events.SendSignal(number):
                self._signal(number)
            case events.EndSession(number):
                self._end_session(number)
            case events.SetTimer(number, at):
                if self._timer is not None:
                    self._timer.cancel()
                self._timer_at = at
                delay_s = max(0.0, at - self._clock())
                self._timer = self._loop.call_later(delay_s, self.feed, events.TimerFired(number))
            case events.Probing():
                self._probe(action)
            case events.RunHook(hook):
                try:
                    self._body.run_hook(action, self.feed)
                except Exception:
                    self.feed(events.HookEnded(hook))  # else it would be waited for in vain
                    raise
            case events.EndHook():
                self._body.end_hook(action)

    async def _spawn(self) -> None:
        try:
            process = await self._body.spawn()
        except NotExecutableError as error:
            self.feed(events.SpawnFailed(str(error)))
            return
        except LauncherLostError:
            return  # the run is over; nobody is left to tell
        except (MeshrunError, OSError, ValueError) as error:
            # ValueError: a NUL in a word, a text that cannot be encoded.
            self.feed(events.SpawnFailed(str(error), permanent=isinstance(error, ValueError)))
            return
        except Exception as error:
            self.feed(events.SpawnFailed(f"internal error: {error!r}", permanent=False))
            raise
        self._process = process
        self._session = self._new_session(process.pid)
        self._told = None
        self.feed(events.Spawned(process.pid))
        self._guarded(
            partial(self._body.started, process.pid, self.feed), f"listening to {self.name}"
        )
        exit_ = process.explain(await process.exited)
        self._guarded(self._body.exited, f"taking the last output of {self.name}")
        process.close()
        self.feed(events.Exited(exit_))

    def _signal(self, number: int) -> None:
        process = self._process
        if process is None:
            return
        self._told = (number, self._clock())
        process.send_signal(number)
        if self._session is not None:
            self._session.send_signal(number)
        if number != signal.SIGKILL:
            # What is stopped (SIGSTOP, SIGTTIN) would never see the signal.
            process.send_signal(signal.SIGCONT)

    def kill_process(self) -> None:
        """KILL the main process and leave it to the policy whether it starts again."""
        self.signal_process(signal.SIGKILL)

    def signal_process(self, number: int) -> None:
        """Send a signal to the main process alone, which is no end unless that ends by it."""
        if self._process is not None:
            self._process.send_signal(number)

    def blocker(self) -> Blocker:
        """Say what is left of it, and what that has been told."""
        members = self._session.members() if self._session is not None else []
        members += self._body.hook_members()
        parents = processes.parents(member.pid for member in members)
        told, told_at = self._told or (None, 0.0)
        return Blocker(
            name=self.name,
            told=told,
            told_at=told_at,
            kill_at=self._timer_at,
            processes=[Shown(p, of, processes.command_line(p)) for p, of in parents.items()],
        )

    def _probe(self, wanted: events.Probing) -> None:
        wanted_by: tuple[tuple[Which, bool], ...]
        wanted_by = (("ready", wanted.ready), ("alive", wanted.alive))
        for which, on in wanted_by:
            asked = self._asked.get(which)
            if not on and asked is not None:
                asked.stop()
                del self._asked[which]
            elif on and asked is None:
                started = self._body.probe(which, self.feed)
                if started is not None:
                    self._asked[which] = started

    def tries(self, which: Which) -> int:
        """Return how often a probe has been asked in this life, as far as it is asked at all."""
        asked = self._asked.get(which)
        return 0 if asked is None else asked.tries

    def _end_session(self, number: int) -> None:
        assert self._session is not None
        self._told = (number, self._clock())
        self._session.end(number, partial(self.feed, events.SessionEnded()))
