"""Tries to get at what belongs to others, and says what it got, for tests."""

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path


def attempt(what: str, do: Callable[[], object]) -> None:
    """Say what could be done; that it could not is what is expected."""
    try:
        found = do()
    except OSError:
        return
    if found == b"":  # what a kernel's thread has
        return
    print(f"got {what}", flush=True)


def connect(path: str) -> None:
    """Connect to a socket in the file system."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)


def look_at(pid: str) -> None:
    """Try all that shows what is in a process."""
    process = Path("/proc", pid)
    attempt(f"memory of {pid}", lambda: (process / "mem").open("r+b"))
    attempt(f"environment of {pid}", (process / "environ").read_bytes)
    attempt(f"descriptors of {pid}", lambda: os.listdir(process / "fd"))
    attempt(f"map of {pid}", (process / "maps").read_bytes)
    attempt(f"signal to {pid}", lambda: os.kill(int(pid), 0))


def main() -> None:
    """Try everything at everybody else."""
    state = Path(sys.argv[1])
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{pid}").st_uid == os.geteuid():
                continue
        except OSError:
            continue
        look_at(pid)
    attempt("state folder", lambda: os.listdir(state))
    for name in ("root.key", "state.db", "run.json", "logs/victim.1.log"):
        attempt(name, (state / name).read_bytes)
    attempt("control socket", lambda: connect(f"{state}/control.sock"))
    print(f"looked as {os.geteuid()} {sorted(os.getgroups())}", flush=True)


if __name__ == "__main__":
    main()
