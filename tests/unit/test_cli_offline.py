"""The commands where no mesh runs: from mesh.toml and the state folder."""

import contextlib
import json
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from meshrun.supervisor import cli
from meshrun.supervisor.database import Database
from meshrun.supervisor.happening import Happening
from meshrun.supervisor.logs import Logs
from meshrun.supervisor.statedir import StateDir

MESH = """\
[mesh]
name = "shop"
ports = "{first}-{last}"

[apps.web]
command = "web --port $PORT"
port = 0
upstreams = ["db", {{ service = "cache", as = "fast" }}]
env = {{ GREETING = "it's $5", EMPTY = "" }}

[apps.cache]
command = "cache"
port = {fixed}

[services.db]
address = "127.0.0.1:5432"

[[intentions]]
from = "web"
to = "db"

[[intentions]]
from = "*"
to = "db"
action = "deny"
"""

FIXED = 20961


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a mesh.toml."""
    monkeypatch.delenv("MESHRUN_STATE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mesh.toml").write_text(MESH.format(first=21960, last=21999, fixed=FIXED))
    return tmp_path


@contextlib.contextmanager
def state_of(folder: Path) -> Iterator[StateDir]:
    with contextlib.closing(StateDir.open(folder / ".meshrun", create=True)) as state:
        yield state


def out_of(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """Run a command line; returns what it printed to stdout."""
    assert cli.run(words) == code
    return capsys.readouterr().out


class TestCheck:
    """`meshrun check`."""

    def test_prints_the_plan(self, capsys: pytest.CaptureFixture[str]) -> None:
        lines = out_of(capsys, "check").splitlines()
        assert lines[0] == ("mesh.toml is valid: mesh shop, trust domain shop.mesh, default deny")
        assert any(line.startswith("web.1") and "/svc/web" in line for line in lines)
        assert any("UPSTREAM_FAST_ADDR" in line and "127.0.0.1:219" in line for line in lines)
        calls = [line for line in lines if "=>" in line]
        assert "no intention matches web => cache; the default is deny" in calls[0]
        assert "allowed" in calls[1]
        assert "web => db (allow), mesh.toml:" in calls[1]

    def test_prints_the_plan_as_json(self, capsys: pytest.CaptureFixture[str]) -> None:
        plan = json.loads(out_of(capsys, "check", "-json"))
        assert [i["instance"] for i in plan["instances"]] == ["web.1", "cache.1", "db.1"]
        assert plan["instances"][1]["port"] == FIXED
        calls = {(c["source"], c["destination"]): c for c in plan["calls"]}
        assert set(calls) == {("web", "cache"), ("web", "db"), ("cache", "db")}
        assert calls["web", "db"]["allowed"]
        assert calls["web", "db"]["declared"]
        assert not calls["cache", "db"]["declared"]

    def test_shows_who_shares_the_requests_and_decides_about_each(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        http = 'protocol = "http"\n'
        (folder / "mesh.toml").write_text(
            '[apps.web]\ncommand = "web"\nport = 0\n'
            'upstreams = [{ service = "db", split = { db = 90, db-v2 = 10 } }]\n'
            f'[apps.db]\ncommand = "db"\n{http}[apps.db-v2]\ncommand = "db"\n{http}'
            '[[intentions]]\nfrom = "web"\nto = "db"\n'
        )
        lines = out_of(capsys, "check").splitlines()
        assert any("db (db 90, db-v2 10)" in line and "UPSTREAM_DB_ADDR" in line for line in lines)
        calls = [line.split() for line in lines if "=> db" in line]
        assert [call[2:4] for call in calls] == [["db", "allowed"], ["db-v2", "denied"]]
        assert not any("not an upstream" in line for line in lines)
        plan = json.loads(out_of(capsys, "check", "-json"))
        assert plan["instances"][0]["upstreams"][0]["split"] == {"db": 90, "db-v2": 10}

    def test_counts_runtime_intentions(self, capsys: pytest.CaptureFixture[str]) -> None:
        out_of(capsys, "intentions", "create", "-deny", "-replace", "web", "db")
        assert "web => db (deny), runtime" in out_of(capsys, "check")

    def test_says_of_permissions_that_they_decide_per_request(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        file = folder / "mesh.toml"
        file.write_text(
            '[apps.web]\ncommand = "web"\nport = 0\nupstreams = ["api"]\n'
            '[apps.api]\ncommand = "api"\nprotocol = "http"\n'
            '[[intentions]]\nfrom = "web"\nto = "api"\nmethods = ["GET"]\n'
        )
        call = next(line for line in out_of(capsys, "check").splitlines() if "=>" in line)
        assert call.split()[:5] == ["web", "=>", "api", "per", "request"]
        assert call.endswith("intention web => api (1 permission), mesh.toml:8")
        (found,) = json.loads(out_of(capsys, "check", "-json"))["calls"]
        assert (found["allowed"], found["per_request"]) == (False, True)

    def test_leaves_nothing_behind(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        out_of(capsys, "check")
        assert [path.name for path in folder.iterdir()] == ["mesh.toml"]

    def test_prints_every_mistake(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "mesh.toml").write_text('[apps.a]\ncomand = "x"\n[apps.b]\nport = "y"\n')
        assert cli.run(["check"]) == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) >= 3
        assert all(line.startswith("mesh.toml:") for line in lines)

    def test_warns_of_a_fixed_port_that_is_taken(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            (folder / "mesh.toml").write_text(MESH.format(first=21960, last=21999, fixed=port))
            assert cli.run(["check"]) == 0
        assert f"warning: port {port} of cache.1 is in use by" in capsys.readouterr().err


class TestEnv:
    """`meshrun env`."""

    def test_a_shell_reads_it_back(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "env").write_text(out_of(capsys, "env", "web"))
        shown = subprocess.run(
            ["sh", "-c", '. ./env; printf "%s|%s|%s" "$GREETING" "$MESHRUN_INSTANCE" "${EMPTY-x}"'],
            capture_output=True,
            text=True,
            check=True,
        )
        assert shown.stdout == "it's $5|web.1|"

    def test_is_sorted_and_has_no_marker(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("MESHRUN_RUN_ID", "of another run")
        monkeypatch.setenv("BASH_FUNC_x%%", "() { :; }")
        lines = out_of(capsys, "env", "web").splitlines()
        names = [line.partition("=")[0] for line in lines if line.startswith(("MESHRUN", "BASH"))]
        assert names == ["MESHRUN_APP", "MESHRUN_IDENTITY", "MESHRUN_INSTANCE"]
        values = json.loads(out_of(capsys, "env", "web.1", "--json"))
        assert values["BASH_FUNC_x%%"] == "() { :; }"
        assert "MESHRUN_RUN_ID" not in values

    def test_has_the_ports_of_the_last_run(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with state_of(folder) as state, contextlib.closing(Database.open(state)) as database:
            database.put_ports({"web.1 upstream fast": 21977})
        assert "UPSTREAM_FAST_ADDR=127.0.0.1:21977\n" in out_of(capsys, "env", "web")

    @pytest.mark.parametrize(
        ("name", "said"),
        [
            ("wbe", 'there is no such instance (did you mean "web.1"?)'),
            ("web.2", "there is no such instance"),
            ("db", "it is an external service"),
        ],
    )
    def test_says_what_it_cannot_show(
        self, name: str, said: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert cli.run(["env", name]) == 1
        assert said in capsys.readouterr().err


class TestWhy:
    """`meshrun why SRC DST`."""

    def test_names_the_deciding_intention_and_those_it_outranks(
        self, capsys: pytest.CaptureFixture[str]
    ) -> None:
        lines = out_of(capsys, "why", "web", "db").splitlines()
        assert lines[0] == ("web => db: allowed: intention web => db (allow), mesh.toml:18")
        assert "it outranks * => db (deny), mesh.toml:22 (precedence 8)" in lines[1]

    def test_names_the_default(self, capsys: pytest.CaptureFixture[str]) -> None:
        said = out_of(capsys, "why", "web", "cache")
        assert "denied: no intention matches web => cache; the default is deny" in said
        assert json.loads(out_of(capsys, "why", "web", "cache", "-json"))["intention"] is None

    def test_explains_a_request(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (folder / "mesh.toml").write_text(
            '[apps.web]\ncommand = "web"\n[apps.api]\ncommand = "api"\nprotocol = "http"\n'
            '[[intentions]]\nfrom = "web"\nto = "api"\npermissions = [\n'
            '    { action = "deny", path_prefix = "/admin" },\n'
            '    { action = "allow", methods = ["GET", "HEAD"] },\n]\n'
            '[[intentions]]\nfrom = "*"\nto = "api"\n'
        )
        assert out_of(capsys, "why", "web", "api", "--path", "/x/../admin").splitlines() == [
            "web => api, GET /admin: denied: intention web => api (2 permissions), mesh.toml:6: "
            "permission 1 denies",
            "  of its permissions the first that a request matches decides:",
            "  > 1 deny   path begins with /admin",
            "    2 allow  GET, HEAD",
            "    where none does, the default: deny",
            "  it outranks * => api (allow), mesh.toml:13 (precedence 8): of all that match, the "
            "most exact destination decides, then the most exact source",
        ]

    def test_why_an_app_needs_a_running_mesh(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["why", "web"]) == 1
        assert "no mesh runs" in capsys.readouterr().err


class TestOutput:
    """`meshrun logs` and `meshrun events`."""

    def test_logs_are_merged_by_time_and_aligned(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._write_logs(folder)
        assert out_of(capsys, "logs") == (
            "cache.1 | one\nweb.1   | two\ncache.1 | three\nweb.1   | \udcff\n".replace(
                "\udcff", "\ufffd"
            )
        )
        assert out_of(capsys, "logs", "web", "-n1") == "web.1   | \ufffd\n"
        assert json.loads(out_of(capsys, "logs", "cache.1", "-n", "1", "-json")) == {
            "time": "1970-01-01T00:00:03Z",
            "app": "cache",
            "instance": "cache.1",
            "stream": "stderr",
            "restarts": 2,
            "line": "three",
        }
        assert out_of(capsys, "logs", "--since", "1970-01-01T00:00:03Z") == (
            "cache.1 | three\nweb.1   | \ufffd\n"
        )

    @staticmethod
    def _write_logs(folder: Path) -> None:
        now = [0.0]

        def tick() -> float:
            return now[0]

        with state_of(folder) as state:
            logs = Logs(state, tick, pytest.fail)
            now[0] = 1.0
            logs.write("cache.1", "stdout", [b"one"])
            now[0] = 2.0
            logs.write("web.1", "stdout", [b"two"])
            now[0] = 3.0
            logs.write("cache.1", "stderr", [b"three"], 2)
            now[0] = 4.0
            logs.write("web.1", "stdout", [b"\xff"])
            logs.close()

    def test_an_app_without_logs_is_named(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._write_logs(folder)
        assert cli.run(["logs", "wbe"]) == 1
        assert 'there are no logs of wbe (did you mean "web"?)' in capsys.readouterr().err

    def test_following_needs_a_running_mesh(self, capsys: pytest.CaptureFixture[str]) -> None:
        for command in (["logs"], ["logs", "--access"], ["events"]):
            assert cli.run([*command, "-f"]) == 1
        assert capsys.readouterr().err.count("no mesh runs here") == 3

    def test_following_what_has_ended_prints_it_and_says_so(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self._write_logs(folder)
        assert cli.run(["logs", "-f", "cache"]) == 0
        printed = capsys.readouterr()
        assert printed.out == "cache.1 | one\ncache.1 | three\n"
        assert "no mesh runs here: these are the lines of the last run" in printed.err

    def test_events_are_kept(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        denied = Happening(at=1.5, kind="denied", subject="db", message="no", count=3)
        with state_of(folder) as state, contextlib.closing(Database.open(state)) as database:
            started = Happening(at=1.0, kind="started", subject="web.1", message="web.1 started")
            database.add_events([started, denied])
        lines = out_of(capsys, "events").splitlines()
        assert lines[0].endswith("started     web.1 started")
        assert lines[1].endswith(".500  denied      db: no (3 times)")
        assert [
            json.loads(line)["kind"] for line in out_of(capsys, "events", "-json", "-n1").split()
        ] == ["denied"]

    def test_the_access_log_is_kept(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["logs", "--access"]) == 1
        with state_of(folder) as state:
            logs = Logs(state, lambda: 1.0, pytest.fail)
            logs.write("web.1", "stdout", [b"hello"])
            assert cli.run(["logs", "--access"]) == 1
            line = b'{"time":"2026-11-23T09:08:33Z","kind":"connection","instance":"db.1"}\n'
            logs.append("access", line)
            logs.close()
        nothing, unset = capsys.readouterr().err.splitlines()
        assert "there is no access log: no mesh runs here" in nothing
        assert "set mesh.access_log = true" in unset
        assert out_of(capsys, "logs", "--access", "--json", "db.1") == line.decode()
        assert out_of(capsys, "logs", "--access", "--json", "db.2") == ""
        assert "db.1" not in out_of(capsys, "logs")

    def test_without_a_run_there_is_nothing(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["logs"]) == 1
        assert cli.run(["events"]) == 1
        assert capsys.readouterr().err.count("meshrun: there are no") == 2


class TestDown:
    """`meshrun down`."""

    def test_nothing_to_do_is_no_failure(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert out_of(capsys, "down") == "nothing runs here\n"
        with state_of(folder):
            assert out_of(capsys, "down") == "nothing runs here\n"

    def test_works_with_a_broken_file(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (folder / "mesh.toml").write_text("[apps.\n")
        assert out_of(capsys, "down") == "nothing runs here\n"

    def test_a_supervisor_that_does_not_answer_is_said(
        self, folder: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with state_of(folder) as state:
            state.lock()
            assert cli.run(["down"]) == 1
        assert "holds the folder but does not answer" in capsys.readouterr().err

    def test_a_wrong_time_is_a_usage_error(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.run(["down", "-timeout", "soon"]) == 2
        assert "must be a duration" in capsys.readouterr().err


UNIT = """
[mesh]
name = "shop"
[apps.web]
command = "true"
instances = 2
stop = { timeout = "20s" }
cwd = "web"
upstreams = [{ service = "api", port = 21010 }, { service = "api", as = "other" }]
[apps.api]
command = "true"
"""


def test_export_prints_what_systemd_needs(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "mesh.toml").write_text(UNIT)
    assert cli.run(["export", "systemd", "--state-dir", str(folder / "state")]) == 0
    printed = capsys.readouterr()
    assert f"WorkingDirectory={folder}\n" in printed.out
    assert f"--config={folder}/mesh.toml --state-dir={folder}/state up\n" in printed.out
    assert "TimeoutStopSec=75\n" in printed.out
    assert printed.out.count("ListenStream=127.0.0.1:") == 2
    assert "# /etc/systemd/system/meshrun-shop.socket\n" in printed.out
    assert f"ReadWritePaths={folder}\n" in printed.out


def test_export_writes_files_and_leaves_other_people_s_alone(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mesh.toml").write_text(UNIT)
    for _ in range(2):
        assert cli.run(["export", "systemd", "-output=units"]) == 0
        assert "install it with: sudo cp units/meshrun-shop.service" in capsys.readouterr().out
    files = {path.name for path in (folder / "units").iterdir()}
    assert files == {"meshrun-shop.service", "meshrun-shop.socket"}
    (folder / "units" / "meshrun-shop.service").write_text("[Unit]\n")
    assert cli.run(["export", "systemd", "--output=units"]) == 1
    assert "there is one that meshrun did not write" in capsys.readouterr().err
    assert (folder / "units" / "meshrun-shop.service").read_text() == "[Unit]\n"


def test_export_warns_of_what_would_keep_the_service_from_starting(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "mesh.toml").write_text(UNIT)
    elsewhere = folder.parent / "elsewhere"
    assert cli.run(["export", "systemd", f"--state-dir={elsewhere}", "--user=no-such-user"]) == 0
    assert "there is no user no-such-user here" in capsys.readouterr().err
    assert cli.run(["export", "systemd", f"--state-dir={elsewhere}"]) == 0
    assert f"{elsewhere} is not there, and the service cannot make it" in capsys.readouterr().err
    assert cli.run(["export", "systemd", "--user", "two words"]) == 2
