"""The state folder: whose it must be, who owns it, and how far down it may lie."""

import os
from pathlib import Path

import pytest

from meshrun.supervisor.errors import MeshrunError, NotRunningError
from meshrun.supervisor.statedir import CONTROL_SOCKET, AlreadyLockedError, StateDir


def test_it_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state = StateDir.open(tmp_path / "deep" / "state", create=True)
    finally:
        os.umask(before)
    assert (tmp_path / "deep" / "state").stat().st_mode & 0o777 == 0o700
    state.close()


def test_one_that_is_not_there_means_that_nothing_runs(tmp_path: Path) -> None:
    with pytest.raises(NotRunningError, match="no mesh runs here: there is no state folder"):
        StateDir.open(tmp_path / "none", create=False)


def test_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for create in (True, False):
        with pytest.raises(MeshrunError, match="it is a symbolic link; name the real folder"):
            StateDir.open(tmp_path / "link", create=create)


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for create in (True, False):
        with pytest.raises(MeshrunError, match=r"cannot (use|make) the state folder"):
            StateDir.open(tmp_path / "file", create=create)


@pytest.mark.parametrize("mode", [0o750, 0o701, 0o770, 0o777])
def test_one_that_others_may_enter_is_refused_with_the_way_out(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "open"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(MeshrunError, match=f"mode {mode:o}.*chmod 700 "):
        StateDir.open(folder, create=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_foreign_one_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "foreign"
    folder.mkdir(mode=0o700)
    os.chown(folder, 12345, -1)
    with pytest.raises(MeshrunError, match="it belongs to uid 12345"):
        StateDir.open(folder, create=True)


def test_only_one_owns_it_until_it_is_closed(tmp_path: Path) -> None:
    first = StateDir.open(tmp_path / "state", create=True)
    second = StateDir.open(tmp_path / "state", create=True)
    first.lock()
    with pytest.raises(AlreadyLockedError, match="a mesh runs already in"):
        second.lock()
    first.close()
    second.lock()
    second.close()


@pytest.mark.parametrize("depth", [1, 3])
def test_its_control_socket_answers_however_long_its_path(tmp_path: Path, depth: int) -> None:
    folder = tmp_path.joinpath(*["d" * 200] * depth)
    state = StateDir.open(folder, create=True)
    caller = StateDir.open(folder, create=False)
    with state.listen() as listener:
        assert (folder / CONTROL_SOCKET).stat().st_mode & 0o777 == 0o600
        with caller.connect(5.0) as connection:
            listener.setblocking(True)
            accepted, _ = listener.accept()
            with accepted:
                accepted.sendall(b"hello")
            assert connection.recv(10) == b"hello"
    state.close()
    caller.close()


def test_what_a_killed_run_left_of_its_socket_is_replaced(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state", create=True)
    state.listen().close()
    with pytest.raises(NotRunningError, match="no mesh runs in"):
        state.connect(1.0)
    with state.listen(), state.connect(1.0):
        pass
    state.remove(CONTROL_SOCKET)
    with pytest.raises(NotRunningError, match="no mesh runs in"):
        state.connect(1.0)
    state.close()


def test_a_file_is_replaced_as_a_whole(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state", create=True)
    assert state.read("run.json") is None
    state.write("run.json", b"one")
    with (tmp_path / "state" / "run.json").open("rb") as old:
        state.write("run.json", b"two")
        assert (old.read(), state.read("run.json")) == (b"one", b"two")
    assert (tmp_path / "state" / "run.json").stat().st_mode & 0o777 == 0o600
    state.remove("run.json")
    state.remove("run.json")
    assert state.read("run.json") is None
    state.close()


def test_a_link_in_place_of_a_file_is_not_followed(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state", create=True)
    (tmp_path / "victim").write_bytes(b"precious")
    (tmp_path / "state" / "run.json.new").symlink_to(tmp_path / "victim")
    with pytest.raises(OSError, match="symbolic links"):
        state.write("run.json", b"x")
    (tmp_path / "state" / "run.json.new").unlink()
    (tmp_path / "state" / "run.json").symlink_to(tmp_path / "victim")
    state.write("run.json", b"x")
    assert (tmp_path / "victim").read_bytes() == b"precious"
    assert not (tmp_path / "state" / "run.json").is_symlink()
    state.close()


def test_a_folder_that_is_moved_keeps_its_owner(tmp_path: Path) -> None:
    state = StateDir.open(tmp_path / "state", create=True)
    state.write("run.json", b"one")
    (tmp_path / "state").rename(tmp_path / "moved")
    (tmp_path / "state").mkdir(mode=0o700)
    assert state.read("run.json") == b"one"
    state.close()
