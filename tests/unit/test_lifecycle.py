"""The life of a process: its table, told event by event, and what must hold whatever happens."""

import signal
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.sampling import HISTORIES

from meshrun.supervisor import backoff, lifecycle
from meshrun.supervisor.configuration.model import HookName, RestartPolicy
from meshrun.supervisor.lifecycle import Phase, Policy, Status, Wanted
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

PLAIN = Policy()
WATCHED = Policy(has_alive=True)
PROBED = Policy(has_ready=True, ready_deadline_s=20.0)


@dataclass
class Life:
    """One process, told what happens to it at a time that the test sets."""

    policy: Policy = PLAIN
    status: Status = field(default_factory=Status)
    now: float = 1000.0
    jitter: float = 0.0
    actions: tuple[Action, ...] = ()

    def tell(self, *events: Event) -> "Life":
        """Let things happen, and keep what must be done about the last of them."""
        for event in events:
            self.status, self.actions = lifecycle.step(
                self.status, event, self.policy, self.now, self.jitter
            )
        return self

    def started(self) -> "Life":
        """Bring it to life."""
        return self.tell(Start(), DependenciesMet(), Spawned(7))

    def fire(self) -> "Life":
        """Let the time of the timer set last come."""
        timer = next(a for a in self.actions if isinstance(a, SetTimer))
        self.now = timer.at
        return self.tell(TimerFired(timer.number))

    def crash(self, after_s: float = 0.0) -> "Life":
        """End it with a signal, and leave nothing of its session."""
        self.now += after_s
        return self.tell(Exited(Exit(None, signal.SIGSEGV)), SessionEnded())

    def todo(self) -> tuple[Action, ...]:
        """Return what must be done about what happened last."""
        return self.actions

    def phase(self) -> Phase:
        """Return where it is in its life."""
        return self.status.phase


def test_it_waits_for_its_dependencies_then_is_spawned_then_runs() -> None:
    life = Life().tell(Start())
    assert (life.phase(), life.todo()) == (Phase.WAITING, ())
    life.tell(DependenciesMet())
    assert (life.phase(), life.todo()) == (Phase.SPAWNING, (Spawn(),))
    life.tell(Spawned(7))
    assert (life.phase(), life.status.pid, life.status.ready) == (Phase.RUNNING, 7, True)


def test_with_a_probe_it_is_starting_until_the_probe_succeeds() -> None:
    life = Life(PROBED).started()
    assert (life.phase(), life.status.ready) == (Phase.STARTING, False)
    assert life.todo() == (Probing(ready=True), SetTimer(life.status.number, 1020.0))
    life.tell(ProbeFailed("refused"))
    assert (life.phase(), life.status.reason) == (Phase.STARTING, "refused")
    life.tell(ProbeSucceeded())
    assert (life.phase(), life.status.ready, life.status.reason) == (Phase.RUNNING, True, "")


def test_a_running_one_becomes_unready_and_ready_again_without_ending() -> None:
    life = Life(PROBED).started().tell(ProbeSucceeded())
    life.tell(ProbeFailed("answered 500"))
    assert (life.phase(), life.status.ready, life.status.reason) == (
        Phase.RUNNING,
        False,
        "answered 500",
    )
    life.tell(ProbeSucceeded())
    assert (life.status.ready, life.status.reason, life.todo()) == (True, "", ())


def test_another_probe_is_asked_from_now_on_and_what_was_ready_stays_so_until_it_answers() -> None:
    life = Life(PLAIN).started()
    life.policy = PROBED
    life.tell(Revised())
    assert (life.phase(), life.status.ready) == (Phase.RUNNING, True)
    assert life.todo() == (Probing(), Probing(ready=True))
    life.tell(ProbeFailed("refused"))
    assert not life.status.ready
    life.policy = PLAIN
    life.tell(Revised())
    assert (life.status.ready, life.status.reason) == (True, "")
    assert life.todo() == (Probing(), Probing())


def test_one_that_is_starting_keeps_its_deadline_for_another_probe_and_runs_without_one() -> None:
    life = Life(PROBED).started()
    number = life.status.number
    life.tell(Revised())
    assert (life.phase(), life.status.number) == (Phase.STARTING, number)
    assert life.todo() == (Probing(), Probing(ready=True))
    life.policy = PLAIN
    life.tell(Revised())
    assert (life.phase(), life.status.ready) == (Phase.RUNNING, True)
    assert life.todo() == (Probing(),)


def test_one_that_is_not_ready_in_time_is_killed_and_the_reason_says_why() -> None:
    life = Life(PROBED).started()
    deadline = life.todo()
    life.tell(ProbeFailed("refused"))
    life.actions = deadline
    life.fire()
    assert life.todo() == (Probing(), SendSignal(signal.SIGKILL))
    life.tell(Exited(Exit(None, signal.SIGKILL)))
    assert life.status.reason == "not ready within 20 s: refused"


