"""The life of one process that meshrun keeps: every state, every event, one table.

Rule: everything that decides what happens to a process stands in this file. `step` takes the
status, an event, the policy and the time, and returns the next status and the actions that a
driver (`meshrun.supervisor.runner`) must perform, in order. Nothing here reads a clock, draws a
random number or touches a process.

Three laws, held by construction and tested with random histories: there is never a second live
process for one instance (only SPAWNING asks for one, and it is entered only from phases without a
process); a stop always wins (it sets `wanted`, and every way out of ENDING asks `wanted` first);
a timer from an earlier phase is harmless (it carries the number of the phase that set it).
"""

import enum
import signal
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from meshrun.supervisor import backoff
from meshrun.supervisor.configuration.model import RestartPolicy
from meshrun.supervisor.lifecycle_events import (
    Action,
    DependenciesMet,
    DependencyFailed,
    Due,
    EndHook,
    EndSession,
    Event,
    Exit,
    Exited,
    HookEnded,
    Kill,
    LivenessLost,
    ProbeFailed,
    ProbeSucceeded,
    Probing,
    Restart,
    Revised,
    RunHook,
    Said,
    SendSignal,
    SessionEnded,
    SetTimer,
    Spawn,
    Spawned,
    SpawnFailed,
    Start,
    Stop,
    StoppingAnnounced,
    TimeoutExtended,
    TimerFired,
)

__all__ = ["ALIVE", "FINAL", "TRANSITIONS", "Phase", "Policy", "Status", "Wanted", "step"]


class Phase(enum.Enum):
    """Where a process is in its life."""

    SCHEDULED = enum.auto()  # between two runs, for the next time of its schedule
    WAITING = enum.auto()  # for its dependencies
    SPAWNING = enum.auto()  # the launcher was asked; no process id yet
    STARTING = enum.auto()  # it lives and has a probe that has not succeeded yet
    RUNNING = enum.auto()
    STOPPING = enum.auto()  # asked to end, within its stop timeout
    KILLING = enum.auto()  # past the timeout, or not ready in time
    ENDING = enum.auto()  # the main process has ended, the rest of its session is being ended
    CLEANING = enum.auto()  # nothing of it lives any more, and its on_exit hook runs
    BACKOFF = enum.auto()
    CRASH_LOOP = enum.auto()
    STOPPED = enum.auto()
    COMPLETED = enum.auto()
    FAILED = enum.auto()

    @property
    def shown(self) -> str:
        """The state as users see it; several phases share one."""
        return _SHOWN.get(self) or self.name.lower().replace("_", "-")


_SHOWN = {
    Phase.SCHEDULED: "waiting",
    Phase.SPAWNING: "starting",
    Phase.KILLING: "stopping",
    Phase.ENDING: "stopping",
    Phase.CLEANING: "stopping",
}
ALIVE = frozenset({Phase.STARTING, Phase.RUNNING, Phase.STOPPING, Phase.KILLING})
FINAL = frozenset({Phase.STOPPED, Phase.COMPLETED, Phase.FAILED})

# How many times its deadline, or its stop timeout, a process can have by asking for more: a hung
# one that goes on asking ends all the same. (systemd knows no bound but RuntimeMaxSec.)
EXTENSION = 10.0


