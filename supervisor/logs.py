"""The logs of a run on disk: a file per instance and some more, readable with or without a run.

A line of an instance's file is its time (UTC, microseconds), `O` or `E` for stdout or stderr, and
the bytes that the app wrote.
"""

import os
import re
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TypeVar

from meshrun.supervisor.lines import Stream
from meshrun.supervisor.statedir import StateDir

__all__ = ["ACCESS", "MESH", "End", "Line", "Logs", "end", "instances", "tail", "tail_of"]

T = TypeVar("T")

FOLDER = "logs"
ROTATE_BYTES = 10 * 1024 * 1024
READ_BYTES = 64 * 1024
# Lines kept in memory of each instance, to show with a failure.
LAST_LINES = 10
# What meshrun itself says has a file beside those of the instances, and so has the access log;
# an instance's name has a dot.
MESH = "meshrun"
ACCESS = "access"

_LETTERS: dict[Stream, bytes] = {"stdout": b"O", "stderr": b"E"}
_STREAMS: dict[bytes, Stream] = {letter: stream for stream, letter in _LETTERS.items()}
_FORMAT = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z) ([OE]) (.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Line:
    """One line of output; `at` in wall-clock seconds, taken when it was read."""

    at: float
    instance: str
    stream: Stream
    content: bytes

    @property
    def text(self) -> str:
        """The content as text; what is not UTF-8 is replaced."""
        return self.content.decode(errors="replace")


def _stamp(at: float) -> bytes:
    return datetime.fromtimestamp(at, tz=UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ").encode()


class _File:
    """The log file of one instance, turned over when it has grown enough."""

    def __init__(self, folder: int, name: str) -> None:
        self._folder = folder
        self._name = f"{name}.log"
        self._file = self._open()

    def _open(self) -> BinaryIO:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        descriptor = os.open(self._name, flags, 0o600, dir_fd=self._folder)
        return os.fdopen(descriptor, "ab", buffering=0)

    def append(self, content: bytes) -> None:
        self._file.write(content)
        if self._file.tell() >= ROTATE_BYTES:
            try:
                os.replace(
                    self._name, f"{self._name}.1", src_dir_fd=self._folder, dst_dir_fd=self._folder
                )
            except FileNotFoundError:
                pass  # somebody removed it: a new one comes all the same
            # Opened before the old one is closed: if that fails, there is still one to write to.
            earlier, self._file = self._file, self._open()
            earlier.close()

    def close(self) -> None:
        self._file.close()


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
        self._failed = False
        self._files: dict[str, _File] = {}
        self._last: dict[str, deque[Line]] = {}
        self._followers: set[Callable[[list[Line]], None]] = set()

    def write(self, instance: str, stream: Stream, contents: list[bytes]) -> None:
        """Take lines that an instance wrote."""
        now = self._clock()
        lines = [Line(now, instance, stream, content) for content in contents]
        self._last.setdefault(instance, deque(maxlen=LAST_LINES)).extend(lines)
        head = _stamp(now) + b" " + _LETTERS[stream] + b" "
        self.append(instance, b"".join(head + content + b"\n" for content in contents))
        for follower in tuple(self._followers):
            follower(lines)

    def append(self, name: str, content: bytes) -> None:
        """Write whole lines to the file of `name` as they are; nobody is told of them."""
        try:
            file = self._files.get(name)
            if file is None:
                file = self._files[name] = _File(self._folder, name)
            file.append(content)
        except OSError as error:
            # A full disk must not end the run; it is said once, not for every line.
            if not self._failed:
                self._failed = True
                self._on_error(f"cannot write the logs: {error.strerror}; output is only shown")
        else:
            self._failed = False

    def last(self, instance: str) -> list[str]:
        """Return the last few lines of an instance."""
        return [line.text for line in self._last.get(instance, ())]

    def forget(self, instance: str) -> None:
        """Close the file of an instance that is no more; its lines stay where they are."""
        self._last.pop(instance, None)
        file = self._files.pop(instance, None)
        if file is not None:
            file.close()

    def follow(self, follower: Callable[[list[Line]], None]) -> Callable[[], None]:
        """Call `follower` with lines from now on, until what is returned is called."""
        self._followers.add(follower)
        return lambda: self._followers.discard(follower)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        os.close(self._folder)


def instances(state: StateDir) -> list[str]:
    """Return the instances that have logs."""
    folder = state.file(FOLDER)
    if not folder.is_dir():
        return []
    names = {path.name.removesuffix(".log") for path in folder.glob("*.log")}
    return sorted(names - {MESH, ACCESS})


@dataclass(frozen=True, slots=True)
class End:
    """Where the output of an instance ended at some moment, however it goes on."""

    inode: int
    size: int


def end(state: StateDir, instance: str) -> End | None:
    """Return where the output of an instance ends now, None if it has none."""
    try:
        status = (state.file(FOLDER) / f"{instance}.log").stat()
    except FileNotFoundError:
        return None
    return End(status.st_ino, status.st_size)


def tail(state: StateDir, instance: str, last: int | None, until: End | None = None) -> list[Line]:
    """Return the last lines of an instance up to an end, all for None, oldest first.

    Reads from the end no more than it needs, and may do so in a thread while the run writes on.
    """
    return tail_of(state, instance, partial(_parse, instance), last, until)


def tail_of(
    state: StateDir,
    name: str,
    parse: Callable[[bytes], T | None],
    last: int | None,
    until: End | None = None,
) -> list[T]:
    """Return what `parse` makes of the last lines of any file here; as `tail`, which see.

    A line of which it makes None does not count.
    """
    until = until or end(state, name)
    with ExitStack() as files:
        opened = _open(state.file(FOLDER), name, until, files)
        raws = (raw for file, size in opened for raw in _backwards(file, size))
        lines = (line for raw in raws if (line := parse(raw)) is not None)
        kept = list(islice(lines, last))
    return kept[::-1]


def _open(
    folder: Path, instance: str, until: End | None, files: ExitStack
) -> Iterator[tuple[BinaryIO, int]]:
    """Open what was written before `until`, the newest first, with how much to read of it."""
    # The run may turn the files over at any time: the one where the output ended is known by its
    # inode, and what is older than it is gone once it bears the name of the old one.
    found = until is None
    for name in (f"{instance}.log", f"{instance}.log.1"):
        try:
            file = files.enter_context((folder / name).open("rb"))
        except FileNotFoundError:
            continue
        status = os.fstat(file.fileno())
        if until is not None and status.st_ino == until.inode:
            if not found:
                yield file, until.size
            found = True
        elif found:
            yield file, status.st_size


def _backwards(file: BinaryIO, size: int) -> Iterator[bytes]:
    """Yield the lines of the first `size` bytes, the last one first."""
    rest = b""
    while size > 0:
        begin = max(0, size - READ_BYTES)
        rest, *whole = (os.pread(file.fileno(), size - begin, begin) + rest).split(b"\n")
        yield from reversed(whole)
        size = begin
    yield rest


def _parse(instance: str, raw: bytes) -> Line | None:
    match = _FORMAT.fullmatch(raw)
    if match is None:
        return None
    try:
        at = datetime.fromisoformat(match[1].decode()).timestamp()
    except ValueError:  # digits that are no time: not a line of ours
        return None
    return Line(at, instance, _STREAMS[match[2]], match[3])