def test_liveness_is_asked_once_it_is_ready() -> None:
    life = Life(Policy(has_ready=True, has_alive=True)).started()
    assert Probing(ready=True) in life.todo()
    life.tell(ProbeSucceeded())
    assert life.todo() == (Probing(ready=True, alive=True),)
    assert Life(WATCHED).started().todo() == (Probing(alive=True),)


def test_one_that_is_not_alive_is_ended_its_usual_way_and_started_again_with_the_reason() -> None:
    life = Life(WATCHED).started().tell(LivenessLost("answered 500 (3 times in a row)"))
    assert (life.phase(), life.status.ready) == (Phase.STOPPING, False)
    assert life.todo() == (
        Probing(),
        SendSignal(signal.SIGTERM),
        SetTimer(life.status.number, 1005.0),
    )
    life.tell(Exited(Exit(0)), SessionEnded())
    assert (life.phase(), life.status.restarts) == (Phase.SPAWNING, 1)
    assert life.status.reason == "not alive: answered 500 (3 times in a row)"


def test_what_was_ended_because_it_was_not_alive_has_not_completed_whatever_its_exit_says() -> None:
    life = Life(Policy(has_alive=True, restart="never")).started()
    life.tell(LivenessLost("silent"), Exited(Exit(0)), SessionEnded())
    assert (life.phase(), life.status.reason) == (Phase.FAILED, "not alive: silent")


def test_one_that_is_not_alive_and_does_not_end_is_killed_and_keeps_its_reason() -> None:
    life = Life(WATCHED).started().tell(LivenessLost("silent")).fire()
    assert life.todo() == (SendSignal(signal.SIGKILL),)
    life.tell(Exited(Exit(None, signal.SIGKILL)))
    assert life.status.reason == "not alive: silent; not ended within 5 s"


def test_lives_that_end_for_not_being_alive_are_a_crash_loop_like_others() -> None:
    life = Life(WATCHED).started()
    for _ in range(5):
        life.tell(LivenessLost("silent"), Exited(Exit(0)), SessionEnded())
        if life.phase() is not Phase.SPAWNING:
            life.fire()
        life.tell(Spawned(8))
    assert life.status.looping


def test_the_time_in_which_it_was_not_alive_does_not_count_as_a_good_run() -> None:
    life = Life(WATCHED).started()
    life.tell(LivenessLost("silent"), Exited(Exit(0)), SessionEnded(), Spawned(8))
    life.now += backoff.GOOD_RUN_S + 10.0
    life.tell(LivenessLost("silent", ill_s=20.0), Exited(Exit(0)), SessionEnded())
    assert life.phase() is Phase.BACKOFF


def test_a_stop_wins_over_the_restart_of_one_that_is_not_alive_without_a_second_signal() -> None:
    life = Life(WATCHED).started().tell(LivenessLost("silent"), Stop())
    assert life.todo() == ()
    assert life.tell(Exited(Exit(0)), SessionEnded()).phase() is Phase.STOPPED


def test_one_that_says_that_it_stops_gets_no_calls_and_has_its_stop_timeout() -> None:
    life = Life(Policy(restart="always")).started().tell(StoppingAnnounced())
    assert (life.phase(), life.status.ready) == (Phase.STOPPING, False)
    assert life.todo() == (Probing(), SetTimer(life.status.number, 1005.0))
    life.tell(Exited(Exit(0)), SessionEnded())
    assert life.phase() is Phase.SPAWNING


def test_one_that_says_that_it_stops_and_does_not_is_killed() -> None:
    life = Life().started().tell(StoppingAnnounced()).fire()
    assert (life.phase(), life.todo()) == (Phase.KILLING, (SendSignal(signal.SIGKILL),))


@pytest.mark.parametrize(("command", "phase"), [(Stop(), "STOPPED"), (Restart(), "SPAWNING")])
def test_a_command_is_told_to_one_that_only_says_that_it_stops(command: Event, phase: str) -> None:
    life = Life().started().tell(StoppingAnnounced(), command)
    assert SendSignal(signal.SIGTERM) in life.todo()
    assert life.tell(Exited(Exit(0)), SessionEnded()).phase() is Phase[phase]


def test_one_that_asks_for_more_time_to_start_has_it_but_not_for_ever() -> None:
    life = Life(PROBED).started().tell(TimeoutExtended(10.0))
    assert life.todo() == (), "less than it has anyway"
    life.now += 15.0
    life.tell(TimeoutExtended(30.0))
    assert life.todo() == (SetTimer(life.status.number, 1045.0),)
    life.tell(TimeoutExtended(86400.0))
    assert life.todo() == (SetTimer(life.status.number, 1200.0),)
    life.fire().tell(Exited(Exit(None, signal.SIGKILL)))
    assert life.status.reason == "not ready within 200 s"


def test_one_that_asks_for_more_time_to_stop_has_it_but_not_for_ever() -> None:
    policy = Policy(stop_timeout_s=3.0, notifies=True)
    life = Life(policy).started().tell(Stop())
    life.tell(TimeoutExtended(600.0))
    assert life.todo() == (SetTimer(life.status.number, 1000.0 + policy.longest_stop_s),)