class Wanted(enum.Enum):
    """What shall become of the process when it ends."""

    RUN = enum.auto()
    RESTART = enum.auto()
    STOP = enum.auto()


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """What the configuration says about the life of one process.

    `has_ready` and `has_alive` are whether there are such probes, `has_on_ready` and `has_on_exit`
    whether there are such hooks, `notifies` whether it has a socket on which it may ask for more
    time. One that is `scheduled` is run at times, and `restart` says nothing.
    """

    restart: RestartPolicy = "on-failure"
    scheduled: bool = False
    stop_signal: int = signal.SIGTERM
    stop_timeout_s: float = 5.0
    has_ready: bool = False
    has_alive: bool = False
    has_on_ready: bool = False
    has_on_exit: bool = False
    notifies: bool = False
    ready_deadline_s: float = 60.0
    hook_timeout_s: float = 10.0

    @property
    def longest_stop_s(self) -> float:
        """How long after the signal it, and then its on_exit hook, is killed at the latest."""
        stop_s = self.stop_timeout_s * (EXTENSION if self.notifies else 1.0)
        return stop_s + (self.last_hook_s if self.has_on_exit else 0.0)

    @property
    def last_hook_s(self) -> float:
        """How long the on_exit hook of one that was told to stop may take."""
        return min(self.hook_timeout_s, self.stop_timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """All that is known of one process. Times are seconds of the injected monotonic clock.

    `number` counts the phases entered: a timer carries the number it was set in. `since` is when
    this one was entered, `due_at` when its timer fires. `exits` keeps the times of the last few
    exits, for the crash-loop rule. `ready_at` is when this life was first ready, `ill_at` since
    when it was not alive, `ran_well` whether the one was long before the other or its end. `kill`
    says that somebody wants it gone now: it is killed once it lives, and no hook follows.
    `condemned` says that it is ended for its own failure: whatever its exit says then, that is no
    success. `hooked` says that its on_ready hook was run in this life. `said` is what it says of
    itself, `cause` what failed first where it failed because of others. `skipped` counts the times
    of its schedule at which it still ran.
    """

    phase: Phase = Phase.STOPPED
    wanted: Wanted = Wanted.STOP
    number: int = 0
    since: float = 0.0
    due_at: float | None = None
    pid: int | None = None
    ready: bool = False
    started_at: float | None = None
    exit: Exit | None = None
    exits: tuple[float, ...] = ()
    attempt: int = 0
    looping: bool = False
    restarts: int = 0
    reason: str = ""
    cause: str = ""
    said: str = ""
    ready_at: float | None = None
    ill_at: float | None = None
    ran_well: bool = False
    kill: bool = False
    condemned: bool = False
    hooked: bool = False
    skipped: int = 0

    @property
    def alive(self) -> bool:
        """Whether the main process lives."""
        return self.phase in ALIVE

    @property
    def final(self) -> bool:
        """Whether nothing more happens without a command."""
        return self.phase in FINAL

    @property
    def next_try_at(self) -> float | None:
        """When it is started again, None where it does not wait for that."""
        return self.due_at if self.phase in (Phase.BACKOFF, Phase.CRASH_LOOP) else None


Outcome = tuple[Status, tuple[Action, ...]]


@dataclass(frozen=True, slots=True)
class Moment:
    """What a handler may know besides the status: policy, time, and one random number."""

    policy: Policy
    now: float
    jitter: float


def _enter(status: Status, phase: Phase, **changes: object) -> Status:
    entered = replace(status, phase=phase, number=status.number + 1, due_at=None)
    return replace(entered, **changes)  # type: ignore[arg-type]


def _timed(status: Status, at: float, *actions: Action) -> Outcome:
    """Have a timer fire at `at`, in this phase, after the other actions."""
    return replace(status, due_at=at), (*actions, SetTimer(status.number, at))


def _spawn(status: Status) -> Outcome:
    fresh = replace(status, started_at=None, ready_at=None, ill_at=None, ran_well=False)
    fresh = replace(fresh, kill=False, condemned=False, hooked=False, said="")
    return _enter(fresh, Phase.SPAWNING, pid=None, ready=False), (Spawn(),)


def _start(status: Status, event: Event, moment: Moment) -> Outcome:
    later = moment.policy.scheduled and event != Start(now=True)
    return _begin(status, Phase.SCHEDULED if later else Phase.WAITING)


def _begin(status: Status, phase: Phase) -> Outcome:
    fresh = _enter(status, phase, wanted=Wanted.RUN, reason="", attempt=0, exits=())
    return replace(fresh, looping=False, exit=None, cause=""), ()


def _due(status: Status, _event: Event, _moment: Moment) -> Outcome:
    return _begin(status, Phase.WAITING)


def _not_started_twice(status: Status, _event: Event, moment: Moment) -> Outcome:
    skips = moment.policy.scheduled and status.wanted is not Wanted.STOP
    return (replace(status, skipped=status.skipped + 1) if skips else status), ()


def _start_before_time(status: Status, event: Event, _moment: Moment) -> Outcome:
    assert isinstance(event, Start)
    return _begin(status, Phase.WAITING) if event.now else (status, ())


def _revised_schedule(status: Status, _event: Event, moment: Moment) -> Outcome:
    return (status, ()) if moment.policy.scheduled else _begin(status, Phase.WAITING)


def _start_now(status: Status, _event: Event, _moment: Moment) -> Outcome:
    again = replace(status, attempt=0, exits=(), looping=False, restarts=status.restarts + 1)
    return _spawn(again)


def _dependencies_met(status: Status, _event: Event, _moment: Moment) -> Outcome:
    return _spawn(replace(status, reason=""))


def _dependency_failed(status: Status, event: Event, moment: Moment) -> Outcome:
    assert isinstance(event, DependencyFailed)
    return _fail(replace(status, reason=event.reason, cause=event.cause), moment)


def _fail(status: Status, moment: Moment) -> Outcome:
    """Let it have failed for good; one that has a schedule, until the next time."""
    gone = replace(status, pid=None, wanted=Wanted.RUN)
    return _enter(gone, Phase.SCHEDULED if moment.policy.scheduled else Phase.FAILED), ()


def _spawned(status: Status, event: Event, moment: Moment) -> Outcome:
    assert isinstance(event, Spawned)
    alive = replace(status, pid=event.pid, started_at=moment.now, exit=None)
    if status.kill:
        return _enter(alive, Phase.KILLING), (SendSignal(signal.SIGKILL),)
    if status.wanted is not Wanted.RUN:
        return _stop_alive(alive, moment)
    if moment.policy.has_ready:
        deadline = moment.now + moment.policy.ready_deadline_s
        return _timed(_enter(alive, Phase.STARTING), deadline, Probing(ready=True))
    return _run(alive, moment)


def _run(status: Status, moment: Moment) -> Outcome:
    policy = moment.policy
    hooked = policy.has_on_ready
    running = _enter(status, Phase.RUNNING, ready=True, ready_at=moment.now, hooked=hooked)
    # Not before it is ready: one that is slow to start is not dead (its deadline sees to that).
    alive = (Probing(ready=policy.has_ready, alive=True),) if policy.has_alive else ()
    if not hooked:
        return running, alive
    return _timed(running, moment.now + policy.hook_timeout_s, *alive, RunHook("on_ready"))


def _spawn_failed(status: Status, event: Event, moment: Moment) -> Outcome:
    assert isinstance(event, SpawnFailed)
    failed = replace(status, reason=event.reason, exit=Exit(127))
    if event.permanent and status.wanted is not Wanted.STOP:
        return _fail(failed, moment)
    return _ended(failed, moment)


def _probe_succeeded(status: Status, _event: Event, moment: Moment) -> Outcome:
    return _run(replace(status, reason=""), moment)


def _became_ready(status: Status, _event: Event, _moment: Moment) -> Outcome:
    return replace(status, ready=True, reason=""), ()


def _became_unready(status: Status, event: Event, _moment: Moment) -> Outcome:
    assert isinstance(event, ProbeFailed)
    return replace(status, ready=False, reason=event.reason), ()


def _probe_refused(status: Status, event: Event, _moment: Moment) -> Outcome:
    assert isinstance(event, ProbeFailed)
    return replace(status, reason=event.reason), ()


def _revised_starting(status: Status, _event: Event, moment: Moment) -> Outcome:
    if moment.policy.has_ready:
        return status, (Probing(), Probing(ready=True))
    running, actions = _run(replace(status, reason=""), moment)
    return running, (Probing(), *actions)


def _revised_running(status: Status, _event: Event, moment: Moment) -> Outcome:
    # What was ready stays so until a new probe says otherwise: calls go to it now.
    policy = moment.policy
    asked = (Probing(), Probing(ready=policy.has_ready, alive=policy.has_alive))
    if policy.has_ready or status.ready:
        return status, asked
    return replace(status, ready=True, reason=""), asked


def _allowed_s(status: Status) -> float:
    """Return how long this phase could last: a timer may be late, and be no truth to tell."""
    return (status.since if status.due_at is None else status.due_at) - status.since


def _not_ready_in_time(status: Status, _event: Event, _moment: Moment) -> Outcome:
    reason = f"not ready within {_allowed_s(status):g} s"
    if status.reason:
        reason += f": {status.reason}"
    if status.said:
        reason += f"; it says: {status.said}"
    killing = _enter(status, Phase.KILLING, reason=reason, condemned=True)
    return killing, (Probing(), SendSignal(signal.SIGKILL))


def _not_alive(status: Status, event: Event, moment: Moment) -> Outcome:
    assert isinstance(event, LivenessLost)
    ill_at = moment.now - event.ill_s
    reason = f"not alive: {event.reason}"
    return _stop_alive(replace(status, condemned=True, ill_at=ill_at, reason=reason), moment)


def _ready_hook_timeout(status: Status, _event: Event, _moment: Moment) -> Outcome:
    return status, (EndHook("on_ready", signal.SIGKILL, _not_ended(status)),)


def _not_ended(status: Status) -> str:
    return f"not ended within {_allowed_s(status):g} s"


def _stops_itself(status: Status, _event: Event, moment: Moment) -> Outcome:
    stopping = _enter(status, Phase.STOPPING, ready=False)
    return _timed(stopping, moment.now + moment.policy.stop_timeout_s, Probing())


def _says(status: Status, event: Event, _moment: Moment) -> Outcome:
    assert isinstance(event, Said)
    return replace(status, said=event.text), ()


def _extend(allowed_s: float, status: Status, event: Event, moment: Moment) -> Outcome:
    assert isinstance(event, TimeoutExtended)
    assert status.due_at is not None
    latest = status.since + EXTENSION * allowed_s
    at = min(moment.now + event.by_s, latest)
    return _timed(status, at) if at > status.due_at else (status, ())


def _extend_deadline(status: Status, event: Event, moment: Moment) -> Outcome:
    return _extend(moment.policy.ready_deadline_s, status, event, moment)


def _extend_stop(status: Status, event: Event, moment: Moment) -> Outcome:
    return _extend(moment.policy.stop_timeout_s, status, event, moment)


def _stop_alive(status: Status, moment: Moment) -> Outcome:
    stopping = _enter(status, Phase.STOPPING, ready=False)
    at = moment.now + moment.policy.stop_timeout_s
    told = SendSignal(moment.policy.stop_signal)
    return _timed(stopping, at, Probing(), *_end_hooks(status, signal.SIGTERM), told)


def _end_hooks(status: Status, number: int) -> tuple[Action, ...]:
    """Let the on_ready hook of this life not outlive it."""
    reason = "ended with its instance"
    return (EndHook("on_ready", number, reason),) if status.hooked else ()


def _wanted(status: Status, event: Event) -> Status:
    if isinstance(event, Restart):
        return replace(status, wanted=Wanted.RESTART, reason=event.reason)
    assert isinstance(event, Stop | Kill)
    return replace(status, wanted=Wanted.STOP, reason=event.reason)


def _want(status: Status, event: Event, _moment: Moment) -> Outcome:
    return _wanted(status, event), ()


def _want_stopping(status: Status, event: Event, moment: Moment) -> Outcome:
    # It ends by itself, or for its failure, and is to start again: a stop is not to be believed
    # of one that was never told, and one that was told is not told twice.
    told = status.wanted is not Wanted.RUN or status.condemned
    return _want(status, event, moment) if told else _stop(status, event, moment)


def _want_run(status: Status, event: Event, moment: Moment) -> Outcome:
    later = moment.policy.scheduled and event != Start(now=True)
    return replace(status, wanted=Wanted.RUN if later else Wanted.RESTART), ()


def _want_run_after_all(status: Status, _event: Event, _moment: Moment) -> Outcome:
    # It has not lived yet: there is nothing to stop first.
    return replace(status, wanted=Wanted.RUN, kill=False), ()


def _want_killed(status: Status, event: Event, _moment: Moment) -> Outcome:
    return replace(_wanted(status, event), kill=True), ()


def _stop(status: Status, event: Event, moment: Moment) -> Outcome:
    return _stop_alive(_wanted(status, event), moment)


def _kill(status: Status, event: Event, _moment: Moment) -> Outcome:
    killing = _enter(_wanted(status, event), Phase.KILLING, ready=False, kill=True)
    return killing, (Probing(), SendSignal(signal.SIGKILL))


def _kill_session(status: Status, event: Event, moment: Moment) -> Outcome:
    killed, _ = _want_killed(status, event, moment)
    return killed, (EndSession(signal.SIGKILL),)


def _kill_hook(status: Status, event: Event, moment: Moment) -> Outcome:
    killed, _ = _want_killed(status, event, moment)
    return killed, (EndHook("on_exit", signal.SIGKILL, killed.reason),)


def _stopped(status: Status, event: Event, _moment: Moment) -> Outcome:
    return _enter(_wanted(status, event), Phase.STOPPED), ()


def _restart_now(status: Status, event: Event, moment: Moment) -> Outcome:
    return _start_now(replace(status, wanted=Wanted.RUN), event, moment)


def _stop_timeout(status: Status, _event: Event, _moment: Moment) -> Outcome:
    reason = _not_ended(status)
    if status.condemned:
        reason = f"{status.reason}; {reason}"
    return _enter(status, Phase.KILLING, reason=reason), (SendSignal(signal.SIGKILL),)


def _exited(status: Status, event: Event, moment: Moment) -> Outcome:
    assert isinstance(event, Exited)
    # The reason of a kill by meshrun (not ready in time) says more than the signal does.
    killed = status.phase is Phase.KILLING
    keep = killed or status.condemned or status.wanted is not Wanted.RUN
    reason = status.reason if keep and status.reason else str(event.exit)
    # From when it was ready: what never was has not run well, however long it lived.
    well_until = moment.now if status.ill_at is None else status.ill_at
    ready_at = status.ready_at
    ran_well = ready_at is not None and well_until - ready_at >= backoff.GOOD_RUN_S
    ending = _enter(status, Phase.ENDING, ready=False, exit=event.exit, reason=reason)
    at = moment.now + moment.policy.stop_timeout_s
    number = signal.SIGKILL if killed else moment.policy.stop_signal
    timed, (timer,) = _timed(replace(ending, ran_well=ran_well), at)
    hooks = _end_hooks(status, signal.SIGKILL)
    return timed, (Probing(), *hooks, timer, EndSession(number))


def _session_timeout(status: Status, _event: Event, _moment: Moment) -> Outcome:
    return status, (EndSession(signal.SIGKILL),)


def _session_ended(status: Status, _event: Event, moment: Moment) -> Outcome:
    policy = moment.policy
    if status.kill or not policy.has_on_exit:
        return _ended(status, moment)
    stops = status.wanted is Wanted.STOP
    within_s = policy.last_hook_s if stops else policy.hook_timeout_s
    hook = RunHook("on_exit", status.exit, _is_to_start_again(status, policy))
    return _timed(_enter(status, Phase.CLEANING, pid=None), moment.now + within_s, hook)


def _hook_ended(status: Status, event: Event, moment: Moment) -> Outcome:
    assert isinstance(event, HookEnded)
    # That of on_ready, which was killed with its instance, may be heard of late.
    return _ended(status, moment) if event.hook == "on_exit" else (status, ())


def _exit_hook_timeout(status: Status, _event: Event, _moment: Moment) -> Outcome:
    return status, (EndHook("on_exit", signal.SIGKILL, _not_ended(status)),)


def _want_cleaned(status: Status, event: Event, moment: Moment) -> Outcome:
    assert status.due_at is not None
    wanted = _wanted(status, event)
    at = moment.now + moment.policy.last_hook_s
    return _timed(wanted, at) if at < status.due_at else (wanted, ())


def _succeeded(status: Status) -> bool:
    return status.exit is not None and status.exit.ok and not status.condemned


def _is_to_start_again(status: Status, policy: Policy) -> bool:
    if status.wanted is not Wanted.RUN:
        return status.wanted is Wanted.RESTART
    if policy.scheduled:
        return False
    return policy.restart == "always" or (policy.restart != "never" and not _succeeded(status))


def _ended(status: Status, moment: Moment) -> Outcome:
    """Nothing of it lives any more: decide what comes next."""
    gone = replace(status, pid=None)
    if status.wanted is Wanted.STOP:
        return _enter(gone, Phase.STOPPED), ()
    if status.wanted is Wanted.RESTART:
        return _spawn(replace(gone, wanted=Wanted.RUN, restarts=status.restarts + 1, reason=""))
    if moment.policy.scheduled:
        return _enter(gone, Phase.SCHEDULED, reason="" if _succeeded(status) else status.reason), ()
    if not _is_to_start_again(status, moment.policy):
        return _enter(gone, Phase.COMPLETED if _succeeded(status) else Phase.FAILED), ()
    return _again(gone, moment)


def _again(status: Status, moment: Moment) -> Outcome:
    ran_well = status.ran_well
    attempt = 0 if ran_well else status.attempt
    exits = (*status.exits, moment.now)[-backoff.CRASH_LOOP_EXITS :]
    looping = backoff.is_crash_loop(exits, moment.now) or (status.looping and not ran_well)
    delay_s = backoff.delay_s(attempt, moment.jitter)
    waiting = replace(status, attempt=attempt + 1, exits=exits, looping=looping)
    if delay_s == 0.0:
        return _spawn(replace(waiting, restarts=status.restarts + 1))
    entered = _enter(waiting, Phase.CRASH_LOOP if looping else Phase.BACKOFF)
    return _timed(entered, moment.now + delay_s)


def _next_try(status: Status, _event: Event, _moment: Moment) -> Outcome:
    return _spawn(replace(status, restarts=status.restarts + 1))


Handler = Callable[[Status, Event, Moment], Outcome]

# What each phase answers to; an event that a phase does not list changes nothing there, and the
# table says so by leaving it out (a probe's late answer, a second Start, an exit seen twice).
_AT_REST: Mapping[type[Event], Handler] = {Start: _start, Restart: _start}
_BETWEEN: Mapping[type[Event], Handler] = {
    TimerFired: _next_try,
    Start: _start_now,
    Restart: _restart_now,
    Stop: _stopped,
    Kill: _stopped,
}
_RUNS: Mapping[type[Event], Handler] = {Due: _not_started_twice}
_LIVE: Mapping[type[Event], Handler] = {
    **_RUNS,
    Exited: _exited,
    Stop: _stop,
    Restart: _stop,
    Kill: _kill,
    Said: _says,
    StoppingAnnounced: _stops_itself,
}
TRANSITIONS: Mapping[Phase, Mapping[type[Event], Handler]] = MappingProxyType(
    {
        Phase.SCHEDULED: {
            Due: _due,
            Start: _start_before_time,
            Revised: _revised_schedule,
            Stop: _stopped,
            Kill: _stopped,
        },
        Phase.WAITING: {
            **_RUNS,
            DependenciesMet: _dependencies_met,
            DependencyFailed: _dependency_failed,
            Stop: _stopped,
            Kill: _stopped,
        },
        Phase.SPAWNING: {
            **_RUNS,
            Spawned: _spawned,
            SpawnFailed: _spawn_failed,
            Start: _want_run_after_all,
            Stop: _want,
            Restart: _want,
            Kill: _want_killed,
        },
        Phase.STARTING: {
            **_LIVE,
            ProbeSucceeded: _probe_succeeded,
            ProbeFailed: _probe_refused,
            Revised: _revised_starting,
            TimeoutExtended: _extend_deadline,
            TimerFired: _not_ready_in_time,
        },
        Phase.RUNNING: {
            **_LIVE,
            ProbeSucceeded: _became_ready,
            ProbeFailed: _became_unready,
            LivenessLost: _not_alive,
            Revised: _revised_running,
            TimerFired: _ready_hook_timeout,
        },
        Phase.STOPPING: {
            **_RUNS,
            Exited: _exited,
            Said: _says,
            TimeoutExtended: _extend_stop,
            TimerFired: _stop_timeout,
            Start: _want_run,
            Stop: _want_stopping,
            Restart: _want_stopping,
            Kill: _kill,
        },
        Phase.KILLING: {
            **_RUNS,
            Exited: _exited,
            Start: _want_run,
            Stop: _want,
            Restart: _want,
            Kill: _want_killed,
        },
        Phase.ENDING: {
            **_RUNS,
            SessionEnded: _session_ended,
            TimerFired: _session_timeout,
            Start: _want_run,
            Stop: _want,
            Restart: _want,
            Kill: _kill_session,
        },
        Phase.CLEANING: {
            **_RUNS,
            HookEnded: _hook_ended,
            TimerFired: _exit_hook_timeout,
            Start: _want_run,
            Stop: _want_cleaned,
            Restart: _want,
            Kill: _kill_hook,
        },
        Phase.BACKOFF: _BETWEEN,
        Phase.CRASH_LOOP: _BETWEEN,
        Phase.STOPPED: _AT_REST,
        Phase.COMPLETED: _AT_REST,
        Phase.FAILED: _AT_REST,
    }
)


def step(status: Status, event: Event, policy: Policy, now: float, jitter: float) -> Outcome:
    """Return the status after `event`, and what the driver must do about it, in order.

    `now` is in seconds of any monotonic clock, `jitter` a random number in [0, 1).
    """
    if isinstance(event, TimerFired) and event.number != status.number:
        return status, ()
    handler = TRANSITIONS[status.phase].get(type(event))
    if handler is None:
        return status, ()
    after, actions = handler(status, event, Moment(policy, now, jitter))
    if after.number != status.number:
        after = replace(after, since=now)
    return after, actions
