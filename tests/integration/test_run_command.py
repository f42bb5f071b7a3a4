"""One-off commands: `meshrun run APP -- CMD`."""

import contextlib
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.mesh import PATIENCE_S, Mesh

from meshrun.supervisor import processes

CONFIG = """
[apps.server]
command = "${PYTHON} -S ${APPS}/serve.py --mode echo"
ready = { tcp = true }
[apps.client]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
upstreams = ["server"]
env = { WHOM = "${UPSTREAM_SERVER_ADDR}" }
[apps.intruder]
command = "${PYTHON} -S ${APPS}/idle.py"
port = 0
upstreams = ["server"]
[[intentions]]
from = "client"
to = "server"
"""
# Says something to the upstream and prints the answer.
CALL = """
import os, socket
host, _, port = os.environ["UPSTREAM_SERVER_ADDR"].rpartition(":")
with socket.create_connection((host, int(port))) as c:
    try:
        c.sendall(b"hello")
        c.shutdown(socket.SHUT_WR)
        print(c.recv(100).decode() or "refused")
    except OSError:
        print("refused")
"""
# Says which signals come, and ends when it is to quit.
JOB = """
import signal, sys
def say(number, frame):
    print(signal.Signals(number).name, flush=True)
    if number == signal.SIGQUIT:
        sys.exit(7)
for number in (signal.SIGCONT, signal.SIGINT, signal.SIGQUIT):
    signal.signal(number, say)
print("begun", flush=True)
while True:
    signal.pause()
"""
WAIT = "import time; print('begun', flush=True); time.sleep(600)"