def test_what_it_says_of_itself_is_kept_for_this_life_and_told_when_it_is_not_ready() -> None:
    life = Life(PROBED).started().tell(Said("loading"), ProbeFailed("no READY=1 yet"))
    assert life.status.said == "loading"
    life.tell(TimerFired(life.status.number))
    assert life.status.reason.endswith("no READY=1 yet; it says: loading")
    life.tell(Exited(Exit(None, 9)), SessionEnded())
    assert life.status.said == ""


def test_the_first_restart_is_at_once_and_the_next_ones_wait_ever_longer() -> None:
    life = Life().started().crash(1.0)
    assert (life.phase(), life.status.restarts) == (Phase.SPAWNING, 1)
    waits = []
    for _ in range(12):
        life.tell(Spawned(8)).crash(6.0)  # rarely enough to be no crash loop
        assert life.phase() is Phase.BACKOFF
        assert life.status.next_try_at is not None
        waits.append(round(life.status.next_try_at - life.now, 3))
        life.fire()
        assert life.phase() is Phase.SPAWNING
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0, 30.0]


def test_after_a_good_run_the_next_restart_is_at_once_again() -> None:
    life = Life().started().crash()
    life.tell(Spawned(8)).crash().fire()
    life.tell(Spawned(9)).crash(backoff.GOOD_RUN_S + 1.0)
    assert (life.phase(), life.status.looping) == (Phase.SPAWNING, False)


def test_five_exits_in_ten_seconds_are_a_crash_loop_with_a_next_try() -> None:
    life = Life().started().crash(1.0)
    for _ in range(3):
        life.tell(Spawned(8)).crash(0.5)
        assert life.phase() is Phase.BACKOFF
        life.fire()
    life.tell(Spawned(9)).crash(0.5)
    assert life.phase() is Phase.CRASH_LOOP
    assert life.status.next_try_at == pytest.approx(life.now + 0.8)


def test_a_crash_loop_is_over_only_after_a_good_run() -> None:
    life = Life().started().crash()
    for _ in range(4):
        life.tell(Spawned(8)).crash()
        life.fire()
    life.tell(Spawned(9)).crash(11.0)
    assert life.phase() is Phase.CRASH_LOOP
    life.fire().tell(Spawned(10)).crash(31.0)
    assert life.phase() is Phase.SPAWNING
    life.tell(Spawned(11)).crash(1.0)
    assert life.phase() is Phase.BACKOFF


@pytest.mark.parametrize(
    ("restart", "exit_", "phase"),
    [
        ("never", Exit(0), Phase.COMPLETED),
        ("never", Exit(3), Phase.FAILED),
        ("never", Exit(None, 9), Phase.FAILED),
        ("on-failure", Exit(0), Phase.COMPLETED),
        ("on-failure", Exit(3), Phase.SPAWNING),
        ("on-failure", Exit(None, 15), Phase.SPAWNING),
        ("always", Exit(0), Phase.SPAWNING),
        ("always", Exit(1), Phase.SPAWNING),
    ],
)
def test_what_follows_an_exit_is_the_restart_policys_to_say(
    restart: RestartPolicy, exit_: Exit, phase: Phase
) -> None:
    life = Life(Policy(restart=restart)).started().tell(Exited(exit_), SessionEnded())
    assert life.phase() is phase


def test_a_stop_is_a_signal_then_after_the_timeout_kill_then_the_rest_of_the_session() -> None:
    life = Life(Policy(stop_signal=signal.SIGINT, stop_timeout_s=3.0)).started().tell(Stop())
    assert life.phase() is Phase.STOPPING
    assert life.todo() == (
        Probing(),
        SendSignal(signal.SIGINT),
        SetTimer(life.status.number, 1003.0),
    )
    life.fire()
    assert (life.phase(), life.todo()) == (Phase.KILLING, (SendSignal(signal.SIGKILL),))
    life.tell(Exited(Exit(None, signal.SIGKILL)))
    assert life.phase() is Phase.ENDING
    assert life.status.reason == "not ended within 3 s"
    # What is left has had its time too.
    assert EndSession(signal.SIGKILL) in life.todo()
    life.fire()
    assert life.todo() == (EndSession(signal.SIGKILL),)
    assert life.tell(SessionEnded()).phase() is Phase.STOPPED


def test_what_ended_by_itself_leaves_the_rest_of_its_session_the_usual_way_to_end() -> None:
    life = Life(Policy(stop_signal=signal.SIGINT)).started().tell(Exited(Exit(1)))
    assert EndSession(signal.SIGINT) in life.todo()
    life.fire()
    assert life.todo() == (EndSession(signal.SIGKILL),)


def test_a_kill_while_it_is_being_spawned_kills_it_as_soon_as_it_lives() -> None:
    life = Life(Policy(stop_timeout_s=60.0)).tell(Start(), DependenciesMet(), Kill(), Spawned(7))
    assert (life.phase(), life.todo()) == (Phase.KILLING, (SendSignal(signal.SIGKILL),))
    assert life.tell(Exited(Exit(None, signal.SIGKILL)), SessionEnded()).phase() is Phase.STOPPED


