"""Folders are watched as they come and go, by the kernel's own news."""

import asyncio
import errno
import os
import shutil
from collections.abc import Awaitable, Callable, Collection
from pathlib import Path

import pytest
import uvloop

from meshrun.supervisor.configuration.model import Watch, Watched
from meshrun.supervisor.watching import trees
from meshrun.supervisor.watching.inotify import Inotify
from meshrun.supervisor.watching.scope import Scope
from meshrun.supervisor.watching.trees import Trees

PATIENCE_S = 20.0
# Written last: what was to be heard before it has been heard when this is.
LAST = "last"


class Ears:
    """Hears what is said of one scope."""

    def __init__(self, folder: Path, watch: Watch) -> None:
        self.folder = folder
        self.watched: list[int] = []
        self.given_up: list[str] = []
        self.heard_of: list[str] = []
        self._news = asyncio.Event()
        self.trees = Trees(self._changed, self._begun, self._gave_up)
        self.scope = Scope(str(folder), watch)
        self.trees.watch(self.scope)

    def _changed(self, scope: Scope, paths: Collection[str]) -> None:
        self.heard_of += [scope.called(path) for path in paths]
        self._news.set()

    def _begun(self, _scope: Scope, folders: int) -> None:
        self.watched.append(folders)
        self._news.set()

    def _gave_up(self, _scope: Scope, why: str) -> None:
        self.given_up.append(why)
        self._news.set()

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(PATIENCE_S):
            while not reached():
                self._news.clear()
                await self._news.wait()

    async def heard(self, *expected: str) -> None:
        """Wait for news of all that is expected, and see that there is no other; then forget it."""
        await self.until(lambda: set(expected) <= set(self.heard_of))
        (self.folder / LAST).write_text("")
        await self.until(lambda: LAST in self.heard_of)
        assert set(self.heard_of) - {LAST} == set(expected)
        self.heard_of = []


def listening(
    folder: Path, test: Callable[[Ears], Awaitable[None]], *paths: str, ignore: tuple[str, ...] = ()
) -> None:
    """Run a test with what is heard of a folder, or of paths and patterns in it."""

    async def run() -> None:
        found = tuple(Watched(base=path) for path in (*paths, LAST)) if paths else Watch().paths
        ears = Ears(folder, Watch(paths=found, ignore=ignore))
        await ears.until(lambda: bool(ears.watched or ears.given_up))
        try:
            await test(ears)
        finally:
            ears.trees.close()

    uvloop.run(run())


def test_files_are_heard_of_when_they_are_written_made_moved_and_removed(tmp_path: Path) -> None:
    async def test(ears: Ears) -> None:
        (tmp_path / "a.py").write_text("1")
        await ears.heard("a.py")
        (tmp_path / "b.tmp~").write_text("2")
        (tmp_path / "b.tmp~").rename(tmp_path / "a.py")  # as editors save
        await ears.heard("a.py")
        (tmp_path / "a.py").rename(tmp_path / "c.py")
        await ears.heard("a.py", "c.py")
        (tmp_path / "c.py").unlink()
        await ears.heard("c.py")
        (tmp_path / "link.py").symlink_to("/etc/hosts")
        await ears.heard("link.py")

    listening(tmp_path, test)


def test_a_file_that_stays_open_and_one_that_is_only_read_are_no_changes(tmp_path: Path) -> None:
    (tmp_path / "read.txt").write_text("1")

    async def test(ears: Ears) -> None:
        with (tmp_path / "read.txt").open() as read, (tmp_path / "app.log").open("w") as log:
            await ears.heard("app.log")  # that it is there
            read.read()
            log.write("line\n")
            log.flush()
            await ears.heard()
        await ears.heard("app.log")

    listening(tmp_path, test)


