"""The folders that are watched: entered as they appear, left as they go, for all apps at once.

One queue of the kernel serves all, as a user may have few of them, and a folder that several apps
watch costs one of the kernel's watches. What takes long (walking through folders) is done in a
thread; meanwhile nothing is read from the queue, so that nothing is decided by half a picture.
"""

import asyncio
import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

from meshrun.proxy import tasks
from meshrun.supervisor.watching import inotify
from meshrun.supervisor.watching.inotify import Inotify, News
from meshrun.supervisor.watching.scope import Parts, Root, Scope

__all__ = ["MOST_FOLDERS", "Trees"]

# Of one app. process-compose has the same limit; the kernel's own, for all of a user, was as high
# for a long time.
MOST_FOLDERS = 8192
# After so much news in one go the others have their turn: a build can write faster than one reads.
MANY = 512
REST_S = 0.05
# How often something is looked for that comes and goes while one looks.
LOOKS = 3
_KERNEL = Path("/proc/sys/fs/inotify")

T = TypeVar("T")
OnChanged = Callable[[Scope, Collection[str]], None]


class _Stake(NamedTuple):
    """What a scope has in a folder: it is at `parts` from one of its roots."""

    scope: Scope
    root: Root
    parts: Parts


@dataclass(slots=True)
class _Folder:
    """A watched folder: whose it is, and who waits for what is called so or so in it."""

    stakes: set[_Stake] = field(default_factory=set)
    awaited: dict[str, set[tuple[Scope, Root]]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.stakes or self.awaited)


@dataclass(frozen=True, slots=True)
class _Enter:
    """Watch a folder that has appeared; files that are in it already have changed."""

    stake: _Stake


@dataclass(frozen=True, slots=True)
class _Leave:
    """Watch a folder no more, with those in it, that has moved away."""

    stake: _Stake


@dataclass(frozen=True, slots=True)
class _Find:
    """Look anew where a root is; what is found has changed, unless that is `at_first`.

    With `overflowed` nobody knows what of it has: the root itself stands for that.
    """

    scope: Scope
    root: Root
    at_first: bool = False
    overflowed: bool = False


@dataclass(frozen=True, slots=True)
class _Forget:
    """Watch nothing for a scope any more."""

    scope: Scope


_Job = _Enter | _Leave | _Find | _Forget


class _UnwatchableError(Exception):
    """A scope cannot be watched; the message says why, and what to do about it."""


