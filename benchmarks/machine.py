"""What the figures are measured on."""

import os
import platform
import ssl

from benchmarks.results import Machine

__all__ = ["describe"]


def describe() -> Machine:
    """Return the machine that this runs on, as far as it says."""
    release = platform.freedesktop_os_release()
    return Machine(
        cpu=_field("/proc/cpuinfo", "model name") or platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        system=release.get("PRETTY_NAME", platform.system()),
        python=platform.python_version(),
        openssl=ssl.OPENSSL_VERSION,
    )


def _field(path: str, name: str) -> str | None:
    with open(path, encoding="utf-8", errors="replace") as file:
        for line in file:
            key, _, value = line.partition(":")
            if key.strip() == name:
                return value.strip()
    return None