def test_a_folder_that_appears_is_entered_with_all_that_is_in_it_already(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    watched = tmp_path / "watched"
    watched.mkdir()

    async def test(ears: Ears) -> None:
        (watched / "a/b").mkdir(parents=True)
        (watched / "a/b/c.py").write_text("")
        await ears.heard("a/b/c.py")
        (elsewhere / "d/e").mkdir(parents=True)
        (elsewhere / "d/e/f.py").write_text("")
        elsewhere.rename(watched / "new")
        await ears.heard("new/d/e/f.py")
        (watched / "new/d/e/g.py").write_text("")
        await ears.heard("new/d/e/g.py")

    listening(watched, test)


def test_a_folder_that_is_moved_away_is_left_and_one_that_is_removed_comes_back(
    tmp_path: Path,
) -> None:
    watched = tmp_path / "watched"
    (watched / "a/b").mkdir(parents=True)
    (watched / "a/b/c.py").write_text("")

    async def test(ears: Ears) -> None:
        (watched / "a").rename(tmp_path / "away")
        await ears.heard("a")
        (tmp_path / "away/b/c.py").write_text("nobody's business")
        await ears.heard()
        (tmp_path / "away").rename(watched / "back")
        await ears.heard("back/b/c.py")
        shutil.rmtree(watched / "back")
        await ears.heard("back/b/c.py")
        (watched / "back/b").mkdir(parents=True)
        (watched / "back/b/c.py").write_text("")
        await ears.heard("back/b/c.py")

    listening(watched, test)


def test_the_folder_itself_may_go_and_come_back(tmp_path: Path) -> None:
    dist = tmp_path / "build/dist"
    dist.mkdir(parents=True)
    (dist / "a.js").write_text("")

    async def test(ears: Ears) -> None:
        shutil.rmtree(tmp_path / "build")
        await ears.heard("build/dist/a.js", "build/dist")
        dist.mkdir(parents=True)
        (dist / "b.js").write_text("")
        await ears.heard("build/dist/b.js")
        dist.rename(tmp_path / "build/old")
        await ears.heard("build/dist")
        (tmp_path / "build/old/b.js").write_text("again")
        await ears.heard()
        (tmp_path / "build/old").rename(dist)
        await ears.heard("build/dist/b.js")

    listening(tmp_path, test, "build/dist")


def test_a_single_file_is_heard_of_however_it_is_replaced(tmp_path: Path) -> None:
    real = tmp_path / "elsewhere"
    real.mkdir()
    (real / "target.conf").write_text("")
    (tmp_path / "one.conf").write_text("")
    (tmp_path / "link.conf").symlink_to("elsewhere/target.conf")

    async def test(ears: Ears) -> None:
        (tmp_path / "one.conf").write_text("1")
        await ears.heard("one.conf")
        (tmp_path / "other.conf").write_text("2")
        await ears.heard()
        (tmp_path / "other.conf").replace(tmp_path / "one.conf")
        await ears.heard("one.conf")
        (tmp_path / "one.conf").unlink()
        await ears.heard("one.conf")
        (tmp_path / "one.conf").write_text("3")
        await ears.heard("one.conf")
        (real / "target.conf").write_text("4")
        await ears.heard("link.conf")
        (tmp_path / "new").symlink_to("one.conf")
        (tmp_path / "new").rename(tmp_path / "link.conf")
        await ears.heard("link.conf")
        (tmp_path / "one.conf").write_text("5")
        await ears.heard("one.conf", "link.conf")

    listening(tmp_path, test, "one.conf", "link.conf")


def test_symbolic_links_are_not_followed_but_where_they_are_named(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    watched = tmp_path / "watched"
    (watched / "plain").mkdir(parents=True)
    (watched / "plain/link").symlink_to(outside)
    (watched / "plain/circle").symlink_to("..")
    (watched / "current").symlink_to(outside)

    async def test(ears: Ears) -> None:
        (outside / "a.py").write_text("")
        await ears.heard("current/a.py")
        (watched / "release").mkdir()
        (watched / "release/b.py").write_text("")
        (watched / "new").symlink_to("release")
        (watched / "new").rename(watched / "current")
        await ears.heard("current/b.py")
        (outside / "a.py").write_text("no more")
        (watched / "release/c.py").write_text("")
        await ears.heard("current/c.py")

    listening(watched, test, "plain", "current")


def test_folders_that_are_ignored_are_not_even_entered(tmp_path: Path) -> None:
    for number in range(20):
        (tmp_path / f"node_modules/{number}/lib").mkdir(parents=True)
        (tmp_path / f"generated/{number}").mkdir(parents=True)

    async def test(ears: Ears) -> None:
        assert ears.watched == [1]
        (tmp_path / "node_modules/1/lib/a.js").write_text("")
        (tmp_path / "generated/new/er").mkdir(parents=True)
        (tmp_path / "generated/new/er/a.js").write_text("")
        await ears.heard()

    listening(tmp_path, test, ignore=("generated",))


def test_too_many_folders_are_not_watched_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trees, "MOST_FOLDERS", 10)
    for number in range(20):
        (tmp_path / str(number)).mkdir()

    async def test(ears: Ears) -> None:
        assert ears.watched == []
        (said,) = ears.given_up
        assert "more than 10 folders: name fewer in watch.paths, or more in watch.ignore" in said

    listening(tmp_path, test)


@pytest.mark.parametrize(
    ("code", "limit"), [(errno.ENOSPC, "max_user_watches"), (errno.EMFILE, "max_user_instances")]
)
def test_a_limit_of_the_kernel_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, limit: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Inotify, "add" if code == errno.ENOSPC else "__init__", refuse)

    async def test(ears: Ears) -> None:
        assert ears.watched == []
        (said,) = ears.given_up
        assert f"the limit fs.inotify.{limit} = " in said
        assert f"sysctl fs.inotify.{limit}=" in said

    listening(tmp_path, test)