class Trees:
    """Watches the roots of scopes with all that is below them.

    `on_changed` gets paths that count, `on_watched` how many folders a scope has once all are
    watched, `on_given_up` why one is not watched, or no more.
    """

    def __init__(
        self,
        on_changed: OnChanged,
        on_watched: Callable[[Scope, int], None],
        on_given_up: Callable[[Scope, str], None],
    ) -> None:
        self._on_changed = on_changed
        self._on_watched = on_watched
        self._on_given_up = on_given_up
        self._loop = asyncio.get_running_loop()
        self._inotify: Inotify | None = None
        self._folders: dict[int, _Folder] = {}
        self._numbers: dict[Scope, set[int]] = {}
        self._places: dict[tuple[Scope, Root], str] = {}
        self._jobs: list[_Job] = []
        self._settling = False
        self._closed = False
        self._rest: asyncio.TimerHandle | None = None

    @property
    def folders(self) -> int:
        """How many folders the kernel watches."""
        return len(self._folders)

    def watch(self, scope: Scope) -> None:
        """Begin to watch."""
        self._do(*(_Find(scope, root, at_first=True) for root in scope.roots))

    def forget(self, scope: Scope) -> None:
        """Watch a scope no more."""
        self._do(_Forget(scope))

    def close(self) -> None:
        """Watch nothing more."""
        self._closed = True
        self._jobs = []
        if not self._settling:
            self._end()

    def _end(self) -> None:
        self._listen(on=False)
        if self._inotify is not None:
            self._inotify.close()
            self._inotify = None

    # Jobs: they alone change what is watched, in a thread, while nothing is read.

    def _do(self, *jobs: _Job) -> None:
        self._jobs += jobs
        if self._jobs and not self._settling and not self._closed:
            self._settling = True
            self._listen(on=False)
            tasks.start(self._settle(), "watch files")

    async def _settle(self) -> None:
        try:
            while self._jobs:
                jobs, self._jobs = self._jobs, []
                findings = await asyncio.to_thread(self._work, jobs)
                for tell in findings if not self._closed else ():
                    tell()
        finally:
            self._settling = False
            if self._closed:
                self._end()
            else:
                self._listen(on=True)

    def _listen(self, *, on: bool) -> None:
        if self._rest is not None:
            self._rest.cancel()
            self._rest = None
        if self._inotify is None:
            return
        if on:
            self._loop.add_reader(self._inotify.fileno(), self._readable)
        else:
            self._loop.remove_reader(self._inotify.fileno())

    def _work(self, jobs: Iterable[_Job]) -> list[Callable[[], None]]:
        """Do jobs, and return what is to be told about it."""
        given_up: dict[Scope, str] = {}
        changed: dict[Scope, dict[str, None]] = {}
        begun: dict[Scope, None] = {}
        for job in jobs:
            scope = job.stake.scope if isinstance(job, _Enter | _Leave) else job.scope
            if isinstance(job, _Forget):
                self._leave(scope)
            elif isinstance(job, _Leave):
                self._leave(*job.stake)
            elif scope not in given_up:
                try:
                    paths = self._enter(job) if isinstance(job, _Enter) else self._find(job)
                    if isinstance(job, _Find) and job.overflowed:
                        # Not told before: what changed while it was looked at is in it.
                        paths = [job.root.path]
                except _UnwatchableError as error:
                    self._leave(scope)
                    given_up[scope] = str(error)
                    continue
                if isinstance(job, _Find) and job.at_first:
                    begun[scope] = None
                elif paths:
                    changed.setdefault(scope, {}).update(dict.fromkeys(paths))
        return [
            *(_later(self._on_given_up, scope, why) for scope, why in given_up.items()),
            *(
                _later(self._on_watched, scope, len(self._numbers.get(scope, ())))
                for scope in begun
                if scope not in given_up
            ),
            *(
                _later(self._on_changed, scope, list(paths))
                for scope, paths in changed.items()
                if scope not in given_up
            ),
        ]

    def _find(self, job: _Find) -> list[str]:
        """Watch a root, or where it will be; return what has changed by that."""
        scope, root = job.scope, job.root
        known = self._places.pop((scope, root), None)
        self._leave(scope, root)
        for _ in range(LOOKS):
            place = os.path.realpath(root.path)
            if os.path.isdir(place):
                if not os.access(place, os.R_OK | os.X_OK):
                    raise _UnwatchableError(f"{scope.called(root.path)}: permission denied")
                self._places[scope, root] = place
                if root.path != scope.folder or os.path.islink(root.path):
                    # It may be made anew, as builds do. What goes on beside the app's own folder
                    # is no reason to be woken.
                    self._await(scope, root, root.path)
                return self._walk(_Stake(scope, root, ()))
            if os.path.exists(place) and not root.pattern:
                # Not the file itself: editors put another one in its place.
                self._places[scope, root] = place
                self._await(scope, root, root.path)
                if place != root.path:
                    self._await(scope, root, place)
                return [root.path]
            missing = root.path
            while not os.path.isdir(os.path.dirname(missing)):
                missing = os.path.dirname(missing)
            self._await(scope, root, missing)
            if not os.path.lexists(missing) or os.path.islink(missing):
                break
        return [root.path] if known is not None else []

    def _await(self, scope: Scope, root: Root, path: str) -> None:
        """Watch the folder of `path`, for what is called so."""
        folder = self._add(scope, os.path.realpath(os.path.dirname(path)))
        if folder is not None:
            folder.awaited.setdefault(os.path.basename(path), set()).add((scope, root))

    def _enter(self, job: _Enter) -> list[str]:
        if (job.stake.scope, job.stake.root) not in self._places:
            return []  # forgotten meanwhile
        return self._walk(job.stake)

    def _walk(self, stake: _Stake) -> list[str]:
        """Watch a folder with those in it, and return the files in them that count."""
        found: list[str] = []
        waiting = [stake]
        scope, root, _ = stake
        while waiting:
            parts = waiting.pop().parts
            path = os.path.join(self._places[scope, root], *parts)
            # Watched before it is read: what comes in between is in the one or in the other.
            folder = self._add(scope, path)
            if folder is None:
                continue
            folder.stakes.add(_Stake(scope, root, parts))
            for entry in _entries(path):
                below = (*parts, entry.name)
                if not entry.is_dir(follow_symlinks=False):
                    if scope.counts(root, below):
                        found.append(_path(root, below))
                elif scope.enters(root, below):
                    waiting.append(_Stake(scope, root, below))
        return found

    def _add(self, scope: Scope, path: str) -> _Folder | None:
        """Watch one folder; None where that has gone, or may not be read."""
        if self._inotify is None:
            try:
                self._inotify = Inotify()
            except OSError as error:
                raise _UnwatchableError(_exhausted(error, "max_user_instances")) from error
        try:
            number = self._inotify.add(path)
        except OSError as error:
            if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP):
                return None
            raise _UnwatchableError(_exhausted(error, "max_user_watches")) from error
        numbers = self._numbers.setdefault(scope, set())
        numbers.add(number)
        folder = self._folders.setdefault(number, _Folder())
        if len(numbers) > MOST_FOLDERS:
            raise _UnwatchableError(
                f"that is more than {MOST_FOLDERS} folders: name fewer in watch.paths, or more in "
                "watch.ignore"
            )
        return folder

    def _leave(self, scope: Scope, root: Root | None = None, parts: Parts = ()) -> None:
        """Let go of all that a scope has, or a root of it, or what is below `parts` of that."""
        for number in tuple(self._numbers.get(scope, ())):
            folder = self._folders[number]
            for stake in tuple(folder.stakes):
                if stake.scope is scope and (root is None or _is_below(stake, root, parts)):
                    folder.stakes.discard(stake)
            if not parts:
                for name, waiting in tuple(folder.awaited.items()):
                    waiting -= {each for each in waiting if _is_of(each, scope, root)}
                    if not waiting:
                        del folder.awaited[name]
            self._let_go(number, scope)
        if root is None:
            self._numbers.pop(scope, None)
            for key in [key for key in self._places if key[0] is scope]:
                del self._places[key]

    def _let_go(self, number: int, scope: Scope) -> None:
        """Watch a folder no more in which nobody has a stake."""
        folder = self._folders[number]
        there = any(stake.scope is scope for stake in folder.stakes) or any(
            each[0] is scope for waiting in folder.awaited.values() for each in waiting
        )
        if not there:
            self._numbers[scope].discard(number)
        if not folder:
            del self._folders[number]
            assert self._inotify is not None
            self._inotify.remove(number)

    # News.

    def _readable(self) -> None:
        assert self._inotify is not None
        news = self._inotify.read()
        changed: dict[Scope, dict[str, None]] = {}
        jobs: dict[_Job, None] = {}
        for each in news:
            if each.mask & inotify.OVERFLOWED:
                jobs.update(dict.fromkeys(self._overflowed()))
            elif each.mask & inotify.LOST:
                jobs.update(dict.fromkeys(self._lost(each.watch)))
            elif each.watch in self._folders:
                for scope, path, job in self._happened(each, self._folders[each.watch]):
                    if path is not None:
                        changed.setdefault(scope, {})[path] = None
                    if job is not None:
                        jobs.pop(job, None)  # the last of several alike is the one that counts
                        jobs[job] = None
        for scope, paths in changed.items():
            self._on_changed(scope, list(paths))
        self._do(*jobs)
        if len(news) >= MANY and not self._settling and not self._closed:
            self._listen(on=False)
            self._rest = self._loop.call_later(REST_S, lambda: self._listen(on=True))

    def _overflowed(self) -> list[_Find]:
        """News has been lost: anything may have changed, and every folder is looked for again."""
        return [
            _Find(scope, root, overflowed=True) for scope in self._numbers for root in scope.roots
        ]

    def _lost(self, number: int) -> list[_Find]:
        """The kernel does not watch a folder any more, which has gone."""
        folder = self._folders.pop(number, None)
        if folder is None:
            return []
        for numbers in self._numbers.values():
            numbers.discard(number)
        roots = {(s.scope, s.root): None for s in folder.stakes if not s.parts}
        for waiting in folder.awaited.values():
            roots |= dict.fromkeys(waiting)
        return [_Find(scope, root) for scope, root in roots]

    def _happened(
        self, news: News, folder: _Folder
    ) -> Iterator[tuple[Scope, str | None, _Job | None]]:
        """Return what a piece of news means: for whom, what has changed, what is to be done."""
        if news.mask & inotify.SELF_MOVED:
            for scope, root, parts in tuple(folder.stakes):
                if not parts:
                    yield scope, root.path, _Find(scope, root)
            return
        for scope, root in folder.awaited.get(news.name, ()):
            yield scope, None, _Find(scope, root)
        for stake in tuple(folder.stakes):
            scope, root, parts = stake
            below = (*parts, news.name)
            if not news.mask & inotify.IS_FOLDER:
                if scope.counts(root, below):
                    yield scope, _path(root, below), None
            elif scope.enters(root, below):
                if news.mask & (inotify.CREATED | inotify.MOVED_HERE):
                    yield scope, None, _Enter(_Stake(scope, root, below))
                elif news.mask & inotify.MOVED_AWAY:
                    # Of what is in it the kernel says nothing, and goes on watching it elsewhere.
                    yield scope, _path(root, below), _Leave(_Stake(scope, root, below))


def _is_below(stake: _Stake, root: Root, parts: Parts) -> bool:
    return stake.root == root and stake.parts[: len(parts)] == parts


def _is_of(waiting: tuple[Scope, Root], scope: Scope, root: Root | None) -> bool:
    return waiting[0] is scope and root in (None, waiting[1])


def _path(root: Root, parts: Parts) -> str:
    return os.path.join(root.path, *parts)


def _entries(path: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError:
        return []  # gone meanwhile, or it may be entered and not read


def _exhausted(error: OSError, limit: str) -> str:
    """Say which limit of the kernel is reached."""
    if error.errno not in (errno.ENOSPC, errno.EMFILE):
        return f"{error.strerror}".lower()
    try:
        value = f" = {int((_KERNEL / limit).read_text())}"
    except (OSError, ValueError):
        value = ""
    return (
        f"the limit fs.inotify.{limit}{value} of this user is reached: raise it with "
        f"`sysctl fs.inotify.{limit}=…`, or watch less; then `meshrun reload`"
    )


def _later(tell: Callable[[Scope, T], None], scope: Scope, what: T) -> Callable[[], None]:
    return lambda: tell(scope, what)