def test_a_start_after_a_kill_while_it_is_being_spawned_is_remembered() -> None:
    life = Life().tell(Start(), DependenciesMet(), Kill(), Start(), Spawned(7))
    assert life.phase() is Phase.RUNNING


def test_one_that_was_never_ready_has_not_run_well_however_long_it_lived() -> None:
    life = Life(Policy(has_ready=True, ready_deadline_s=backoff.GOOD_RUN_S * 2)).started()
    waits = []
    for _ in range(4):
        life.fire()  # not ready in time
        life.tell(Exited(Exit(None, signal.SIGKILL)), SessionEnded())
        if life.phase() is Phase.BACKOFF:
            begun = life.now
            life.fire()
            waits.append(round(life.now - begun, 6))
        life.tell(Spawned(8))
    assert waits == [0.1, 0.2, 0.4]


HOOKED = Policy(has_on_ready=True, has_on_exit=True)


def test_a_hook_is_run_once_in_each_life_when_it_is_ready_for_the_first_time() -> None:
    life = Life(Policy(has_ready=True, has_on_ready=True)).started()
    assert not any(isinstance(action, RunHook) for action in life.todo())
    life.tell(ProbeSucceeded())
    assert RunHook("on_ready") in life.todo()
    assert life.tell(ProbeFailed("refused"), ProbeSucceeded()).todo() == ()
    life.tell(Exited(Exit(1)), SessionEnded(), Spawned(8), ProbeSucceeded())
    assert RunHook("on_ready") in life.todo()


def test_a_hook_that_takes_too_long_is_killed_and_the_app_goes_on() -> None:
    life = Life(HOOKED).started().fire()
    assert life.todo() == (EndHook("on_ready", signal.SIGKILL, "not ended within 10 s"),)
    assert life.phase() is Phase.RUNNING


def test_the_hook_of_one_that_is_ready_is_told_to_end_with_it_and_does_not_outlive_it() -> None:
    life = Life(HOOKED).started().tell(Stop())
    assert EndHook("on_ready", signal.SIGTERM, "ended with its instance") in life.todo()
    life.tell(Exited(Exit(0)))
    assert EndHook("on_ready", signal.SIGKILL, "ended with its instance") in life.todo()


def test_nothing_starts_before_the_hook_of_its_end_has_ended() -> None:
    life = Life(HOOKED).started().crash()
    assert (life.phase(), life.phase().shown, life.status.pid) == (
        Phase.CLEANING,
        "stopping",
        None,
    )
    assert RunHook("on_exit", Exit(None, signal.SIGSEGV), again=True) in life.todo()
    assert life.tell(HookEnded("on_ready")).phase() is Phase.CLEANING
    assert life.tell(HookEnded("on_exit")).todo() == (Spawn(),)


@pytest.mark.parametrize(
    ("policy", "exit_", "commands", "again"),
    [
        (Policy(has_on_exit=True), Exit(0), (), False),
        (Policy(has_on_exit=True), Exit(1), (), True),
        (Policy(has_on_exit=True, restart="always"), Exit(0), (), True),
        (Policy(has_on_exit=True, restart="never"), Exit(1), (), False),
        (Policy(has_on_exit=True), Exit(1), (Stop(),), False),
        (Policy(has_on_exit=True, restart="never"), Exit(0), (Restart(),), True),
    ],
)
def test_the_hook_of_the_end_is_told_whether_it_starts_again(
    policy: Policy, exit_: Exit, commands: tuple[Event, ...], again: bool
) -> None:
    life = Life(policy).started().tell(*commands, Exited(exit_), SessionEnded())
    assert RunHook("on_exit", exit_, again) in life.todo()
    assert (life.tell(HookEnded("on_exit")).phase() is Phase.SPAWNING) is again


def test_at_a_stop_the_hook_has_no_longer_than_the_app_had() -> None:
    life = Life(HOOKED).started().tell(Stop(), Exited(Exit(0)), SessionEnded())
    assert life.fire().now == 1005.0
    assert life.todo() == (EndHook("on_exit", signal.SIGKILL, "not ended within 5 s"),)
    assert life.tell(HookEnded("on_exit")).phase() is Phase.STOPPED


def test_a_stop_while_the_hook_of_a_crash_runs_wins_and_shortens_it() -> None:
    life = Life(HOOKED).started().crash()
    life.now += 1.0
    life.tell(Stop())
    assert life.todo() == (SetTimer(life.status.number, 1006.0),)
    life.now += 1.0
    assert life.tell(Stop()).todo() == (), "nobody gets more time by asking twice"
    assert life.tell(HookEnded("on_exit")).phase() is Phase.STOPPED


def test_what_is_killed_by_somebody_has_no_hook_any_more() -> None:
    life = Life(HOOKED).started().tell(Kill(), Exited(Exit(None, 9)), SessionEnded())
    assert (life.phase(), life.todo()) == (Phase.STOPPED, ())
    life = Life(HOOKED).started().crash().tell(Kill("enough"))
    assert life.todo() == (EndHook("on_exit", signal.SIGKILL, "enough"),)
    assert life.tell(HookEnded("on_exit")).phase() is Phase.STOPPED


