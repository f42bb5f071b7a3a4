"""The commands of a running mesh, against a canned API on a control socket."""

import contextlib
import json
import os
import re
import socketserver
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import pytest

from meshrun.supervisor import cli
from meshrun.supervisor.statedir import StateDir

ROW = {
    "app": "web",
    "instance": "web.1",
    "state": "running",
    "ready": True,
    "pid": 42,
    "port": 8080,
    "restarts": 3,
    "exit_code": None,
    "uptime_s": 184.2,
    "sidecar_pid": 43,
    "sidecar_pids": [43, 44],
    "sidecar_port": 21000,
    "sidecar_state": "running",
    "sidecar_restarts": 0,
    "cpu_percent": 1.25,
    "memory_bytes": 6 << 20,
    "sidecar_cpu_percent": 0.5,
    "sidecar_memory_bytes": None,
    "reason": None,
    "next_try_in_s": None,
    "unknown_to_this_version": 1,
}
FAILING = ROW | {
    "app": "job",
    "instance": "job.1",
    "state": "crash-loop",
    "ready": False,
    "pid": None,
    "port": None,
    "uptime_s": None,
    "reason": "exited with status 3",
    "next_try_in_s": 12.0,
}
RUN = {
    "run_id": "r",
    "pid": 1,
    "mesh": "shop",
    "file": "mesh.toml",
    "folder": "/",
    "trust_domain": "shop.mesh",
    "default_intention": "deny",
    "started_at": 1.0,
    "state_dir": "/",
    "isolated": False,
}
INTENTION = {
    "ID": "5f0d2c1e-8f4e-5d5b-9c39-0d8d1c1b2a3f",
    "Description": "",
    "SourceNS": "default",
    "SourceName": "web",
    "DestinationNS": "default",
    "DestinationName": "db",
    "SourceType": "consul",
    "Action": "allow",
    "Meta": {},
    "Precedence": 9,
    "CreatedAt": "2026-01-02T03:04:05Z",
    "UpdatedAt": "2026-01-02T03:04:05Z",
    "Origin": "file",
    "Where": "mesh.toml:12",
}
LEAF = {
    "service": "web",
    "instance": "web.1",
    "worker": 1,
    "identity": "spiffe://shop.mesh/ns/default/dc/local/svc/web",
    "serial": "0a",
    "not_before": 1.0,
    "not_after": 2.0,
    "issued_at": 1.0,
}
LINES = [
    {
        "time": "2026-11-24T12:00:00.500000Z",
        "app": app,
        "instance": f"{app}.1",
        "stream": stream,
        "restarts": 1,
        "line": line,
        **more,
    }
    for app, stream, line, more in (
        ("web", "marker", "started, pid 7", {}),
        ("web", "stdout", "hel", {"partial": True}),
        ("web", "stdout", "lo", {}),
        ("job", "stderr", "oh", {}),
    )
]


