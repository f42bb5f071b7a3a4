"""The logs of a run on disk: a file per instance and some more (`meshrun.supervisor.loglines`).

A file that has grown enough is turned over: it becomes `web.1.log.1`, the oldest goes. What reads
them, with or without a run, is `meshrun.supervisor.logreading`.
"""

import os
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from meshrun.supervisor import loglines
from meshrun.supervisor.lines import Stream
from meshrun.supervisor.loglines import Source
from meshrun.supervisor.statedir import StateDir

__all__ = ["ACCESS", "FOLDER", "KEPT_FILES", "MESH", "Logs", "Output", "file_names"]

FOLDER = "logs"
ROTATE_BYTES = 10 * 1024 * 1024
# How many older files there are beside the one that is written.
KEPT_FILES = 1
# Lines kept in memory of each instance, to show with a failure, and how much of each.
LAST_LINES = 10
LAST_LINE_BYTES = 4096
# A first line has fewer.
HEADER_BYTES = 64
# What meshrun itself says has a file beside those of the instances, and so has the access log;
# an instance's name has a dot.
MESH = "meshrun"
ACCESS = "access"


def file_names(name: str) -> list[str]:
    """Return what the files of a log are called, the newest first."""
    return [f"{name}.log", *(f"{name}.log.{number}" for number in range(1, KEPT_FILES + 1))]


@dataclass(frozen=True, slots=True)
class Output:
    """Lines that came at once, of one instance."""

    instance: str
    source: Source
    contents: Sequence[bytes]


Follower = Callable[[Output], None]


class _File:
    """One log, whose file is turned over when it has grown enough.

    What is written are whole lines. A file that ends without one (somebody was killed, a disk was
    full) gets its end first, so that the next line is one.
    """

    def __init__(self, folder: int, name: str, clock: Callable[[], float], *, plain: bool) -> None:
        self._folder = folder
        self._names = file_names(name)
        self._clock = clock
        self._plain = plain
        self._descriptor = self._open()
        self._number = self._find_number()

    def _open(self) -> int:
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._names[0], flags, 0o600, dir_fd=self._folder)
        size = os.lseek(descriptor, 0, os.SEEK_END)
        self._empty = size == 0
        self._torn = size > 0 and os.pread(descriptor, 1, size - 1) != b"\n"
        return descriptor

    def _find_number(self) -> int:
        """Go on counting where the last run has left off."""
        if not self._empty:
            return self._said_number(self._descriptor)
        try:
            flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
            earlier = os.open(self._names[1], flags, dir_fd=self._folder)
        except OSError:
            return 0
        try:
            return self._said_number(earlier) + 1
        finally:
            os.close(earlier)

    @staticmethod
    def _said_number(descriptor: int) -> int:
        first = os.pread(descriptor, HEADER_BYTES, 0).partition(b"\n")[0]
        header = loglines.parse_header(first)
        return header.number if header is not None else 0

    def append(self, content: bytes) -> None:
        """Write whole lines. Raises OSError, when a part of them may have been written."""
        if self._torn:
            content = b"\n" + content
        if self._empty and not self._plain:
            content = loglines.header(self._clock(), self._number) + content
        written = 0
        while written < len(content):
            written += os.write(self._descriptor, memoryview(content)[written:])
            self._empty = False
            self._torn = content[written - 1 : written] != b"\n"

    @property
    def has_grown(self) -> bool:
        return os.lseek(self._descriptor, 0, os.SEEK_CUR) >= ROTATE_BYTES

    def turn_over(self) -> None:
        try:
            os.stat(self._names[0], dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            pass  # somebody removed it: a new one comes all the same
        else:
            for older, newer in zip(self._names[:0:-1], self._names[-2::-1], strict=True):
                self._rename(newer, older)
        # Opened before the old one is closed: if that fails, there is still one to write to.
        earlier, self._descriptor = self._descriptor, self._open()
        self._number += 1
        os.close(earlier)

    def _rename(self, name: str, into: str) -> None:
        try:
            os.replace(name, into, src_dir_fd=self._folder, dst_dir_fd=self._folder)
        except FileNotFoundError:
            pass  # there have not been so many yet

    def close(self) -> None:
        os.close(self._descriptor)


class Logs:
    """Writes the lines of a run, keeps the last few of each instance, and tells followers."""

    def __init__(
        self, state: StateDir, clock: Callable[[], float], on_error: Callable[[str], None]
    ) -> None:
        try:
            os.mkdir(FOLDER, 0o700, dir_fd=state.descriptor)
        except FileExistsError:
            pass
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        self._folder = os.open(FOLDER, flags, dir_fd=state.descriptor)
        self._clock = clock
        self._on_error = on_error
        self._failing: set[str] = set()
        self._files: dict[str, _File] = {}
        self._lost: dict[str, int] = {}
        self._last: dict[str, deque[bytes]] = {}
        self._followers: set[Follower] = set()

    def write(
        self, instance: str, stream: Stream, contents: Sequence[bytes], restarts: int = 0
    ) -> None:
        """Take lines that an instance wrote, which had been started again so often."""
        last = self._last.setdefault(instance, deque(maxlen=LAST_LINES))
        last.extend(content[:LAST_LINE_BYTES] for content in contents[-LAST_LINES:])
        self._take(instance, stream, restarts, contents)

    def mark(self, instance: str, restarts: int, text: str) -> None:
        """Put a marker between the lines of an instance: that it started, that it ended."""
        line = " ".join(text.splitlines()).encode(errors="replace")
        self._take(instance, "marker", restarts, [line])

    def _take(
        self, instance: str, source: Source, restarts: int, contents: Sequence[bytes]
    ) -> None:
        if not contents:
            return
        content = loglines.encode(self._clock(), source, restarts, contents)
        if lost := self._lost.get(instance):
            text = b"up to %d lines are missing here: they could not be written" % lost
            content = loglines.encode(self._clock(), "marker", restarts, [text]) + content
        if self._append(instance, content, plain=False):
            self._lost.pop(instance, None)
        else:
            self._lost[instance] = self._lost.get(instance, 0) + len(contents)
        output = Output(instance, source, contents)
        for follower in tuple(self._followers):
            follower(output)

    def append(self, name: str, content: bytes) -> None:
        """Write whole lines to the file of `name` as they are; nobody is told of them."""
        self._append(name, content, plain=True)

    def _append(self, name: str, content: bytes, *, plain: bool) -> bool:
        """Tell whether it has been written."""
        written = False
        try:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = _File(self._folder, name, self._clock, plain=plain)
            file.append(content)
            written = True
            if file.has_grown:
                file.turn_over()
        except OSError as error:
            # A full disk must not end the run; it is said once, not for every line.
            first = not self._failing
            self._failing.add(name)
            if first:
                self._on_error(f"cannot write the logs: {error.strerror}; output is only shown")
        else:
            self._failing.discard(name)
        return written

    def last(self, instance: str) -> list[str]:
        """Return the last few lines of an instance, as much of each as one reads."""
        return [line.decode(errors="replace") for line in self._last.get(instance, ())]

    def forget(self, instance: str) -> None:
        """Close the file of an instance that is no more; its lines stay where they are."""
        self._last.pop(instance, None)
        self._lost.pop(instance, None)
        self._failing.discard(instance)
        file = self._files.pop(instance, None)
        if file is not None:
            file.close()

    def follow(self, follower: Follower) -> Callable[[], None]:
        """Call `follower` with what comes from now on, until what is returned is called."""
        self._followers.add(follower)
        return lambda: self._followers.discard(follower)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        os.close(self._folder)