def test_what_was_not_ready_in_time_or_did_not_end_has_its_hook() -> None:
    life = Life(Policy(has_ready=True, has_on_exit=True)).started().fire()
    assert life.tell(Exited(Exit(None, 9)), SessionEnded()).phase() is Phase.CLEANING
    life = Life(HOOKED).started().tell(Stop()).fire()
    assert life.tell(Exited(Exit(None, 9)), SessionEnded()).phase() is Phase.CLEANING


SCHEDULED = Policy(scheduled=True, restart="never")


def ran(*, exit_: Exit, policy: Policy = SCHEDULED) -> Life:
    """One run of an app that has a schedule."""
    life = Life(policy).tell(Start(), Due(), DependenciesMet(), Spawned(7), Exited(exit_))
    return life.tell(SessionEnded())


def test_one_that_has_a_schedule_waits_for_its_time_and_then_for_its_dependencies() -> None:
    life = Life(SCHEDULED).tell(Start())
    assert (life.phase(), life.phase().shown, life.todo()) == (Phase.SCHEDULED, "waiting", ())
    assert life.tell(DependenciesMet()).phase() is Phase.SCHEDULED
    assert life.tell(Due()).phase() is Phase.WAITING
    assert life.tell(DependenciesMet()).todo() == (Spawn(),)


def test_how_a_run_ended_is_known_until_the_next_begins_and_is_no_reason_to_start_again() -> None:
    life = ran(exit_=Exit(0))
    assert (life.phase(), life.status.exit, life.status.reason) == (Phase.SCHEDULED, Exit(0), "")
    life = ran(exit_=Exit(3), policy=Policy(scheduled=True, restart="always"))
    assert (life.phase(), life.status.reason) == (Phase.SCHEDULED, "exit code 3")
    life.tell(Due())
    assert (life.phase(), life.status.exit, life.status.reason) == (Phase.WAITING, None, "")


def test_a_run_that_cannot_even_be_started_waits_for_the_next_time() -> None:
    life = Life(SCHEDULED).tell(Start(), Due(), DependencyFailed("db has failed", "db.1 failed"))
    assert (life.phase(), life.status.reason) == (Phase.SCHEDULED, "db has failed")
    for permanent in (True, False):
        life.tell(Due(), DependenciesMet(), SpawnFailed("cannot", permanent=permanent))
        assert (life.phase(), life.status.reason) == (Phase.SCHEDULED, "cannot")


def test_a_time_at_which_it_still_runs_is_counted_and_starts_nothing() -> None:
    life = Life(SCHEDULED).tell(Start(), Due(), DependenciesMet(), Spawned(7), Due(), Due())
    assert (life.phase(), life.status.skipped, life.todo()) == (Phase.RUNNING, 2, ())
    assert life.tell(Stop(), Due()).status.skipped == 2, "it is not wanted any more"


def test_a_start_runs_it_now_and_a_stop_ends_its_schedule() -> None:
    assert Life(SCHEDULED).tell(Start(now=True)).phase() is Phase.WAITING
    life = Life(SCHEDULED).tell(Start(), Start())
    assert life.phase() is Phase.SCHEDULED
    assert life.tell(Start(now=True)).phase() is Phase.WAITING
    life = Life(SCHEDULED).tell(Start(), Stop())
    assert life.phase() is Phase.STOPPED
    assert life.tell(Due()).phase() is Phase.STOPPED
    assert life.tell(Restart()).phase() is Phase.SCHEDULED


@pytest.mark.parametrize(
    ("command", "phase"),
    [
        (Start(), Phase.SCHEDULED),
        (Start(now=True), Phase.SPAWNING),
        (Restart(), Phase.SPAWNING),
    ],
)
def test_what_follows_the_end_of_a_run_that_was_to_stop_is_what_was_wanted_last(
    command: Event, phase: Phase
) -> None:
    life = Life(SCHEDULED).tell(Start(now=True), DependenciesMet(), Spawned(7), Stop(), command)
    assert life.tell(Exited(Exit(0)), SessionEnded()).phase() is phase


def test_the_hook_of_a_run_is_told_that_it_is_not_started_again() -> None:
    life = Life(Policy(scheduled=True, has_on_exit=True)).tell(Start(now=True), DependenciesMet())
    life.tell(Spawned(7), Exited(Exit(1)), SessionEnded())
    assert RunHook("on_exit", Exit(1), again=False) in life.todo()
    assert life.tell(HookEnded("on_exit")).phase() is Phase.SCHEDULED


def test_one_that_has_no_schedule_any_more_is_kept_running() -> None:
    life = Life(SCHEDULED).tell(Start())
    assert life.tell(Revised()).phase() is Phase.SCHEDULED
    life.policy = PLAIN
    assert life.tell(Revised()).phase() is Phase.WAITING


def test_nothing_starts_before_the_rest_of_the_session_is_gone() -> None:
    life = Life().started().tell(Exited(Exit(1)))
    assert life.phase() is Phase.ENDING
    assert not any(isinstance(action, Spawn) for action in life.todo())
    assert life.tell(SessionEnded()).todo() == (Spawn(),)


