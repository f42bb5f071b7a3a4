"""Having the launcher execute a program, and hearing whether that could be done."""

import asyncio
import contextlib
import os
from collections.abc import Sequence

from meshrun.supervisor.launching import Launcher, Process
from meshrun.supervisor.runner import NotExecutableError
from meshrun.supervisor.spawning import AppSpec

__all__ = ["execute"]


async def execute(launcher: Launcher, spec: AppSpec, standard: Sequence[int]) -> Process:
    """Start a program; returns once it itself runs. `standard` are its stdin, stdout and stderr.

    They stay the caller's. Raises NotExecutableError, MeshrunError if the launcher could not fork,
    OSError if there are no descriptors left.
    """
    with contextlib.ExitStack() as kept:
        status_read, status_write = os.pipe()
        kept.callback(os.close, status_read)
        try:
            process = await launcher.spawn(spec, [*standard, status_write])
        finally:
            os.close(status_write)
        kept.pop_all()
    try:
        problem = await _read_all(status_read)
    except asyncio.CancelledError:
        process.abandon()
        raise
    if problem:
        await process.exited
        process.close()
        raise NotExecutableError(problem)
    return process


async def _read_all(descriptor: int) -> str:
    """Read a pipe to its end without blocking the loop, and close it."""
    loop = asyncio.get_running_loop()
    readable = asyncio.Event()
    os.set_blocking(descriptor, False)
    loop.add_reader(descriptor, readable.set)
    content = b""
    try:
        while True:
            await readable.wait()
            readable.clear()
            try:
                data = os.read(descriptor, 4096)
            except BlockingIOError:
                continue
            if not data:
                return content.decode(errors="replace")
            content += data
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
