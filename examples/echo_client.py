"""Calls the backend once a second, and says what it received."""

import os
import time
from http.client import HTTPException
from urllib.request import OpenerDirector, ProxyHandler, build_opener

INTERVAL_S = 1.0
TIMEOUT_S = 5.0


def call(opener: OpenerDirector, url: str) -> str:
    """Return what the client has to say about one call."""
    try:
        with opener.open(url, timeout=TIMEOUT_S) as response:
            return f"Client received: {response.read().decode()}"
    except (OSError, HTTPException) as error:
        return f"Client failed: {error}"


def main() -> None:
    """Call $BACKEND_ADDR until told to stop."""
    url = f"http://{os.environ['BACKEND_ADDR']}/"
    # The backend is a local address: a proxy from the environment has no business here.
    opener = build_opener(ProxyHandler({}))
    while True:
        print(call(opener, url), flush=True)
        time.sleep(INTERVAL_S)


if __name__ == "__main__":
    main()
