"""Runs another program of this folder, with its arguments, for tests that kill it.

If another process of the same instance lives it leaves a file `doubled.INSTANCE` in its folder. It
dies of INT as of any signal: an exit says who has ended it, where only meshrun sends INT.
"""

import fcntl
import os
import runpy
import signal
import sys
from pathlib import Path


def main() -> None:
    """Take the lock of the instance, and become the program."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    instance = os.environ["MESHRUN_INSTANCE"]
    # Held until the kernel closes it, whatever ends this process; no child inherits it.
    lock = os.open(f"lock.{instance}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        Path(f"doubled.{instance}").touch()
    del sys.argv[0]
    runpy.run_path(str(Path(__file__).with_name(sys.argv[0])), run_name="__main__")


if __name__ == "__main__":
    main()
