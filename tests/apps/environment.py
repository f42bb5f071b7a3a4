"""Writes its whole environment as JSON to the file that its argument names, then waits."""

import json
import os
import signal
import sys


def main() -> None:
    """Write it under another name first: whoever sees the file sees all of it."""
    with open(f"{sys.argv[1]}.new", "w", encoding="utf-8") as file:
        json.dump(dict(os.environ), file)
    os.replace(f"{sys.argv[1]}.new", sys.argv[1])
    signal.pause()


if __name__ == "__main__":
    main()