@contextlib.contextmanager
def begun(mesh: Mesh, *command: str) -> Iterator[subprocess.Popen[str]]:
    """A command that has begun; its first line is `begun`."""
    with subprocess.Popen(
        [sys.executable, "-P", "-m", "meshrun", "run", "client", "--", *command],
        cwd=mesh.folder,
        env=mesh.environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == "begun\n"
            yield running
        finally:
            running.kill()


def test_a_command_calls_as_its_app_does_and_is_denied_as_it_is(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        call = ("--", sys.executable, "-c", CALL)
        assert mesh.cli("run", "client", *call, check=True).stdout == "hello\n"
        assert mesh.cli("run", "intruder", *call, check=True).stdout == "refused\n"
        denied = mesh.await_event("denied", "server")
        assert (denied.source, denied.destination) == ("intruder", "server")
        mesh.cli("intentions", "create", "-deny", "-replace", "client", "server", check=True)
        assert mesh.cli("run", "client", *call, check=True).stdout == "refused\n"


def test_a_command_has_the_app_s_environment_with_upstream_ports_of_its_own(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        done = mesh.cli("run", "client", "env", check=True).stdout
        values = dict(line.split("=", 1) for line in done.splitlines() if "=" in line)
        address = values["UPSTREAM_SERVER_ADDR"]
        assert values["WHOM"] == address != mesh.env("client.1")["UPSTREAM_SERVER_ADDR"]
        assert values["MESHRUN_INSTANCE"] == "client.run-1"
        assert values["MESHRUN_IDENTITY"] == mesh.env("client.1")["MESHRUN_IDENTITY"]
        assert not {"PORT", "MESHRUN_RUN_ID"} & set(values)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("command", "code"),
    [
        (["sh", "-c", "exit 5"], 5),
        (["sh", "-c", "kill -9 $$"], 137),
        (["no-such-command", "-la", "--json"], 127),
        (["./mesh.toml"], 126),
    ],
)
def test_the_exit_code_is_the_command_s(tmp_path: Path, command: list[str], code: int) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        done = mesh.cli("run", "client", *command)
        assert done.returncode == code
        mesh.await_event("command-ended", "client.run-1")


@pytest.mark.slow
def test_what_cannot_be_run_is_said(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        none = mesh.cli("run", "client", "true")
        assert none.returncode == 1
        assert "no mesh runs here" in none.stderr
        assert "start it with: meshrun up" in none.stderr
        mesh.up()
        unknown = mesh.cli("run", "clent", "true")
        assert unknown.returncode == 1
        assert 'no app "clent" (did you mean "client"?)' in unknown.stderr
        assert mesh.cli("run", "client", "--").returncode == 2


@pytest.mark.slow
def test_a_command_is_seen_while_it_runs_and_its_number_is_given_again(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        with begun(mesh, sys.executable, "-c", WAIT) as first:
            row = mesh.instance("client.run-1")
            assert (row.app, row.state, row.ready, row.pid) == (
                "client",
                "running",
                True,
                first.pid,
            )
            assert row.sidecar_pid is not None
            assert "runs python" in str(row.reason)
            with begun(mesh, sys.executable, "-c", WAIT):
                assert mesh.instance("client.run-2").ready
                assert mesh.cli("certs", "rotate").stdout.count("client.run-") == 2
            mesh.await_event("command-ended", "client.run-2")
            with begun(mesh, sys.executable, "-c", WAIT):
                assert mesh.instance("client.run-2").ready
        mesh.await_event("command-ended", "client.run-1")
        # What concerns the apps never meant the commands.
        assert "client.run" not in mesh.cli("restart", check=True).stdout


def test_however_the_holder_ends_the_sidecar_and_the_command_go(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        with begun(mesh, sys.executable, "-c", WAIT) as running:
            sidecar = processes.identify(mesh.instance("client.run-1").sidecar_pid or 0)
            (command,) = processes.descendants(running.pid)
            running.kill()
            mesh.await_event("command-ended", "client.run-1")
            for gone in (sidecar, command):
                assert gone is not None
                processes.await_exit(gone, PATIENCE_S)
                assert processes.identify(gone.pid) != gone
        assert "client.run-1" not in {row.instance for row in mesh.ps()}


def test_a_sidecar_that_crashes_comes_back_while_the_command_runs(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        with begun(mesh, sys.executable, "-c", WAIT):
            first = mesh.instance("client.run-1").sidecar_pid
            mesh.kill(first)
            mesh.wait_for(
                lambda rows: (
                    rows["client.run-1"].ready
                    and rows["client.run-1"].sidecar_pid not in (None, first)
                )
            )


def test_the_mesh_ends_in_time_and_leaves_the_command_to_its_caller(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        with begun(mesh, sys.executable, "-c", WAIT) as running:
            mesh.down()
            assert running.poll() is None
            running.send_signal(signal.SIGTERM)
            assert running.wait(PATIENCE_S) == 128 + signal.SIGTERM


def test_signals_are_passed_on_and_the_command_decides(tmp_path: Path) -> None:
    deaf = (
        "import signal, sys\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})\n"
        "print('begun', flush=True)\n"
        "print(signal.sigwait({signal.SIGUSR1}).name, flush=True)\n"
        "signal.pause()\n"
    )
    with Mesh(tmp_path, CONFIG) as mesh:
        mesh.up()
        with begun(mesh, sys.executable, "-c", deaf) as running:
            assert running.stdout is not None
            running.send_signal(signal.SIGUSR1)
            assert running.stdout.readline() == "SIGUSR1\n"
            running.send_signal(signal.SIGTERM)
            assert running.wait(PATIENCE_S) == 7


class Terminal:
    """A terminal with an interactive bash in it."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._seen = ""

    def __enter__(self) -> "Terminal":
        self._pid, self._descriptor = pty.fork()
        if self._pid == 0:
            environment = {**self._mesh.environment, "PS1": "$ ", "TERM": "dumb"}
            os.chdir(self._mesh.folder)
            os.execvpe("bash", ["bash", "--norc", "--noprofile", "--noediting", "-i"], environment)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)
        os.waitpid(self._pid, 0)

    def type(self, text: str) -> None:
        """Type something."""
        os.write(self._descriptor, text.encode())

    def await_text(self, text: str) -> str:
        """Wait until the terminal shows `text`; return what it has shown since the last time."""
        deadline = time.monotonic() + PATIENCE_S
        while text not in self._seen:
            assert time.monotonic() < deadline, f"no {text!r} in {self._seen!r}"
            if select.select([self._descriptor], [], [], 0.2)[0]:
                self._seen += os.read(self._descriptor, 65536).decode(errors="replace")
        shown, _, self._seen = self._seen.partition(text)
        return shown


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_in_a_terminal_it_is_a_job_like_any_other(tmp_path: Path) -> None:
    with Mesh(tmp_path, CONFIG, files={"job.py": JOB}) as mesh:
        mesh.up()
        run = '"$PYTHON" -P -m meshrun run client -- '
        with Terminal(mesh) as terminal:
            terminal.type(f'{run} "$PYTHON" job.py\n')
            terminal.await_text("begun\r")
            terminal.type("\x1a")  # Ctrl-Z
            terminal.await_text("Stopped")
            assert mesh.instance("client.run-1").ready
            terminal.type("fg\n")
            terminal.await_text("SIGCONT\r")
            terminal.type("\x03")  # Ctrl-C
            terminal.await_text("SIGINT\r")
            terminal.type("\x1c")  # Ctrl-\\
            assert "SIGINT" not in terminal.await_text("SIGQUIT\r"), "it came twice"
            terminal.type('echo "code $?"\n')
            terminal.await_text("code 7\r")
            terminal.type(f'{run} tty; echo "code $?"\n')
            assert "/dev/" in terminal.await_text("code 0\r")
            terminal.type("exit\n")
        mesh.await_event("command-ended", "client.run-1", number=2)