@pytest.mark.parametrize("last", [Stop(), Kill()])
def test_a_stop_wins_over_an_earlier_restart(last: Event) -> None:
    life = Life().started().tell(Restart(), last, Exited(Exit(0)), SessionEnded())
    assert life.phase() is Phase.STOPPED


def test_a_stop_while_it_is_being_spawned_is_remembered() -> None:
    life = Life().tell(Start(), DependenciesMet(), Stop(), Spawned(7))
    assert life.phase() is Phase.STOPPING


@pytest.mark.parametrize("command", [Start(), Restart()])
def test_a_start_after_a_stop_is_remembered_while_it_is_being_spawned(command: Event) -> None:
    life = Life().tell(Start(), DependenciesMet(), Stop(), command, Spawned(7))
    if life.phase() is Phase.STOPPING:
        life.tell(Exited(Exit(0)), SessionEnded(), Spawned(8))
    assert life.phase() is Phase.RUNNING


def test_a_start_while_it_is_being_spawned_changes_nothing() -> None:
    life = Life().tell(Start(), DependenciesMet(), Start(), Spawned(7))
    assert life.phase() is Phase.RUNNING


def test_a_start_while_it_stops_starts_it_again_afterwards() -> None:
    life = Life().started().tell(Stop(), Start(), Exited(Exit(0)), SessionEnded())
    assert (life.phase(), life.todo()) == (Phase.SPAWNING, (Spawn(),))


def test_a_start_while_it_waits_to_be_tried_again_tries_now_and_forgets_the_crashes() -> None:
    life = Life().started().crash()
    life.tell(Spawned(8)).crash()
    assert life.phase() is Phase.BACKOFF
    life.tell(Start())
    assert (life.phase(), life.status.attempt, life.todo()) == (Phase.SPAWNING, 0, (Spawn(),))


def test_what_can_never_be_executed_fails_at_once() -> None:
    life = Life().tell(Start(), DependenciesMet(), SpawnFailed("no such command"))
    assert (life.phase(), life.status.reason) == (Phase.FAILED, "no such command")
    assert life.status.exit == Exit(127)


def test_what_could_not_be_forked_is_tried_again() -> None:
    life = Life().tell(Start(), DependenciesMet(), SpawnFailed("cannot fork", permanent=False))
    assert (life.phase(), life.todo()) == (Phase.SPAWNING, (Spawn(),))
    life.tell(SpawnFailed("cannot fork", permanent=False))
    assert life.phase() is Phase.BACKOFF


def test_a_dependency_that_failed_fails_what_depends_on_it() -> None:
    life = Life().tell(Start(), DependencyFailed("api has failed", "db.1 failed"))
    assert (life.phase(), life.status.reason) == (Phase.FAILED, "api has failed")
    assert life.status.cause == "db.1 failed"
    assert life.tell(Start()).status.cause == ""


def test_a_timer_of_an_earlier_phase_does_nothing() -> None:
    life = Life(PROBED).started()
    stale = life.status.number
    life.tell(ProbeSucceeded())
    before = life.status
    life.tell(TimerFired(stale))
    assert (life.status, life.todo()) == (before, ())


@pytest.mark.parametrize("phase", Phase)
def test_every_phase_is_shown_as_one_of_the_states_that_users_know(phase: Phase) -> None:
    assert phase.shown in {
        "waiting",
        "starting",
        "running",
        "stopping",
        "stopped",
        "completed",
        "failed",
        "backoff",
        "crash-loop",
    }


@pytest.mark.parametrize(
    ("exit_", "text", "status", "ok"),
    [
        (Exit(0), "exit code 0", 0, True),
        (Exit(3), "exit code 3", 3, False),
        (Exit(None, 9), "signal KILL", 137, False),
        (Exit(None, 64), "signal RTMAX", 192, False),
        (Exit(None, 40), "signal 40", 168, False),
    ],
)
def test_an_exit_is_said_as_people_and_shells_say_it(
    exit_: Exit, text: str, status: int, ok: bool
) -> None:
    assert (str(exit_), exit_.status, exit_.ok) == (text, status, ok)


