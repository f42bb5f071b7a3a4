"""An HTTP server on $PORT for tests: ill while the file `ill` is in its folder.

It says `asked` whenever it is.
"""

import os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


class Moody(BaseHTTPRequestHandler):
    """Says its name, or 500."""

    def do_GET(self) -> None:
        """Answer."""
        print("asked", flush=True)
        ill = Path("ill").exists() or Path(f"ill-{os.environ['MESHRUN_INSTANCE']}").exists()
        body = os.environ["MESHRUN_INSTANCE"].encode()
        self.send_response(500 if ill else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (named above us)
        """Say nothing."""


def main() -> None:
    """Serve until told to stop."""
    ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), Moody).serve_forever()


if __name__ == "__main__":
    main()
