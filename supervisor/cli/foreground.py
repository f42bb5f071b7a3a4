"""Running a command as a child in this very terminal, as if it had been called directly.

It stays in the process group of its caller, so that Ctrl-C, Ctrl-Z and pipes work as for any
command: the terminal's signals reach both processes, and this one leaves what they do to the child.
What is sent to this process alone is passed on (sudo(8), "Signal handling", for the distinction).
"""

import errno
import os
import signal
import sys
from collections.abc import Collection, Mapping, Sequence

from meshrun.supervisor import prctl

__all__ = ["run"]

PASSED_ON = frozenset(
    {
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGUSR1,
        signal.SIGUSR2,
        signal.SIGCONT,
        signal.SIGTSTP,
        signal.SIGWINCH,
        signal.SIGALRM,
    }
)
# As a shell says it (POSIX, 2.8.2 Exit Status for Commands).
NOT_FOUND = 127
NOT_EXECUTABLE = 126


def run(words: Sequence[str], environ: Mapping[str, str]) -> int:
    """Run a command to its end; returns its exit code, 128 + N where signal N ended it.

    The command is killed if this process is.
    """
    sys.stdout.flush()
    # Blocked before there is a child: no signal comes between its start and the waiting for it.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {*PASSED_ON, signal.SIGCHLD})
    parent = os.getpid()
    child = os.fork()
    if child == 0:
        try:
            _become(words, environ, parent, before)
        finally:
            os._exit(NOT_EXECUTABLE)
    try:
        return _await_end(child)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _become(
    words: Sequence[str], environ: Mapping[str, str], parent: int, mask: Collection[int]
) -> None:
    prctl.set_death_signal()
    if os.getppid() != parent:
        return
    # Python ignores these two, and what is ignored stays so through exec.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    code = NOT_EXECUTABLE
    try:
        os.execvpe(words[0], list(words), dict(environ))
    except OSError as error:
        why = (error.strerror or str(error)).lower()
        if error.errno == errno.ENOENT:
            code = NOT_FOUND
            why = "there is no such file" if "/" in words[0] else "no such command in PATH"
        _complain(f"cannot run {words[0]}: {why}")
    except ValueError as error:
        _complain(f"cannot run {words[0]}: {error}")
    os._exit(code)


def _complain(text: str) -> None:
    os.write(2, f"meshrun: {text}\n".encode(errors="backslashreplace"))


def _await_end(child: int) -> int:
    while True:
        caught = signal.sigwaitinfo({*PASSED_ON, signal.SIGCHLD})
        if caught.si_signo != signal.SIGCHLD:
            _pass_on(caught, child)
            continue
        pid, status = os.waitpid(child, os.WNOHANG | os.WUNTRACED)
        if pid == 0:
            continue
        if not os.WIFSTOPPED(status):
            return _exit_code(status)
        _stop_too()


def _pass_on(caught: signal.struct_siginfo, child: int) -> None:
    # Positive: from the kernel, and so from the terminal, which has told the child as well. The
    # child itself signals its whole group: it has got that, too.
    if caught.si_code <= 0 and caught.si_pid != child:
        os.kill(child, caught.si_signo)


def _stop_too() -> None:
    """Stop until somebody continues the job, so that the shell sees that it has stopped.

    With TSTP and not STOP: without a shell that could continue it (an orphaned process group) the
    kernel drops it, and the child, which is continued by whoever stopped it, still has a parent.
    """
    own = os.getpid()
    previous = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
    os.kill(own, signal.SIGTSTP)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTSTP})
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTSTP})
    signal.signal(signal.SIGTSTP, previous)


def _exit_code(status: int) -> int:
    return 128 + os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)