def test_when_news_has_been_lost_everything_is_looked_at_again(tmp_path: Path) -> None:
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())

    async def test(ears: Ears) -> None:
        # In one turn of the loop, so that nobody reads meanwhile.
        for number in range(most // 2 + 100):
            path = tmp_path / f"{number}"
            path.write_text("")
            path.unlink()
        (tmp_path / "deep/er").mkdir(parents=True)
        await ears.until(lambda: str(tmp_path) in ears.heard_of)
        (tmp_path / "deep/er/a.py").write_text("")
        await ears.until(lambda: "deep/er/a.py" in ears.heard_of)

    listening(tmp_path, test)


def test_what_is_forgotten_is_not_heard_of_and_costs_nothing(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()

    async def test(ears: Ears) -> None:
        other = Scope(str(tmp_path), Watch())
        ears.trees.watch(other)
        await ears.until(lambda: len(ears.watched) == 2)
        ears.trees.forget(other)
        (tmp_path / "a/b.py").write_text("")
        await ears.heard("a/b.py")  # by the one that is left
        assert ears.trees.folders == 2
        ears.trees.forget(ears.scope)
        ears.trees.watch(other)
        await ears.until(lambda: len(ears.watched) == 3)
        ears.trees.forget(other)
        last = Scope("/proc/sys/fs", Watch(paths=(Watched(base="nowhere"),)))
        ears.trees.watch(last)
        await ears.until(lambda: len(ears.watched) == 4)
        assert ears.trees.folders == 1

    listening(tmp_path, test)


def test_a_folder_that_is_moved_to_and_fro_is_watched_where_it_ends(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.mkdir()

    async def test(ears: Ears) -> None:
        # In one turn of the loop: nobody looks at where it was meanwhile.
        (watched / "a").mkdir()
        for _ in range(3):
            (watched / "a").rename(tmp_path / "away")
            (tmp_path / "away").rename(watched / "a")
        await ears.heard("a")
        (watched / "a/b.py").write_text("")
        await ears.heard("a/b.py")
        for _ in range(3):
            (watched / "a").rename(tmp_path / "away")
            (tmp_path / "away").rename(watched / "a")
        (watched / "a").rename(tmp_path / "away")
        await ears.heard("a")
        (tmp_path / "away/b.py").write_text("")
        await ears.heard()

    listening(watched, test)