class Api(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Gives canned answers, and keeps what was asked."""

    daemon_threads = True

    def __init__(self, state: StateDir) -> None:
        super().__init__("", Handler, bind_and_activate=False)
        self.socket.close()
        self.socket = state.listen()
        self.socket.setblocking(True)
        self.answers: dict[str, tuple[int, object]] = {
            "GET /v1/meshrun/run": (200, RUN),
            "GET /v1/meshrun/instances": (200, [ROW, FAILING]),
            "GET /v1/connect/intentions": (200, [INTENTION]),
        }
        self.asked: list[tuple[str, str, object]] = []


class Handler(BaseHTTPRequestHandler):
    """Answers one request; a `bytes` answer is sent as it is, in two chunks."""

    protocol_version = "HTTP/1.1"
    server: Api

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Say nothing."""

    def _answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        url = urlsplit(self.path)
        # A bare connection only asks whether somebody listens.
        self.server.asked.append((f"{self.command} {url.path}", url.query, body))
        status, answer = self.server.answers.get(
            f"{self.command} {url.path}", (404, "no such path")
        )
        self.send_response(status)
        if isinstance(answer, bytes):
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            middle = len(answer) // 2
            for piece in (answer[:middle], answer[middle:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")
            return
        content = (answer if isinstance(answer, str) else json.dumps(answer)).encode()
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the base's names


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Api]:
    """Run the canned API in a folder whose path is longer than a socket's may be."""
    monkeypatch.delenv("MESHRUN_STATE_DIR", raising=False)
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    monkeypatch.chdir(folder)
    with (
        contextlib.closing(StateDir.open(folder / ".meshrun", create=True)) as state,
        Api(state) as server,
    ):
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class Shell:
    """Runs a command line."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, words: str) -> tuple[int, str, str]:
        code = cli.run(words.split())
        said = self._capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_ps_shows_a_table(api: Api, shell: Shell) -> None:
    code, out, _ = shell("ps")
    rows = [line.split() for line in out.splitlines()]
    assert code == 0
    assert rows[1] == [
        *("web.1", "running", "yes", "42", "8080", "3", "3m04s", "1.2%", "6.0MiB"),
        *("43", "21000", "-", "-"),
    ]
    assert out.splitlines()[2].endswith("exited with status 3, next try in 12s")


def test_ps_without_trouble_has_no_reasons(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/meshrun/instances"] = (200, [ROW])
    assert "REASON" not in shell("ps")[1]


def test_ps_as_json(api: Api, shell: Shell) -> None:
    rows = json.loads(shell("ps -json")[1])
    assert {"app", "instance", "state", "exit_code", "sidecar_port"} <= rows[0].keys()
    assert rows[0]["sidecar_memory_bytes"] is None


@pytest.mark.parametrize("action", ["start", "stop", "restart"])
def test_apps_are_acted_on(action: str, api: Api, shell: Shell) -> None:
    outcome = {"instance": "web.1", "state": "running", "ready": True, "reason": ""}
    api.answers[f"POST /v1/meshrun/{action}"] = (200, [outcome])
    assert shell(f"{action} web web.2") == (0, "web.1  running, ready\n", "")
    assert api.asked[-1] == (f"POST /v1/meshrun/{action}", "", {"names": ["web", "web.2"]})


def test_a_start_that_fails_exits_1(api: Api, shell: Shell) -> None:
    outcome = {"instance": "web.1", "state": "failed", "ready": False, "reason": "status 3"}
    api.answers["POST /v1/meshrun/restart"] = (200, [outcome])
    assert shell("restart") == (1, "web.1  failed: status 3\n", "")


def test_the_apis_words_are_shown(api: Api, shell: Shell) -> None:
    api.answers["POST /v1/meshrun/start"] = (404, 'no app "x" runs here')
    assert shell("start x") == (1, "", 'meshrun: no app "x" runs here\n')


def test_another_versions_answer_is_an_error(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/meshrun/instances"] = (200, {"rows": []})
    code, _, error = shell("ps")
    assert code == 1
    assert "was it started by another version of meshrun?" in error


def test_logs_are_aligned(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/meshrun/logs"] = (200, "\n".join(map(json.dumps, LINES)).encode())
    shown = "web.1   | --- started, pid 7\nweb.1   | hel…\nweb.1   | lo\njob.1   | oh\n"
    assert shell("logs") == (0, shown, "")
    assert shell("logs -fn 3 web job.1")[0] == 0
    assert api.asked[-1][1] == "app=web&app=job.1&n=3&follow=1"
    assert [json.loads(line) for line in shell("logs -json")[1].splitlines()] == LINES


@pytest.mark.parametrize(
    ("written", "since"),
    [
        ("2026-11-24T12:00:00.25Z", 1_795_521_600.25),
        ("2026-11-24 12:00+00:00", 1_795_521_600.0),
        ("1970-01-01T00:00:00Z", 0.0),
    ],
)
def test_logs_since_a_time(api: Api, shell: Shell, written: str, since: float) -> None:
    api.answers["GET /v1/meshrun/logs"] = (200, b"")
    assert cli.run(["logs", "--since", written]) == 0
    assert api.asked[-1][1] == f"since={since:.6f}"


def test_logs_since_so_long_ago(api: Api, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    api.answers["GET /v1/meshrun/logs"] = (200, b"")
    monkeypatch.setattr("time.time", lambda: 1000.0)
    assert shell("logs -since 5m")[0] == 0
    assert api.asked[-1][1] == "since=700.000000"
    assert shell("logs -since 24h")[0] == 0
    assert api.asked[-1][1] == "since=0.000000"


@pytest.mark.parametrize("written", ["soon", "5", "2026-13-01", "-5m", "9999-99-99T00:00"])
def test_logs_since_nonsense(shell: Shell, written: str) -> None:
    code, _, said = shell(f"logs --since={written}")
    assert code == 2
    assert "neither a duration such as 5m or 24h nor a time such as 2026-11-24T13:05" in said
    code, _, said = shell("logs --access --since 5m")
    assert (code, "--since is not for --access" in said) == (2, True)


def test_logs_of_an_unknown_app(api: Api, shell: Shell) -> None:
    assert shell("logs wbe")[2] == 'meshrun: there are no logs of wbe (did you mean "web"?)\n'


def test_events_stream(api: Api, shell: Shell) -> None:
    event = {
        "at": 1.0,
        "kind": "denied",
        "subject": "db",
        "message": "a => db",
        "source": "a",
        "destination": "db",
        "count": 2,
    }
    api.answers["GET /v1/meshrun/events"] = (200, json.dumps(event).encode() + b"\n")
    code, out, _ = shell("events -f -n 5")
    assert code == 0
    assert out.rstrip().endswith("denied      a => db (2 times)")
    assert api.asked[-1][1] == "n=5&follow=1"


ENTRY = {
    "time": "2026-11-23T09:08:33.719724Z",
    "kind": "request",
    "source": "web",
    "identity": "spiffe://shop.mesh/ns/default/dc/local/svc/web",
    "destination": "db",
    "instance": "db.1",
    "reporter": "destination",
    "duration_s": 0.00234,
    "received_bytes": 0,
    "sent_bytes": 7,
    "method": "GET",
    "path": "/items",
    "protocol": "HTTP/1.1",
    "status": 200,
}
CONNECTION = {k: v for k, v in ENTRY.items() if k not in ("method", "path", "status")} | {
    "kind": "connection",
    "protocol": "tcp",
    "duration_s": 61.0,
}


def stream(*entries: dict[str, object]) -> tuple[int, bytes]:
    return 200, b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def test_a_tap_prints_a_line_for_each_request(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/meshrun/tap"] = stream(
        ENTRY,
        ENTRY | {"status": 403, "denied": True},
        ENTRY | {"status": 503, "failure": "no instance of db is ready"},
        ENTRY | {"dry_run": True, "duration_s": 1.5},
        ENTRY | {"method": "", "path": "", "status": 400, "failure": "it has no Host"},
    )
    code, out, error = shell("tap web db")
    assert (code, error) == (0, "")
    assert api.asked[0][:2] == ("GET /v1/meshrun/tap", "source=web&destination=db")
    heading, served, denied, failed, trial, none = (line.split() for line in out.splitlines())
    assert heading == [
        *("TIME", "SOURCE", "INSTANCE", "METHOD", "STATUS", "LATENCY", "PATH", "IDENTITY")
    ]
    assert served[1:] == ["web", "db.1", "GET", "200", "2.3ms", "/items", ENTRY["identity"]]
    assert (denied[4], denied[-1]) == ("403", "(denied)")
    assert (failed[4], " ".join(failed[8:])) == ("503", "(no instance of db is ready)")
    assert (trial[5], " ".join(trial[8:])) == ("1s", "(would be denied (dry run))")
    assert (none[3], none[4], none[6]) == ("-", "400", "-")


def test_a_tap_of_a_tcp_service_prints_connections(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/meshrun/tap"] = stream(
        CONNECTION,
        CONNECTION | {"denied": True},
        CONNECTION | {"failure": "it was reset"},
        {"time": ENTRY["time"], "kind": "lost", "instance": "db.1", "lost": 3},
    )
    _, ok, denied, failed, lost = shell("tap web db")[1].splitlines()
    assert "tcp      ok      1m01s     in 0B, out 7B" in ok
    assert "tcp      denied" in denied
    assert "tcp      failed" in failed
    assert failed.endswith("(it was reset)")
    assert lost.endswith("3 more of db.1 are missing: too many at once")


def test_a_tap_as_json_is_what_came(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/meshrun/tap"] = stream(ENTRY, CONNECTION | {"new": 1})
    lines = shell("tap -json * db")[1].splitlines()
    assert [json.loads(line) for line in lines] == [ENTRY, CONNECTION | {"new": 1}]


def test_a_tap_that_is_refused_prints_only_why(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/meshrun/tap"] = (404, 'no service "bd" runs here')
    assert shell("tap web bd") == (1, "", 'meshrun: no service "bd" runs here\n')


def test_the_access_log_has_dates(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/meshrun/access"] = stream(ENTRY)
    code, out, _ = shell("logs --access -f -n 2 web")
    assert code == 0
    assert api.asked[-1][:2] == ("GET /v1/meshrun/access", "app=web&n=2&follow=1")
    assert out.splitlines()[1].startswith("2026-11-2")
    assert json.loads(shell("logs --access -json")[1]) == ENTRY


def test_metrics_are_printed_as_they_are(api: Api, shell: Shell) -> None:
    api.answers["GET /metrics"] = (200, "# HELP a b\na 1\n")
    assert shell("metrics") == (0, "# HELP a b\na 1\n", "")


def test_env_means_the_first_instance(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/meshrun/env/web.1"] = (200, {"B": "two words", "A": "1"})
    assert shell("env web") == (0, "A=1\nB='two words'\n", "")
    api.answers["GET /v1/meshrun/env/web.2"] = (200, {"A": "2"})
    assert json.loads(shell("env web.2 -json")[1]) == {"A": "2"}


def test_why_an_app(api: Api, shell: Shell) -> None:
    found = {
        "instance": "web.1",
        "state": "waiting",
        "ready": False,
        "since": 1_700_000_000.0,
        "reason": "",
        "exit": None,
        "restarts": 0,
        "next_try_in_s": None,
        "waiting_for": ["db"],
        "lines": ["\x1b[31mlast\x1b[0m words\t\x07"],
        "events": [{"at": 1.0, "kind": "stopped", "subject": "web.1", "message": "it stopped"}],
    }
    api.answers["GET /v1/meshrun/why/web"] = (200, [found])
    code, out, _ = shell("why web")
    assert code == 0
    assert re.match(
        r"web\.1 is waiting, not ready, since \d\d:\d\d:\d\d\n  waits for: db\n  last events:\n",
        out,
    )
    assert out.endswith("stopped: it stopped\n  last output:\n    last words\t?\n")
    assert json.loads(shell("why web -json")[1])[0]["waiting_for"] == ["db"]


def test_why_a_call(api: Api, shell: Shell) -> None:
    assert shell("why web db")[1] == (
        "web => db: allowed: intention web => db (allow), mesh.toml:12\n"
    )
    assert "the default is deny" in shell("why web cache")[1]


L7 = {key: value for key, value in INTENTION.items() if key != "Action"} | {
    "DryRun": False,
    "Permissions": [
        {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
        {
            "Action": "allow",
            "HTTP": {
                "Methods": ["GET", "HEAD"],
                "Header": [{"Name": "x-role", "Regex": "a.*", "Invert": True}],
            },
        },
    ],
}


def test_why_a_request(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/connect/intentions"] = (200, [L7])
    asked = "intention web => db (2 permissions), mesh.toml:12"
    listed = [
        "  of its permissions the first that a request matches decides:",
        "    1 deny   path begins with /admin",
        '    2 allow  GET, HEAD, header x-role does not match "a.*"',
        "    where none does, the default: deny",
    ]
    assert shell("why web db")[1].splitlines() == [
        f"web => db: depends on the request: {asked}",
        *listed,
    ]
    lines = shell("why web db --path //admin?x -H x-role=b")[1].splitlines()
    assert lines[0] == f"web => db, GET /admin: denied: {asked}: permission 1 denies"
    assert lines[2] == "  > 1 deny   path begins with /admin"
    assert shell("why web db --method HEAD -H x-role=b")[1].splitlines()[:4] == [
        f"web => db, HEAD /: allowed: {asked}: permission 2 allows",
        listed[0],
        listed[1],
        listed[2].replace("    2", "  > 2"),
    ]
    said = shell("why web db --method POST")[1].splitlines()
    assert said[0].endswith(": no permission matches; the default is deny")
    assert said[1:] == listed
    found = json.loads(shell("why web db --path /admin -json")[1])
    assert found["request"] == {"method": "GET", "path": "/admin"}
    assert (found["allowed"], found["permission"]) == (False, 1)
    assert found["intention"]["Permissions"] == L7["Permissions"]
    found = json.loads(shell("why web db -json")[1])
    assert (found["allowed"], found["depends_on_request"]) == (False, True)

    api.answers["GET /v1/meshrun/run"] = (200, RUN | {"protocols": {"db": "tcp"}})
    assert shell("why web db --path /")[1] == (
        f"web => db, GET /: denied: {asked}: permissions are about HTTP requests, and db is a tcp "
        "service: denied\n"
    )


def test_why_a_dry_run(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/connect/intentions"] = (
        200,
        [INTENTION | {"Action": "deny", "DryRun": True}],
    )
    assert shell("why web db")[1].startswith("web => db: allowed, for a dry run that would deny: ")


def test_why_of_what_is_no_call_or_request(api: Api, shell: Shell) -> None:
    assert shell("why web --path /")[0] == 2
    code, out, error = shell("why web db --path x")
    assert (code, out) == (1, "")
    assert "a sidecar would answer such a request with 400" in error


def test_certs(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/meshrun/certs"] = (200, [LEAF])
    assert "expired" in shell("certs")[1]
    assert json.loads(shell("certs show -json")[1]) == [LEAF]
    root = {
        "trust_domain": "shop.mesh",
        "serial": "0b",
        "not_before": 1.0,
        "not_after": 4e9,
        "active": True,
        "pem": "PEM",
    }
    api.answers["GET /v1/meshrun/roots"] = (200, [root])
    assert shell("certs -roots")[1].splitlines()[1].split()[:2] == ["shop.mesh", "yes"]
    assert json.loads(shell("certs show -roots -json")[1]) == [root]


def test_leaves_show_their_worker_where_a_sidecar_has_several(api: Api, shell: Shell) -> None:
    other = LEAF | {"worker": 2, "serial": "0b"}
    api.answers["GET /v1/meshrun/certs"] = (200, [LEAF])
    assert shell("certs")[1].splitlines()[0].split()[:2] == ["INSTANCE", "ISSUED"]
    api.answers["GET /v1/meshrun/certs"] = (200, [LEAF, other])
    rows = [line.split()[:2] for line in shell("certs")[1].splitlines()]
    assert rows == [["INSTANCE", "WORKER"], ["web.1", "1"], ["web.1", "2"]]


def test_rotate_shows_what_was_rotated(api: Api, shell: Shell) -> None:
    other = LEAF | {"service": "db", "instance": "db.1"}
    api.answers["POST /v1/meshrun/certs/rotate"] = (200, [LEAF, other])
    code, out, _ = shell("certs rotate web")
    assert code == 0
    assert [line.split()[0] for line in out.splitlines()] == ["INSTANCE", "web.1"]
    assert api.asked[-1][2] == {"names": ["web"]}
    assert len(json.loads(shell("certs rotate -json")[1])) == 2


def test_intentions_are_created_by_the_mesh(api: Api, shell: Shell) -> None:
    api.answers["PUT /v1/connect/intentions/exact"] = (200, True)
    code, out, error = shell("intentions create -deny -meta k=v job web")
    assert (code, out, error) == (0, "Created: job => web (deny)\n", "")
    assert api.asked[-1] == (
        "PUT /v1/connect/intentions/exact",
        "source=job&destination=web&replace=0",
        {"SourceType": "consul", "Action": "deny", "Description": "", "Meta": {"k": "v"}},
    )


def test_intentions_about_requests_are_created_by_the_mesh(api: Api, shell: Shell) -> None:
    api.answers["PUT /v1/connect/intentions/exact"] = (200, True)
    code, out, error = shell("intentions create -verb GET,POST -dry-run job web")
    assert (code, out, error) == (0, "Created: job => web (1 permission, dry run)\n", "")
    assert api.asked[-1][2] == {
        "SourceType": "consul",
        "Permissions": [{"Action": "allow", "HTTP": {"Methods": ["GET", "POST"]}}],
        "DryRun": True,
        "Description": "",
        "Meta": {},
    }
    api.answers["GET /v1/meshrun/run"] = (200, RUN | {"protocols": {"web": "tcp"}})
    assert "warning: web is a tcp service" in shell("intentions create -verb GET job web")[2]


def test_requests_are_checked_by_the_mesh(api: Api, shell: Shell) -> None:
    answer = {"Allowed": False, "Reason": "so", "Permission": 2, "DryRun": False}
    api.answers["GET /v1/connect/intentions/check"] = (200, answer)
    words = "intentions check web job --method PUT --path /x?y=1 -H a=b -H c:d"
    assert shell(words) == (1, "Denied\n", "")
    assert parse_qsl(api.asked[-1][1]) == [
        *(("source", "web"), ("destination", "job"), ("method", "PUT"), ("path", "/x?y=1")),
        *(("header", "a=b"), ("header", "c:d")),
    ]
    assert json.loads(shell(f"{words} -json")[1]) == answer
    api.answers["GET /v1/connect/intentions/check"] = (400, "no such request")
    assert shell(words) == (2, "", "meshrun: no such request\n")


def test_an_existing_intention_is_not_replaced_unasked(api: Api, shell: Shell) -> None:
    api.answers["PUT /v1/connect/intentions/exact"] = (409, "it exists; use -replace")
    code, out, error = shell("intentions create -deny web db")
    assert (code, out) == (1, "")
    assert error.endswith("meshrun: it exists; use -replace\n")
    assert api.asked[-1][1] == "source=web&destination=db&replace=0"
    api.answers["PUT /v1/connect/intentions/exact"] = (200, True)
    assert shell("intentions create -deny -replace web db")[:2] == (0, "")
    assert api.asked[-1][1] == "source=web&destination=db&replace=1"


def test_unknown_names_are_warned_of_here_too(api: Api, shell: Shell) -> None:
    api.answers["PUT /v1/connect/intentions/exact"] = (200, True)
    error = shell("intentions create wbe job")[2]
    assert error == 'warning: no service is called wbe (did you mean "web"?)\n'


def test_intentions_are_checked_by_the_mesh(api: Api, shell: Shell) -> None:
    for allowed, code, said in ((True, 0, "Allowed\n"), (False, 1, "Denied\n")):
        answer = {"Allowed": allowed, "Reason": "so"}
        api.answers["GET /v1/connect/intentions/check"] = (200, answer)
        assert shell("intentions check web job") == (code, said, "")
    api.answers["GET /v1/connect/intentions/check"] = (500, "it broke")
    assert shell("intentions check web job") == (2, "", "meshrun: it broke\n")


def test_intentions_are_read_from_the_mesh(api: Api, shell: Shell) -> None:
    assert shell("intentions list")[1].splitlines()[1].split() == [
        *(INTENTION["ID"], "web", "allow", "db", "9", "mesh.toml:12")
    ]
    got = shell(f"intentions get {INTENTION['ID']}")[1]
    assert "Created At:  Friday, 02-Jan-26" in got
    api.answers["GET /v1/connect/intentions/match"] = (200, {"db": [INTENTION]})
    assert shell("intentions match db")[1] == "web => db (allow)\n"
    assert api.asked[-1][1] == "by=destination&name=db"


def test_intentions_are_deleted_by_the_mesh(api: Api, shell: Shell) -> None:
    api.answers["DELETE /v1/connect/intentions/exact"] = (200, True)
    assert shell(f"intentions delete {INTENTION['ID']}") == (0, "Intention deleted.\n", "")
    assert api.asked[-1][1] == "source=web&destination=db"
    api.answers["DELETE /v1/connect/intentions/exact"] = (409, "it stands in mesh.toml:12")
    assert shell("intentions delete web db") == (1, "", "meshrun: it stands in mesh.toml:12\n")


def test_down_waits_for_the_supervisor_but_not_for_ever(api: Api, shell: Shell) -> None:
    api.answers["GET /v1/meshrun/run"] = (200, RUN | {"pid": os.getpid()})
    api.answers["POST /v1/meshrun/down"] = (200, {"pid": os.getpid()})
    code, _, error = shell("down -timeout 10ms")
    assert code == 1
    assert f"the mesh (pid {os.getpid()}) is still stopping after 0.01 s" in error


def test_down_ends_when_the_supervisor_has(api: Api, shell: Shell) -> None:
    with subprocess.Popen(["true"]) as ended:
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        api.answers["GET /v1/meshrun/run"] = (200, RUN | {"pid": ended.pid})
        api.answers["POST /v1/meshrun/down"] = (200, {"pid": ended.pid})
        assert shell("down") == (0, "the mesh has stopped\n", "")
