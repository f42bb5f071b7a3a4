"""Answers every request with a greeting and the port that it listens on."""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PORT = int(os.environ["PORT"])
HEALTH_PATH = "/healthz"


class Echo(BaseHTTPRequestHandler):
    """One connection; HTTP/1.1 so that it may carry more than one request."""

    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body go out together, at the end of do_GET

    def do_GET(self) -> None:
        """Answer."""
        greeting = f"Hello from echo-server on port {PORT}!"
        body = b"ok" if self.path == HEALTH_PATH else greeting.encode()
        self.send_response(200)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        """Log calls, but not the probe's."""
        if self.path != HEALTH_PATH:
            print(f"{self.requestline!r} answered", flush=True)


def main() -> None:
    """Serve on 127.0.0.1:$PORT until told to stop."""
    # Only on the loopback address: callers come through the sidecar.
    server = ThreadingHTTPServer(("127.0.0.1", PORT), Echo)
    print(f"listening on port {PORT}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
