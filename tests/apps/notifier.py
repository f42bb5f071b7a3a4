"""An app for tests that says what it is told to say, as sd_notify(3) does.

On $PORT it takes one line a connection: `say READY=1|STATUS=up` (a datagram, lines divided by |),
`child …` (the same by a child in a session of its own), `flood` (STATUS without end, beside all
else), `exit CODE`. It answers `done` when that is done.
"""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time

SEND = """
import os, socket, sys
address = os.environ["NOTIFY_SOCKET"]
address = "\\0" + address[1:] if address[0] == "@" else address
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
    sender.sendto(sys.argv[1].replace("|", "\\n").encode(), address)
# Whoever is gone when its datagram is read is nobody.
sys.stdin.read()
"""


def say(message: str) -> None:
    """Send a datagram."""
    address = os.environ["NOTIFY_SOCKET"]
    address = "\0" + address[1:] if address[0] == "@" else address
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message.replace("|", "\n").encode(), address)


def flood() -> None:
    """Say a lot."""
    count = 0
    while True:
        count += 1
        say(f"STATUS=flood {count}")


def obey(line: str) -> None:
    """Do what a line says."""
    what, _, how = line.partition(" ")
    if what == "say":
        say(how)
    elif what == "child":
        subprocess.Popen(
            [sys.executable, "-S", "-c", SEND, how], stdin=subprocess.PIPE, start_new_session=True
        )
    elif what == "flood":
        threading.Thread(target=flood, daemon=True).start()


def main() -> None:
    """Obey until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--say", action="append", default=[])
    parser.add_argument("--linger", type=float, help="seconds from TERM to the end, asked for")
    arguments = parser.parse_args()

    def linger(_number: int, _frame: object) -> None:
        say(f"EXTEND_TIMEOUT_USEC={round(2e6 * arguments.linger)}")
        time.sleep(arguments.linger)
        os._exit(0)

    if arguments.linger is not None:
        signal.signal(signal.SIGTERM, linger)
    server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])))
    for message in arguments.say:
        say(message)
    print("listening", flush=True)
    while True:
        connection, _ = server.accept()
        with connection, connection.makefile() as lines:
            line = lines.readline().strip()
            obey(line)
            connection.sendall(b"done\n")
            if line.startswith("exit "):
                sys.exit(int(line.removeprefix("exit ")))


if __name__ == "__main__":
    main()
