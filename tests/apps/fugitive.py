"""Does everything to outlive the run that started it, for tests.

Each process that it makes writes `PID START_TIME` into the file named by `--trail`, so that a test
knows of those too that nothing else leads to. It says `ready` when its habit is in place.
"""

import argparse
import ctypes
import os
import pathlib
import signal
import sys
import threading
import time
from collections.abc import Callable

# However it goes, nothing that this file starts lives longer.
LIFE_S = 60.0
BEGUN = time.monotonic()
EVERY = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1)


def leave_trail(trail: str) -> None:
    """Write down which process this is."""
    fields = pathlib.Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    line = b"%d %s\n" % (os.getpid(), fields[19])
    descriptor = os.open(trail, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
    os.write(descriptor, line)
    os.close(descriptor)


def rest() -> None:
    """Live as long as a test may take."""
    while (left_s := LIFE_S - (time.monotonic() - BEGUN)) > 0:
        time.sleep(left_s)


def fork(trail: str, child: Callable[[], None]) -> int:
    """Run `child` in a new process."""
    pid = os.fork()
    if pid == 0:
        try:
            leave_trail(trail)
            child()
        finally:
            os._exit(0)
    return pid


def deaf() -> None:
    """Ignore every polite signal."""
    for number in EVERY:
        signal.signal(number, signal.SIG_IGN)


def away() -> None:
    """Leave the session."""
    os.setsid()
    rest()


def daemonise(trail: str) -> None:
    """Fork twice, with a session in between, as daemons do."""

    def middle() -> None:
        os.setsid()
        fork(trail, rest)

    os.waitpid(fork(trail, middle), 0)


def wipe(trail: str) -> None:
    """Go away without a trace in the environment: nothing says whose it is."""

    def middle() -> None:
        os.setsid()
        if os.fork() == 0:
            words = [sys.executable, "-S", __file__, "--habit", "rest", "--trail", trail]
            os.execve(sys.executable, words, {})

    os.waitpid(fork(trail, middle), 0)


def chain(trail: str, *, session: bool) -> None:
    """Fork and end, again and again: whoever looks finds one that is gone."""
    while time.monotonic() - BEGUN < LIFE_S:
        if session:
            os.setsid()
        if os.fork() != 0:
            os._exit(0)
        leave_trail(trail)


def start_chains(trail: str, *, session: bool) -> None:
    """Start a few chains beside a main process that stays."""
    for _ in range(3):
        fork(trail, lambda: chain(trail, session=session))


def half_dead(trail: str) -> None:
    """End the first thread and go on in another: it looks like a zombie, and is none."""

    def child() -> None:
        threading.Thread(target=rest).start()
        # The raw system call (exit, not exit_group) ends this thread alone.
        ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)

    fork(trail, child)


def stopped(trail: str) -> None:
    """Have a child, deaf too, that is stopped and sees no signal but KILL."""

    def child() -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        rest()

    pid = fork(trail, child)
    os.waitpid(pid, os.WUNTRACED)


def disguise(trail: str) -> None:
    """Write over its own name, arguments and environment, where /proc shows them."""

    def child() -> None:
        os.setsid()
        fields = pathlib.Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        begin, end = int(fields[45]), int(fields[48])  # arg_start, env_end
        with pathlib.Path("/proc/self/mem").open("r+b", buffering=0) as memory:
            memory.seek(begin)
            memory.write(b"\0" * (end - begin))
        pathlib.Path("/proc/self/comm").write_text("kworker/0:1")
        rest()

    fork(trail, child)


def threads() -> None:
    """Have many threads that ignore what happens."""
    for _ in range(50):
        threading.Thread(target=rest, daemon=True).start()


def start_deaf_child(trail: str) -> None:
    """Have a child in the same session that ignores every polite signal."""

    def child() -> None:
        deaf()
        rest()

    fork(trail, child)


def deaf_daemon(trail: str) -> None:
    """Become deaf, and with it the daemon."""
    deaf()
    daemonise(trail)


def deaf_wiped(trail: str) -> None:
    """Become deaf, and with it the one that goes away without a trace."""
    deaf()
    wipe(trail)


HABITS: dict[str, Callable[[str], object]] = {
    "rest": lambda _: None,
    "deaf": lambda _: deaf(),
    "deaf-child": start_deaf_child,
    "session": lambda trail: fork(trail, away),
    "daemon": daemonise,
    "deaf-daemon": deaf_daemon,
    "wiped": wipe,
    "deaf-wiped": deaf_wiped,
    "chain": lambda trail: start_chains(trail, session=False),
    "chain-of-sessions": lambda trail: start_chains(trail, session=True),
    "stopped": stopped,
    "half-dead": half_dead,
    "disguise": disguise,
    "threads": lambda _: threads(),
}


def main() -> None:
    """Take on the habit and wait."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--habit", choices=HABITS, required=True)
    parser.add_argument("--trail", required=True)
    arguments = parser.parse_args()
    leave_trail(arguments.trail)
    HABITS[arguments.habit](arguments.trail)
    print("ready", flush=True)
    rest()


if __name__ == "__main__":
    main()
