"""Apps with a `user`, as root: what they are, and that none of them gets at the others."""

import os
import pwd
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mesh import APPS, PATIENCE_S, Mesh, await_any_exit

from meshrun.supervisor import processes

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can run apps as others")

USERS = [entry for entry in pwd.getpwall() if entry.pw_uid != 0]
SPY = next((e for e in USERS if e.pw_name == "nobody"), None)
VICTIM = next((e for e in USERS if e.pw_name != "nobody"), None)


def interpreter(uid: int) -> str:
    """Return one that a user can run."""
    for python in (sys.executable, "/usr/bin/python3"):
        try:
            subprocess.run([python, "-S", "-c", ""], user=uid, cwd="/", check=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip("the interpreters of this machine are root's alone")


@pytest.fixture
def scripts() -> Iterator[Path]:
    """Return a folder with the apps of the tests that every user can read."""
    if SPY is None or VICTIM is None:
        pytest.skip("there are no two users")
    folder = Path(tempfile.mkdtemp(prefix="meshrun-"))
    try:
        folder.chmod(0o755)
        for name in ("spy.py", "idle.py", "talker.py"):
            shutil.copy(APPS / name, folder / name)
        (folder / "python").symlink_to(interpreter(SPY.pw_uid))
        yield folder
    finally:
        shutil.rmtree(folder)


def config(scripts: Path, *, spy: str, more: str = "") -> str:
    assert SPY is not None
    assert VICTIM is not None
    return f"""
[apps.victim]
command = "{scripts}/python -S {scripts}/idle.py"
cwd = "/"
user = "{VICTIM.pw_name}"
env = {{ SECRET = "42" }}
port = 0
[apps.spy]
command = "{scripts}/python -S {scripts}/{spy}"
cwd = "/"
user = "{SPY.pw_name}"
port = 0
restart = "never"
depends_on = ["victim"]
{more}
"""


def status(pid: int | None, name: str) -> list[str]:
    """Return the words of a line of /proc/PID/status."""
    text = Path(f"/proc/{pid}/status").read_text()
    return next(line.split()[1:] for line in text.splitlines() if line.startswith(f"{name}:"))


def test_an_app_of_another_user_reaches_nothing_of_others(tmp_path: Path, scripts: Path) -> None:
    assert SPY is not None
    # Not below a folder that keeps the spy out before it comes to ours.
    state = tempfile.mkdtemp(prefix="meshrun-state-")
    try:
        with Mesh(tmp_path, config(scripts, spy=f"spy.py {state}"), state_dir=state) as mesh:
            mesh.environment["MESHRUN_STATE_DIR"] = state
            mesh.up()
            mesh.wait_for(lambda rows: rows["spy.1"].state == "completed")
            groups = sorted(os.getgrouplist(SPY.pw_name, SPY.pw_gid))
            assert mesh.output("spy.1") == [f"looked as {SPY.pw_uid} {groups}"]
    finally:
        shutil.rmtree(state)


def test_an_app_is_its_user_in_all_things_and_keeps_what_ends_it(
    tmp_path: Path, scripts: Path
) -> None:
    assert SPY is not None
    with Mesh(tmp_path, config(scripts, spy="idle.py")) as mesh:
        mesh.up()
        spy = mesh.instance("spy.1")
        assert status(spy.pid, "Uid") == [str(SPY.pw_uid)] * 4
        assert status(spy.pid, "Gid") == [str(SPY.pw_gid)] * 4
        assert status(spy.pid, "CapEff") == ["0000000000000000"]
        assert spy.pid is not None
        shown = {n: processes.environment_value(spy.pid, n) for n in ("HOME", "USER", "LOGNAME")}
        assert shown == {"HOME": SPY.pw_dir, "USER": SPY.pw_name, "LOGNAME": SPY.pw_name}
        # With both gone nobody but the kernel can end it: a change of user has not undone that.
        app = processes.identify(spy.pid)
        assert app is not None
        run = mesh.recorded()
        mesh.kill(run.supervisor.pid, signal.SIGSTOP)
        mesh.kill(mesh.launcher_pid)
        await_any_exit([app], PATIENCE_S)
        assert processes.identify(app.pid) != app
        mesh.kill(run.supervisor.pid)
        await_any_exit([run.supervisor.process], PATIENCE_S)
        mesh.down()


def test_the_terminal_of_an_app_is_its_user_s_and_nobody_else_s(
    tmp_path: Path, scripts: Path
) -> None:
    assert SPY is not None
    assert VICTIM is not None
    with Mesh(tmp_path, config(scripts, spy="talker.py terminal", more="tty = true")) as mesh:
        mesh.up()
        mesh.wait_for(lambda _: "size 80x24" in mesh.output("spy.1"))
        assert mesh.output("spy.1")[:3] == [
            "terminals True True True",
            "leader True",
            "controlling terminal",
        ]
        terminal = os.readlink(f"/proc/{mesh.instance('spy.1').pid}/fd/1")
        assert os.stat(terminal).st_uid == SPY.pw_uid
        opened = f"import os; os.open('{terminal}', os.O_RDWR | os.O_NOCTTY)"
        for user, code in ((SPY, 0), (VICTIM, 1)):
            done = subprocess.run(
                [scripts / "python", "-S", "-c", opened],
                user=user.pw_uid,
                group=user.pw_gid,
                extra_groups=[],
                cwd="/",
                capture_output=True,
                check=False,
            )
            assert done.returncode == code, done.stderr


def test_a_sidecar_of_root_is_nobody_that_an_app_can_be_and_hides(
    tmp_path: Path, scripts: Path
) -> None:
    with Mesh(tmp_path, config(scripts, spy="idle.py")) as mesh:
        mesh.up()
        ids = {entry.pw_uid for entry in pwd.getpwall()}
        for row in mesh.ps():
            assert int(status(row.sidecar_pid, "Uid")[0]) not in ids
            assert status(row.sidecar_pid, "Groups") == []
            assert status(row.sidecar_pid, "NoNewPrivs") == ["1"]
            assert Path(f"/proc/{row.sidecar_pid}/environ").stat().st_uid == 0
        # What it no longer may read it does not need: it still makes keys.
        mesh.cli("certs", "rotate", check=True)


def test_the_output_can_be_opened_again_by_its_user(tmp_path: Path, scripts: Path) -> None:
    assert SPY is not None
    text = f"""
[apps.spy]
command = "echo said > /dev/stdout"
shell = true
cwd = "/"
user = "{SPY.pw_name}"
port = 0
restart = "never"
"""
    with Mesh(tmp_path, text) as mesh:
        foreground = mesh.starting()
        assert foreground.wait() == 0
        assert "said" in foreground.text


def test_a_folder_that_the_user_cannot_enter_fails_the_app_and_says_so(
    tmp_path: Path, scripts: Path
) -> None:
    assert SPY is not None
    tmp_path.chmod(0o700)
    text = f'[apps.spy]\ncommand = "true"\nuser = "{SPY.pw_name}"\nport = 0\n'
    with Mesh(tmp_path, text) as mesh:
        foreground = mesh.starting()
        assert foreground.wait() == 1
        assert f"spy.1 failed: cannot enter the folder {tmp_path}" in foreground.text
