"""A TCP server on $PORT for tests: one thread a connection, what it does is said by its flags."""

import argparse
import hashlib
import os
import signal
import socket
import struct
import threading
import time

CHUNK_BYTES = 256 * 1024


def digest(connection: socket.socket) -> None:
    """Answer the SHA-256 of all that the caller says."""
    seen = hashlib.sha256()
    while data := connection.recv(CHUNK_BYTES):
        seen.update(data)
    connection.sendall(seen.hexdigest().encode())


def pour(connection: socket.socket) -> None:
    """Send without end."""
    while True:
        connection.sendall(bytes(CHUNK_BYTES))


def break_off(connection: socket.socket) -> None:
    """Hear something, and reset the connection where an answer would begin."""
    connection.recv(65536)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


MODES = {"digest": digest, "pour": pour, "break-off": break_off}


def converse(connection: socket.socket, arguments: argparse.Namespace) -> None:
    """Hold one conversation."""
    me = f"{os.environ['MESHRUN_INSTANCE']}\n".encode()
    try:
        if arguments.first:
            connection.sendall(arguments.first.encode())
        if arguments.mode == "name":
            while connection.recv(65536):
                connection.sendall(me)
        elif arguments.mode == "echo":
            while data := connection.recv(65536):
                connection.sendall(data)
        elif arguments.mode in MODES:
            MODES[arguments.mode](connection)
        else:  # "after-end": an answer some time after the caller has said all
            received = b""
            while data := connection.recv(65536):
                received += data
            time.sleep(0.3)
            connection.sendall(received[::-1])
        connection.shutdown(socket.SHUT_WR)
    except OSError:
        pass
    finally:
        connection.close()


def main() -> None:
    """Serve until told to stop."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--mode", choices=["echo", "name", "after-end", *MODES], default="echo")
    parser.add_argument("--accepts", default=os.devnull, help="gets a line for each connection")
    parser.add_argument("--first", default="", help="what it says before it is asked")
    parser.add_argument("--listen-after", type=float, default=0.0, help="seconds")
    parser.add_argument("--ignore-term", action="store_true")
    arguments = parser.parse_args()
    if arguments.ignore_term:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    time.sleep(arguments.listen_after)
    server = socket.create_server(("127.0.0.1", int(os.environ["PORT"])), backlog=128)
    print("listening", flush=True)
    while True:
        connection, _ = server.accept()
        with open(arguments.accepts, "a", encoding="utf-8") as file:
            file.write("accepted\n")
        threading.Thread(target=converse, args=(connection, arguments), daemon=True).start()


if __name__ == "__main__":
    main()
