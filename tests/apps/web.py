"""An HTTP/1.1 server on $PORT for tests: its path says what it does, its body what it saw.

To wait is to wait for a file in its folder; another one, `.begun`, says that it does.
"""

import base64
import hashlib
import json
import os
import socket
import struct
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

LOOK_AGAIN_S = 0.01
# RFC 6455 1.3.
WEBSOCKET_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Web(BaseHTTPRequestHandler):
    """Answers what it was asked."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # a head goes with its body

    def answer(self) -> None:
        """Do what the first part of the path says, with the second one."""
        target = self.path
        what, _, how = target.lstrip("/").partition("?")[0].partition("/")
        if "websocket" in self.headers.get("Upgrade", ""):
            self.echo_raw()
            return
        body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
        if what == "status":
            self.say(int(how), b"as you like it")
        elif what == "bytes":
            self.say(200, bytes(int(how)))
        elif what == "sleep":
            time.sleep(float(how))
            self.say(200, b"slow")
        elif what == "wait":
            Path(f"{how}.begun").touch()
            while not Path(how).exists():
                time.sleep(LOOK_AGAIN_S)
            self.say(200, b"waited")
        elif what == "break-off":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(bytes(10))
            self.reset()
        elif what == "say-nothing":
            self.reset()
        else:
            saw = {"method": self.command, "target": target, "headers": self.headers.items()}
            self.say(200, json.dumps({**saw, "body_bytes": len(body)}).encode())

    do_GET = do_POST = do_HEAD = do_DELETE = answer  # noqa: N815 (named above us)

    def say(self, status: int, body: bytes) -> None:
        """Answer."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reset(self) -> None:
        """Reset the connection."""
        self.wfile.flush()
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def echo_raw(self) -> None:
        """Change the protocol, and say again what is said in frames, frame or not."""
        key = self.headers.get("Sec-WebSocket-Key", "").encode()
        self.send_response(101)
        self.send_header("Connection", "Upgrade")
        self.send_header("Upgrade", "websocket")
        accept = base64.b64encode(hashlib.sha1(key + WEBSOCKET_GUID).digest())
        self.send_header("Sec-WebSocket-Accept", accept.decode())
        self.end_headers()
        self.wfile.flush()
        while data := self.connection.recv(65536):
            self.connection.sendall(data)
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (named above us)
        """Say nothing."""


class Server(ThreadingHTTPServer):
    """Serves until told to stop."""

    request_queue_size = 128
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of callers that are gone."""


if __name__ == "__main__":
    Server(("127.0.0.1", int(os.environ["PORT"])), Web).serve_forever()
