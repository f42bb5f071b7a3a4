"""`meshrun intentions` without a running mesh: Consul's words and exit codes."""

import json
import os
from pathlib import Path

import pytest

from meshrun.supervisor import cli
from meshrun.supervisor.statedir import StateDir

MESH = """\
[apps.web]
command = "web"
[apps.db]
command = "db"
[[intentions]]
from = "web"
to = "db"
[apps.api]
command = "api"
protocol = "http"
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder with a mesh.toml."""
    monkeypatch.delenv("MESHRUN_STATE_DIR", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mesh.toml").write_text(MESH)
    return tmp_path


class Shell:
    """Runs `meshrun intentions …`."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, *words: str) -> tuple[int, str, str]:
        code = cli.run(["intentions", *words])
        said = self._capsys.readouterr()
        return code, said.out, said.err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_create_says_what_it_created(shell: Shell) -> None:
    assert shell("create", "db", "web") == (0, "Created: db => web (allow)\n", "")
    assert shell("create", "-deny", "*", "web") == (0, "Created: * => web (deny)\n", "")
    assert shell("check", "db", "web") == (0, "Allowed\n", "")


def test_from_and_to_may_stand_for_the_arguments(shell: Shell) -> None:
    assert shell("create", "-from", "db", "-to", "web")[1] == "Created: db => web (allow)\n"
    assert shell("check", "--to=web", "--from=db")[0] == 0
    assert shell("delete", "-to", "web", "-from", "db")[0] == 0


def test_creating_twice_fails_unless_replaced(shell: Shell) -> None:
    shell("create", "db", "web")
    code, out, error = shell("create", "-deny", "db", "web")
    assert (code, out) == (1, "")
    assert "exists already (made at run time); use -replace" in error
    assert shell("create", "-deny", "-replace", "db", "web") == (0, "", "")
    assert shell("check", "db", "web") == (1, "Denied\n", "")


def test_the_files_intention_is_overruled_and_comes_back(shell: Shell) -> None:
    assert "mesh.toml:5" in shell("create", "-deny", "web", "db")[2]
    shell("create", "-deny", "-replace", "web", "db")
    assert shell("check", "web", "db")[0] == 1
    assert shell("delete", "web", "db") == (0, "Intention deleted.\n", "")
    assert shell("check", "web", "db")[0] == 0
    code, _, error = shell("delete", "web", "db")
    assert code == 1
    assert "it stands in mesh.toml:5; remove it there" in error


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("create web", "Error: Must specify two arguments: source and destination"),
        ("create a b c", "Error: Must specify two arguments: source and destination"),
        ("create -from a", "Error: Must specify both -from and -to"),
        ("create -from a b", "Error: Source and destination are either two arguments or"),
        ("create -allow -deny a b", "Error: Only one of -allow or -deny may be specified."),
        ("create -verb GTE a b", "cannot use -verb GTE: a method must be one of GET, HEAD"),
        ("create -verb GTE a b", 'not "GTE" (did you mean "GET"?)'),
        ("create -verb GET,, a b", "cannot use -verb : a method must not be empty"),
        ("create -verb http,GET a b", "-verb http and -verb '*' mean any method"),
        ("create -verb GET a *", "Error: -verb needs one destination"),
        ("create -dry-run a b", "Error: -dry-run would deny nothing"),
        ("create -dry-run -verb http a b", "Error: -dry-run would deny nothing"),
        ("create -verb GET -file x.json", "Error: -verb and -dry-run are not for -file"),
        ("create -dry-run -file x.json", "Error: -verb and -dry-run are not for -file"),
        ("create -meta x a b", "Error: cannot use -meta x: it must be KEY=VALUE"),
        ("create a/b/c/d e", "input can contain at most two '/'"),
        ("create ns/a b", 'a mesh of one machine has only the namespace "default"'),
        ("create we* b", "wildcard character '*' cannot be used with partial values"),
        ("create default/ b", "Error: Name is required"),
        ("create -file", "Error: Must specify at least one file"),
        ("create -file no.json", "Error: cannot read no.json: No such file"),
        ("get a b", 'Intention not found with source "a" and destination "b"'),
        ("get a", "Error: Must specify two arguments, source and destination, or one ID"),
        ("get 5f0d2c1e-8f4e-5d5b-9c39-0d8d1c1b2a3f", "Intention not found with ID"),
        ("delete a b", 'Intention not found with source "a" and destination "b"'),
        ("match", "Error: Must specify exactly one argument"),
        ("match -source -destination a", "Error: Only one of -source or -destination"),
        ("list -nonsense", "No such option"),
    ],
)
def test_failures_exit_1(words: str, said: str, shell: Shell) -> None:
    code, out, error = shell(*words.split())
    assert (code, out) == (1, "")
    assert said in error


@pytest.mark.parametrize("words", ["check web", "check a/b/c/d web", "check -nonsense web db"])
def test_check_exits_2_where_it_cannot_say(words: str, shell: Shell) -> None:
    assert shell(*words.split())[0] == 2


def test_check_exits_2_for_a_broken_file(folder: Path, shell: Shell) -> None:
    (folder / "mesh.toml").write_text("[apps.\n")
    code, out, error = shell("check", "web", "db")
    assert (code, out) == (2, "")
    assert "mesh.toml:1:" in error


def test_consuls_namespaced_names_are_understood(shell: Shell) -> None:
    assert shell("check", "default/web", "default/default/db")[0] == 0


def test_unknown_names_are_warned_of(shell: Shell) -> None:
    code, out, error = shell("create", "wbe", "db")
    assert (code, out) == (0, "Created: wbe => db (allow)\n")
    assert error == 'warning: no service is called wbe (did you mean "web"?)\n'


def test_get_by_pair_and_by_id(shell: Shell) -> None:
    shell("create", "-meta", "b=2", "-meta", "a=1", "-description", "why", "db", "web")
    lines = shell("get", "db", "web")[1].splitlines()
    names = [line.partition(":")[0] for line in lines]
    assert names == [
        *("Source", "Destination", "Action", "ID", "Description", "Meta[a]", "Meta[b]"),
        *("Created At", "Defined In"),
    ]
    identifier = lines[3].split()[-1]
    assert shell("get", identifier)[1].splitlines() == lines
    assert shell("delete", identifier) == (0, "Intention deleted.\n", "")
    assert shell("get", identifier)[0] == 1


def test_list_is_in_evaluation_order_and_says_where(shell: Shell) -> None:
    shell("create", "*", "*")
    shell("create", "-deny", "*", "db")
    rows = [line.split()[1:] for line in shell("list")[1].splitlines()]
    assert rows == [
        ["Source", "Action", "Destination", "Precedence", "Origin"],
        ["web", "allow", "db", "9", "mesh.toml:5"],
        ["*", "deny", "db", "8", "runtime"],
        ["*", "allow", "*", "5", "runtime"],
    ]
    records = json.loads(shell("list", "-json")[1])
    assert [(r["SourceName"], r["Precedence"], r["Origin"]) for r in records] == [
        ("web", 9, "file"),
        ("*", 8, "runtime"),
        ("*", 5, "runtime"),
    ]


def test_an_empty_list_exits_2(folder: Path, shell: Shell) -> None:
    (folder / "mesh.toml").unlink()
    assert shell("list") == (2, "", "There are no intentions.\n")
    assert shell("list", "-json") == (0, "[]\n", "")


def test_match_is_in_evaluation_order(shell: Shell) -> None:
    shell("create", "-deny", "*", "db")
    shell("create", "web", "*")
    assert shell("match", "db")[1].splitlines() == [
        "web => db (allow)",
        "* => db (deny)",
        "web => * (allow)",
    ]
    assert shell("match", "-source", "web")[1].splitlines() == [
        "web => db (allow)",
        "* => db (deny)",
        "web => * (allow)",
    ]
    assert json.loads(shell("match", "-json", "db")[1])[0]["DestinationName"] == "db"


def test_files_in_consuls_json(folder: Path, shell: Shell) -> None:
    (folder / "a.json").write_text(
        '{"SourceName": "db", "DestinationName": "default/web", "Action": "deny", "Unknown": 1}'
    )
    assert shell("create", "-file", "a.json") == (0, "Created: db => web (deny)\n", "")
    (folder / "c.json").write_text("{")
    assert "cannot read an intention from c.json" in shell("create", "-file", "c.json")[2]


L7 = """{
  "SourceName": "web",
  "DestinationName": "api",
  "Permissions": [
    {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
    {"Action": "allow", "HTTP": {"Methods": ["get", "HEAD"], "Header": [
      {"Name": "X-Role", "Exact": "admin", "Invert": true, "IgnoreCase": true}]}}
  ]
}"""


def made_of_requests(folder: Path, shell: Shell) -> None:
    (folder / "l7.json").write_text(L7)
    assert shell("create", "-file", "l7.json") == (0, "Created: web => api (2 permissions)\n", "")


def test_a_file_can_have_permissions(folder: Path, shell: Shell) -> None:
    made_of_requests(folder, shell)
    assert shell("match", "api") == (0, "web => api (2 permissions)\n", "")
    assert "  web     2 permissions  api" in shell("list")[1]
    said = shell("get", "web", "api")[1]
    names = [line.partition(":")[0] for line in said.splitlines()]
    assert names[: names.index("Permissions") + 1] == [
        *("Source", "Destination", "ID", "Created At", "Defined In", "Permissions")
    ]
    shown = said.partition("Permissions:\n")[2]
    assert shown.startswith('[\n  {\n    "Action": "deny",\n    "HTTP": {\n')
    assert json.loads(shown) == [
        {"Action": "deny", "HTTP": {"PathPrefix": "/admin"}},
        {
            "Action": "allow",
            "HTTP": {
                "Header": [
                    {"Name": "x-role", "Exact": "admin", "Invert": True, "IgnoreCase": True}
                ],
                "Methods": ["GET", "HEAD"],
            },
        },
    ]
    record = json.loads(shell("get", "-json", "web", "api")[1])
    assert "Action" not in record
    assert record["Permissions"] == json.loads(shown)
    assert record["DryRun"] is False


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('"Action": "allow", "Permissions": [{}]', "Action must be omitted if Permissions are"),
        ('"Permissions": [{"Action": "allow"}]', "Permissions[0].HTTP is required"),
        ('"Action": "permit"', "Action must be set to 'allow' or 'deny'"),
        ('"DryRun": true', "DryRun would deny nothing"),
        ('"JWT": {"Providers": []}', "JWT is not supported"),
        ('"Permissions": [{"Action": "deny", "JWT": {}}]', "unknown field `JWT`"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(
    content: str, said: str, folder: Path, shell: Shell
) -> None:
    (folder / "x.json").write_text(f'{{"SourceName": "a", "DestinationName": "web", {content}}}')
    code, out, error = shell("create", "-file", "x.json")
    assert (code, out) == (1, "")
    assert "x.json: " in error
    assert said in error


@pytest.mark.parametrize(
    ("words", "kind", "verdicts"),
    [
        ("-verb GET", "1 permission", {"GET": 0, "POST": 1}),
        ("-verb get,POST", "1 permission", {"GET": 0, "POST": 0, "PUT": 1}),
        ("-verb GET -verb PUT", "1 permission", {"GET": 0, "PUT": 0, "POST": 1}),
        ("-allow -verb GET,GET", "1 permission", {"GET": 0}),
        ("-deny -verb DELETE", "1 permission", {"DELETE": 1, "GET": 1}),
        ("-verb http", "allow", {"GET": 0, "POST": 0}),
        ("-verb *", "allow", {"GET": 0}),
        ("-deny -verb HTTP", "deny", {"GET": 1}),
        ("-dry-run -deny", "deny, dry run", {"GET": 0}),
        ("-dry-run -verb GET", "1 permission, dry run", {"GET": 0, "POST": 0}),
    ],
)
def test_verbs_are_methods(words: str, kind: str, verdicts: dict[str, int], shell: Shell) -> None:
    created = shell("create", *words.split(), "-from", "db", "-to", "api")
    assert created == (0, f"Created: db => api ({kind})\n", "")
    for method, code in verdicts.items():
        assert shell("check", "db", "api", "-method", method)[0] == code


def test_a_denied_verb_leaves_the_others_to_the_default(folder: Path, shell: Shell) -> None:
    (folder / "mesh.toml").write_text(MESH + '[mesh]\ndefault_intention = "allow"\n')
    shell("create", "-deny", "-verb", "DELETE", "db", "api")
    assert shell("check", "db", "api", "--method", "DELETE") == (1, "Denied\n", "")
    assert shell("check", "db", "api", "--method", "GET") == (0, "Allowed\n", "")


def test_verbs_of_a_tcp_service_are_warned_of(shell: Shell) -> None:
    code, out, error = shell("create", "-verb", "GET", "db", "web")
    assert (code, out) == (0, "Created: db => web (1 permission)\n")
    assert error == (
        "warning: web is a tcp service: an intention about HTTP requests denies every call to it\n"
    )
    assert shell("check", "db", "web", "--method", "GET")[0] == 1


@pytest.mark.parametrize(
    ("words", "code", "permission"),
    [
        ("", 1, None),
        ("--path /", 0, 2),
        ("--path /admin", 1, 1),
        ("--path /x/../%61dmin?y=1", 1, 1),  # as the sidecar reads it
        ("--path //admin", 1, 1),
        ("--method HEAD", 0, 2),
        ("--method POST", 1, None),
        ("-H x-role=user", 0, 2),
        ("-H x-role:ADMIN --path /", 1, None),
        ("-H x-role=user -H x-role=admin", 1, None),
        ("--header=Host:api.local -H x-role=user", 0, 2),
    ],
)
def test_a_request_is_checked(
    words: str, code: int, permission: int | None, folder: Path, shell: Shell
) -> None:
    made_of_requests(folder, shell)
    # Where the header is absent `Invert` allows nobody.
    given = words if not words or "-H" in words or "admin" in words else f"{words} -H x-role=user"
    said = {0: "Allowed\n", 1: "Denied\n"}[code]
    assert shell("check", "web", "api", *given.split()) == (code, said, "")
    found = json.loads(shell("check", "-json", "web", "api", *given.split())[1])
    assert (found["Allowed"], found["Permission"]) == (code == 0, permission)
    assert "intention web => api (2 permissions), runtime: " in found["Reason"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--method get", "a sidecar would answer such a request with 400: "),
        ("--path x", "would answer such a request with 400: "),
        ("--path /%00", "%00 is in it"),
        ("-H x_role=1", "would answer such a request with 400: "),
        ("-H nothing", "must be NAME=VALUE or NAME:VALUE"),
        ("--method CONNECT", "would answer such a request with 405: "),
    ],
)
def test_check_exits_2_for_what_is_no_request(words: str, said: str, shell: Shell) -> None:
    code, out, error = shell("check", "web", "api", *words.split())
    assert (code, out) == (2, "")
    assert said in error


def test_a_dry_run_is_shown_and_lets_through(shell: Shell) -> None:
    assert shell("create", "-deny", "-dry-run", "db", "api")[1] == (
        "Created: db => api (deny, dry run)\n"
    )
    assert shell("check", "db", "api") == (0, "Allowed\n", "")
    found = json.loads(shell("check", "-json", "db", "api")[1])
    assert (found["Allowed"], found["DryRun"]) == (True, True)
    assert ["Dry", "Run:", "yes"] in [
        line.split() for line in shell("get", "db", "api")[1].splitlines()
    ]


def test_a_run_that_begins_meanwhile_is_not_disturbed(folder: Path, shell: Shell) -> None:
    state = StateDir.open(folder / ".meshrun", create=True)
    try:
        state.lock()
        code, out, error = shell("create", "db", "web")
    finally:
        os.close(state.descriptor)
    assert (code, out) == (1, "")
    assert "it is starting or stopping; try again" in error


def test_reading_leaves_nothing_behind(folder: Path, shell: Shell) -> None:
    for words in ("list", "check web db", "get web db", "match db"):
        shell(*words.split())
    assert [path.name for path in folder.iterdir()] == ["mesh.toml"]
