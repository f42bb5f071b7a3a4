"""The cgroup of a run, where this machine lets one be made."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.fugitives import within

from meshrun.supervisor import cgroup

# One that the memory of nobody depends on, so that it is usually free to be shared out.
CONTROLLERS = ("hugetlb", "rdma", "misc", "pids")


@pytest.fixture
def folder() -> Iterator[Path]:
    made = cgroup.create(uuid.uuid4().hex)
    if made is None:
        pytest.skip("no cgroup can be made here")
    yield made
    cgroup.remove(made)
    assert not made.exists()


def test_what_is_in_it_and_below_are_its_members_until_they_are_killed(folder: Path) -> None:
    leaf = cgroup.make_leaf(folder, "app-web.1")
    assert leaf is not None
    with subprocess.Popen([*within(leaf), "sleep", "600"]) as process:
        while process.pid not in cgroup.members(folder):
            assert process.poll() is None
        assert cgroup.members(folder, deep=False) == []
        cgroup.remove(folder)
        assert leaf.exists()
        cgroup.kill(folder)
        assert process.wait() == -9


def test_it_is_known_by_its_run_wherever_one_looks_from(folder: Path) -> None:
    run_id = folder.name.removeprefix("meshrun-")
    assert cgroup.is_of(folder, run_id)
    assert not cgroup.is_of(folder, "another")
    assert not cgroup.is_of(folder / ".." / folder.name, run_id)
    assert not cgroup.is_of(Path("/tmp") / folder.name, run_id)


def test_a_limit_that_no_controller_keeps_is_not_set(folder: Path) -> None:
    assert not cgroup.limit(folder, "no.such.max", 1)
    assert cgroup.oom_kills(folder) == 0
    assert cgroup.limit(folder, "cgroup.max.descendants", 5)


def test_a_cgroup_that_is_full_of_others_is_left_as_it_is(folder: Path) -> None:
    assert cgroup.limit(folder, "cgroup.max.descendants", 0)
    assert cgroup.make_leaf(folder, "app-web.1") is None
    script = "from meshrun.supervisor import cgroup; print(cgroup.create('run'))"
    done = subprocess.run(
        [*within(folder), sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "None"


def test_a_controller_is_shared_out_though_this_process_is_in_the_way(folder: Path) -> None:
    outer = folder.parent
    wanted = set(CONTROLLERS) & set((outer / "cgroup.controllers").read_text().split())
    shared = set((outer / "cgroup.subtree_control").read_text().split())
    for name in wanted:
        if name not in shared:
            try:
                (outer / "cgroup.subtree_control").write_text(f"+{name}")
            except OSError:
                continue
        break
    else:
        pytest.skip("no controller can be had for it")
    # A process alone in its cgroup, as a service of systemd with Delegate=yes is.
    script = f"""
import os, sys
from pathlib import Path
from meshrun.supervisor import cgroup
run = cgroup.create("run", [{name!r}])
leaf = cgroup.make_leaf(run, "app-web.1")
print({name!r} in (leaf / "cgroup.controllers").read_text().split())
if os.fork() == 0:
    (leaf / "cgroup.procs").write_text("0")
    os._exit(0)
print(os.waitstatus_to_exitcode(os.wait()[1]))
cgroup.remove(run)
print(run.exists(), cgroup.members(run.parent) == [os.getpid()])
"""
    try:
        done = subprocess.run(
            [*within(folder), sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=True,
        )
    finally:
        if name not in shared:
            (outer / "cgroup.subtree_control").write_text(f"-{name}")
    assert done.stdout.split() == ["True", "0", "False", "True"]


def test_a_run_that_shall_outlive_the_app_it_was_started_from_leaves_its_cgroup(
    folder: Path,
) -> None:
    leaf = cgroup.make_leaf(folder, "app-web.1")
    script = "from meshrun.supervisor import cgroup; cgroup.leave(); input()"
    with subprocess.Popen(
        [*within(leaf), sys.executable, "-c", script], stdin=subprocess.PIPE
    ) as process:
        parent = folder.parent
        while process.pid not in cgroup.members(parent, deep=False):
            assert process.poll() is None
            os.sched_yield()
        assert cgroup.members(folder) == []
        process.communicate(b"\n")
