"""An app that writes, in one of many ways; the first argument says which.

It writes with os.write and in large pieces, so that nothing but the pipe slows it down.
"""

import fcntl
import os
import signal
import struct
import sys
import termios
import time

PIECE_BYTES = 256 * 1024


def write(content: bytes, descriptor: int = 1) -> None:
    """Write all of it."""
    while content:
        content = content[os.write(descriptor, content) :]


def numbered(count: int, length: int, end: bytes = b"\n") -> None:
    """Write lines of a number and a filling, as fast as they are taken."""
    lines: list[bytes] = []
    size = 0
    for number in range(count):
        line = b"%d %s" % (number, b"x" * length)
        lines.append(line)
        size += len(line)
        if size > PIECE_BYTES:
            write(b"\n".join(lines) + b"\n")
            lines.clear()
            size = 0
    if lines:
        write(b"\n".join(lines) + end)


def window_size() -> str:
    """Return the size of the terminal at stdin."""
    rows, columns, _, _ = struct.unpack("4H", fcntl.ioctl(0, termios.TIOCGWINSZ, bytes(8)))
    return f"{columns}x{rows}"


def flood(count: str, length: str) -> None:
    """Write so many lines and end."""
    numbered(int(count), int(length))


def burst(count: str, how: str) -> None:
    """Write so many lines, the last without an end, and end at that moment."""
    numbered(int(count), 20, end=b"")
    if how == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    os._exit(0)


def pair(count: str, mark: str) -> None:
    """Write lines of one letter to both outputs, a few bytes at a time."""
    for number in range(int(count)):
        line = (b"%s %d " % (mark.encode(), number)) + mark.encode() * 200
        for begin in range(0, len(line), 50):
            for descriptor in (1, 2):
                write(line[begin : begin + 50], descriptor)
        for descriptor in (1, 2):
            write(b"\n", descriptor)


def long(length: str) -> None:
    """Write a line of so many bytes, and one after it."""
    write(b"y" * int(length) + b"\nafter\n")


def odd() -> None:
    """Write what is not UTF-8, and what is special to some."""
    write(b"\xff\xfe caf\xc3\xa9 \x00 \x1b[31mred\r\n\xc3(\n")


def hold(seconds: str) -> None:
    """Leave somebody in another session who holds the output, and end."""
    if os.fork() == 0:
        os.setsid()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        write(b"the holder is there\n")
        time.sleep(float(seconds))
        os._exit(0)
    time.sleep(0.1)
    write(b"the main process ends\n")
    os._exit(3)


def last_words() -> None:
    """End at once, while a child takes its time over what it still has to say."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:

        def finish(_number: int, _frame: object) -> None:
            time.sleep(1.0)  # longer than output is taken from who should have ended
            write(b"the last words\n")
            os._exit(0)

        signal.signal(signal.SIGTERM, finish)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        os.write(write_end, b"x")
        while True:
            signal.pause()
    os.read(read_end, 1)
    write(b"the main process ends\n")
    os._exit(0)


def stay() -> None:
    """Say so, and stay."""
    write(b"ready\n")
    while True:
        signal.pause()


def crash() -> None:
    """Say how often it has been started, as the folder knows, and fail."""
    with open("starts", "a+b") as starts:
        starts.write(b".")
        count = starts.tell()
    write(b"life %d\n" % count)
    os._exit(7 if count < 3 else 0)


def terminal() -> None:
    """Say what the outputs are, and the size of the window, now and whenever it changes."""

    def resized(_number: int, _frame: object) -> None:
        print(f"resized {window_size()}", flush=True)

    signal.signal(signal.SIGWINCH, resized)
    print("terminals", *(os.isatty(descriptor) for descriptor in (0, 1, 2)))
    print("leader", os.getsid(0) == os.getpid() == os.tcgetpgrp(0))
    with open("/dev/tty", "wb", buffering=0) as controlling:
        controlling.write(b"controlling terminal\n")
    os.close(os.open("/dev/stdout", os.O_WRONLY))
    print("TERM", os.environ.get("TERM"))
    os.write(2, b"stderr too\n")
    print(f"size {window_size()}", flush=True)
    while True:
        signal.pause()


def closed() -> None:
    """Close all of the terminal and live on, and open it again when told to."""
    here = os.ttyname(0)
    write(b"closing\n")

    def again(_number: int, _frame: object) -> None:
        write(b"opened again\n", os.open(here, os.O_WRONLY))

    signal.signal(signal.SIGUSR1, again)
    os.closerange(0, 3)
    with open("closed", "w"):
        pass
    while True:
        signal.pause()


def survivor() -> None:
    """Note by a file which signal comes, and stay."""

    def note(number: int, _frame: object) -> None:
        with open(f"got-{signal.Signals(number).name}", "w"):
            pass

    signal.signal(signal.SIGHUP, note)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stay()


def hung_up() -> None:
    """Leave a survivor in the session, and end."""
    read_end, write_end = os.pipe()
    if os.fork() == 0:
        os.dup2(write_end, 1)  # where it says that it is ready
        survivor()
    os.read(read_end, 1)
    os._exit(0)


if __name__ == "__main__":
    globals()[sys.argv[1].replace("-", "_")](*sys.argv[2:])
