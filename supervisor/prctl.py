"""The few things that only prctl(2) can do."""

import ctypes
import os
import signal

__all__ = ["renounce_privileges", "set_death_signal", "set_name", "set_subreaper"]

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_NAME = 15
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_libc = ctypes.CDLL(None, use_errno=True)


def _prctl(option: int, argument: int | bytes) -> None:
    if _libc.prctl(option, argument, 0, 0, 0) != 0:
        code = ctypes.get_errno()
        raise OSError(code, f"prctl {option}: {os.strerror(code)}")


def set_death_signal() -> None:
    """Be killed when the thread that forked this process ends; a change of uid clears it."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def renounce_privileges(*, hidden: bool) -> None:
    """Never get rights again by executing something; `hidden` also from others of the same user.

    Who is hidden cannot be traced, nor its memory and descriptors be reached through /proc.
    """
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    if hidden:
        _prctl(_PR_SET_DUMPABLE, 0)


def set_subreaper() -> None:
    """Become the parent of every descendant that loses its own."""
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)


def set_name(name: str) -> None:
    """Set what `ps` and `top` call this process; the kernel keeps 15 bytes."""
    _prctl(_PR_SET_NAME, name.encode()[:15])
