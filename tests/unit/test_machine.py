"""What this machine grants, and whom the sidecars of root become."""

import os
import pwd
import resource

import pytest

from meshrun.supervisor.configuration.values import UnfitError
from meshrun.supervisor.machine import ThisMachine, credentials_of_sidecars, unused_id

EVERYTHING = [range(1 << 32)]
MACHINE = ThisMachine()
ME = pwd.getpwuid(os.geteuid()).pw_name


def test_a_user_is_found_with_its_groups_and_home() -> None:
    me = pwd.getpwuid(os.geteuid())
    account = MACHINE.account(ME, None)
    assert (account.uid, account.home) == (me.pw_uid, me.pw_dir)
    assert account.gid in account.groups
    assert account.variables == {"HOME": me.pw_dir, "USER": ME, "LOGNAME": ME}


def test_a_user_or_group_that_is_not_there_is_refused_with_the_nearest_that_is() -> None:
    with pytest.raises(UnfitError, match=f'names "{ME}x", and there is no such user'):
        MACHINE.account(f"{ME}x", None)
    with pytest.raises(UnfitError, match='names the group "no-such-group-here"'):
        MACHINE.account(ME, "no-such-group-here")


@pytest.mark.skipif(os.geteuid() == 0, reason="root can become anybody")
def test_only_root_can_run_an_app_as_somebody_else() -> None:
    with pytest.raises(UnfitError, match='names "nobody", and only root can'):
        MACHINE.account("nobody", None)


def test_a_hard_limit_is_the_highest() -> None:
    highest = MACHINE.highest("nofile")
    assert highest in (None, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    assert -20 <= MACHINE.lowest_nice() <= os.getpriority(os.PRIO_PROCESS, 0)


def test_an_id_that_nobody_has_is_found_where_there_is_one() -> None:
    assert unused_id(EVERYTHING, EVERYTHING, ()) == 61184
    assert unused_id(EVERYTHING, EVERYTHING, (61184, 61185)) == 61186
    assert unused_id([range(10), range(62000, 62001)], EVERYTHING, ()) == 62000
    assert unused_id(EVERYTHING, EVERYTHING, range(61184, 65520)) == 61183
    assert unused_id(EVERYTHING, EVERYTHING, range(65520)) == 65534


def test_in_a_namespace_of_few_users_it_is_one_of_those() -> None:
    assert unused_id([range(1000)], EVERYTHING, (999,)) == 998
    assert unused_id(EVERYTHING, [range(1000)], ()) == 999
    assert unused_id([range(1)], [range(1)], ()) is None
    assert unused_id([range(1), range(65534, 65535)], EVERYTHING, (65534,)) == 65534


def test_the_sidecars_of_root_become_nobody_whom_an_app_can_be() -> None:
    credentials = credentials_of_sidecars()
    if os.geteuid() != 0:
        assert credentials is None
        return
    assert credentials is not None
    assert credentials.uid not in {entry.pw_uid for entry in pwd.getpwall()}
    assert credentials.groups == ()
