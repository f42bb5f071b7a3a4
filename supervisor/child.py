"""What a freshly forked child does before it becomes an app or a sidecar.

The order matters: setsid, terminal, cgroup, limits, groups, gid, uid, PDEATHSIG (a change of uid
clears it), the check that the parent still lives (it may have died before PDEATHSIG was set), the
descriptors, the signals, exec. An app may execute what gives it other rights (sudo, ping); a
sidecar may not.
"""

import fcntl
import os
import resource
import signal
import stat
import termios
import traceback
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from meshrun.proxy import sidecar
from meshrun.supervisor import oom, prctl
from meshrun.supervisor.spawning import AppSpec, Credentials, SidecarSpec

__all__ = ["NOT_STARTED", "Parent", "become_app", "become_sidecar"]

# As a shell says that a command could not be executed.
NOT_STARTED = 127


@dataclass(frozen=True, slots=True)
class Parent:
    """The launcher; `oom_score_adj` is what meshrun was started with."""

    pid: int
    oom_score_adj: int


class _RefusedError(Exception):
    """The kernel does not let the child be what it shall be; the message says what."""


def _prepare(parent: Parent, spec: AppSpec | SidecarSpec) -> None:
    os.setsid()
    if isinstance(spec, AppSpec) and spec.terminal:
        # 0: it is not taken away from another session (ioctl_tty(2)).
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    if spec.cgroup is not None:
        try:
            Path(spec.cgroup, "cgroup.procs").write_text("0")
        except OSError as error:
            # One of several ways to find it again; the others hold. Not so its limits.
            if isinstance(spec, AppSpec) and spec.confined:
                raise _RefusedError(f"cannot enter its cgroup: {error.strerror}") from error
    is_app = isinstance(spec, AppSpec)
    oom.set_own(oom.of_app(parent.oom_score_adj) if is_app else parent.oom_score_adj)
    if isinstance(spec, AppSpec):
        _limit(spec)
    if spec.credentials is not None:
        _become(spec.credentials, spec.name)
    prctl.set_death_signal()
    if os.getppid() != parent.pid:
        os._exit(NOT_STARTED)


def _limit(spec: AppSpec) -> None:
    if spec.nice is not None:
        try:
            os.setpriority(os.PRIO_PROCESS, 0, spec.nice)
        except OSError as error:
            raise _RefusedError(f"cannot set cpu_nice to {spec.nice}: {error.strerror}") from error
    for number, (soft, hard) in spec.limits.items():
        if number != resource.RLIMIT_DATA:
            _set_limit(number, soft, hard)


def _set_limit(number: int, soft: int, hard: int) -> None:
    try:
        resource.setrlimit(number, (soft, hard))
    except (OSError, ValueError) as error:
        names = {getattr(resource, n): n for n in dir(resource) if n.startswith("RLIMIT_")}
        raise _RefusedError(f"cannot set {names.get(number)} to {soft}: {error}") from error


def _become(credentials: Credentials, name: str) -> None:
    try:
        for descriptor in (1, 2):
            # So that /dev/stdout can be opened: a pipe belongs to whoever made it.
            mode = os.fstat(descriptor).st_mode
            if stat.S_ISFIFO(mode) or os.isatty(descriptor):
                os.fchown(descriptor, credentials.uid, -1)
        os.setgroups(credentials.groups)
        os.setgid(credentials.gid)
        os.setuid(credentials.uid)
    except OSError as error:
        why = f"cannot become uid {credentials.uid} for {name}: {error.strerror}"
        raise _RefusedError(why) from error


def _close_all_but(keep: Iterable[int], most: int) -> None:
    """Close all descriptors below `most` but those to `keep`."""
    low = 0
    for descriptor in sorted(set(keep)):
        if descriptor > low:  # CPython takes an empty range that ends at 0 for everything
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, most)


def _most_descriptors() -> int:
    # Asked before limits are set: those for the child say nothing of what is open.
    return resource.getrlimit(resource.RLIMIT_NOFILE)[1]


def _reset_signals() -> None:
    """Give the child what a program expects, whatever the launcher and its parents ignored."""
    signal.set_wakeup_fd(-1)
    for number in signal.valid_signals():
        if number not in (signal.SIGKILL, signal.SIGSTOP):
            try:
                signal.signal(number, signal.SIG_DFL)
            except OSError:
                continue  # the two that the C library keeps for its threads
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def _standard(descriptors: list[int]) -> list[int]:
    """Move stdin, stdout and stderr to 0, 1, 2 and everything else out of their way."""
    high = [os.dup(d) if d > 2 else _above_standard(d) for d in descriptors]
    for target, descriptor in enumerate(high[:3]):
        os.dup2(descriptor, target)
    return high[3:]


def _above_standard(descriptor: int) -> int:
    """Duplicate a descriptor to a number over 2."""
    low: list[int] = []
    while (duplicate := os.dup(descriptor)) <= 2:
        low.append(duplicate)
    for number in low:
        os.close(number)
    return duplicate


def become_app(spec: AppSpec, descriptors: list[int], parent: Parent) -> NoReturn:
    """Execute the program, or say on the status pipe why not and end with 127.

    The status pipe closes on exec: its reader sees the end of it when the program runs.
    """
    status = descriptors[-1]
    program, folder = os.fsdecode(spec.argv[0]), os.fsdecode(spec.cwd)
    try:
        (status,) = _standard(descriptors)
        most = _most_descriptors()
        _prepare(parent, spec)
        os.set_inheritable(status, False)
        _close_all_but((0, 1, 2, status), most)
        _reset_signals()
        try:
            os.chdir(spec.cwd)
        except OSError as error:
            _give_up(status, f"cannot enter the folder {folder}: {error.strerror}")
        if resource.RLIMIT_DATA in spec.limits:
            # Last, since it is about the program and not about what executes it.
            _set_limit(resource.RLIMIT_DATA, *spec.limits[resource.RLIMIT_DATA])
        os.execvpe(spec.argv[0], spec.argv, spec.environment)
    except _RefusedError as error:
        _give_up(status, f"cannot run {program}: {error}")
    except FileNotFoundError:
        if "/" in program:
            _give_up(status, f"cannot run {program}: there is no such file, or its interpreter")
        _give_up(status, f"cannot run {program}: no such command in PATH")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        _give_up(status, f"cannot run {program}: {why}")


def _give_up(status: int, reason: str) -> NoReturn:
    try:
        os.write(status, reason.encode(errors="replace")[:4000])
    finally:
        os._exit(NOT_STARTED)


def become_sidecar(spec: SidecarSpec, descriptors: list[int], parent: Parent) -> NoReturn:
    """Run a sidecar in this very process and end with it.

    It does not execute anything, so close-on-exec does nothing for it: everything that is not its
    own, the other sidecars' channels and the guard pipe above all, is closed here.
    """
    code = 1
    try:
        own = _standard(descriptors)
        most = _most_descriptors()
        _prepare(parent, spec)
        prctl.renounce_privileges(hidden=spec.credentials is not None)
        _close_all_but((0, 1, 2, *own), most)
        _reset_signals()
        # As every Python program has it: a peer that hangs up is an error of one write.
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        prctl.set_name(f"sidecar {spec.name}")
        channel, *listeners = own
        named = dict(zip(spec.listeners, listeners, strict=True))
        inbound = named.pop("", None)
        sidecar.run(instance=spec.name, channel_fd=channel, inbound_fd=inbound, upstream_fds=named)
        code = 0
    except BaseException:
        traceback.print_exc()
        raise
    finally:
        # Never unwind into the launcher's frames below this one.
        os._exit(code)