class World:
    """A launcher, a clock and a process that does as it likes: what a driver would see."""

    def __init__(self, policy: Policy) -> None:
        self.life = Life(policy)
        self.spawning = False
        self.alive = False
        self.doomed = False  # KILL was sent to it
        self.session = False  # somebody else is left in its session
        self.session_doomed = False
        self.ending = False  # the driver was asked for the end of the session
        self.timer: SetTimer | None = None
        self.asked = Probing()
        self.hooks: set[HookName] = set()
        self.exit_hook_doomed = False
        self.hook_ends_late = False  # the end of an on_ready hook that was killed is not told yet
        self.old_timers: list[int] = []
        self.pids = 0
        self.stopped = True  # the last command was a stop
        self.spawned_since_stop = 0

    def feed(self, event: Event) -> None:
        before = self.life.status.number
        self.life.tell(event)
        if isinstance(event, Start | Restart):
            self.stopped = False
        if isinstance(event, Stop | Kill):
            self.stopped, self.spawned_since_stop = True, 0
        if self.life.status.number != before and self.timer is not None:
            self.old_timers.append(self.timer.number)
            self.timer = None
        for action in self.life.actions:
            self._act(action)
        self._check()

    def _act(self, action: Action) -> None:
        match action:
            case Spawn():
                assert not self.spawning, "two at once asked for"
                assert not self.alive, "a second live process"
                assert not self.session, "the session of the former one still lives"
                assert "on_exit" not in self.hooks, "its last hook still runs"
                self.spawning = True
                self.spawned_since_stop += 1
            case SendSignal(number):
                assert self.alive
                self.doomed |= number == signal.SIGKILL
            case EndSession(number):
                assert not self.alive
                self.ending = True
                self.session_doomed |= number == signal.SIGKILL
            case SetTimer():
                assert action.number == self.life.status.number
                self.timer = action
            case Probing():
                self.asked = action
            case RunHook(hook):
                assert self.alive == (hook == "on_ready")
                assert not self.session
                assert hook not in self.hooks, "two of one kind at once"
                self.hooks.add(hook)
                self.exit_hook_doomed &= hook != "on_exit"
            case EndHook("on_exit", number):
                assert number == signal.SIGKILL
                self.exit_hook_doomed = True
            case EndHook("on_ready", number) if number == signal.SIGKILL:
                self.hook_ends_late |= "on_ready" in self.hooks
                self.hooks.discard("on_ready")

    def _to_ask(self) -> Probing:
        policy, phase = self.life.policy, self.life.phase()
        return Probing(
            ready=policy.has_ready and phase in (Phase.STARTING, Phase.RUNNING),
            alive=policy.has_alive and phase is Phase.RUNNING,
        )

    def _check(self) -> None:
        status = self.life.status
        assert status.alive == self.alive
        assert not status.ready or status.phase is Phase.RUNNING
        assert not (self.stopped and self.spawned_since_stop), "started after a stop"
        assert (status.next_try_at is not None) == (
            status.phase in (Phase.BACKOFF, Phase.CRASH_LOOP)
        )
        assert status.since <= self.life.now
        assert self.timer is None or status.due_at == self.timer.at
        assert self.asked == self._to_ask(), "the wrong probes are asked"
        has_timer = self.timer is not None and self.timer.number == status.number
        match status.phase:
            case Phase.SCHEDULED:
                assert status.wanted is Wanted.RUN
                assert not any((self.alive, self.spawning, self.session, self.hooks))
            case Phase.SPAWNING:
                assert self.spawning
            case Phase.STARTING | Phase.STOPPING | Phase.BACKOFF | Phase.CRASH_LOOP:
                assert has_timer, "it could wait for ever"
            case Phase.RUNNING:
                assert has_timer or "on_ready" not in self.hooks
            case Phase.KILLING:
                assert self.doomed
            case Phase.ENDING:
                assert self.ending
                assert has_timer or self.session_doomed
            case Phase.CLEANING:
                assert self.hooks == {"on_exit"}
                assert has_timer or self.exit_hook_doomed
            case Phase.STOPPED | Phase.COMPLETED | Phase.FAILED:
                assert not self.alive
                assert not self.spawning
                assert not self.session
                assert not self.hooks

    # What may happen next.

    def moves(self) -> list[str]:
        possible = ["tick", "the clock jumps"]
        if self.spawning:
            possible += ["spawned", "spawn fails", "spawn fails for good"]
        if self.alive:
            possible += ["exits", "crashes", "crashes leaving a child"]
            possible += ["probe succeeds", "probe fails", "is not alive"]
            possible += ["says", "says that it stops", "asks for time"]
        if self.ending:
            possible.append("session ends")
        possible += [f"{hook} ends" for hook in sorted(self.hooks)]
        if self.hook_ends_late:
            possible.append("on_ready ends late")
        if self.timer is not None:
            possible.append("timer")
        if self.old_timers:
            possible.append("old timer")
        if self.life.policy.scheduled:
            possible.append("due")
        if self.life.phase() is Phase.WAITING:
            possible += ["dependencies met", "dependency fails"]
        return possible

    def move(self, what: str) -> None:
        match what:
            case "tick":
                self.life.now += 7.0
            case "the clock jumps":
                self.life.now += 86400.0
            case "spawned":
                self.spawning, self.alive, self.doomed = False, True, False
                self.pids += 1
                self.feed(Spawned(self.pids))
            case "spawn fails" | "spawn fails for good":
                self.spawning = False
                self.feed(SpawnFailed("cannot", permanent=what.endswith("good")))
            case "exits" | "crashes" | "crashes leaving a child":
                self.alive, self.session = False, what.endswith("child")
                self.session_doomed = False
                self.feed(Exited(Exit(0 if what == "exits" else 1)))
            case "session ends":
                self.ending = self.session = False
                self.feed(SessionEnded())
            case "probe succeeds":
                self.feed(ProbeSucceeded())
            case "probe fails":
                self.feed(ProbeFailed("refused"))
            case "is not alive":
                self.feed(LivenessLost("silent", ill_s=3.0))
            case "says":
                self.feed(Said("loading"))
            case "says that it stops":
                self.feed(StoppingAnnounced())
            case "asks for time":
                self.feed(TimeoutExtended(1000.0))
            case "on_exit ends":
                self.hooks.remove("on_exit")
                self.feed(HookEnded("on_exit"))
            case "on_ready ends" | "on_ready ends late":
                if what.endswith("late"):
                    self.hook_ends_late = False
                else:
                    self.hooks.remove("on_ready")
                self.feed(HookEnded("on_ready"))
            case "due":
                before = self.life.status
                self.feed(Due())
                begins = before.phase is Phase.SCHEDULED
                assert (self.life.status.number != before.number) == begins
            case "dependencies met":
                self.feed(DependenciesMet())
            case "dependency fails":
                self.feed(DependencyFailed("db has failed"))
            case "timer":
                assert self.timer is not None
                fired, self.timer = self.timer, None
                self.life.now = max(self.life.now, fired.at)
                self.feed(TimerFired(fired.number))
            case "old timer":
                before = self.life.status
                self.feed(TimerFired(self.old_timers.pop()))
                assert self.life.status == before

    def settle(self) -> None:
        """Let happen what must, as late as it may: the process obeys nothing but KILL."""
        for _ in range(20):
            if self.spawning:
                self.move("spawned")
            elif self.ending and (self.session_doomed or not self.session):
                self.move("session ends")
            elif self.doomed and self.alive:
                self.move("crashes leaving a child")
            elif "on_exit" in self.hooks and self.exit_hook_doomed:
                self.move("on_exit ends")
            elif self.timer is not None:
                self.move("timer")
            else:
                return
        raise AssertionError("it does not come to rest")


