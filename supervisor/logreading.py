"""The logs of a run, read: the last of them, what was said since some time, and what comes.

It reads the files, whether a run writes them or not. It reads in pieces, and so whoever reads
slowly costs neither memory nor lines, as long as the files are not turned over faster.
"""

import heapq
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TypeVar

import msgspec

from meshrun.supervisor import loglines
from meshrun.supervisor.loglines import Header, Line, Source
from meshrun.supervisor.logs import ACCESS, FOLDER, HEADER_BYTES, MESH, file_names
from meshrun.supervisor.statedir import StateDir

__all__ = ["End", "LogLine", "Reader", "end", "instances", "is_meant", "tail_of"]

T = TypeVar("T")

READ_BYTES = 64 * 1024
# What one `read` of a reader returns at most, but for a line that is longer.
BATCH_LINES = 1000
BATCH_BYTES = 256 * 1024

GONE = b"older lines are gone: the log was turned over"
MISSED = b"lines are missing here: the log was turned over before they were read"


class LogLine(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A line of output as people and programs are shown it: `meshrun logs --json`.

    A `partial` one goes on with the next of its stream.
    """

    time: datetime
    app: str
    instance: str
    stream: Source
    restarts: int
    line: str
    partial: bool = False

    @classmethod
    def of(cls, line: Line) -> "LogLine":
        """Return a line as text."""
        return cls(
            time=datetime.fromtimestamp(line.at, tz=UTC),
            app=line.instance.rpartition(".")[0],
            instance=line.instance,
            stream=line.source,
            restarts=line.restarts,
            line=line.text,
            partial=line.partial,
        )


def instances(state: StateDir) -> list[str]:
    """Return the instances that have logs."""
    folder = state.file(FOLDER)
    if not folder.is_dir():
        return []
    names = {path.name.removesuffix(".log") for path in folder.glob("*.log")}
    return sorted(names - {MESH, ACCESS})


def is_meant(instance: str, names: Collection[str]) -> bool:
    """Tell whether names of apps and instances mean an instance; none means all."""
    return not names or instance in names or instance.rpartition(".")[0] in names


@dataclass(frozen=True, slots=True)
class End:
    """Where a log ended at some moment, however it goes on."""

    inode: int
    size: int


def end(state: StateDir, name: str) -> End | None:
    """Return where a log ends now, None if there is none."""
    try:
        status = (state.file(FOLDER) / file_names(name)[0]).stat()
    except FileNotFoundError:
        return None
    return End(status.st_ino, status.st_size)


def tail_of(
    state: StateDir,
    name: str,
    parse: Callable[[bytes], T | None],
    last: int | None,
    until: End | None = None,
) -> list[T]:
    """Return what `parse` makes of the last lines of a log up to an end, all for None.

    Oldest first. A line of which it makes None does not count. Reads from the end no more than it
    needs, and may do so in a thread while the run writes on.
    """
    until = until or end(state, name)
    with ExitStack() as opened:
        files = _open_all(state.file(FOLDER), name)
        for file in files:
            opened.callback(file.close)
        ends = _up_to(files, until)
        raws = (raw for file, size in ends for _, raw in _backwards(file.descriptor, size))
        lines = (line for raw in raws if (line := parse(raw)) is not None)
        kept = list(islice(lines, last))
    return kept[::-1]


@dataclass(frozen=True, slots=True)
class _File:
    """A file of a log; `header` is None where it has no first line yet."""

    descriptor: int
    inode: int
    size: int
    header: Header | None

    @property
    def number(self) -> int:
        """Which of the log's files it is."""
        return self.header.number if self.header is not None else 0

    def close(self) -> None:
        os.close(self.descriptor)


def _open(path: Path) -> _File | None:
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except FileNotFoundError:
        return None
    try:
        status = os.fstat(descriptor)
        first = os.pread(descriptor, HEADER_BYTES, 0)
    except OSError:
        os.close(descriptor)
        raise
    # One that does not begin with it was shortened by hand.
    header = loglines.parse_header(first.partition(b"\n")[0]) or Header(status.st_ctime, 0)
    return _File(descriptor, status.st_ino, status.st_size, header if first else None)


def _open_all(folder: Path, name: str) -> list[_File]:
    """Open the files of a log, the newest first."""
    files: list[_File] = []
    for file_name in file_names(name):
        file = _open(folder / file_name)
        if file is None:
            continue
        if any(file.inode == other.inode for other in files):
            file.close()  # turned over just now, between the one and the other
        else:
            files.append(file)
    return files


def _up_to(files: Iterable[_File], until: End | None) -> Iterator[tuple[_File, int]]:
    """Yield what was written before `until`, the newest first, with how much of it to read."""
    # The run may turn the files over at any time: the one where the output ended is known by its
    # inode, and what is older than it is gone once it bears the name of the old one.
    found = until is None
    for file in files:
        if until is not None and file.inode == until.inode:
            if not found:
                yield file, until.size
            found = True
        elif found:
            yield file, file.size


def _backwards(descriptor: int, size: int) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of the first `size` bytes with where they begin, the last one first."""
    rest = b""
    end = size
    while size > 0:
        begin = max(0, size - READ_BYTES)
        rest, *whole = (os.pread(descriptor, size - begin, begin) + rest).split(b"\n")
        for raw in reversed(whole):
            yield end - len(raw), raw
            end -= len(raw) + 1
        size = begin
    yield 0, rest


class _Place:
    """Where the log of one instance is read: goes on from file to file, in their order."""

    def __init__(
        self,
        folder: Path,
        instance: str,
        last: int | None,
        since: float | None,
        *,
        following: bool,
    ) -> None:
        self._folder = folder
        self._instance = instance
        self._following = following
        self._lines: deque[Line] = deque()
        self._rest = b""
        self._file: _File | None = None
        self._offset = 0
        # Those to read after this one, the next one last.
        self._files = _open_all(folder, instance)
        # Whether nothing more is written to this file.
        self._final = True
        try:
            index, offset = _begin(self._files, instance, last, since)
        except OSError:
            self.close()
            raise
        oldest = index == len(self._files) - 1
        while len(self._files) > index + 1:
            self._files.pop().close()
        if self._files:
            file = self._files.pop()
            self._take_up(file, offset)
            if oldest and offset == 0 and file.number:
                self._say(file, GONE)

    def _take_up(self, file: _File, offset: int) -> None:
        self._file, self._offset, self._rest = file, offset, b""
        self._final = not self._following or bool(self._files)

    def _say(self, file: _File, text: bytes) -> None:
        at = file.header.at if file.header is not None else 0.0
        self._lines.append(Line(at, self._instance, "marker", text))

    @property
    def at(self) -> float:
        """The time of the next line."""
        return self._lines[0].at

    def take(self) -> Line:
        """Return the next line."""
        return self._lines.popleft()

    def fill(self) -> bool:
        """Tell whether there is a next line, and read on for it."""
        while not self._lines:
            if self._file is not None:
                final = self._final
                if self._read(self._file):
                    continue
                if not final:
                    if not self._is_turned_over(self._file):
                        return False
                    # Something may have been written to it since the last read, and then no more.
                    self._final = True
                    continue
            if not self._go_on():
                return False
        return True

    def _read(self, file: _File) -> bool:
        """Read a piece, and tell whether there was one."""
        size = READ_BYTES if self._following else min(READ_BYTES, file.size - self._offset)
        data = os.pread(file.descriptor, size, self._offset)
        if not data:
            if self._following and os.fstat(file.descriptor).st_size < self._offset:
                self._offset, self._rest = 0, b""  # shortened by hand: it begins anew
            return False
        self._offset += len(data)
        *whole, self._rest = (self._rest + data).split(b"\n")
        for raw in whole:
            line = loglines.parse(self._instance, raw)
            if line is not None:
                self._lines.append(line)
        return True

    def _is_turned_over(self, file: _File) -> bool:
        try:
            status = (self._folder / file_names(self._instance)[0]).lstat()
        except FileNotFoundError:
            return False
        return status.st_ino != file.inode

    def _go_on(self) -> bool:
        """Take the next file, and tell whether there is one."""
        before = self._file
        if self._files:
            following: _File | None = self._files.pop()
        else:
            following = self._successor(before) if self._following else None
        if following is None:
            return False
        if before is not None:
            before.close()
        # The first file of all has number 0.
        if following.number > (before.number + 1 if before is not None else 0):
            self._say(following, MISSED)
        self._take_up(following, 0)
        return True

    def _successor(self, file: _File | None) -> _File | None:
        """Return the first file after this one that there still is.

        The newest is opened first: if it is not the next one, the next one has an older name by now
        or is gone.
        """
        found: _File | None = None
        for other in _open_all(self._folder, self._instance):
            is_later = file is None or (other.inode != file.inode and other.number > file.number)
            if other.header is None or not is_later:
                other.close()
                continue
            if found is not None:
                found.close()
            found = other  # older than what was found, and so nearer
        return found

    def close(self) -> None:
        for file in (*self._files, *((self._file,) if self._file is not None else ())):
            file.close()
        self._files, self._file = [], None


def _begin(
    files: list[_File], instance: str, last: int | None, since: float | None
) -> tuple[int, int]:
    """Return with which file to begin, and where in it, for the last lines since some time.

    Markers do not count, and come with the lines before and after which they stand.
    """
    place: tuple[int, int] | None = None
    counted = 0
    for index, file in enumerate(files):
        for offset, raw in _backwards(file.descriptor, file.size):
            if place is None:
                place = (index, offset)  # behind the last line that is whole
            if counted == last:
                return place
            line = loglines.parse(instance, raw)
            if line is None:
                continue
            if since is not None and line.at < since:
                return place
            place = (index, offset)
            counted += line.source != "marker"
    return max(0, len(files) - 1), 0


class Reader:
    """The lines of instances in the order of their times: the past, and what comes after it.

    One that is `following` has always more to read, once more has been written; any other reads to
    where a log ended when it was added. It may be closed while it reads in a thread. Raises OSError
    for files that cannot be read.
    """

    def __init__(self, state: StateDir, *, following: bool = False) -> None:
        self._folder = state.file(FOLDER)
        self._following = following
        self._lock = threading.Lock()
        self._closed = False
        self._places: dict[str, _Place] = {}

    def add(
        self, names: Iterable[str], *, last: int | None = None, since: float | None = None
    ) -> None:
        """Read instances, too, each from its `last` lines and from a time on."""
        for name in names:
            with self._lock:
                if not self._closed and name not in self._places:
                    self._places[name] = _Place(
                        self._folder, name, last, since, following=self._following
                    )

    def read(self) -> list[Line]:
        """Return what comes next; nothing where there is no more, or not yet."""
        with self._lock:
            lines: list[Line] = []
            size = 0
            heads = [
                (place.at, index, place)
                for index, place in enumerate(self._places.values())
                if place.fill()
            ]
            heapq.heapify(heads)
            while heads and len(lines) < BATCH_LINES and size < BATCH_BYTES:
                _, index, place = heads[0]
                lines.append(place.take())
                size += len(lines[-1].content)
                if place.fill():
                    heapq.heapreplace(heads, (place.at, index, place))
                else:
                    heapq.heappop(heads)
            return lines

    def close(self) -> None:
        """Close the files; there is nothing to read any more."""
        with self._lock:
            for place in self._places.values():
                place.close()
            self._places.clear()
            self._closed = True
