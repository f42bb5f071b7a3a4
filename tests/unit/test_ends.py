"""When a run ends by itself, and with which exit code."""

import pytest

from meshrun.supervisor.configuration.model import Dependency
from meshrun.supervisor.dependencies import expected_to_complete
from meshrun.supervisor.ends import Ended, EndRule, ended
from meshrun.supervisor.lifecycle import Phase, Status
from meshrun.supervisor.lifecycle_events import Exit

RUNNING = Status(phase=Phase.RUNNING, pid=1, ready=True)
STOPPED = Status(phase=Phase.STOPPED, exit=Exit(0))
COMPLETED = Status(phase=Phase.COMPLETED, exit=Exit(0))
FAILED = Status(phase=Phase.FAILED, exit=Exit(3))
KILLED = Status(phase=Phase.FAILED, exit=Exit(None, 9))
NEVER_RAN = Status(phase=Phase.FAILED)
ABORT = EndRule(abort_on_exit=True)
FROM_TESTS = EndRule(exit_code_from="tests")


def apps(**statuses: Status) -> dict[str, tuple[str, Status]]:
    return {f"{service}.1": (service, status) for service, status in statuses.items()}


def test_a_run_without_apps_stays() -> None:
    for rule in (EndRule(), ABORT):
        assert ended(rule, {}, ()) is None


@pytest.mark.parametrize("open_", [RUNNING, STOPPED, Status(phase=Phase.CRASH_LOOP)])
def test_a_run_ends_when_every_app_has_ended_for_good(open_: Status) -> None:
    assert ended(EndRule(), apps(a=COMPLETED, b=open_), ()) is None
    assert ended(EndRule(), apps(a=COMPLETED, b=COMPLETED), ()) == Ended(0)
    assert ended(EndRule(), apps(a=COMPLETED, b=FAILED), ()) == Ended(1)


@pytest.mark.parametrize(
    ("status", "code"), [(COMPLETED, 0), (FAILED, 3), (KILLED, 137), (NEVER_RAN, 1)]
)
def test_the_app_whose_exit_code_is_wanted_ends_the_run_with_it(status: Status, code: int) -> None:
    found = ended(FROM_TESTS, apps(server=RUNNING, tests=status), ())
    assert found == Ended(code, "tests.1")


def test_an_app_may_be_named_by_its_instance() -> None:
    rule = EndRule(exit_code_from="tests.2")
    both = {"tests.1": ("tests", FAILED), "tests.2": ("tests", RUNNING)}
    assert ended(rule, both, ()) is None
    assert ended(rule, {**both, "tests.2": ("tests", COMPLETED)}, ()) == Ended(0, "tests.2")


def test_other_apps_do_not_end_the_run_of_the_one_that_is_waited_for() -> None:
    assert ended(FROM_TESTS, apps(server=FAILED, tests=RUNNING), ()) is None


def test_with_abort_on_exit_the_first_end_is_the_end_of_all() -> None:
    assert ended(ABORT, apps(a=RUNNING, b=RUNNING), ()) is None
    assert ended(ABORT, apps(a=RUNNING, b=COMPLETED), ()) == Ended(0, "b.1")
    assert ended(ABORT, apps(a=RUNNING, b=KILLED), ()) == Ended(1, "b.1")
    assert ended(ABORT, apps(a=COMPLETED, b=FAILED, c=RUNNING), ()) == Ended(1, "b.1")


def test_what_another_app_waits_for_may_complete() -> None:
    expected = expected_to_complete(
        [
            {"migrate": Dependency(condition="succeeded"), "db": Dependency()},
            {"seed": Dependency(condition="completed")},
        ]
    )
    assert expected == {"migrate", "seed"}
    assert ended(ABORT, apps(migrate=COMPLETED, web=RUNNING), expected) is None
    assert ended(ABORT, apps(migrate=FAILED, web=RUNNING), expected) == Ended(1, "migrate.1")


def test_a_run_that_is_aborted_before_the_wanted_code_is_there_has_failed() -> None:
    rule = EndRule(exit_code_from="tests", abort_on_exit=True)
    assert ended(rule, apps(server=COMPLETED, tests=RUNNING), ()) == Ended(1, "server.1")
    assert ended(rule, apps(server=COMPLETED, tests=COMPLETED), ()) == Ended(0, "tests.1")


def test_only_those_that_end_the_run_are_not_started_again() -> None:
    assert not EndRule().runs_once("tests")
    assert FROM_TESTS.runs_once("tests")
    assert not FROM_TESTS.runs_once("server")
    assert EndRule(exit_code_from="tests.2").runs_once("tests")
    assert ABORT.runs_once("server")


def test_a_run_goes_on_while_something_may_start_one_of_its_apps_again() -> None:
    over = apps(a=COMPLETED, b=FAILED)
    assert ended(EndRule(), over, (), revivable={"b.1"}) is None
    assert ended(EndRule(), over, (), revivable={"gone.1"}) == Ended(1)
    assert ended(ABORT, over, (), revivable={"b.1"}) == Ended(1, "b.1")
