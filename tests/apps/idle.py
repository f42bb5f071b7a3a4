"""Does nothing until told to stop, with one bad habit or another, for tests.

It says `ready` when its habits are in place.
"""

import argparse
import os
import signal
import subprocess
import sys
import time

SLEEP = ["-c", "import time; time.sleep(600)"]
DEAF = [
    "-c",
    "import signal, time; signal.signal(15, signal.SIG_IGN);"
    "print('deaf', flush=True); time.sleep(600)",
]


def start(program: list[str], *, session: bool = False, wiped: bool = False) -> None:
    """Start a child that outlives whoever does not end it."""
    environment = {} if wiped else dict(os.environ)
    child = subprocess.Popen(
        [sys.executable, "-S", *program], start_new_session=session, env=environment
    )
    child.returncode = 0  # nobody waits for it


def fork_twice() -> None:
    """Leave a grandchild in a session of its own, with no parent here."""
    if (child := os.fork()) == 0:
        os.setsid()
        if os.fork() == 0:
            os.execv(sys.executable, [sys.executable, "-S", *SLEEP])
        os._exit(0)
    os.waitpid(child, 0)


def main() -> None:
    """Take on the habits, then wait, or end as told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--ignore-term", action="store_true")
    parser.add_argument("--child", action="store_true", help="a child in the same session")
    parser.add_argument("--deaf-child", action="store_true", help="one that ignores TERM")
    parser.add_argument("--session", action="store_true", help="a child in its own session")
    parser.add_argument("--fork-twice", action="store_true")
    parser.add_argument("--wiped", action="store_true", help="a child without environment")
    parser.add_argument("--say", action="append", default=[])
    parser.add_argument("--say-unended", default="")
    parser.add_argument("--exit-after", type=float, default=None, help="seconds")
    parser.add_argument("--code", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if arguments.child:
        start(SLEEP)
    if arguments.deaf_child:
        start(DEAF)
    if arguments.session:
        start(SLEEP, session=True)
    if arguments.wiped:
        start(SLEEP, wiped=True)
    if arguments.fork_twice:
        fork_twice()
    for line in arguments.say:
        print(line, flush=True)
    print(arguments.say_unended, end="", flush=True)
    if arguments.exit_after is None:
        print("ready", flush=True)
    time.sleep(600 if arguments.exit_after is None else arguments.exit_after)
    sys.exit(arguments.code)


if __name__ == "__main__":
    main()
