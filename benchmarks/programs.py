"""Programs that a benchmark starts: found, awaited until they listen, and ended with the block."""

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from meshrun.supervisor import processes

__all__ = ["BenchmarkError", "Program", "ask_version", "free_ports", "run"]

START_TIMEOUT_S = 10.0
END_TIMEOUT_S = 5.0
LOOK_AGAIN_S = 0.01
# Of the output of a program that failed, as much as a reader wants.
SHOWN_CHARACTERS = 2000

# Below what Linux takes for outgoing connections (32768), and above what services have by default:
# a port found free is not taken by a connection before its program binds it.
PORTS = range(22000, 32000)
LISTEN = "0A"
# 127.0.0.1, and how a socket of IPv6 has it, which is what grpcio listens with.
LOOPBACK = {"/proc/net/tcp": "0100007F", "/proc/net/tcp6": "0000000000000000FFFF00000100007F"}


class BenchmarkError(Exception):
    """A measurement that could not be made, with the reason."""


@dataclass(frozen=True, slots=True)
class Program:
    """A program that runs; `log` has its output."""

    name: str
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def pid(self) -> int:
        """The process that was started."""
        return self.process.pid

    @property
    def pids(self) -> list[int]:
        """That process and every one below it."""
        return [self.pid, *(child.pid for child in processes.descendants(self.pid))]

    def output(self) -> str:
        """Return the end of what it has written."""
        return self.log.read_text(errors="replace")[-SHOWN_CHARACTERS:].strip()


@contextmanager
def run(command: Sequence[str | Path], *, name: str, port: int, folder: Path) -> Iterator[Program]:
    """Start a program and yield once it listens on `port` of the loopback; end it with the block.

    Its output goes to `folder`/`name`.log. Raises BenchmarkError if it ends or does not listen in
    time, with what it said.
    """
    path = _find(command[0])
    if path is None:
        raise BenchmarkError(f"cannot start {name}: {command[0]} is not installed")
    log = folder / f"{name}.log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            [path, *command[1:]],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=folder,
            # Ctrl-C is for the benchmark, which ends its programs in order; and a session of their
            # own makes whatever a program started reachable at its end.
            start_new_session=True,
        )
    program = Program(name, process, log)
    try:
        _await_listening(program, port)
        yield program
    finally:
        _end(process)


def _await_listening(program: Program, port: int) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not _listens(port):
        if program.process.poll() is not None:
            raise BenchmarkError(
                f"cannot start {program.name}: it ended with {program.process.returncode}:"
                f" {program.output()}"
            )
        if time.monotonic() > deadline:
            raise BenchmarkError(
                f"cannot start {program.name}: after {START_TIMEOUT_S:g} s nothing listens on"
                f" port {port}: {program.output()}"
            )
        time.sleep(LOOK_AGAIN_S)


def _listens(port: int) -> bool:
    # Read, not dialled: a connection would make the proxies shake hands with nobody.
    return any(
        fields[1] == f"{address}:{port:04X}" and fields[3] == LISTEN
        for path, address in LOOPBACK.items()
        if Path(path).exists()  # not where IPv6 is off
        for fields in map(str.split, Path(path).read_text("ascii").splitlines())
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(END_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for left in processes.session_members(process.pid):
        processes.send_signal(left, signal.SIGKILL)


def free_ports(number: int) -> list[int]:
    """Return this many ports of the loopback that nobody has bound."""
    found: list[int] = []
    # Other than the last ones: their connections may linger.
    for port in random.sample(PORTS, len(PORTS)):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        found.append(port)
        if len(found) == number:
            return found
    raise BenchmarkError(f"cannot find {number} free ports in {PORTS.start}-{PORTS.stop - 1}")


def ask_version(program: str | Path, *args: str) -> str | None:
    """Return what a program says of its version, None where it is not installed."""
    path = _find(program)
    if path is None:
        return None
    done = subprocess.run([path, *args], capture_output=True, text=True, timeout=10, check=False)
    return done.stdout + done.stderr


def _find(program: str | Path) -> str | None:
    # Debian has daemons where the PATH of people does not look.
    return shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin")
