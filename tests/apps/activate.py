"""A tiny service manager for tests: opens a port and executes a command with that socket.

Arguments: the address, then the command. See sd_listen_fds(3).
"""

import os
import socket
import sys


def main() -> None:
    """Open it, hand it over, become the command."""
    host, _, port = sys.argv[1].rpartition(":")
    listener = socket.create_server((host, int(port)))
    os.dup2(listener.fileno(), 3)
    os.set_inheritable(3, True)
    environment = {**os.environ, "LISTEN_FDS": "1", "LISTEN_PID": str(os.getpid())}
    os.execve(sys.argv[2], sys.argv[2:], environment)


if __name__ == "__main__":
    main()
