"""What can happen to a process, and what can be done about it: the vocabulary of its life.

Events go into `meshrun.supervisor.lifecycle.step`, actions come out of it.
"""

import signal
from dataclasses import dataclass

from meshrun.supervisor.configuration.model import HookName

__all__ = [
    "Action",
    "DependenciesMet",
    "DependencyFailed",
    "Due",
    "EndHook",
    "EndSession",
    "Event",
    "Exit",
    "Exited",
    "HookEnded",
    "Kill",
    "LivenessLost",
    "ProbeFailed",
    "ProbeSucceeded",
    "Probing",
    "Restart",
    "Revised",
    "RunHook",
    "Said",
    "SendSignal",
    "SessionEnded",
    "SetTimer",
    "Spawn",
    "SpawnFailed",
    "Spawned",
    "Start",
    "Stop",
    "StoppingAnnounced",
    "TimeoutExtended",
    "TimerFired",
]


@dataclass(frozen=True, slots=True)
class Exit:
    """How a process ended: an exit code, or a signal (then `code` is None); `note` says why."""

    code: int | None
    signal: int | None = None
    note: str = ""

    @property
    def ok(self) -> bool:
        """Whether that counts as success: code 0 alone; a signal is a failure."""
        return self.code == 0

    @property
    def status(self) -> int:
        """The exit status as a shell gives it: 128 + signal for a signal."""
        return self.code if self.code is not None else 128 + (self.signal or 0)

    def __str__(self) -> str:
        return f"{self._how}: {self.note}" if self.note else self._how

    @property
    def signal_name(self) -> str | None:
        """The name of the signal without SIG, or its number; None for an exit code."""
        if self.code is not None:
            return None
        try:
            return signal.Signals(self.signal or 0).name.removeprefix("SIG")
        except ValueError:
            return str(self.signal)

    @property
    def _how(self) -> str:
        return f"signal {self.signal_name}" if self.code is None else f"exit code {self.code}"


# Events: what happened, past tense, or what somebody wants.


@dataclass(frozen=True, slots=True)
class Start:
    """Somebody wants it to run; one that has a schedule at its times, or `now` too."""

    now: bool = False


@dataclass(frozen=True, slots=True)
class Stop:
    """Somebody wants it to end and stay ended."""

    reason: str = "stopped"


@dataclass(frozen=True, slots=True)
class Restart:
    """Somebody wants it to end and start again."""

    reason: str = "restarted"


@dataclass(frozen=True, slots=True)
class Revised:
    """The policy, or what the probes ask, is another one now."""


@dataclass(frozen=True, slots=True)
class Kill:
    """Somebody wants it gone now."""

    reason: str = "killed"


@dataclass(frozen=True, slots=True)
class Due:
    """It is one of the times of its schedule."""


@dataclass(frozen=True, slots=True)
class DependenciesMet:
    """All that it depends on is where it must be."""


@dataclass(frozen=True, slots=True)
class DependencyFailed:
    """Something that it depends on will never be where it must be; `cause` is what failed first."""

    reason: str
    cause: str = ""


@dataclass(frozen=True, slots=True)
class Spawned:
    """The launcher started it."""

    pid: int


@dataclass(frozen=True, slots=True)
class SpawnFailed:
    """It could not be started; `permanent` when trying again cannot help (no such command)."""

    reason: str
    permanent: bool = True


@dataclass(frozen=True, slots=True)
class ProbeSucceeded:
    """The readiness probe succeeded."""


@dataclass(frozen=True, slots=True)
class ProbeFailed:
    """The readiness probe failed as often as makes it not ready."""

    reason: str


@dataclass(frozen=True, slots=True)
class LivenessLost:
    """The liveness probe failed as often as makes it dead; it has been ill for `ill_s` seconds."""

    reason: str
    ill_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Said:
    """It says how it is (STATUS of sd_notify(3))."""

    text: str


@dataclass(frozen=True, slots=True)
class StoppingAnnounced:
    """It says that it is about to end (STOPPING of sd_notify(3))."""


@dataclass(frozen=True, slots=True)
class TimeoutExtended:
    """It needs `by_s` seconds more from now (EXTEND_TIMEOUT_USEC of sd_notify(3))."""

    by_s: float


@dataclass(frozen=True, slots=True)
class Exited:
    """The main process ended."""

    exit: Exit


@dataclass(frozen=True, slots=True)
class SessionEnded:
    """Nothing is left of the session of the main process."""


@dataclass(frozen=True, slots=True)
class HookEnded:
    """A hook has ended, by itself or not; how it went decides nothing."""

    hook: HookName


@dataclass(frozen=True, slots=True)
class TimerFired:
    """The timer set in phase `number` is due."""

    number: int


Event = (
    Start
    | Stop
    | Restart
    | Revised
    | Kill
    | Due
    | DependenciesMet
    | DependencyFailed
    | Spawned
    | SpawnFailed
    | ProbeSucceeded
    | ProbeFailed
    | LivenessLost
    | Said
    | StoppingAnnounced
    | TimeoutExtended
    | Exited
    | SessionEnded
    | HookEnded
    | TimerFired
)

# Actions: what a driver must do, imperative.


@dataclass(frozen=True, slots=True)
class Spawn:
    """Ask the launcher for a process; answer `Spawned` or `SpawnFailed`."""


@dataclass(frozen=True, slots=True)
class SendSignal:
    """Send `signal` to the main process and the whole of its session."""

    signal: int


@dataclass(frozen=True, slots=True)
class EndSession:
    """Send `signal` to what is left of the session; answer `SessionEnded` when nothing is."""

    signal: int


@dataclass(frozen=True, slots=True)
class SetTimer:
    """Answer `TimerFired(number)` at `at`; it replaces an earlier timer."""

    number: int
    at: float


@dataclass(frozen=True, slots=True)
class Probing:
    """Ask the probes named, and no other."""

    ready: bool = False
    alive: bool = False


@dataclass(frozen=True, slots=True)
class RunHook:
    """Run a hook; answer `HookEnded`, also where it cannot be run.

    Of `on_exit`, `exit` is how the main process ended, and `again` whether it is to start again.
    """

    hook: HookName
    exit: Exit | None = None
    again: bool = False


@dataclass(frozen=True, slots=True)
class EndHook:
    """Send `signal` to a hook, if it runs; after KILL answer `HookEnded` at once."""

    hook: HookName
    signal: int
    reason: str


Action = Spawn | SendSignal | EndSession | SetTimer | Probing | RunHook | EndHook