policies = st.builds(
    Policy,
    restart=st.sampled_from(["always", "never", "on-failure"]),
    has_ready=st.booleans(),
    has_alive=st.booleans(),
    has_on_ready=st.booleans(),
    has_on_exit=st.booleans(),
    scheduled=st.booleans(),
)
COMMANDS: tuple[Event, ...] = (
    Start(),
    Start(),
    Start(now=True),
    Stop(),
    Restart(),
    Revised(),
    Kill(),
)


@settings(max_examples=HISTORIES)
@given(policy=policies, data=st.data())
def test_whatever_happens_there_is_never_a_second_process_and_every_wait_ends_and_a_stop_wins(
    policy: Policy, data: st.DataObject
) -> None:
    world = World(policy)
    world.feed(Start())
    for _ in range(data.draw(st.integers(0, 40), label="steps")):
        choices: list[str | Event] = [*world.moves(), *COMMANDS]
        choice = data.draw(st.sampled_from(choices), label="what happens")
        if isinstance(choice, str):
            world.move(choice)
            continue
        if isinstance(choice, Revised):
            world.life.policy = data.draw(policies, label="the new policy")
        world.feed(choice)
    endings: list[Event] = [Stop(), Kill()]
    world.feed(data.draw(st.sampled_from(endings), label="the end"))
    world.settle()
    assert world.life.status.final
    assert not world.alive


@given(status=st.builds(Status, phase=st.sampled_from(Phase), number=st.integers(0, 3)))
def test_an_event_that_a_phase_does_not_know_changes_nothing(status: Status) -> None:
    known = lifecycle.TRANSITIONS[status.phase]
    events: list[Event] = [Spawned(1), SessionEnded(), ProbeSucceeded(), DependenciesMet()]
    for event in events:
        if type(event) not in known:
            assert lifecycle.step(status, event, PLAIN, 0.0, 0.0) == (status, ())


@given(attempt=st.integers(1, 100_000), jitter=st.floats(0, 1, exclude_max=True, allow_nan=False))
def test_a_wait_is_bounded_and_jitter_takes_a_fifth_of_it_at_most(
    attempt: int, jitter: float
) -> None:
    full = backoff.delay_s(attempt, 0.0)
    assert backoff.FIRST_DELAY_S <= full <= backoff.LONGEST_DELAY_S
    assert 0.8 * full <= backoff.delay_s(attempt, jitter) <= full
    assert backoff.delay_s(attempt, 0.0) <= backoff.delay_s(attempt + 1, 0.0)


def test_exits_long_apart_are_no_crash_loop() -> None:
    times = (0.0, 3.0, 6.0, 9.0)
    assert backoff.is_crash_loop((*times, 10.0), 10.0)
    assert not backoff.is_crash_loop((*times, 10.1), 10.1)
    assert not backoff.is_crash_loop(times, 9.0)


def test_a_restart_counts_and_a_fresh_start_forgets_how_the_last_one_ended() -> None:
    life = Life().started().tell(Restart(), Exited(Exit(0)), SessionEnded())
    assert life.status.restarts == 1
    life.tell(Spawned(8), Stop(), Exited(Exit(1)), SessionEnded(), Start())
    assert (life.phase(), life.status.exit, life.status.reason) == (Phase.WAITING, None, "")
