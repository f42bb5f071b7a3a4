"""This machine: its users, and what it grants to the process that asks."""

import functools
import grp
import itertools
import os
import pwd
import resource
from collections.abc import Iterable
from pathlib import Path

from meshrun.supervisor.configuration.model import Account
from meshrun.supervisor.configuration.values import UnfitError
from meshrun.supervisor.spawning import Credentials
from meshrun.supervisor.suggest import hint

__all__ = ["ThisMachine", "credentials_of", "credentials_of_sidecars", "unused_id"]

# capability numbers of linux/capability.h.
_SETGID, _SETUID, _SYS_NICE, _SYS_RESOURCE = 6, 7, 23, 24

_RLIMITS = {
    "memory": resource.RLIMIT_DATA,
    "nofile": resource.RLIMIT_NOFILE,
    "processes": resource.RLIMIT_NPROC,
    "core": resource.RLIMIT_CORE,
}

# Those that systemd gives to services without a user of their own (DynamicUser): nobody's files.
_DYNAMIC_IDS = range(61184, 65520)
_NOBODY = 65534


class ThisMachine:
    """What a configuration may ask of it (`meshrun.supervisor.configuration.users`)."""

    def account(self, user: str, group: str | None) -> Account:
        """Return a user; raises UnfitError if there is none, or meshrun cannot become that one."""
        try:
            entry = pwd.getpwnam(user)
        except KeyError:
            known = [e.pw_name for e in pwd.getpwall()]
            raise UnfitError(
                f'names "{user}", and there is no such user{hint(user, known)}'
            ) from None
        gid = entry.pw_gid
        if group is not None:
            try:
                gid = grp.getgrnam(group).gr_gid
            except KeyError:
                known = [e.gr_name for e in grp.getgrall()]
                raise UnfitError(
                    f'names the group "{group}", and there is no such{hint(group, known)}'
                ) from None
        mine = (entry.pw_uid, gid) == (os.geteuid(), os.getegid())
        if not mine and not (_has(_SETUID) and _has(_SETGID)):
            raise UnfitError(
                f'names "{user}", and only root can run an app as somebody else: run meshrun as '
                "root, or leave it out"
            )
        return Account(
            name=entry.pw_name,
            uid=entry.pw_uid,
            gid=gid,
            groups=tuple(os.getgrouplist(entry.pw_name, gid)),
            home=entry.pw_dir,
        )

    def highest(self, limit: str) -> int | None:
        """Return how high a limit may be set, None for as high as one likes."""
        if _has(_SYS_RESOURCE):
            return None
        hard = resource.getrlimit(_RLIMITS[limit])[1]
        return None if hard == resource.RLIM_INFINITY else hard

    def lowest_nice(self) -> int:
        """Return the most urgent nice value that may be set."""
        if _has(_SYS_NICE):
            return -20
        current = os.getpriority(os.PRIO_PROCESS, 0)
        # getrlimit(2): the ceiling is 20 - the limit.
        return min(current, max(-20, 20 - resource.getrlimit(_RLIMIT_NICE)[0]))


# resource has no name for it.
_RLIMIT_NICE = 13


def _has(capability: int) -> bool:
    """Tell whether this process has a capability: root of a container lacks some."""
    try:
        status = Path("/proc/self/status").read_text()
    except OSError:
        return os.geteuid() == 0
    effective = next((line for line in status.splitlines() if line.startswith("CapEff:")), "x 0")
    return bool(int(effective.split()[1], 16) >> capability & 1)


def credentials_of(account: Account | None) -> Credentials | None:
    """Return whom an app becomes; None where it stays what meshrun is."""
    if account is None or not _has(_SETUID):
        return None
    return Credentials(account.uid, account.gid, account.groups)


@functools.cache
def credentials_of_sidecars() -> Credentials | None:
    """Return whom the sidecars of root become: nobody's id, so that no app shares it.

    None where meshrun is not root, or cannot become anybody else, or there is nobody else.
    """
    if os.geteuid() != 0 or not (_has(_SETUID) and _has(_SETGID)):
        return None
    taken = {e.pw_uid for e in pwd.getpwall()} | {e.gr_gid for e in grp.getgrall()}
    number = unused_id(_mapped("uid_map"), _mapped("gid_map"), taken)
    return None if number is None else Credentials(number, number)


def unused_id(uids: Iterable[range], gids: Iterable[range], taken: Iterable[int]) -> int | None:
    """Return a number that is a user's and group's id here and belongs to nobody.

    `uids` and `gids` are the ids that this user namespace has. Where none of them is free it is
    that of `nobody`; None where there is nobody but root, as in some containers.
    """
    known = set(taken)

    def is_there(number: int) -> bool:
        return any(number in ids for ids in uids) and any(number in ids for ids in gids)

    for number in itertools.chain(_DYNAMIC_IDS, range(_DYNAMIC_IDS.start - 1, 0, -1)):
        if number not in known and is_there(number):
            return number
    return _NOBODY if is_there(_NOBODY) else None


def _mapped(name: str) -> list[range]:
    try:
        lines = Path(f"/proc/self/{name}").read_text().splitlines()
    except OSError:
        return [range(1 << 32)]
    firsts_and_counts = [(int(line.split()[0]), int(line.split()[2])) for line in lines]
    return [range(first, first + count) for first, count in firsts_and_counts]
